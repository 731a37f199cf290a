"""kill -9 of a whole evaluation at several moments, then resuming: nothing twice, nothing lost, equal results."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import point_mass
import pytest
from point_mass import outcomes

from embodied.evaluation.evaluate import evaluate
from embodied.evaluation.records import RECORDS, Outcome, Record, RunFolder, Trajectory
from embodied.io import read_lines, sole_writer
from embodied.protocols import Episode

SCRIPT = """
import sys
from embodied.evaluation.config import Catalogue, EvaluateConfig
from embodied.evaluation.evaluate import evaluate
from embodied.registry import registry
registry().target(*sys.argv[2:])
evaluate(EvaluateConfig(
    env={"_target_": "point_mass.PointMassEnv", "suite": "points", "image_size": 16, "pause": 0.01},
    policy={"_target_": "point_mass.Seeing"},
    catalogue=Catalogue("point_mass.tasks", "point_mass.count_states"),
    episodes=5, run=sys.argv[1], report=False))
"""
TARGETS = [f"point_mass.{name}" for name in ("PointMassEnv", "Seeing", "tasks", "count_states")]


def start(folder: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), *TARGETS],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def count(folder: Path) -> int:
    path = folder / RECORDS
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_killed_runs_end_as_an_undisturbed_one(settings, pool, tmp_path):
    folder = tmp_path / "killed"
    for goal in (1, 4, 9):
        process = start(folder)
        while count(folder) < goal and process.poll() is None:
            time.sleep(0.01)
        assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert count(folder) < 15
    process = start(folder)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    lines = [line["key"] for line in read_lines(folder / RECORDS)]
    assert len(lines) == len(set(lines)) == 15
    undisturbed = evaluate(replace(settings, episodes=5), point_mass.Seeing(), pool=pool)
    assert outcomes(folder) == outcomes(undisturbed.folder)
    assert not [path for path in folder.rglob("*.tmp") if path.suffix != ".tmp"]


def test_a_run_in_progress_keeps_others_out(settings, pool):
    with sole_writer(Path(settings.run)), pytest.raises(ValueError, match="being written by another process"):
        evaluate(settings, point_mass.Seeing(), pool=pool)
    assert len(evaluate(replace(settings, tasks=[0]), point_mass.Seeing(), pool=pool).records) == 3


def test_a_torn_line_is_run_again(settings, pool):
    evaluate(replace(settings, tasks=[0]), point_mass.Seeing(), pool=pool)
    path = Path(settings.run) / RECORDS
    before = outcomes(Path(settings.run))
    path.write_bytes(path.read_bytes()[:-20])
    policy = point_mass.Seeing()
    summary = evaluate(replace(settings, tasks=[0]), policy, pool=pool)
    assert len(policy.batches) > 0
    assert outcomes(summary.folder) == before
    assert len(read_lines(path)) == 3


def test_a_record_is_as_it_was_after_reading(tmp_path):
    record = Record(
        Episode("points", 1, 8, 1, "dark", "go to number 2"),
        "reach_1",
        "move to goal 1",
        Outcome.FAILURE,
        40,
        40,
        "p",
        "d",
        4,
    )
    folder = RunFolder(tmp_path)
    folder.append(record, None)
    assert folder.records() == {record.key: record}
    with pytest.raises(ValueError, match="holds no recorded actions of points/1/i1/s8/dark/go to number 2"):
        folder.trajectory(record.episode)


def test_a_later_line_replaces_an_earlier_one_and_unknown_keys_are_left_out(tmp_path):
    folder = RunFolder(tmp_path)
    episode = Episode("points", 0, 7)
    folder.append(Record(episode, "t", "w", Outcome.ERROR, 0, 40, "p", "d", 4), None)
    folder.append(Record(episode, "t", "w", Outcome.SUCCESS, 9, 40, "p", "d", 4), None)
    text = (tmp_path / RECORDS).read_text()
    (tmp_path / RECORDS).write_text(text.replace('"steps": 9', '"steps": 9, "mood": "good"'))
    assert [(r.outcome, r.steps) for r in folder.records().values()] == [(Outcome.SUCCESS, 9)]


def test_trajectories_hold_actions_and_start_exactly(tmp_path):
    import numpy as np

    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (5, 7)).astype(np.float32)
    start = {"init": rng.normal(size=9), "seed": np.array(3)}
    folder = RunFolder(tmp_path)
    folder.write_trajectory(Episode("points", 0, 7), Trajectory(actions, start))
    back = folder.trajectory(Episode("points", 0, 7))
    np.testing.assert_array_equal(back.actions, actions)
    assert back.snapshot.keys() == start.keys()
    np.testing.assert_array_equal(back.snapshot["init"], start["init"])
