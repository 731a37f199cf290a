from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_datasets import FPS, pictures, to_v21

from embodied.data.lerobot_meta import read_meta, safe_path
from embodied.data.lerobot_reader import BatchReader, LeRobotSource
from embodied.data.video import Video
from embodied.schema import ACTION, IMAGE, STATE, TASK


def test_episodes_columns_and_frames(v3: Path) -> None:
    source = LeRobotSource(v3)
    assert [info.length for info in source.episodes] == [12, 9, 11]
    assert [info.task for info in source.episodes] == ["task 0", "task 1", "task 2"]
    assert source.fps == FPS
    assert source.read_columns(1)[STATE][:, 0].tolist() == list(range(100, 109))
    frames = source.read_frames(2, IMAGE)
    assert frames.shape == (11, 64, 64, 3)
    assert np.abs(frames.astype(int) - pictures(11, 2)).mean() < 2.5  # the codec's loss


def test_v21_equals_v3(v3: Path, tmp_path: Path) -> None:
    new, old = LeRobotSource(v3), LeRobotSource(to_v21(v3, tmp_path / "v21"))
    assert [(i.length, i.task) for i in new.episodes] == [(i.length, i.task) for i in old.episodes]
    for episode in range(3):
        ours, theirs = new.read_columns(episode), old.read_columns(episode)
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
        assert np.array_equal(new.read_frames(episode, IMAGE), old.read_frames(episode, IMAGE))


def test_mirrored_cameras_are_mirrored_back(v3: Path) -> None:
    plain, turned = LeRobotSource(v3), LeRobotSource(v3, mirrored=True)
    assert np.array_equal(turned.read_frames(0, IMAGE)[:, :, ::-1], plain.read_frames(0, IMAGE))
    episodes, frames = np.array([0, 0, 1]), np.array([1, 4, 2])
    there = turned.read_scattered(IMAGE, episodes, frames)
    assert np.array_equal(there[:, :, ::-1], plain.read_scattered(IMAGE, episodes, frames))


def test_frames_in_any_order(v3: Path) -> None:
    with Video(v3 / f"videos/{IMAGE}/chunk-000/file-000.mp4") as video:
        straight = video.read(np.arange(12))
        order = np.array([7, 3, 3, 11, 0, 8])
        assert np.array_equal(video.read(order), straight[order])
        with pytest.raises(ValueError, match="has 12 frames, asked for 2 to 12"):
            video.read(np.array([2, 12]))
        with pytest.raises(ValueError, match=r"should have a frame at 1\.2000 s, the nearest is at 1\.1000 s"):
            video.numbers_at(np.array([0.3, 1.2]), 0.05)


def test_batches_equal_lerobots_items(v3: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    theirs = LeRobotDataset(
        "local/tiny",
        root=v3,
        delta_timestamps={ACTION: [i / FPS for i in range(4)], IMAGE: [-1 / FPS, 0.0]},
        video_backend="pyav",
        return_uint8=True,
    )
    reader = BatchReader(v3, {ACTION: [0, 1, 2, 3], IMAGE: [-1, 0]})
    indices = np.array([31, 0, 11, 12, 19, 20, 5])
    batch = reader.get_batch(indices)
    for row, index in enumerate(indices):
        item = theirs[int(index)]
        assert np.array_equal(batch[IMAGE][row], item[IMAGE].permute(0, 2, 3, 1).numpy())
        for key in (STATE, ACTION, f"{ACTION}_is_pad", f"{IMAGE}_is_pad"):
            assert np.array_equal(batch[key][row], item[key].numpy()), key
        assert batch[TASK][row] == item["task"]
        assert (batch["episode_index"][row], batch["frame_index"][row]) == (item["episode_index"], item["frame_index"])


@pytest.mark.data
def test_equal_to_lerobot_on_real_demonstrations(outside_data: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = outside_data / "libero_demos"
    theirs = LeRobotDataset("local/demos", root=root, video_backend="pyav", return_uint8=True)
    indices = np.array([25_580, 106, 107, 9000])
    batch = BatchReader(root).get_batch(indices)
    for row, index in enumerate(indices):
        item = theirs[int(index)]
        for camera in (IMAGE, "observation.images.image2"):
            assert np.array_equal(batch[camera][row], item[camera].permute(1, 2, 0).numpy())
        assert np.array_equal(batch[STATE][row], item[STATE].numpy())
        assert batch[TASK][row] == item["task"]


class TestHostileMetadata:
    @pytest.mark.parametrize(
        "template",
        [
            "../../{chunk_index:03d}",
            "/etc/{chunk_index:03d}",
            "{chunk_index.__class__}",
            "{chunk_index:0999999999d}",
            "{chunk_index!r}",
            "{secret}",
            "data\\..\\{chunk_index}",
        ],
    )
    def test_templates(self, template: str) -> None:
        with pytest.raises(ValueError, match=r"refused|plain fields"):
            safe_path(Path("/data/set"), template, {"chunk_index": 0, "file_index": 0})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"codebase_version": "v1.6"}, "codebase_version"),
            ({"fps": -3}, "positive number"),
            ({"features": {"../../x": {"dtype": "video", "shape": [64, 64, 3]}}}, "refused"),
            ({"features": {STATE: {"dtype": "float32"}}}, "a dtype and a shape"),
            ({"data_path": None}, "lacks 'data_path'"),
        ],
    )
    def test_info(self, v3: Path, change: dict, message: str) -> None:
        path = v3 / "meta/info.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(ValueError, match=message):
            read_meta(v3)

    def test_a_row_without_its_length(self, v3: Path) -> None:
        import pyarrow.parquet as pq

        path = v3 / "meta/episodes/chunk-000/file-000.parquet"
        pq.write_table(pq.read_table(path).drop_columns(["length"]), path)
        with pytest.raises(ValueError, match="row 0 of the episodes should have a number 'length'"):
            read_meta(v3)

    def test_what_a_killed_writer_left_is_not_counted(self, v3: Path) -> None:
        path = v3 / "meta/info.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"total_episodes": 2, "total_frames": 21}))
        assert [info.length for info in LeRobotSource(v3).episodes] == [12, 9]

    def test_no_data_set(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"info\.json is missing"):
            read_meta(tmp_path)
        (tmp_path / "meta").mkdir()
        (tmp_path / "meta/info.json").write_text("{")
        with pytest.raises(ValueError, match="should be JSON"):
            read_meta(tmp_path)
