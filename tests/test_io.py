"""Durable files: whole or not at all, torn last lines cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from embodied.io import append_line, read_lines, write_atomic, write_json
from embodied.paths import DATA_VARIABLE, data_folder, data_root, new_run_folder


def test_lines_survive_a_torn_tail(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    append_line(path, {"a": 1})
    append_line(path, {"a": 2})
    with path.open("ab") as file:
        file.write(b'{"a": 3, "b')
    assert read_lines(path) == [{"a": 1}, {"a": 2}]
    append_line(path, {"a": 4})
    assert read_lines(path) == [{"a": 1}, {"a": 2}, {"a": 4}]


def test_write_atomic_leaves_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"old": True})
    with pytest.raises(TypeError):
        write_atomic(path, "text, not bytes")  # type: ignore[arg-type]
    assert json.loads(path.read_text()) == {"old": True}


def test_run_folders_never_collide(tmp_path: Path) -> None:
    folders = {new_run_folder("demo", tmp_path) for _ in range(5)}
    assert len(folders) == 5
    assert all(folder.is_dir() for folder in folders)


def test_data_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    assert data_root() is None
    assert data_folder("x") is None
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    (tmp_path / "x").mkdir()
    assert data_folder("x") == tmp_path.resolve() / "x"
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(ValueError, match="a folder that exists"):
        data_root()
