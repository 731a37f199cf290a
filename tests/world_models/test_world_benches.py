"""The benchmarks of world models on tiny ones: they run, and say what they should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embodied.bench.world import WorldBench
from embodied.bench.world_state import BRANCHES, WorldStateBench, figures
from embodied.checkpoint import list_steps


class Gap:
    name = "lpips"

    def __call__(self, a: Any, b: Any) -> Any:
        return (a - b).abs().mean((1, 2, 3))


def test_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embodied.evaluation.world_metrics.perceptual", Gap)
    tiny = ["nano.size=[16,16]", "nano.latent=6", "nano.channels=[32,32]", "nano.attend=[false,true]", "nano.heads=2",
            "memory.history=[0,-1]", "memory.chunk=2", "edm.steps=2", "world.action_width=32", "posttrain.candidates=2",
            "posttrain.contexts=2", "posttrain.own=1", "posttrain.lengths=[1,1]", "posttrain.steps=2",
            "posttrain.round=2", "posttrain.batch=2"]  # fmt: skip
    bench = WorldBench(rows=[2], batch_size=2, repeats=1, size=16, overrides=[f"world_model.{word}" for word in tiny])
    found = {figure.name: figure for figure in bench.run(lambda line: None)}
    assert found["imagined_frames_per_second.cpu.rows2"].value > 0
    assert found["posttraining_s.cpu"].baseline == found["teacher_forcing_s.cpu"].value
    assert found["memory_mb.cpu"].value > 100


def test_state_comparison_runs_and_goes_on(world_cache: Any, tmp_path: Path) -> None:
    words = ["world_model.world.action_key=action", "world_model.state.width=16", "world_model.edm.steps=2"]
    post = "+world_model.change.posttrain={candidates:2,contexts:2,own:0,lengths:[1,1],steps:2,round:2,batch:4}"
    bench = WorldStateBench(
        str(tmp_path), str(world_cache.folder), seeds=[0], base_steps=4, post_steps=2, batch_size=4, holdout=0.5,
        interactions=2, starts=1, overrides=words, post_overrides=[post],
    )  # fmt: skip
    with pytest.raises(ValueError, match="no held-out episode of 6"):
        bench.run(lambda line: None)  # episodes of 40 frames are too short for the real list
    made = [list_steps(tmp_path / "seed0" / branch / "checkpoints") for branch in BRANCHES]
    assert all(made)
    other = WorldStateBench(**{**bench.settings, "history_noise": 2.0})
    with pytest.raises(ValueError, match="was trained with"):
        other.run(lambda line: None)
    infos = [json.loads((steps[-1] / "config.json").read_text())["info"] for steps in made]
    assert infos[1]["cpu_seconds"] > 0
    assert infos[2]["step"] == infos[3]["step"] >= 1


def test_state_figures_by_hand() -> None:
    def side(errors: list[float]) -> dict[str, np.ndarray]:
        values = np.array(errors)
        return {"error": values, "one_chunk": values / 10, "position_mm": values * 100, "episode": np.array([0, 1])}

    row = {"base": side([1.0, 2.0]), "contrastive": {**side([0.5, 3.0]), "spread": np.array([0.2, 0.4])}}
    row |= {"teacher_forcing": side([0.6, 4.0]), "history_noise": side([0.4, 2.5])}
    values = {figure.name: figure.value for figure in figures([row])}
    assert values["state.contrastive.error"] == pytest.approx(1.75)
    assert values["state.base.one_chunk"] == pytest.approx(0.15)
    assert values["state.win_rate"] == pytest.approx(0.5)
    assert values["state.win_rate_over_teacher_forcing"] == pytest.approx(1.0)
    assert values["state.win_rate_over_history_noise"] == pytest.approx(0.0)
    assert values["state.reward_spread"] == pytest.approx(0.3)
