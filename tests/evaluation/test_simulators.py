"""The whole chain on real simulators: an expert's episodes, replayed by seed and by snapshot, end in the same state."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embodied.config import compose_config, to_dataclass
from embodied.evaluation.evaluate import evaluate
from embodied.evaluation.records import RunFolder
from embodied.evaluation.videos import render_videos
from embodied.protocols import PolicySpec
from embodied.schema import IMAGE_KEYS, STATE
from embodied.workers import WorkerPool

pytestmark = pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="robosuite is not installed")


@pytest.fixture(scope="module")
def simulators():
    """One worker, so that the simulator is imported once."""
    with WorkerPool(1) as pool:
        yield pool


def settings(folder: Path, *overrides: str):
    plain = [f"run={folder}", "report=false", "episodes=1", "workers=1"]
    return to_dataclass(compose_config("evaluate", [*plain, *overrides]))


def ends(folder: Path) -> list[tuple]:
    return [(key, r.outcome, r.steps, r.end) for key, r in sorted(RunFolder(folder).records().items())]


class Looking:
    """Looks at both cameras, does not move, and keeps what it saw."""

    spec = PolicySpec("looking", "0" * 64, 4, 4, image_keys=IMAGE_KEYS, image_size=64)

    def __init__(self) -> None:
        self.seen: list[dict] = []

    def reset(self, slots, episodes) -> None:
        pass

    def act(self, observation, slots) -> np.ndarray:
        self.seen.append(observation)
        return np.zeros((len(slots), 4, 7), np.float32)


def check_chain(pool: WorkerPool, folder: Path, *overrides: str) -> None:
    expert = evaluate(settings(folder / "expert", "policy=expert", *overrides), pool=pool)
    assert expert.all.success == 1
    source = f"policy.source={folder / 'expert'}"
    for name in ("true", "false"):
        replay = ["policy=replay", source, f"policy.from_snapshot={name}", *overrides]
        evaluate(settings(folder / name, *replay), pool=pool)
        assert ends(folder / name) == ends(folder / "expert")


@pytest.mark.slow
def test_robosuite(simulators, tmp_path):
    lift = ("env=robosuite", "tasks=[0]")
    check_chain(simulators, tmp_path, *lift)
    looking = Looking()
    config = replace(settings(tmp_path / "look", *lift), max_steps=8)
    summary = evaluate(config, looking, pool=simulators)
    assert [batch[STATE].shape for batch in looking.seen] == [(1, 8)] * 2
    for key in IMAGE_KEYS:
        first, second = (batch[key] for batch in looking.seen)
        assert first.shape == (1, 64, 64, 3)
        assert first.std() > 10  # not blank
        assert second.dtype == np.uint8
    clips = render_videos(RunFolder(summary.folder), config.env, summary.records, 1, size=64, pool=simulators)
    assert [(clip.frames, clip.fps, clip.exact) for clip in clips] == [(9, 20, True)]


@pytest.mark.slow
@pytest.mark.libero
def test_libero(simulators, tmp_path):
    check_chain(simulators, tmp_path, "env=libero_object", "tasks=[0]")
