"""Action tokens sampled one by one after a cached prefix of observation and instruction.

Every FAST token stands for a known number of integers, so sampling allows only tokens that still fit, and a chunk is
done when its integers are complete: the result always decodes, without an end token.

Shapes: B samples, T tokens of the prefix, K keys, V action tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from policies.prts.attention import prefix_mask, real_tokens
from policies.prts.layout import Layout, Role

Step = Callable[[Tensor, Tensor, Tensor, Any], Tensor]


def sample_tokens(
    hidden_BD: Tensor,
    layout: Layout,
    cache: Any,
    step: Step,
    embed: Callable[[Tensor], Tensor],
    logits: Callable[[Tensor], Tensor],
    lengths_V: Tensor,
    total: int,
    temperature: float = 0.0,
) -> list[list[int]]:
    """B lists of token ids whose lengths add up to `total`. hidden (B, D): the prefix's last state; one sample a row.

    temperature 0 takes the likeliest token that fits.
    """
    batch, device = len(hidden_BD), hidden_BD.device
    left_B = torch.full((batch,), total, device=device)
    real_BK = real_tokens(layout)
    position_B = layout.span_S + layout.counts_SR[:, Role.INSTRUCTION]
    chosen: list[list[int]] = [[] for _ in range(batch)]
    for _ in range(total):
        open_B = left_B > 0
        scores_BV = logits(hidden_BD).float().masked_fill(lengths_V > left_B.clamp(min=1)[:, None], -torch.inf)
        token_B = _pick(scores_BV, temperature)
        for i, token in enumerate(token_B.tolist()):
            if open_B[i]:
                chosen[i].append(token)
        left_B = left_B - lengths_V[token_B] * open_B
        if not bool((left_B > 0).any()):
            break
        real_BK = torch.cat([real_BK, open_B[:, None]], dim=1)
        hidden_BD = step(embed(token_B)[:, None], position_B[:, None], prefix_mask(real_BK, 1), cache)[:, 0]
        position_B = position_B + 1
    return chosen


def _pick(scores_BV: Tensor, temperature: float) -> Tensor:
    if temperature <= 0:
        return scores_BV.argmax(-1)
    return torch.multinomial((scores_BV / temperature).softmax(-1), 1)[:, 0]
