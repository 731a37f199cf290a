"""Noise on what a policy reads: on numbers by the loader's generator, on images by torch's; the same after a resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from embodied.data.windows import Batch, Rows, Windows
from embodied.schema import STATE


@dataclass(frozen=True)
class StateNoise:
    """Adds Gaussian noise to a column; `deviation` holds one standard deviation per number, in the column's units.

    Use it in `Windows(relabel=...)`.

    A policy that copies the exact state of its demonstrations drifts; noise makes it look at the images.
    """

    deviation: Sequence[float] = field(default_factory=lambda: (0.005,) * 3 + (0.01,) * 3 + (0.0007,) * 2)
    key: str = STATE

    def __call__(self, batch: Batch, rows: Rows, windows: Windows, rng: np.random.Generator) -> Batch:  # noqa: ARG002
        value = batch[self.key]
        if value.shape[-1] != len(self.deviation):
            raise ValueError(
                f"{self.key} has {value.shape[-1]} numbers, deviation {len(self.deviation)}: give one each"
            )
        noise = rng.standard_normal(value.shape, np.float32) * np.asarray(self.deviation, np.float32)
        return batch | {self.key: value + noise}


class ImageJitter(torch.nn.Module):
    """Shifts and recolours each image on its own, in training; in evaluation images pass unchanged.

    shift: most pixels that an image moves along each axis, its border repeated (DrQ, Kostrikov et al. 2020).
    colour: most by which contrast and each channel's brightness differ from 1.
    """

    def __init__(self, shift: int = 0, colour: float = 0.0) -> None:
        super().__init__()
        if shift < 0 or not 0 <= colour < 1:
            raise ValueError(f"shift should be 0 or more pixels and colour lie in [0, 1), got {shift} and {colour}")
        self.shift, self.colour = shift, colour

    def forward(self, images_NHWC: torch.Tensor) -> torch.Tensor:
        """Images (N, H, W, 3) in 0..255 -> the same, float32 when their colours changed."""
        if not self.training:
            return images_NHWC
        if self.shift:
            images_NHWC = self._shifted(images_NHWC)
        return self._recoloured(images_NHWC) if self.colour else images_NHWC

    def _shifted(self, images_NHWC: torch.Tensor) -> torch.Tensor:
        count, device = len(images_NHWC), images_NHWC.device
        places = []
        for size in images_NHWC.shape[1:3]:
            moved_N1 = torch.randint(-self.shift, self.shift + 1, (count, 1), device=device)
            places.append((torch.arange(size, device=device) + moved_N1).clamp(0, size - 1))
        each_N11 = torch.arange(count, device=device)[:, None, None]
        return images_NHWC[each_N11, places[0][:, :, None], places[1][:, None, :]]

    def _recoloured(self, images_NHWC: torch.Tensor) -> torch.Tensor:
        count, device = len(images_NHWC), images_NHWC.device
        contrast, gain = (
            1 + self.colour * (2 * torch.rand(count, 1, 1, channels, device=device) - 1) for channels in (1, 3)
        )
        images_NHWC = images_NHWC.float()
        mean = images_NHWC.mean(dim=(1, 2, 3), keepdim=True)
        return ((images_NHWC - mean) * contrast + mean).mul(gain).clamp(0, 255)
