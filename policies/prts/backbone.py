"""What PRTS asks of a backbone: tokens of an observation and an instruction in, hidden states under the roles out.

Two of them: `nano.py`, which learns on two CPU cores, and `qwen3vl.py`. Layout, roles, losses and heads are shared.

Shapes: B samples, N tokens of a block, U distinct instructions, T tokens of a row, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from policies.prts.layout import Layout

Batch = dict[str, Any]


@dataclass(frozen=True)
class Observed:
    """The VISION_STATE block of B samples: embeddings (B, N, D), token counts (B,), first position id after it (B,).

    `extras` is the backbone's own (Qwen3-VL: image positions and DeepStack features), as tensors with a leading B.
    """

    tokens_BND: Tensor
    count_B: Tensor
    span_B: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Words:
    """The INSTRUCTION block of U distinct instructions, and which of them each sample has, index (B,).

    tokens (U, N, D) is what the instruction block holds; goal (U, N', D) what CRL_GOAL repeats of it (without the
    prompt's marker).
    """

    tokens_UND: Tensor
    count_U: Tensor
    goal_UND: Tensor
    goal_count_U: Tensor
    index_B: Tensor

    def first(self) -> Tensor:
        """(U,) the first sample that has each instruction."""
        order_B = torch.arange(len(self.index_B), device=self.index_B.device)
        start_U = torch.full((len(self.count_U),), len(order_B), device=order_B.device)
        return start_U.scatter_reduce(0, self.index_B, order_B, "amin")


class Backbone(Protocol):
    """A torch module with these methods. `width` is D; `packs`: it takes all samples of a batch in one row."""

    width: int
    packs: bool

    def set_trainable(self, trainable: bool) -> None:
        """Which of its parameters require gradients: those it trains, or none."""
        ...

    def observe(self, batch: Batch) -> Observed:
        """Images (or cached features) and state after the pipeline -> the VISION_STATE block."""
        ...

    def words(self, texts: Sequence[str]) -> Words:
        """B instructions, each distinct one embedded once."""
        ...

    def run(self, rows_BTD: Tensor, layout: Layout, observed: Observed | None, cache: Any = None) -> Tensor:
        """Embeddings of rows -> last hidden states (B, T, D), float32 outside autocast, under the role-aware mask.
        Fills `cache` when given."""
        ...

    def step(self, x_BND: Tensor, position_BN: Tensor, mask_B1NK: Tensor, cache: Any) -> Tensor:
        """The next N tokens after a cached prefix of K - N -> last hidden states (B, N, D)."""
        ...


def append(tokens_BND: Tensor, count_B: Tensor, token_D: Tensor) -> Tensor:
    """(B, N, D) of `count` real tokens each, and one more token right after them: (B, N + 1, D)."""
    longer_BND = torch.nn.functional.pad(tokens_BND, (0, 0, 0, 1))
    place_N = torch.arange(longer_BND.shape[1], device=count_B.device)
    return torch.where((place_N == count_B[:, None])[..., None], token_D.to(longer_BND.dtype), longer_BND)
