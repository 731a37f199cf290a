"""Fidelity of imagined frames: PSNR, SSIM, LPIPS, and the same where something moves.

Images are float tensors (N, 3, H, W) in [-1, 1]; scores are (N,).
SSIM: Wang et al. 2004, Gaussian window of 11 with deviation 1.5, mean over channels and pixels where the window fits.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from embodied.evaluation.world_lpips import Perceptual, perceptual

LOWER_IS_BETTER = ("lpips", "lite0_distance")
PSNR_LIMIT = 60.0  # of equal images


def pixels(images: Tensor) -> Tensor:
    """Images (..., H, W, 3) uint8 -> (..., 3, H, W) in [-1, 1]."""
    return images.movedim(-1, -3).float() / 127.5 - 1


def psnr(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """dB, of a range of 1; 60 for equal images. mask (N, H, W): only where it is true, 60 where it is nowhere."""
    square = ((a - b) / 2).square().mean(1)
    weight = torch.ones_like(square) if mask is None else mask.float()
    error = (square * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)
    return (-10 * error.clamp(min=10 ** (-PSNR_LIMIT / 10)).log10()).clamp(max=PSNR_LIMIT)


def gaussian_window(size: int = 11, deviation: float = 1.5) -> Tensor:
    x = torch.arange(size) - (size - 1) / 2
    row = (-(x**2) / (2 * deviation**2)).exp()
    return (row / row.sum())[:, None] * (row / row.sum())[None]


def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """(N, H', W'), H' = H - 10. ValueError for images smaller than the window."""
    if min(a.shape[-2:]) < 11:
        raise ValueError(f"SSIM needs images of at least 11 x 11, got {tuple(a.shape[-2:])}")
    a, b = (a + 1) / 2, (b + 1) / 2
    window = gaussian_window().to(a).expand(3, 1, 11, 11)

    def blur(x: Tensor) -> Tensor:
        return conv2d(x, window, groups=3)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    both = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return value.mean(1)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    return ssim_map(a, b).mean((1, 2))


def moving(now: Tensor, start: Tensor, threshold: float = 0.1) -> Tensor:
    """(N, H, W) True where a pixel of the truth differs from the start's by more than `threshold` of the range."""
    return ((now - start) / 2).abs().amax(1) > threshold


class FrameMetrics:
    """PSNR, SSIM and a perceptual distance under its own name: "lpips", or "lite0_distance" where LPIPS is missing."""

    def __init__(self, distance: Perceptual | None = None, batch: int = 256) -> None:
        self.distance, self.batch = distance or perceptual(), batch

    @property
    def names(self) -> tuple[str, ...]:
        return ("psnr", "ssim", self.distance.name)

    @torch.no_grad()
    def __call__(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        a, b = a.float().clamp(-1, 1), b.float()
        rows = [self._part(x, y) for x, y in zip(a.split(self.batch), b.split(self.batch), strict=True)]
        return {name: torch.cat([row[name] for row in rows]) for name in self.names}

    def _part(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {"psnr": psnr(a, b), "ssim": ssim(a, b), self.distance.name: self.distance(a, b)}
