"""A snapshot and the actions repeat an episode exactly, ours and those of the demonstrations at hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from embodied import schema
from sim.make import make_env

CASES = [
    pytest.param("libero_goal", 0, 2, marks=pytest.mark.libero, id="init-state"),
    pytest.param("libero_goal", 0, None, marks=pytest.mark.libero, id="drawn"),
    pytest.param("robosuite", 0, None, id="lift"),
]


@pytest.mark.parametrize(("suite", "task", "init_state"), CASES)
def test_a_snapshot_repeats_the_episode(tmp_path: Path, suite: str, task: int, init_state: int | None) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 7))
    env = make_env(suite, task, image_size=32)
    env.reset(seed=21, options={"init_state": init_state})
    np.savez(tmp_path / "start.npz", **env.snapshot())
    env.run_steps(actions)
    state, seen = env.sim.get_state().flatten(), env.observe()
    env.close()

    fresh = make_env(suite, task, image_size=32)
    fresh.reset(seed=4)
    with np.load(tmp_path / "start.npz", allow_pickle=False) as stored:
        fresh.reset(options={"snapshot": dict(stored)})
    fresh.run_steps(actions)
    np.testing.assert_array_equal(fresh.sim.get_state().flatten(), state)
    for key, value in fresh.observe().items():
        np.testing.assert_array_equal(value, seen[key])
    for key, value in fresh.snapshot().items():
        if init_state is None or key != "warmstart":
            np.testing.assert_array_equal(value, np.load(tmp_path / "start.npz")[key], err_msg=key)
    fresh.close()


def _episodes(demos: Path) -> list[dict]:
    return [json.loads(line) for line in (demos / "records/episodes.jsonl").read_text().splitlines()]


def _video_frames(demos: Path, episode: int, frames: list[int]) -> list[np.ndarray]:
    """Decoded external-camera frames of one episode."""
    av, parquet = pytest.importorskip("av"), pytest.importorskip("pyarrow.parquet")
    tables = [parquet.read_table(path).to_pylist() for path in sorted((demos / "meta/episodes").rglob("*.parquet"))]
    row = next(row for table in tables for row in table if row["episode_index"] == episode)
    key = f"videos/{schema.IMAGE}"
    name = f"chunk-{row[f'{key}/chunk_index']:03d}/file-{row[f'{key}/file_index']:03d}.mp4"
    first = round(row[f"{key}/from_timestamp"] * schema.CONTROL_HZ)
    wanted = {first + frame: frame for frame in frames}
    found = {}
    with av.open(str(demos / "videos" / schema.IMAGE / name)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in wanted:
                found[wanted[index]] = frame.to_ndarray(format="rgb24")
            if len(found) == len(wanted):
                break
    return [found[frame] for frame in frames]


@pytest.mark.libero
@pytest.mark.data
@pytest.mark.parametrize("episode", [0, 61])
def test_recorded_demonstrations_replay_to_success_and_look_the_same(outside_data: Path, episode: int) -> None:
    demos = outside_data / "libero_demos"
    if not demos.is_dir():
        pytest.skip("EMBODIED_DATA has no libero_demos")
    pandas = pytest.importorskip("pandas")
    record = _episodes(demos)[episode]
    with np.load(demos / f"records/{episode:04d}.npz", allow_pickle=False) as stored:
        snapshot = dict(stored)
    rows = pandas.concat([pandas.read_parquet(path) for path in sorted((demos / "data").rglob("*.parquet"))])
    states = np.stack(rows[rows.episode_index == episode].sort_values("frame_index")[schema.STATE].to_numpy())
    middle = len(states) // 2

    env = make_env(record["suite"], record["task"])
    observation, _ = env.reset(seed=record["seed"], options={"snapshot": snapshot})
    replayed, images = [observation[schema.STATE]], [env.observe()[schema.IMAGE]]
    for step, action in enumerate(snapshot["executed"], start=1):
        env.run_steps(action[None], stop_at_success=False)
        replayed.append(env.observe(images=False)[schema.STATE])
        if step == middle:
            images.append(env.observe()[schema.IMAGE])
    assert env.success()
    np.testing.assert_allclose(replayed[: len(states)], states, rtol=0, atol=1e-6)
    env.close()
    for image, coded in zip(images, _video_frames(demos, episode, [0, middle]), strict=True):
        mirrored = np.abs(image[:, ::-1].astype(int) - coded).mean()
        assert np.abs(image.astype(int) - coded).mean() < 4.0 < mirrored
