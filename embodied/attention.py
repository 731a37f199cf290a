"""Scaled dot-product attention with the one exception that training on a CPU needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def attend(query_BHQD: Tensor, key_BHKD: Tensor, value_BHKD: Tensor, **options: Any) -> Tensor:
    """torch's scaled_dot_product_attention, (B, H, Q, D), in `value`'s dtype; on a CPU computed in float32 at least.

    torch 2.11's CPU kernel takes five times longer for the gradient in bfloat16 than in float32 (short sequences), and
    autocast would choose bfloat16 for it.
    """
    if query_BHQD.device.type != "cpu" or query_BHQD.dtype == torch.float64:
        return scaled_dot_product_attention(query_BHQD, key_BHKD, value_BHKD, **options)
    with torch.autocast("cpu", enabled=False):
        mixed = scaled_dot_product_attention(query_BHQD.float(), key_BHKD.float(), value_BHKD.float(), **options)
    return mixed.to(value_BHKD.dtype)
