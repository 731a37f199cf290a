"""Small data sets made in memory and on disk."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embodied.data.cache import FrameCache
from embodied.data.cache_build import CacheConfig, build_cache
from embodied.data.source import ColumnSpec, EpisodeInfo
from embodied.schema import ACTION, IMAGE, IMAGE_AGE, STATE

if str(Path(__file__).parent) not in sys.path:
    sys.path.append(str(Path(__file__).parent))


class ArraySource:
    """Episodes held in memory. Frame f of the whole set: image filled with f % 256, state (f, -f), action f + 0.5.

    every: images are those of each episode's every so many-th frame, and their ages a column.
    """

    def __init__(
        self,
        lengths: list[int],
        tasks: list[str] | None = None,
        size: int = 8,
        name: str = "arrays",
        every: int = 1,
    ) -> None:
        self.name, self.fps, self.size, self.every = name, 10.0, size, every
        self.cameras = {IMAGE: (size, size)}
        self.columns = {STATE: ColumnSpec("float32", (2,)), ACTION: ColumnSpec("float32", (1,))}
        if every > 1:
            self.columns[IMAGE_AGE] = ColumnSpec("float32", (1,))
        tasks = tasks or ["lift"] * len(lengths)
        self.episodes = [
            EpisodeInfo(i, n, task, suite="toy", success=i % 2 == 0)
            for i, (n, task) in enumerate(zip(lengths, tasks, strict=True))
        ]
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self.reads = 0

    def _frames(self, episode: int) -> np.ndarray:
        return np.arange(self.starts[episode], self.starts[episode + 1])

    def read_columns(self, episode: int) -> dict[str, np.ndarray]:
        frames = self._frames(episode).astype(np.float32)
        age = np.arange(len(frames), dtype=np.float32)[:, None] % self.every
        return {STATE: np.stack([frames, -frames], 1), ACTION: frames[:, None] + 0.5, IMAGE_AGE: age}

    def read_frames(self, episode: int, camera: str) -> np.ndarray:
        self.reads += 1
        frames = self._frames(episode)
        values = ((frames - np.arange(len(frames)) % self.every) % 256).astype(np.uint8)
        return np.broadcast_to(values[:, None, None, None], (len(values), self.size, self.size, 3)).copy()


@pytest.fixture
def array_source() -> type[ArraySource]:
    return ArraySource


@pytest.fixture
def make_cache(tmp_path: Path) -> Callable[..., FrameCache]:
    def make(
        lengths: list[int], tasks: list[str] | None = None, name: str = "cache", size: int = 8, every: int = 1
    ) -> FrameCache:
        return build_cache(ArraySource(lengths, tasks, size, every=every), tmp_path / name, CacheConfig(size=[]))

    return make


@pytest.fixture
def v3(tmp_path: Path) -> Path:
    """A LeRobot v3 data set of three episodes of 12, 9 and 11 frames."""
    from tiny_datasets import write_v3

    return write_v3(tmp_path / "v3", [12, 9, 11])
