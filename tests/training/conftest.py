"""A small frame cache with frozen features and word features already attached, so that no weights are needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from embodied.data.cache import FrameCache
from embodied.data.cache_build import CacheConfig, build_cache
from embodied.data.source import ColumnSpec, EpisodeInfo
from embodied.language import WIDTH
from embodied.schema import ACTION, IMAGE_KEYS, STATE
from policies.bc.model import BehaviourCloning

SMALL = {"width": 16, "depth": 1, "heads": 2, "hidden": 8, "keypoints": 4, "chunk": 3, "image_size": 32}
TEXTS = ("put the bowl on the stove", "open the middle drawer of the cabinet")


class ArraySource:
    """Six episodes of twelve frames in memory."""

    def __init__(self) -> None:
        self.name, self.fps = "small", 20.0
        self.cameras = dict.fromkeys(IMAGE_KEYS, (32, 32))
        self.columns = {STATE: ColumnSpec("float32", (8,)), ACTION: ColumnSpec("float32", (7,))}
        self.episodes = [EpisodeInfo(i, 12, TEXTS[i % 2], suite=f"suite{i % 2}", success=i != 5) for i in range(6)]

    def read_columns(self, episode: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(episode)
        return {key: rng.uniform(-1, 1, (12, *spec.shape)).astype(np.float32) for key, spec in self.columns.items()}

    def read_frames(self, episode: int, camera: str) -> np.ndarray:
        rng = np.random.default_rng([episode, len(camera)])
        return rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)


def build_small_cache(folder: Path) -> FrameCache:
    cache = build_cache(ArraySource(), folder, CacheConfig(size=[32], image_statistics=False))
    model = BehaviourCloning(**SMALL)
    rng = np.random.default_rng(0)
    for name, shape in model.features.columns.items():
        with cache.add_column(name, shape, "float16", model.features.digest) as writer:
            writer.write(0, rng.normal(size=(cache.frames, *shape)).astype(np.float16))
    generator = torch.Generator().manual_seed(0)
    model.language.table = {text: torch.randn(5 + i, WIDTH, generator=generator).half() for i, text in enumerate(TEXTS)}
    model.language.save(folder / f"language.{model.language.name}.safetensors")
    return cache


@pytest.fixture(scope="session")
def small_cache(tmp_path_factory: pytest.TempPathFactory) -> FrameCache:
    return build_small_cache(tmp_path_factory.mktemp("cache") / "small")


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps its precision for the life of the process; each test starts anew."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def train_arguments(cache: Path, run: Path, *more: str) -> list[str]:
    sizes = [f"policy.{key}={value}" for key, value in SMALL.items()]
    data = [f"data.sets.libero_demos.path={cache}", "data.sets.libero_demos.source=null"]
    stage = ["stage.steps=4", "stage.batch_size=4", "stage.warmup=2", "log.every=1", "log.progress=false", "cpu=true"]
    return ["policy=bc", "stage=bc", "data=libero_demos", *sizes, *data, *stage, f"run={run}", *more]


@pytest.fixture
def arguments() -> Any:
    return train_arguments
