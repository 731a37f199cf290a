"""The point-mass environment, importable here and in worker processes and allowed as a target."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from embodied.evaluation.config import Catalogue, EvaluateConfig
from embodied.registry import registry
from embodied.workers import WorkerPool

HERE = str(Path(__file__).parent)
TARGETS = [f"point_mass.{name}" for name in ("PointMassEnv", "Pointing", "Seeing", "tasks", "count_states")]

if HERE not in sys.path:
    sys.path.append(HERE)


@pytest.fixture(autouse=True, scope="session")
def _allowed():
    registry().target(*TARGETS)
    yield
    registry().targets.difference_update(TARGETS)


@pytest.fixture(scope="session")
def pool(_allowed):
    """Two workers for many tests: starting a process is what costs."""
    with WorkerPool(2, timeout=20) as pool:
        yield pool


@pytest.fixture
def settings(tmp_path) -> EvaluateConfig:
    """Three tasks, three episodes each, two workers, no report."""
    return EvaluateConfig(
        env={"_target_": "point_mass.PointMassEnv", "suite": "points", "image_size": 16},
        policy={"_target_": "point_mass.Seeing"},
        catalogue=Catalogue("point_mass.tasks", "point_mass.count_states"),
        episodes=3,
        run=str(tmp_path / "run"),
        report=False,
        call_timeout=20.0,
    )
