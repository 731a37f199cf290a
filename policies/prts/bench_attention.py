"""What roles cost in one attention layer: the same layer on the same tokens, forward and backward, in several ways.

Arms: `bc` (VISION_STATE, INSTRUCTION, ACTION alone), `roles` (all five blocks, three calls), `dense` (five blocks, one
call under a dense mask) and `flex` (five blocks, torch's compiled FlexAttention, which has no backward pass on a CPU).

Shapes: B samples, T tokens of a row, H heads, D channels of a head.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3RotaryEmbedding

from policies.prts.attention import make_plan, three_calls
from policies.prts.layout import Layout, make_layout
from policies.prts.nano import NanoConfig, _qwen3
from policies.prts.role_mask import role_mask, role_mask_mod

Work = Callable[[], None]


@dataclass(frozen=True)
class Tokens:
    """Token counts of a sample."""

    vision_state: int
    instruction: int
    action: int

    def layout(self, samples: int, contrastive: bool) -> Layout:
        """One sample a row; CRL_ACTION repeats the actions and CRL_GOAL the instruction, one token more each."""
        crl = (self.action + 1, self.instruction + 1) if contrastive else (0, 0)
        return make_layout([[self.vision_state, self.instruction, self.action, *crl]] * samples)


class LayerArms:
    """A whole attention layer of the decoder: projections, norms, rotary embeddings, attention, output."""

    def __init__(self, config: NanoConfig, tokens: Tokens, samples: int, device: str) -> None:
        settings = _qwen3(config)
        self.layer = Qwen3Attention(settings, layer_idx=0).to(device)
        self.rotary = Qwen3RotaryEmbedding(settings).to(device)
        self.samples, self.width, self.device = samples, config.width, device
        self.layouts = {arm: tokens.layout(samples, arm == "all").to(device) for arm in ("bc", "all")}

    def arms(self) -> dict[str, Work]:
        whole = self.layouts["all"]
        return {
            "bc": self._arm(self.layouts["bc"], role_plan=make_plan(self.layouts["bc"])),
            "roles": self._arm(whole, role_plan=make_plan(whole)),
            "dense": self._arm(whole, mask=role_mask(whole)[:, None]),
        }

    def _arm(self, layout: Layout, mask: Tensor | None = None, **kwargs: Any) -> Work:
        rows_BTD = torch.randn(*layout.shape, self.width, device=self.device, requires_grad=True)
        grad_BTD = torch.randn_like(rows_BTD)
        rope = self.rotary(rows_BTD, layout.position_BT)

        def work() -> None:
            self.layer.zero_grad(set_to_none=True)
            rows_BTD.grad = None
            out_BTD, _ = self.layer(rows_BTD, rope, mask, **kwargs)
            out_BTD.backward(grad_BTD)

        return work


class KernelArms:
    """Attention alone: queries, keys and values to outputs, with FlexAttention beside the others.

    backward: whether the gradient is part of the work.
    """

    def __init__(self, config: NanoConfig, tokens: Tokens, samples: int, device: str, backward: bool = True) -> None:
        self.config, self.samples, self.device, self.backward = config, samples, device, backward
        self.layouts = {arm: tokens.layout(samples, arm == "all").to(device) for arm in ("bc", "all")}

    def arms(self) -> dict[str, Work]:
        whole = self.layouts["all"]
        plans = {name: make_plan(layout) for name, layout in self.layouts.items()}
        mask = role_mask(whole)[:, None]
        return {
            "bc": self._arm(self.layouts["bc"], lambda q, k, v: three_calls(q, k, v, plans["bc"], None, 0.0)),
            "roles": self._arm(whole, lambda q, k, v: three_calls(q, k, v, plans["all"], None, 0.0)),
            "dense": self._arm(whole, lambda q, k, v: _dense(q, k, v, mask)),
        }

    def flex(self) -> Work:
        """FlexAttention under the same roles; the first call compiles it, which takes a minute on a CPU."""
        layout = self.layouts["all"]
        length = layout.shape[1]
        blocks = create_block_mask(role_mask_mod(layout), self.samples, None, length, length, device=self.device)
        kernel: Any = torch.compile(flex_attention)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return kernel(*_heads_first(q, k, v), block_mask=blocks, enable_gqa=True).transpose(1, 2)

        return self._arm(layout, attend)

    def _arm(self, layout: Layout, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Work:
        channels = self.config.width // self.config.heads
        heads = (self.config.heads, self.config.key_value_heads, self.config.key_value_heads)
        made = [torch.randn(*layout.shape, h, channels, device=self.device) for h in heads]
        inputs = [value.requires_grad_(self.backward) for value in made]
        grad = torch.randn(*layout.shape, heads[0], channels, device=self.device)

        def work() -> None:
            for value in inputs:
                value.grad = None
            out = attend(*inputs)
            if self.backward:
                out.backward(grad)

        return work


def _heads_first(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def _dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return scaled_dot_product_attention(*_heads_first(q, k, v), attn_mask=mask, enable_gqa=True).transpose(1, 2)


def interleaved(arms: Mapping[str, Work], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of every arm in every round: CPU time of the process, or the clock around a synchronised GPU.

    The arms take turns, in an order that alternates, after one turn that is not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name in list(arms) if number % 2 else reversed(list(arms)):
            before = _now(device)
            arms[name]()
            if number:
                times[name].append(_now(device) - before)
            else:
                _now(device)
    return times


def _now(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def ratio(times: Mapping[str, Sequence[float]], arm: str, base: str = "bc") -> float:
    """The median over rounds of the ratio within a round."""
    pairs = zip(times[arm], times[base], strict=True)
    return float(torch.tensor([a / b for a, b in pairs], dtype=torch.float64).median())


def kept_bytes(work: Callable[[], Tensor], module: nn.Module) -> int:
    """Bytes of the distinct tensors that autograd keeps for the backward pass of `work`, the weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []  # an address is not given out twice while its tensor lives

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        alive.append(work())
    return sum(sizes.values())
