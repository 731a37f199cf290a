"""Tiny world models and a small cache of random episodes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from embodied.data.cache import FrameCache
from embodied.data.cache_build import CacheConfig, build_cache
from embodied.training.bench import RandomSource

sys.path.insert(0, str(Path(__file__).parent))  # for world_parts


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


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps its precision for the life of the process; each test starts anew."""
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
