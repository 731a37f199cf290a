"""The figures file: flat, complete, read back as written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from embodied.bench.figures import Figure, read_figures, table, to_json, write_figures

FIGURES = [Figure("speedup", 2.5, "x", 40.0, "stock: steps/s"), Figure("rss_mb", 1234.5, "MB")]


def test_the_file_is_flat_and_says_what_it_depends_on(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "figures.json"
    write_figures(path, FIGURES, "embodied bench sim")
    content = json.loads(path.read_text())
    assert content["speedup"] == {"value": 2.5, "unit": "x", "baseline": 40.0, "note": "stock: steps/s"}
    assert set(content) == {"speedup", "rss_mb", "machine", "versions", "commit", "date", "command"}
    assert content["machine"]["cores"] >= 1
    assert content["versions"]["numpy"]
    assert read_figures(path) == FIGURES


def test_figures_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finite"):
        Figure("speedup", float("nan"), "x")
    with pytest.raises(ValueError, match="identifier"):
        Figure("date", 1.0, "x")
    with pytest.raises(ValueError, match="twice"):
        to_json([FIGURES[0], FIGURES[0]], "")
    (tmp_path / "bad.json").write_text('{"speedup": 3}')
    with pytest.raises(ValueError, match="speedup should have value"):
        read_figures(tmp_path / "bad.json")


def test_the_table_lines_up() -> None:
    lines = table(FIGURES).splitlines()
    assert lines[1] == "speedup    2.5  x           40  stock: steps/s"
    assert lines[2] == "rss_mb   1,234  MB"


def test_a_wrong_name_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    from embodied.cli import main

    assert main(["bench", "simm"]) == 2
    assert "did you mean 'sim'" in capsys.readouterr().err
    assert main(["bench"]) == 2
    assert "takes one name" in capsys.readouterr().err
