from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_datasets import FPS, write_libero_hdf5

from embodied.cli.data import run
from embodied.data.lerobot_reader import LeRobotSource
from embodied.data.validation.report import Kind
from embodied.data.validation.validate import validate
from embodied.schema import ACTION, IMAGE, STATE

DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def edit_column(root: Path, key: str, change: Callable[[np.ndarray], None]) -> None:
    table = pq.read_table(root / DATA)
    column = table[key].combine_chunks()
    if pa.types.is_fixed_size_list(column.type):
        values = column.flatten().to_numpy().copy().reshape(len(column), -1)
        change(values)
        new = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    else:
        values = column.to_numpy().copy()
        change(values)
        new = pa.array(values)
    pq.write_table(table.set_column(table.column_names.index(key), key, new), root / DATA)


def edit_info(root: Path, **change) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def found(root: Path, kind: Kind) -> list[tuple[int | None, int | None, str | None]]:
    return [(p.episode, p.frame, p.key) for p in validate(root).problems if p.kind is kind]


def test_a_good_data_set(v3: Path) -> None:
    report = validate(v3)
    assert (report.problems, report.episodes, report.frames) == ([], 3, 32)


def test_nan(v3: Path) -> None:
    edit_column(v3, STATE, lambda values: values.__setitem__((12 + 4, 2), np.nan))
    assert found(v3, Kind.not_finite) == [(1, 4, STATE)]


def test_constant_action(v3: Path) -> None:
    edit_column(v3, ACTION, lambda values: values.__setitem__(slice(21, 32), 0.5))
    assert found(v3, Kind.constant_action) == [(2, 0, ACTION)]


def test_time_jump(v3: Path) -> None:
    edit_column(v3, "timestamp", lambda values: values.__setitem__(slice(5, 12), values[5:12] + 0.3))
    assert found(v3, Kind.time_jump) == [(0, 5, "timestamp")]
    assert found(v3, Kind.wrong_fps) == []


def test_wrong_fps(v3: Path) -> None:
    edit_info(v3, fps=2 * FPS)
    assert found(v3, Kind.wrong_fps) == [(i, 0, key) for i in range(3) for key in ("timestamp", IMAGE)]


def test_missing_text(v3: Path) -> None:
    table = pq.read_table(v3 / EPISODES)
    tasks = pa.array([["task 0"], [""], []], type=pa.list_(pa.string()))
    pq.write_table(table.set_column(table.column_names.index("tasks"), "tasks", tasks), v3 / EPISODES)
    assert found(v3, Kind.missing_text) == [(1, None, None), (2, None, None)]


def test_a_task_number_without_a_task(v3: Path) -> None:
    edit_column(v3, "task_index", lambda values: values.__setitem__(20, 77))
    assert found(v3, Kind.missing_text) == [(1, 0, "task_index")]


def test_truncated_file(v3: Path) -> None:
    path = v3 / f"videos/{IMAGE}/chunk-000/file-001.mp4"
    path.write_bytes(path.read_bytes()[:300])
    assert found(v3, Kind.truncated_video) == [(1, 0, IMAGE)]
    path.unlink()
    assert found(v3, Kind.truncated_video) == [(1, 0, IMAGE)]


def shorten_video(root: Path, episode: int, frames: int) -> None:
    from embodied.data.video_copy import copy_frames

    path = root / f"videos/{IMAGE}/chunk-000/file-{episode:03d}.mp4"
    assert copy_frames(path, 0, frames, path.with_name("cut.mp4"), FPS)
    path.with_name("cut.mp4").replace(path)


def test_short_video(v3: Path) -> None:
    shorten_video(v3, 2, 8)
    assert found(v3, Kind.truncated_video) == [(2, 8, IMAGE)]


def test_damaged_frame(v3: Path) -> None:
    """Zeros over the coded pictures: the index is whole, decoding fails or not by what the bytes say; never silent."""
    path = v3 / f"videos/{IMAGE}/chunk-000/file-000.mp4"
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    half = (len(content) - start) // 2
    content[start + 40 : start + half] = bytes(half - 40)
    path.write_bytes(content)
    assert {problem.episode for problem in validate(v3).errors} == {0}


def test_rows_missing_from_the_table(v3: Path) -> None:
    table = pq.read_table(v3 / DATA)
    pq.write_table(pa.concat_tables([table.slice(0, 18), table.slice(21)]), v3 / DATA)
    assert (1, 6, None) in found(v3, Kind.count_mismatch)
    with pytest.raises(ValueError, match="episode 1 should have 9 rows, got 6"):
        LeRobotSource(v3).read_columns(1)


def test_lying_totals(v3: Path) -> None:
    edit_info(v3, total_frames=5000)
    assert found(v3, Kind.count_mismatch) == [(None, None, "total_frames")]


@pytest.mark.parametrize("template", ["../../{chunk_index}/{file_index}", "/etc/passwd{chunk_index}", "{video_key.x}"])
def test_path_traversal(v3: Path, template: str) -> None:
    edit_info(v3, video_path=template)
    report = validate(v3)
    assert {p.kind for p in report.errors} <= {Kind.unsafe_path, Kind.metadata}
    assert {p.episode for p in report.errors} == {0, 1, 2}


def test_unreadable_table(v3: Path) -> None:
    (v3 / DATA).write_bytes(b"PAR1 no")
    assert [p.episode for p in validate(v3).errors if p.kind is Kind.unreadable] == [0, 1, 2]


def test_hdf5_with_nan(tmp_path: Path) -> None:
    import h5py

    path = write_libero_hdf5(tmp_path)
    with h5py.File(path, "a") as file:
        file["data/demo_1/actions"][3] = np.nan
        del file["data/demo_0/obs/eye_in_hand_rgb"]
        file["data/demo_0/obs/eye_in_hand_rgb"] = np.zeros((4, 64, 64, 3), np.uint8)
    assert found(path, Kind.not_finite) == [(1, 3, ACTION)]
    assert found(path, Kind.count_mismatch) == [(0, 4, "observation.images.image2")]


def test_cache(make_cache) -> None:
    folder = make_cache([3, 5]).folder
    assert validate(folder).problems == []
    content = bytearray((folder / f"columns/{STATE}.bin").read_bytes())
    content[0] ^= 1
    (folder / f"columns/{STATE}.bin").write_bytes(content)
    assert found(folder, Kind.checksum) == [(0, None, STATE)]


class TestCommand:
    def test_json_and_exit_status(self, v3: Path, tmp_path: Path, capsys) -> None:
        assert run(["validate", str(v3)]) == 0
        edit_column(v3, STATE, lambda values: values.__setitem__((16, 0), np.inf))
        assert run(["validate", str(v3), f"json={tmp_path}/problems.json"]) == 1
        report = json.loads((tmp_path / "problems.json").read_text())
        assert (report["errors"], report["counts"]) == (1, {"not_finite": 1})
        first = report["problems"][0]
        assert (first["episode"], first["frame"], first["key"], first["level"]) == (1, 4, STATE, "error")
        assert "error    not_finite       episode 1 frame 4" in capsys.readouterr().out

    def test_repair_cuts_drops_and_says_so(self, v3: Path, tmp_path: Path) -> None:
        edit_column(v3, STATE, lambda values: values.__setitem__((8, 0), np.nan))  # 8 of 12 stay
        edit_column(v3, STATE, lambda values: values.__setitem__((12 + 2, 0), np.nan))  # 2 of 9: dropped
        shorten_video(v3, 2, 10)
        before = {path: path.read_bytes() for path in v3.rglob("*") if path.is_file()}
        out = tmp_path / "mended"
        assert run(["validate", str(v3), "repair=true", f"out={out}"]) == 0
        assert before == {path: path.read_bytes() for path in v3.rglob("*") if path.is_file()}
        listed = json.loads((tmp_path / "mended.repair.json").read_text())
        assert [(e["episode"], e["kept"], e["dropped"]) for e in listed["left_out"]] == [
            (0, 8, [8, 12]),
            (1, 0, [0, 9]),
            (2, 10, [10, 11]),
        ]
        assert listed["left_out"][0]["reasons"][0]["kind"] == "not_finite"
        assert validate(out).problems == []
        mended, source = LeRobotSource(out), LeRobotSource(v3, lenient=True)
        assert [(info.length, info.task) for info in mended.episodes] == [(8, "task 0"), (10, "task 2")]
        assert np.array_equal(mended.read_columns(1)[STATE], source.read_columns(2)[STATE][:10])
        assert np.array_equal(mended.read_frames(0, IMAGE), source.read_frames(0, IMAGE)[:8])

    def test_the_list_is_written_first(self, v3: Path, tmp_path: Path, monkeypatch) -> None:
        """When writing the data set fails, what would have been left out is already on disk."""
        edit_column(v3, STATE, lambda values: values.__setitem__((8, 0), np.nan))
        out = tmp_path / "mended"
        (out / "data").mkdir(parents=True)  # not ours: the writer refuses
        with pytest.raises(ValueError, match="new folder or a data set of ours"):
            run(["validate", str(v3), "repair=true", f"out={out}"])
        assert json.loads((tmp_path / "mended.repair.json").read_text())["kept"] == 3

    def test_repair_needs_out(self, v3: Path) -> None:
        with pytest.raises(ValueError, match="add out=DIR"):
            run(["validate", str(v3), "repair=true"])
