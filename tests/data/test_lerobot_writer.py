"""The data set writer: what LeRobot reads equals what was given, and kill -9 at any moment costs nothing committed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("pyarrow")

from embodied.data.lerobot_layout import Layout, simulation_layout, table_path
from embodied.data.lerobot_writer import EncodedEpisode, EpisodeWriter, committed_episodes, encode_episode
from embodied.data.video_writer import VideoCodec, VideoSettings, count_frames, encode_video
from embodied.schema import ACTION, EXECUTED_ACTION, IMAGE, STATE, WRIST_IMAGE

SIZE = 64


def frames_of(index: int, length: int) -> dict[str, np.ndarray]:
    """Smooth images whose brightness says which frame of which episode they are."""
    ramp = np.linspace(0, 60, SIZE)[None, :, None] * np.ones((SIZE, 1, 3))
    shade = 40 + 20 * (index % 3) + np.arange(length)[:, None, None, None] * 4
    images = np.clip(ramp[None] + shade, 0, 255).astype(np.uint8)
    return {IMAGE: images, WRIST_IMAGE: images[:, ::-1].copy()}


def columns_of(index: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(index)
    action = rng.uniform(-1, 1, (length, 7)).astype(np.float32)
    return {
        STATE: rng.normal(size=(length, 8)).astype(np.float32),
        ACTION: action,
        EXECUTED_ACTION: np.clip(action + 0.06, -1, 1),
    }


def metadata_of(index: int) -> dict[str, object]:
    return {
        "record": f"r{index}",
        "suite": "made_up",
        "task_index": index % 2,
        "seed": 200_000 + index,
        "success": index % 3 != 2,
        "noise": 0.06 * (index % 2),
    }


def episode_of(writer: EpisodeWriter, index: int) -> EncodedEpisode:
    length = 5 + index % 4
    folder = writer.staging / str(index)
    task = f"do thing {index % 2}"
    return encode_episode(
        folder, writer.layout, columns_of(index, length), frames_of(index, length), task, metadata_of(index)
    )


def write(root: Path, start: int, stop: int, layout: Layout | None = None) -> None:
    with EpisodeWriter.open(root, layout or simulation_layout(SIZE)) as writer:
        for index in range(start, stop):
            assert writer.append(episode_of(writer, index)) == index
        writer.finalize()


def open_with_lerobot(root: Path):
    pytest.importorskip("lerobot")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset("local/test", root=root, return_uint8=True)


def check_with_lerobot(root: Path, episodes: int) -> None:
    dataset = open_with_lerobot(root)
    assert dataset.num_episodes == episodes
    assert len(dataset) == sum(5 + i % 4 for i in range(episodes))
    position = 0
    for index in range(episodes):
        length = 5 + index % 4
        columns, images = columns_of(index, length), frames_of(index, length)
        for frame in (0, length // 2, length - 1):
            item = dataset[position + frame]
            assert int(item["episode_index"]) == index
            assert int(item["frame_index"]) == frame
            assert item["task"] == f"do thing {index % 2}"
            for key, values in columns.items():
                np.testing.assert_array_equal(item[key].numpy(), values[frame])
            for key, values in images.items():
                shown = item[key].numpy().transpose(1, 2, 0).astype(int)
                assert np.abs(shown - values[frame]).mean() < 2.5, (index, frame, key)
        position += length


@pytest.mark.parametrize("codec", list(VideoCodec))
def test_lerobot_reads_what_was_written_and_appended(tmp_path: Path, codec: VideoCodec) -> None:
    layout = simulation_layout(SIZE, VideoSettings(codec=codec))
    write(tmp_path / "d", 0, 2, layout)
    write(tmp_path / "d", 2, 4, layout)
    check_with_lerobot(tmp_path / "d", 4)
    rows = committed_episodes(tmp_path / "d")
    assert [row["seed"] for row in rows] == [200_000, 200_001, 200_002, 200_003]
    assert [row["success"] for row in rows] == [True, True, False, True]
    assert rows[3]["suite"] == "made_up"
    assert rows[3]["task_index"] == 1


def test_windows_of_actions_as_training_reads_them(tmp_path: Path) -> None:
    pytest.importorskip("lerobot")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    write(tmp_path / "d", 0, 2)
    dataset = LeRobotDataset("local/test", root=tmp_path / "d", delta_timestamps={ACTION: [0.0, 0.05, 0.1]})
    item = dataset[4]  # the last frame of episode 0, which has 5
    np.testing.assert_array_equal(item[ACTION].numpy(), columns_of(0, 5)[ACTION][[4, 4, 4]])
    assert item["action_is_pad"].tolist() == [False, True, True]


def test_statistics_are_those_of_all_values(tmp_path: Path) -> None:
    write(tmp_path / "d", 0, 3)
    stats = json.loads((tmp_path / "d/meta/stats.json").read_text())
    lengths = [5, 6, 7]
    actions = np.concatenate([columns_of(i, n)[ACTION] for i, n in enumerate(lengths)]).astype(np.float64)
    np.testing.assert_allclose(stats[ACTION]["mean"], actions.mean(0))
    np.testing.assert_allclose(stats[ACTION]["q01"], np.quantile(actions, 0.01, axis=0))
    assert stats[ACTION]["count"] == [18]
    pixels = np.concatenate([frames_of(i, n)[IMAGE] for i, n in enumerate(lengths)]).reshape(-1, 3) / 255
    np.testing.assert_allclose(np.ravel(stats[IMAGE]["mean"]), pixels.mean(0))
    np.testing.assert_allclose(np.ravel(stats[IMAGE]["std"]), pixels.std(0))
    np.testing.assert_allclose(np.ravel(stats[IMAGE]["q90"]), np.quantile(pixels, 0.9, axis=0))
    held = open_with_lerobot(tmp_path / "d").meta.stats
    np.testing.assert_allclose(held[IMAGE]["mean"], np.asarray(stats[IMAGE]["mean"]))


def test_files_roll_over_and_recovery_finds_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embodied.data.lerobot_layout.TABLE_EPISODES", 2)
    monkeypatch.setattr("embodied.data.lerobot_layout.CHUNK_FILES", 3)
    write(tmp_path / "d", 0, 5)
    write(tmp_path / "d", 5, 7)
    found = sorted(str(p.relative_to(tmp_path / "d")) for p in (tmp_path / "d/data").rglob("*.parquet"))
    assert found == [f"data/chunk-00{c}/file-00{f}.parquet" for c, f in ((0, 0), (0, 1), (0, 2), (1, 0))]
    check_with_lerobot(tmp_path / "d", 7)


def test_a_dropped_frame_is_refused_and_nothing_is_committed(tmp_path: Path) -> None:
    with EpisodeWriter.open(tmp_path / "d", simulation_layout(SIZE)) as writer:
        writer.append(episode_of(writer, 0))
        short = episode_of(writer, 1)
        encode_video(frames_of(1, 6)[IMAGE][:-1], short.videos[IMAGE], 20, VideoSettings())
        with pytest.raises(ValueError, match=r"image \(video\)': 5"):
            writer.append(short)
        assert writer.total_episodes == 1
        assert writer.append(episode_of(writer, 1)) == 1
    check_with_lerobot(tmp_path / "d", 2)


def test_wrong_episodes_are_refused(tmp_path: Path) -> None:
    with EpisodeWriter.open(tmp_path / "d", simulation_layout(SIZE)) as writer:
        good = episode_of(writer, 0)
        bad = {**good.columns, STATE: good.columns[STATE].copy()}
        bad[STATE][2, 0] = np.nan
        with pytest.raises(ValueError, match="finite, frame 2"):
            writer.append(EncodedEpisode(bad, good.videos, good.histograms, good.task, good.metadata))
        with pytest.raises(ValueError, match="metadata should be"):
            writer.append(EncodedEpisode(good.columns, good.videos, good.histograms, good.task, {}))
        images = {key: np.zeros((5, 96, 96, 3), np.uint8) for key in (IMAGE, WRIST_IMAGE)}
        with pytest.raises(ValueError, match=r"should be \(64, 64\)"):
            encode_episode(tmp_path / "x", writer.layout, good.columns, images, "t", good.metadata)
        with pytest.raises(ValueError, match="at least one episode"):
            writer.finalize()


def test_one_writer_at_a_time_one_layout_and_no_foreign_folder(tmp_path: Path) -> None:
    with EpisodeWriter.open(tmp_path / "d", simulation_layout(SIZE)) as writer:
        writer.append(episode_of(writer, 0))
        with pytest.raises(ValueError, match="being written by another process"):
            EpisodeWriter.open(tmp_path / "d", simulation_layout(SIZE))
    with pytest.raises(ValueError, match="another layout"):
        EpisodeWriter.open(tmp_path / "d", simulation_layout(128))
    (tmp_path / "foreign/meta").mkdir(parents=True)
    with pytest.raises(ValueError, match="data set of ours"):
        EpisodeWriter.open(tmp_path / "foreign", simulation_layout(SIZE))


class Killed(BaseException):
    """Stands for kill -9: nothing of the writer runs after it."""


def steps_of_a_commit(monkeypatch: pytest.MonkeyPatch, stop_at: int | None) -> list[str]:
    """Has the writer die right before its step `stop_at` (a rename, an append of a histogram)."""
    seen: list[str] = []
    rename, truncate = Path.replace, os.truncate

    def count(name: str) -> None:
        if stop_at is not None and len(seen) == stop_at:
            raise Killed
        seen.append(name)

    def counted_rename(self: Path, target: Path) -> Path:
        count(target.name)
        return rename(self, target)

    def counted_truncate(path: Path, size: int) -> None:
        count("truncate")
        truncate(path, size)

    monkeypatch.setattr(Path, "replace", counted_rename)
    monkeypatch.setattr(os, "truncate", counted_truncate)
    return seen


def test_death_before_every_single_step_of_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "first", 0, 2)
    with EpisodeWriter.open(tmp_path / "first", simulation_layout(SIZE)) as writer, monkeypatch.context() as patch:
        seen = steps_of_a_commit(patch, None)
        writer.append(episode_of(writer, 2))
    assert len(seen) == 6  # histogram, two videos, frames, episodes, info
    for step in range(len(seen)):
        root = tmp_path / f"killed{step}"
        write(root, 0, 2)
        with EpisodeWriter.open(root, simulation_layout(SIZE)) as writer:
            episode = episode_of(writer, 2)
            with monkeypatch.context() as patch:
                steps_of_a_commit(patch, step)
                with pytest.raises(Killed):
                    writer.append(episode)
        check_with_lerobot(root, 2)
        write(root, 2, 4)
        check_with_lerobot(root, 4)
        assert count_frames(root / "videos" / IMAGE / "chunk-000/file-002.mp4", 20) == 7


WRITER = """
import sys
sys.path[:] = {path!r}
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("writer_test", {file!r})
module = module_from_spec(spec)
spec.loader.exec_module(module)
from pathlib import Path
with module.EpisodeWriter.open(Path({root!r}), module.simulation_layout(module.SIZE)) as writer:
    for index in range(writer.total_episodes, 10_000):
        writer.append(module.episode_of(writer, index))
        print(index, flush=True)
"""


def test_kill_9_of_a_real_writer_at_random_moments(tmp_path: Path) -> None:
    """Three times in a row on one data set: each time what was reported committed is there, and appending goes on."""
    root = tmp_path / "d"
    chance = random.Random(0)
    reported = 0
    for _ in range(3):
        code = WRITER.format(path=sys.path, file=__file__, root=str(root))
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(3):
            line = process.stdout.readline()
            assert line.strip().isdigit(), line
        time.sleep(chance.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        reported = max([int(line), *(int(rest) for rest in process.stdout.read().split("\n")[:-1])]) + 1
        process.wait()
        held = len(committed_episodes(root))
        assert held in (reported, reported + 1)  # it may die between the commit and telling us
    check_with_lerobot(root, held)
    write(root, held, held + 1)
    check_with_lerobot(root, held + 1)
    kept = {path.name for path in table_path(root, "data/chunk-{chunk_index:03d}/x", 0).parent.iterdir()}
    assert kept == {"file-000.parquet"}
