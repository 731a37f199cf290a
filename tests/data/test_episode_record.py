"""Demonstrations of record: round trip, durability, refusal of damage, and the first form's files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embodied.data.episode_record import EpisodeLine, EpisodeRecord, RecordFolder, file_name, find_records
from embodied.paths import data_folder


def record_of(seed: int, steps: int = 4, variant: str = "") -> EpisodeRecord:
    rng = np.random.default_rng(seed)
    line = EpisodeLine(
        "libero_object",
        3,
        seed,
        0.06,
        "pick up the soup",
        True,
        steps,
        [["in", "soup", "basket"]],
        variant,
        versions={"mujoco": "3.3.7"},
        seconds=1.5,
    )
    executed = rng.uniform(-1, 1, (steps, 7)).astype(np.float32)
    states = rng.normal(size=(steps + 1, 8)).astype(np.float32)
    snapshot = {"init": rng.normal(size=11), "body_pos": rng.normal(size=(5, 3)), "seed": np.array(seed)}
    return EpisodeRecord(line, snapshot, executed, -executed, states, rng.normal(size=11))


def assert_equal(left: EpisodeRecord, right: EpisodeRecord) -> None:
    assert replace(left.line, file="") == replace(right.line, file="")
    assert left.snapshot.keys() == right.snapshot.keys()
    for name, value in left.snapshot.items():
        np.testing.assert_array_equal(value, right.snapshot[name])
    for name in ("executed", "intended", "states", "final"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))


def test_round_trip(tmp_path: Path) -> None:
    folder = RecordFolder(tmp_path / "records")
    records = [record_of(1), record_of(2, 7), record_of(1, variant="goal 1")]
    for record in records:
        folder.append(record)
    again = find_records(tmp_path)
    lines = again.lines()
    assert [line.key for line in lines] == [
        "libero_object/3/s1/n0.06",
        "libero_object/3/s2/n0.06",
        "libero_object/3/s1/n0.06/goal 1",
    ]
    for record, line in zip(records, lines, strict=True):
        assert_equal(again.load(line), record)


def test_equal_records_are_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        RecordFolder(tmp_path / name).append(record_of(5))
    files = [(tmp_path / name / file_name(record_of(5).line)).read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]


def test_a_torn_line_is_no_episode_and_appending_goes_on(tmp_path: Path) -> None:
    folder = RecordFolder(tmp_path)
    folder.append(record_of(1))
    with (tmp_path / "episodes.jsonl").open("a") as file:
        file.write('{"key": "libero_object/3/s2')
    assert [line.seed for line in folder.lines()] == [1]
    folder.append(record_of(2))
    assert [line.seed for line in folder.lines()] == [1, 2]


def test_arrays_that_do_not_agree_are_refused(tmp_path: Path) -> None:
    folder = RecordFolder(tmp_path)
    good = record_of(1)
    with pytest.raises(ValueError, match=r"executed of .* should be finite"):
        folder.append(replace(good, executed=good.executed[:-1]))
    with pytest.raises(ValueError, match="states of"):
        folder.append(replace(good, states=good.states[:2]))
    with pytest.raises(ValueError, match="snapshot"):
        folder.append(replace(good, snapshot={}))
    assert folder.lines() == []
    line = folder.append(good)
    (tmp_path / line.file).unlink()
    with pytest.raises(ValueError, match="missing"):
        folder.load(line)
    with pytest.raises(ValueError, match="holds none"):
        find_records(tmp_path / "elsewhere")


def test_a_pickled_array_is_refused(tmp_path: Path) -> None:
    folder = RecordFolder(tmp_path)
    line = folder.append(record_of(1))
    hostile = np.array([{"any": "object"}], dtype=object)
    np.savez(tmp_path / line.file, executed=hostile)
    with pytest.raises(ValueError, match="allow_pickle"):
        folder.load(line)


def test_the_first_form_by_hand(tmp_path: Path) -> None:
    held = {"episode": 7, "suite": "libero_goal", "task": 0, "seed": 9, "noise": 0.0, "frames": 3, "language": "open"}
    (tmp_path / "episodes.jsonl").write_text(json.dumps(held) + "\n")
    executed = np.full((3, 7), 0.5, np.float32)
    np.savez(
        tmp_path / "0007.npz", init=np.zeros(5), body_pos=np.ones((2, 3)), body_quat=np.ones((2, 4)), executed=executed
    )
    folder = RecordFolder(tmp_path)
    record = folder.load(folder.lines()[0])
    np.testing.assert_array_equal(record.intended, executed)
    assert int(record.snapshot["seed"]) == 9
    assert record.line.success
    assert len(record.states) == 0
    copied = RecordFolder(tmp_path / "copied")
    copied.append(record)
    np.testing.assert_array_equal(copied.load(copied.lines()[0]).executed, executed)


@pytest.mark.data
def test_the_demonstrations_at_hand() -> None:
    root = data_folder("libero_demos")
    if root is None:
        pytest.skip("EMBODIED_DATA has no libero_demos")
    folder = find_records(root)
    lines = folder.lines()
    assert len(lines) == 209
    noisy = folder.load(next(line for line in lines if line.noise > 0))
    difference = noisy.executed - noisy.intended
    assert 0.03 < difference[:, :3].std() < 0.09  # execution noise 0.06 on translations, none on the gripper
    assert np.all(difference[:, 6] == 0)
    assert noisy.states.shape == (noisy.line.steps, 8)
