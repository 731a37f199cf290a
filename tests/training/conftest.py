"""A small frame cache with frozen features and word features already attached, so that no weights are needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from embodied.data.cache import FrameCache
from embodied.training.bench import random_cache
from policies.bc.model import BehaviourCloning

SMALL = {"width": 16, "depth": 1, "heads": 2, "hidden": 8, "keypoints": 4, "chunk": 3, "image_size": 32}


@pytest.fixture(scope="session")
def small_cache(tmp_path_factory: pytest.TempPathFactory) -> FrameCache:
    return random_cache(tmp_path_factory.mktemp("cache") / "small", BehaviourCloning(**SMALL))


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps its precision for the life of the process; each test starts anew."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def train_arguments(cache: Path, run: Path, *more: str) -> list[str]:
    sizes = [f"policy.{key}={value}" for key, value in SMALL.items()]
    data = [f"data.sets.libero_demos.path={cache}", "data.sets.libero_demos.source=null", "data.holdout=0"]
    stage = ["stage.steps=4", "stage.batch_size=4", "stage.warmup=2", "log.every=1", "log.progress=false", "cpu=true"]
    return ["policy=bc", "stage=bc", "data=libero_demos", *sizes, *data, *stage, f"run={run}", *more]


@pytest.fixture
def arguments() -> Any:
    return train_arguments
