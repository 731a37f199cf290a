"""EDM preconditioning with sigma_data 1 (Karras et al. 2022, "Elucidating the design space"), as Ctrl-World uses it.

    x_s = x + s * eps          D(x_s; s) = c_skip x_s + c_out F(c_in x_s; c_noise)
With sigma_data 1 the network output F is the v of progressive distillation, and w(s) = (s^2 + 1) / s^2 = 1 / c_out^2.
Shapes: B samples, ... any further axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]


@dataclass
class EDMConfig:
    """log_mean, log_std: ln s of training. The sampler: Euler, `steps` from sigma_max to sigma_min, spaced by rho."""

    log_mean: float = 0.7
    log_std: float = 1.6
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    steps: int = 50

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max or self.steps < 1 or self.log_std < 0:
            raise ValueError(f"EDM should have 0 < sigma_min < sigma_max, steps >= 1 and log_std >= 0, got {self}")


@dataclass(frozen=True)
class Coefficients:
    """Each with the shape of sigma."""

    skip: Tensor
    out: Tensor
    inside: Tensor
    noise: Tensor


def coefficients(sigma: Tensor) -> Coefficients:
    """c_skip, c_out, c_in and c_noise."""
    root = (sigma.square() + 1).sqrt()
    return Coefficients(1 / root.square(), -sigma / root, 1 / root, sigma.log() / 4)


def loss_weight(sigma: Tensor) -> Tensor:
    """w(s) = (s^2 + 1) / s^2."""
    return 1 + 1 / sigma.square()


def draw_sigma(config: EDMConfig, count: int, device: torch.device) -> Tensor:
    """(B,), ln s normal."""
    return (torch.randn(count, device=device) * config.log_std + config.log_mean).exp()


def expand(value_B: Tensor, like: Tensor) -> Tensor:
    """(B,) with as many axes of size 1 as `like` has more."""
    return value_B.reshape(-1, *[1] * (like.ndim - 1))


def denoise(network: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma_B: Tensor) -> Tensor:
    """D(x; s). `network` takes the scaled input and c_noise (B,) and gives F."""
    c = coefficients(sigma_B)
    return expand(c.skip, x) * x + expand(c.out, x) * network(expand(c.inside, x) * x, c.noise).to(x.dtype)


def schedule(config: EDMConfig, steps: int | None = None, device: torch.device | str = "cpu") -> Tensor:
    """(steps + 1,) noise levels from sigma_max down, then 0 (Karras et al., eq. 5)."""
    count = steps or config.steps
    ramp = torch.linspace(0, 1, count, device=device)
    low, high = config.sigma_min ** (1 / config.rho), config.sigma_max ** (1 / config.rho)
    return torch.cat([(high + ramp * (low - high)) ** config.rho, torch.zeros(1, device=device)])


def euler(denoiser: Denoiser, noise: Tensor, sigmas: Tensor) -> Tensor:
    """A sample from standard normal `noise` (B, ...) along `sigmas`: x <- x + (s' - s) (x - D) / s."""
    x = noise * sigmas[0]
    for now, after in pairwise(sigmas):
        estimate = denoiser(x, now.expand(len(x)))
        x = estimate if after == 0 else x + (after - now) * (x - estimate) / now
    return x


def noise_like(shape: tuple[int, ...], seeds: list[int], device: torch.device | str = "cpu") -> Tensor:
    """Standard normal (len(seeds), *shape); each row depends on its own seed alone, whatever else is in the batch."""
    rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed % 2**63)) for seed in seeds]
    return torch.stack(rows).to(device)
