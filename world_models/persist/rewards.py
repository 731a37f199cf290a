"""How good candidates are: fidelity to the recorded future, per view and metric, compared within the group.

Shapes: G groups, K candidates, T frames, V views, H W pixels, M metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from embodied.evaluation.world_metrics import LOWER_IS_BETTER, FrameMetrics
from world_models.persist.contrastive import group_advantage


@dataclass(frozen=True)
class GroupRewards:
    """advantage (G, K); spread: metric -> mean over groups and views of the deviation within the group."""

    advantage: Tensor
    spread: dict[str, float]
    scores: dict[str, Tensor]  # metric -> (G, K, V), means over the clip


def clip_scores(metrics: FrameMetrics, imagined: Tensor, truth: Tensor, valid_GT: Tensor) -> dict[str, Tensor]:
    """Pixels (G, K, T, V, 3, H, W) and (G, T, V, 3, H, W) in [-1, 1] -> metric -> means over the clip (G, K, V)."""
    truth = truth[:, None].expand_as(imagined)
    shape = imagined.shape[:4]
    frames = metrics(imagined.flatten(0, 3), truth.flatten(0, 3))
    weight = valid_GT[:, None, :, None].float()
    return {name: (value.view(shape) * weight).sum(2) / weight.sum(2).clamp(min=1) for name, value in frames.items()}


def group_rewards(scores: Mapping[str, Tensor], weights: Mapping[str, float]) -> GroupRewards:
    """Each metric and view z-scored within its group, signs turned so that more is better, weighted, z-scored again."""
    parts, spread = [], {}
    for name, value_GKV in scores.items():
        weight = weights.get(name, weights.get("lpips", 0.0) if name in LOWER_IS_BETTER else 0.0)
        sign = -1.0 if name in LOWER_IS_BETTER else 1.0
        z = torch.stack([group_advantage(sign * view) for view in value_GKV.unbind(2)], dim=2)
        parts.append(weight * z.mean(2))
        spread[name] = float(value_GKV.std(1, unbiased=False).mean())
    return GroupRewards(group_advantage(torch.stack(parts).sum(0)), spread, dict(scores))


class ImageScore:
    """Per camera PSNR, SSIM and LPIPS of decoded candidates against the decoded future."""

    def __init__(self, space: Any, metrics: FrameMetrics | None = None) -> None:
        self.space, self.metrics = space, metrics or FrameMetrics()

    @torch.no_grad()
    def __call__(self, frames: Tensor, future: Tensor, weights: Mapping[str, float]) -> GroupRewards:
        """Latents (G, K, T, *L) and (G, T, *L). Never in bfloat16: SSIM's variances are small differences."""
        valid = torch.ones(future.shape[:2], device=future.device)
        with torch.autocast(frames.device.type, enabled=False):
            imagined = self.space.pixels(frames.float().flatten(0, 1)).unflatten(0, frames.shape[:2])
            scores = clip_scores(self.metrics, imagined, self.space.pixels(future.float()), valid)
            return group_rewards(scores, weights)
