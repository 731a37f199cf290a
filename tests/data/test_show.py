from __future__ import annotations

import base64
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from embodied.cli.data import run
from embodied.data.open_source import open_source
from embodied.data.show.page import show_page
from embodied.data.show.plots import HEIGHT, WIDTH, episode_plots
from embodied.data.source import ColumnSpec
from embodied.data.video import Video
from embodied.schema import ACTION, EXECUTED_ACTION, STATE


def test_page_is_whole_and_needs_nothing_else(v3: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert run(["show", str(v3), f"out={out}", "episodes=[0,2]"]) == 0
    page = out.read_text()
    assert not re.search(r"(src|href)=.?(https?:)?//", page)
    assert "task 0" in page
    videos = re.findall(r"data:video/mp4;base64,([A-Za-z0-9+/=]+)", page)
    assert len(videos) == 2
    for content, frames in zip(videos, (12, 11), strict=True):
        path = tmp_path / "clip.mp4"
        path.write_bytes(base64.b64decode(content))
        with Video(path) as video:
            assert (len(video), video.size) == (frames, (64, 64))
    assert page.count("<article") == 2
    assert page.count("<figure>") == 12  # position, orientation, fingers; translation, rotation, gripper; twice


def test_instructions_are_escaped(array_source, tmp_path: Path) -> None:
    source = array_source([5, 6], ["<script>alert(1)</script>", ""])
    page = show_page(source, [0, 1], tmp_path / "page.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "no instruction" in page


def test_plot_points() -> None:
    columns = {STATE: np.array([[0.0, 4.0], [1.0, np.nan], [2.0, 0.0]])}
    (plot,) = episode_plots(columns, {STATE: ColumnSpec("float32", (2,), ("a", "b"))})
    assert (plot.low, plot.high) == (0, 4)
    assert [line.name for line in plot.lines] == ["a", "b"]
    assert plot.lines[0].points == f"0.0,{HEIGHT - 4:.1f} {WIDTH / 2:.1f},80.5 {WIDTH:.1f},55.0"
    assert plot.lines[1].points == f"0.0,4.0 {WIDTH:.1f},{HEIGHT - 4:.1f}"


def test_executed_action_only_where_it_differs() -> None:
    specs = {ACTION: ColumnSpec("float32", (1,)), EXECUTED_ACTION: ColumnSpec("float32", (1,))}
    action = np.zeros((3, 1))
    assert len(episode_plots({ACTION: action, EXECUTED_ACTION: action}, specs)) == 1
    assert len(episode_plots({ACTION: action, EXECUTED_ACTION: action + 1}, specs)) == 2


def test_rerun_is_named_when_missing(v3: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(ValueError, match="pip install rerun-sdk"):
        run(["show", str(v3), f"rerun={tmp_path}/a.rrd"])


def test_rerun_recording(v3: Path, tmp_path: Path) -> None:
    pytest.importorskip("rerun")
    assert run(["show", str(v3), f"rerun={tmp_path}/a.rrd", "episodes=[0]"]) == 0
    assert (tmp_path / "a.rrd").read_bytes()[:3] == b"RRF"


class TestCommand:
    def test_info_and_stats(self, v3: Path, tmp_path: Path, capsys) -> None:
        assert run(["info", str(v3)]) == 0
        text = capsys.readouterr().out
        assert "lerobot, 3 episodes, 32 frames, 10 per second" in text
        assert "observation.images.image 64 x 64" in text
        assert run(["stats", str(v3), f"out={tmp_path}/stats.json", "select.limit=2"]) == 0
        import json

        stats = json.loads((tmp_path / "stats.json").read_text())
        state = np.concatenate([open_source(v3).read_columns(i)[STATE] for i in range(2)]).astype(np.float64)
        assert stats[STATE]["q99"] == pytest.approx(np.quantile(state, 0.99, axis=0).tolist())
        assert stats[STATE]["count"] == [21]

    def test_cache_of_an_import_equals_the_source(self, v3: Path, tmp_path: Path) -> None:
        assert run(["import", str(v3), f"out={tmp_path}/new"]) == 0
        assert run(["cache", f"{tmp_path}/new", f"out={tmp_path}/cache", "size=64"]) == 0
        cached, source = open_source(tmp_path / "cache"), open_source(v3)
        for episode in range(3):
            for camera in source.cameras:
                assert np.array_equal(cached.read_frames(episode, camera), source.read_frames(episode, camera))
            assert np.array_equal(cached.read_columns(episode)[ACTION], source.read_columns(episode)[ACTION])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "expected one of info"),
            (["chache", "x"], "did you mean 'cache'"),
            (["info", "nowhere/at/all"], "no data set at 'nowhere/at/all'"),
            (["info"], "path needs a value"),
            (["cache", "{v3}"], "add out=DIR"),
            (["cache", "{v3}", "out=x", "siez=3"], "did you mean 'size'"),
            (["cache", "{v3}", "out={tmp}/c", "size=[1,2,3]"], "one or two positive numbers"),
            (["cache", "{v3}", "out={tmp}/c", "cameras=[left]"], "not 'left'"),
            (["import", "{v3}", "out={tmp}/c", "select.suites=[moon]"], "keeps no episode of 3"),
            (["show", "{v3}", "episodes=[3]"], "has episodes 0 to 2, not 3"),
        ],
    )
    def test_wrong_commands_say_what_to_do(self, v3: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            run([argument.format(v3=v3, tmp=tmp_path) for argument in arguments])
