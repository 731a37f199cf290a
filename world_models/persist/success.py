"""Whether a task is done, seen in one moment's images: what says success inside the world model.

A small convolutional network over the cameras at the world model's size, modulated by the instruction. Trained on
simulator frames: the last frames of successful episodes are done, frames long before the end and all frames of failed
ones are not, those between are left out.

Shapes: B samples, V cameras, H W pixels, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from embodied.data.windows import Relabel, WindowConfig
from embodied.language import WIDTH, LanguageTower
from embodied.schema import IMAGE_KEYS, TASK
from embodied.transforms import Transform
from world_models.persist.codec import to_pixels


class SuccessClassifier(nn.Module):
    """A TrainableModel with one stage. done, undone: frames before the end that count as done, as not done."""

    stages = ("success",)
    features = None

    def __init__(
        self, size: int = 64, width: int = 96, done: int = 10, undone: int = 25, language: str = "minilm-l6"
    ) -> None:
        super().__init__()
        self._arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if not 0 < done <= undone:
            raise ValueError(f"done should lie in 1..undone, got {done} and {undone}")
        self.size, self.done, self.undone = size, done, undone
        self.language, self.frozen = LanguageTower(language), (language,)
        channels = [3 * len(IMAGE_KEYS), width // 3, 2 * width // 3, width, width]
        self.layers = nn.ModuleList([nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(channels)])
        self.words = nn.Sequential(nn.Linear(WIDTH, width), nn.GELU(), nn.Linear(width, 2 * width))
        self.head = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 1))

    def config(self) -> dict[str, Any]:
        return dict(self._arguments)

    def transforms(self) -> list[Transform]:
        return []

    def windows(self, stage: str) -> WindowConfig:
        self.set_stage(stage)
        return WindowConfig(observations=list(IMAGE_KEYS), actions=[], chunk=1)

    def relabel(self, stage: str) -> list[Relabel]:
        self.set_stage(stage)
        return []

    def set_stage(self, stage: str) -> None:
        if stage not in self.stages:
            raise ValueError(f"the success classifier has the stage success, got {stage!r}")

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """Images (B, H, W, 3) uint8 and instructions -> logits (B,)."""
        views = [to_pixels(batch[key], (self.size, self.size)) for key in IMAGE_KEYS]
        x = torch.cat(views, dim=1)
        words, mask = (value.to(x.device) for value in self.language(list(batch[TASK])))
        pooled = (words * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        scale_BD, shift_BD = self.words(pooled).chunk(2, dim=1)
        for layer in self.layers:
            x = nn.functional.gelu(layer(x))
        x = x * (1 + scale_BD[..., None, None]) + shift_BD[..., None, None]
        x = nn.functional.gelu(x)
        return self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1))[:, 0]

    def labels(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Targets (B,) and which samples count (B,). Unknown success is taken for success: demonstrations are."""
        steps, failed = batch["steps_to_go"], batch["success"] == 0
        done = (steps < self.done) & ~failed
        return done.float(), (done | (steps >= self.undone) | failed).float()

    def training_step(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        target_B, counts_B = self.labels(batch)
        logit_B = self(batch)
        weight_B = counts_B * torch.where(target_B > 0, 3.0, 1.0)  # done frames are the rarer ones
        loss = (cross_entropy(logit_B, target_B, reduction="none") * weight_B).sum() / weight_B.sum().clamp(min=1)
        right = (((logit_B > 0).float() == target_B).float() * counts_B).sum() / counts_B.sum().clamp(min=1)
        return loss, {"accuracy": right.detach()}

    @torch.no_grad()
    def probability(self, batch: Mapping[str, Any]) -> Tensor:
        return self(batch).sigmoid()
