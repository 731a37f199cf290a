"""Tiny world models and a small cache of random episodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from embodied.data.cache import FrameCache
from embodied.data.cache_build import CacheConfig, build_cache
from embodied.training.bench import RandomSource
from world_models.persist.nano import PersistNano

TINY = {
    "nano": {"size": [16, 16], "latent": 6, "channels": [32, 32], "attend": [False, True], "heads": 2},
    "world": {"action_width": 32},
    "memory": {"history": [0, -2, -1], "chunk": 2, "skip": 2},
    "edm": {"log_mean": 0.0, "log_std": 1.2, "sigma_max": 20.0, "steps": 3},
}


class MovingSource(RandomSource):
    """Random episodes whose states move slowly, so that percentiles and rotations are sound."""

    def read_columns(self, episode: int) -> dict[str, np.ndarray]:
        columns = super().read_columns(episode)
        columns["observation.state"] = np.cumsum(columns["observation.state"] * 0.02, axis=0).astype(np.float32)
        return columns


@pytest.fixture(scope="session")
def world_cache(tmp_path_factory: pytest.TempPathFactory) -> FrameCache:
    folder = tmp_path_factory.mktemp("worlds") / "cache"
    return build_cache(MovingSource(4, 40, 16), folder, CacheConfig(size=[16], image_statistics=False))


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


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps its precision for the life of the process; each test starts anew."""
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
