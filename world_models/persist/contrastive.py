"""The contrastive diffusion objective (DiffusionNFT, arXiv 2509.16117) in the x0 form of PersistWorld.

    D+ = (1 - b) D_old + b D        D- = (1 + b) D_old - b D
    L  = E w(s) [ r |D+ - x|^2 + (1 - r) |D- - x|^2 ] / b  (+ kl |D - D_ref|^2)

For a fixed (x_s, s, c) the minimiser is D_old + (2 / b) Cov_old(r, x | x_s, c). D is affine in the network output, so
the same function serves in x0, F (= v) and flow form: give outputs and targets of one form and the weight of its error.
Shapes: B samples, ... axes of a sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from world_models.persist.edm import coefficients, expand


def contrastive_loss(
    new: Tensor, old: Tensor, target: Tensor, reward_B: Tensor, beta: float, weight_B: Tensor | None = None
) -> Tensor:
    """Per sample (B,). reward_B: r in [0, 1]. weight_B: w(s) in x0 form, w(s) c_out^2 = 1 in F form."""
    if beta <= 0:
        raise ValueError(f"beta should be positive, got {beta}")
    plus, minus = (1 - beta) * old + beta * new, (1 + beta) * old - beta * new
    loss_B = (reward_B * mean_square(plus - target) + (1 - reward_B) * mean_square(minus - target)) / beta
    return loss_B if weight_B is None else weight_B * loss_B


def mean_square(difference: Tensor) -> Tensor:
    """(B, ...) -> (B,)."""
    return difference.square().flatten(1).mean(1)


def minimiser(old: Tensor, covariance: Tensor, beta: float) -> Tensor:
    """D* = D_old + (2 / b) Cov_old(r, x | x_s, c)."""
    return old + (2 / beta) * covariance


def group_advantage(reward_BK: Tensor) -> Tensor:
    """A = (R - mean over the K candidates) / std; 0 where all are alike."""
    centred = reward_BK - reward_BK.mean(1, keepdim=True)
    deviation = centred.square().mean(1, keepdim=True).sqrt()
    return torch.where(deviation > 1e-8, centred / deviation.clamp(min=1e-8), torch.zeros_like(centred))


def optimality(advantage: Tensor, clip: float) -> Tensor:
    """r = clip(A, -a, a) / a / 2 + 1/2."""
    return advantage.clamp(-clip, clip) / clip / 2 + 0.5


def to_f(x0: Tensor, noisy: Tensor, sigma_B: Tensor) -> Tensor:
    """The network output F whose D is x0."""
    c = coefficients(sigma_B)
    return (x0 - expand(c.skip, noisy) * noisy) / expand(c.out, noisy)


def to_flow(x0: Tensor, noisy: Tensor, sigma_B: Tensor) -> Tensor:
    """The velocity eps - x0 of rectified flow, x_t = (1 - t) x0 + t eps with t = s / (1 + s)."""
    sigma = expand(sigma_B, noisy)
    return (noisy - x0) / sigma - x0


def flow_weight(sigma_B: Tensor) -> Tensor:
    """What turns squared errors of the velocity into those of x0."""
    return (sigma_B / (1 + sigma_B)).square()
