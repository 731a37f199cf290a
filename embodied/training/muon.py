"""timm's Muon, in float32 on processors that only emulate bfloat16.

Its Newton-Schulz iterations run in bfloat16, which is what makes them cheap on a GPU and on recent server CPUs. A CPU
without bfloat16 instructions computes such products dozens of times more slowly than float32 ones. timm has no setting
for it, so its function is given another number format for the length of a step.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.optim import muon


def emulates_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 matrices are emulated there."""
    return device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Muon(muon.Muon):
    """See the module. The first parameter's device decides."""

    def step(self, closure: Any = None) -> Any:
        if not emulates_bfloat16(self.param_groups[0]["params"][0].device):
            return super().step(closure)
        original = muon.zeropower_via_newtonschulz
        muon.zeropower_via_newtonschulz = partial(original, dtype=torch.float32)
        try:
            return super().step(closure)
        finally:
            muon.zeropower_via_newtonschulz = original
