"""Collecting end to end on a small exact environment: labels, noise, failures, crashes, kill -9, rendering again."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("pyarrow")

import av
import pyarrow.parquet as pq

from embodied.collecting.collect import Collected, collect
from embodied.collecting.config import CollectConfig, Goal, Noisy, Phase
from embodied.collecting.crew import Job
from embodied.collecting.demonstrate import Disturbance, compare
from embodied.collecting.plan import plan_episodes
from embodied.collecting.rendering import in_order
from embodied.data.episode_record import EpisodeLine, EpisodeRecord, RecordFolder, find_records
from embodied.data.lerobot_layout import video_path
from embodied.data.lerobot_reader import LeRobotSource
from embodied.data.lerobot_writer import committed_episodes
from embodied.protocols import Task
from embodied.registry import registry
from embodied.schema import ACTION, EXECUTED_ACTION, IMAGE, STATE

OBJECTS = "collect_objects"
TARGETS = tuple(f"{OBJECTS}.{name}" for name in ("PointEnv", "PointExpert", "tasks", "others", "PointLearner"))


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    registry().target(*TARGETS, "embodied.collecting.demonstrate.Demonstrator")
    return {
        "env": {"_target_": TARGETS[0], "suite": "points", "task": 0},
        "expert": {"_target_": TARGETS[1]},
        "task_list": TARGETS[2],
        "size": 64,
        "workers": 1,
        "timeout": 60.0,
        "episodes": 3,
    }


def run(settings: dict, out: Path, **more: object) -> Collected:
    return collect(CollectConfig(**{**settings, **more, "out": str(out)}))


def content(folder: RecordFolder) -> dict[str, EpisodeRecord]:
    return {line.key: folder.load(line) for line in folder.lines()}


def assert_same_records(left: Path, right: Path) -> None:
    first, second = content(find_records(left)), content(find_records(right))
    assert first.keys() == second.keys()
    for key, record in first.items():
        other = second[key]
        assert replace(record.line, seconds=0.0) == replace(other.line, seconds=0.0)
        for name in ("executed", "intended", "states"):
            np.testing.assert_array_equal(getattr(record, name), getattr(other, name))
        for name, value in record.snapshot.items():
            np.testing.assert_array_equal(value, other.snapshot[name])


def frames_of(out: Path) -> dict[str, np.ndarray]:
    table = pq.ParquetFile(out / "data/chunk-000/file-000.parquet").read()
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


TASKS = [Task("points", index, f"t{index}", f"go {index}", 50) for index in range(3)]


def test_plan_seeds_noise_and_goals(settings: dict) -> None:
    config = CollectConfig(episodes=2, tasks=[0, 2], goals=[Goal(2, "go elsewhere", [["on", "a", "b"]])], out="x")
    plan = plan_episodes(config, TASKS)
    assert [(e.task, e.seed, e.noise, e.variant) for e in plan] == [
        (0, 200_000, 0.0, ""),
        (0, 200_001, 0.06, ""),
        (2, 202_000, 0.0, ""),
        (2, 202_001, 0.06, ""),
        (2, 202_000, 0.0, "go elsewhere"),
        (2, 202_001, 0.06, "go elsewhere"),
    ]
    assert len({e.key for e in plan}) == 6
    every = plan_episodes(replace(config, noisy=Noisy.every), TASKS)
    assert {e.noise for e in every} == {0.06}
    listed = replace(config, goals=[], tasks=[2], other_goals=[2], own_goals=False, goal_list="collect_objects.others")
    assert [(e.task, e.goal, e.variant) for e in plan_episodes(listed, TASKS)] == 2 * [(2, [["on", "c", "d"]], "swap")]
    with pytest.raises(ValueError, match=r"other_goals of .* should be among 1 to 2, got 3"):
        plan_episodes(replace(listed, other_goals=[3]), TASKS)
    with pytest.raises(ValueError, match="among 0 to 2 of points, got 7"):
        plan_episodes(replace(config, tasks=[7]), TASKS)
    with pytest.raises(ValueError, match="episodes should be 1 to 1000"):
        plan_episodes(replace(config, episodes=1001), TASKS)


@pytest.mark.parametrize("memory", [0.0, 0.9])
def test_noise_is_on_translations_and_a_third_on_rotations_never_on_the_gripper(memory: float) -> None:
    action = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)
    disturb = Disturbance(0.06, memory, np.random.default_rng(0))
    noisy = np.stack([disturb(action) for _ in range(40_000)])
    np.testing.assert_allclose(noisy[:, :3].std(0), 0.06, rtol=0.05)
    np.testing.assert_allclose(noisy[:, 3:6].std(0), 0.02, rtol=0.05)
    for column in range(6):
        assert np.corrcoef(noisy[:-1, column], noisy[1:, column])[0, 1] == pytest.approx(memory, abs=0.02)
    assert np.all(noisy[:, 6] == 1)
    assert Disturbance(0.0, memory, np.random.default_rng(0))(action) is action
    assert Disturbance(1.0, memory, np.random.default_rng(0))(np.ones(7, np.float32)).max() == 1


def test_correlated_noise_is_part_of_an_episodes_identity(tmp_path: Path, settings: dict) -> None:
    run(settings, tmp_path / "d", tasks=[0], noise=0.2)
    lines = run(settings, tmp_path / "d", tasks=[0], noise=0.2, noise_memory=0.9).lines
    assert [line.key.split("/")[-1] for line in lines] == ["n0", "n0.2", "n0", "n0.2m0.9"]
    assert len({line.file for line in lines}) == 4
    with pytest.raises(ValueError, match=r"noise_memory should lie in \[0, 1\), got 1"):
        run(settings, tmp_path / "d", noise_memory=1.0)


def test_noise_stays_out_of_what_touches(tmp_path: Path, settings: dict) -> None:
    """The expert that has arrived rests three steps, undisturbed; without `noise_free` these are disturbed too."""
    lines = run(settings, tmp_path / "d", tasks=[0], noise=0.3, noise_memory=0.9).lines
    lines = [*lines, *run(settings, tmp_path / "d", tasks=[0], noise=0.3, noise_memory=0.9, noise_free=True).lines]
    records = RecordFolder(tmp_path / "d" / "records")
    noisy = {line.key.split("/")[-1]: records.load(line) for line in lines if line.noise}
    assert set(noisy) == {"n0.3m0.9", "n0.3m0.9f"}
    changed = {key: (record.executed != record.intended).any(axis=1) for key, record in noisy.items()}
    assert changed["n0.3m0.9"].all()
    assert changed["n0.3m0.9f"][:-3].any()
    assert not changed["n0.3m0.9f"][-2:].any()


def test_results_come_in_the_order_of_the_lines() -> None:
    lines = [EpisodeLine("s", 0, seed, 0.0, "w", True, 2) for seed in range(4)]
    finished = [(Job({}, "", "", (), lines[seed].key), seed) for seed in (2, 0, 3, 1)]
    assert list(in_order(lines, iter(finished))) == [(line, line.seed) for line in lines]


def test_end_to_end(tmp_path: Path, settings: dict) -> None:
    """Two tasks, noise on odd episodes, a failure in each; then the failures too; then another goal in the scene."""
    out = tmp_path / "d"
    done = run(settings, out, episodes=4, tasks=[0, 1], workers=2)
    assert (done.errors, len(done.lines), done.episodes) == (0, 8, 6)
    assert [line.seed for line in done.lines if not line.success] == [200_003, 201_003]
    rows = committed_episodes(out)
    assert [(r["task_index"], r["seed"]) for r in rows] == [
        (t, 200_000 + 1000 * t + k) for t in (0, 1) for k in range(3)
    ]
    check_rows(out, rows)
    assert json.loads((out / "meta/stats.json").read_text())[ACTION]["count"] == [done.frames]

    goals = [Goal(0, "go there again", [["at", "point", "target"]])]
    done = run(settings, out, episodes=4, tasks=[0, 1], keep_failures=True, goals=goals)
    rows = committed_episodes(out)[6:]
    assert {(r["seed"], r["success"], *r["tasks"]) for r in rows} == {
        *((seed, seed != 200_003, "go there again") for seed in range(200_000, 200_004)),
        (200_003, False, "go to the target 0"),
        (201_003, False, "go to the target 1"),
    }
    lines = {line.key: line for line in done.lines}
    assert lines["points/0/s200002/n0/go there again"].goal == [["at", "point", "target"]]


def test_the_expert_takes_over_from_a_learner(tmp_path: Path, settings: dict) -> None:
    """Its first 60 steps are in the record, not in the data set; an episode in which it succeeds has none to show."""
    out, settings = tmp_path / "d", {**settings, "tasks": [0], "learner": {"_target_": TARGETS[4]}, "lead": [60, 60]}
    done = run(settings, out, noisy=Noisy.none)
    assert (done.errors, len(done.lines), done.episodes) == (0, 3, 2)
    helped = [line for line in done.lines if line.seed != 200_001]
    assert [(line.key, line.success) for line in helped] == [
        (f"points/0/s{seed}/n0/lead60", True) for seed in (200_000, 200_002)
    ]
    frames, records = frames_of(out), content(find_records(out))
    for row in committed_episodes(out):
        record, here = records[row["record"]], frames["episode_index"] == row["episode_index"]
        assert here.sum() == record.line.steps - 60
        np.testing.assert_allclose(record.executed[:60], np.tile([0.2, 0, 0, 0, 0, 0, 0], (60, 1)), atol=1e-6)
        np.testing.assert_array_equal(frames[ACTION][here], record.intended[60:])
        np.testing.assert_array_equal(frames[STATE][here], record.states[60:-1])
        np.testing.assert_allclose(record.states[-1][:3], record.states[-1][3:6], atol=0.02)
    (alone,) = (record for record in records.values() if record.line.seed == 200_001)
    assert alone.line.success
    assert alone.line.steps < 60
    assert run(settings, out, noisy=Noisy.none).frames == done.frames
    with pytest.raises(ValueError, match=r"lead should be the least and the most steps .* got \[9, 3\]"):
        run(settings, out, lead=[9, 3])


def check_rows(out: Path, rows: list[dict]) -> None:
    """Labels, executed actions and states are the records'; the image shows the state before the action."""
    frames, records = frames_of(out), content(find_records(out))
    for row in rows:
        record, here = records[row["record"]], frames["episode_index"] == row["episode_index"]
        np.testing.assert_array_equal(frames[ACTION][here], record.intended)
        np.testing.assert_array_equal(frames[EXECUTED_ACTION][here], record.executed)
        np.testing.assert_array_equal(frames[STATE][here], record.states[:-1])
        assert np.array_equal(record.intended, record.executed) == (row["seed"] % 2 == 0)
        np.testing.assert_allclose(record.states[-1][:3], record.states[-1][3:6], atol=0.02)
        with av.open(str(video_path(out, IMAGE, row["episode_index"]))) as video:
            shown = np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])
        left = shown[:, :, 0].mean(1)  # the environment draws its position there: 100 (position + 0.5)
        np.testing.assert_allclose(left, np.maximum(100 * (record.states[:-1, :3] + 0.5), 0), atol=8)


def test_more_episodes_are_added_and_nothing_is_repeated(tmp_path: Path, settings: dict) -> None:
    run(settings, tmp_path / "d", episodes=1, tasks=[0])
    held = {path: path.stat().st_mtime_ns for path in (tmp_path / "d").rglob("*.npz")}
    held |= {path: path.stat().st_mtime_ns for path in (tmp_path / "d").rglob("*.mp4")}
    done = run(settings, tmp_path / "d", episodes=2, tasks=[0, 1])
    assert done.episodes == 4
    assert len(held) == 3
    assert all(path.stat().st_mtime_ns == before for path, before in held.items())


def test_a_worker_that_crashes_or_hangs_costs_no_episode(tmp_path: Path, settings: dict) -> None:
    trouble = tmp_path / "trouble"
    trouble.mkdir()
    (trouble / "200000").write_text("crash")
    (trouble / "200002").write_text("hang")
    env = {**settings["env"], "trouble": str(trouble)}
    started = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embodied.workers.START_ALLOWANCE", 10.0)
        done = run(settings, tmp_path / "d", env=env, tasks=[0], phase=Phase.physics, timeout=3.0)
    assert time.monotonic() - started < 60
    assert done.errors == 0
    run(settings, tmp_path / "calm", tasks=[0], phase=Phase.physics)
    assert_same_records(tmp_path / "d", tmp_path / "calm")


def test_wrong_settings_end_it_at_once(tmp_path: Path, settings: dict) -> None:
    env = {**settings["env"], "image_size": "large", "trouble": 7}
    with pytest.raises(ValueError, match="the first 3 jobs all failed: TypeError"):
        run(settings, tmp_path / "d", env=env, tasks=[0], episodes=9, attempts=1)


def test_a_replay_that_diverges_is_not_committed(tmp_path: Path, settings: dict) -> None:
    run(settings, tmp_path / "d", tasks=[0], phase=Phase.physics)
    trouble = tmp_path / "trouble"
    trouble.mkdir()
    (trouble / "200001").write_text("drift")
    env = {**settings["env"], "trouble": str(trouble)}
    done = run(settings, tmp_path / "d", env=env, tasks=[0])
    assert done.errors == 1
    assert [row["seed"] for row in committed_episodes(tmp_path / "d")] == [200_000, 200_002]
    error = json.loads((tmp_path / "d/errors.jsonl").read_text())
    assert error["summary"].startswith("replay diverged: the state before step 0 differs by up to 0.001")


def test_final_simulator_states_are_compared() -> None:
    line = EpisodeLine("s", 0, 1, 0.0, "w", True, 2)
    record = EpisodeRecord(line, {}, np.zeros((2, 7)), np.zeros((2, 7)), np.zeros((3, 8)), np.array([1.0, 2.0]))
    states = np.ones((3, 8))
    assert compare(record, states, True, np.array([1.0, 2.0]), 0.0) is None
    assert (
        "final simulator state differs by up to 1e-09"
        in compare(record, states, True, np.array([1.0, 2 + 1e-9]), 0.0).reason
    )
    assert compare(record, states, True, np.array([1.0, 2 + 1e-9]), 1e-8) is None
    assert "ends in failure" in compare(record, states, False, np.array([1.0, 2.0]), 0.0).reason


def test_rendering_again_at_another_size(tmp_path: Path, settings: dict) -> None:
    run(settings, tmp_path / "small", tasks=[0])
    done = run(settings, tmp_path / "large", render_from=str(tmp_path / "small"), size=96)
    assert done.episodes == 3
    assert_same_records(tmp_path / "small", tmp_path / "large")
    small, large = frames_of(tmp_path / "small"), frames_of(tmp_path / "large")
    for key in (STATE, ACTION, EXECUTED_ACTION, "timestamp"):
        np.testing.assert_array_equal(small[key], large[key])
    info = json.loads((tmp_path / "large/meta/info.json").read_text())
    assert info["features"]["observation.images.image2"]["shape"] == [96, 96, 3]
    with pytest.raises(ValueError, match=r"another layout: images is .*; write to another folder"):
        run(settings, tmp_path / "small", tasks=[0], size=96)


def test_cameras_may_look_at_every_third_step_only(tmp_path: Path, settings: dict) -> None:
    run(settings, tmp_path / "all", tasks=[0])
    run(settings, tmp_path / "third", tasks=[0], image_every=3)
    dense, sparse = frames_of(tmp_path / "all"), frames_of(tmp_path / "third")
    for key in (STATE, ACTION, EXECUTED_ACTION, "timestamp", "index"):
        np.testing.assert_array_equal(dense[key], sparse[key])
    age = sparse["image_age"]
    np.testing.assert_array_equal(age, sparse["frame_index"] % 3)
    every, third = (
        np.concatenate([LeRobotSource(tmp_path / name).read_frames(i, IMAGE) for i in range(3)]).astype(int)
        for name in ("all", "third")
    )
    shown = every[np.arange(len(age)) - age.astype(int)]
    assert np.abs(third - shown).max() <= 8  # what video compression changes
    assert np.abs(every - shown).max() > 8
    with pytest.raises(ValueError, match="another layout: columns is"):
        run(settings, tmp_path / "all", tasks=[0], image_every=3)
    with pytest.raises(ValueError, match="another layout: image_every is 3 there, 2 asked for"):
        run(settings, tmp_path / "third", tasks=[0], image_every=2)
    with pytest.raises(ValueError, match="image_every should be 1 or more, got 0"):
        run(settings, tmp_path / "none", tasks=[0], image_every=0)


COMMAND = """
import sys
sys.path[:0] = [{here!r}]
from embodied.registry import registry
registry().target(*{targets!r})
from embodied.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_kill_9_of_the_command_at_random_moments(tmp_path: Path, settings: dict) -> None:
    """Killed while recording and while rendering, then run to its end: all equals an undisturbed run, bit for bit."""
    out, calm = tmp_path / "d", tmp_path / "calm"
    code = COMMAND.format(here=str(Path(__file__).parent), targets=TARGETS)
    hold = tmp_path / "hold"
    overrides = [f"env._target_={TARGETS[0]}", "env.suite=points", f"+env.hold={hold}", f"task_list={TARGETS[2]}"]
    overrides += [f"expert._target_={TARGETS[1]}", "size=64", "tasks=[0,1]", "episodes=4", f"out={out}"]
    overrides += ["workers=1"]  # each worker has an environment of its own, which counts for itself
    command = [sys.executable, "-c", code, "collect", *overrides]
    chance = random.Random(1)
    for kind, sign in (("steps", out / "records/episodes.jsonl"), ("images", out / "meta/info.json")):
        hold.write_text(f"{kind} {chance.randint(25, 40)}")  # a task's first episode has fewer, all together more
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(sign)
        time.sleep(chance.uniform(0, 0.4))
        assert process.poll() is None, "it should still be at work"
        process.send_signal(signal.SIGKILL)
        process.wait()
    hold.unlink()
    assert 1 <= len(committed_episodes(out)) < 6
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "data set of 6 episodes" in done.stdout
    run(settings, calm, tasks=[0, 1], episodes=4)
    assert_same_records(out, calm)
    left, right = frames_of(out), frames_of(calm)
    for key, values in left.items():
        np.testing.assert_array_equal(values, right[key])
    for video in sorted((calm / "videos").rglob("*.mp4")):
        assert (out / video.relative_to(calm)).read_bytes() == video.read_bytes()


def wait_for(path: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} should have appeared"
        time.sleep(0.02)
