"""Tiny world models for the tests of this folder."""

from __future__ import annotations

from typing import Any

import torch

from world_models.persist.nano import PersistNano

TINY = {
    "nano": {"size": [16, 16], "latent": 6, "channels": [32, 32], "attend": [False, True], "heads": 2},
    "world": {"action_width": 32},
    "memory": {"history": [0, -2, -1], "chunk": 2, "skip": 2},
    "edm": {"log_mean": 0.0, "log_std": 1.2, "sigma_max": 20.0, "steps": 3},
}


def tiny_nano(**more: Any) -> PersistNano:
    torch.manual_seed(0)
    return PersistNano(**{**TINY, **more})


def tiny_batch(model: Any, count: int = 3, frames: int | None = None, seed: int = 0) -> dict[str, Any]:
    """Random frames and actions of the model's training window, or of `frames` frames."""
    generator = torch.Generator().manual_seed(seed)
    frames = frames or model.memory.frames
    shape = (count, frames, 16, 16, 3)
    batch: dict[str, Any] = {
        key: torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) for key in model.space.keys
    }
    batch["frame_action"] = torch.randn(count, frames, model.frame_actions.width, generator=generator)
    return batch
