"""The page: self-contained, escaped, bounded; its videos are the recorded episodes at the true speed."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import point_mass
import pytest

from embodied.evaluation.evaluate import evaluate
from embodied.evaluation.records import Outcome, Record, RunFolder, Trajectory
from embodied.evaluation.report import ReportRun, Section, write_report
from embodied.evaluation.summary import summarise, tally
from embodied.evaluation.videos import VIDEOS, choose, render_videos, write_mp4
from embodied.protocols import Episode

VOID = {"meta", "link", "img", "br", "input", "path"}


class Page(HTMLParser):
    """Collects attributes that could load something, and checks that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.videos: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "data", "poster", "action"):
                (self.videos if tag == "video" else self.loads).append(value)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data.strip())


def decode(video: str) -> tuple[np.ndarray, float]:
    """Frames and rate of an embedded video."""
    content = base64.b64decode(video.removeprefix("data:video/mp4;base64,"))
    with av.open(io.BytesIO(content)) as source:
        stream = source.streams.video[0]
        assert stream.codec_context.name == "h264"
        rate = float(stream.average_rate)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in source.decode(stream)]), rate


def test_an_evaluation_writes_a_page_that_needs_nothing_else(settings, pool):
    shown = replace(settings, report=True, videos=3, video_size=64, max_steps=12, tasks=[0, 1])
    summary = evaluate(shown, point_mass.Seeing(), command="embodied evaluate a=<b>", pool=pool)
    text = summary.report.read_text()
    page = Page(text)
    assert page.open == []
    assert page.loads == []
    assert not re.search(r"https?://|@import|url\(", text)
    assert "embodied evaluate a=<b>" in page.text  # escaped in the source
    assert "<b>" not in text.replace("<b>0</b>", "").replace("<b>1</b>", "")
    chosen = choose(summary.records, 3)
    assert len(page.videos) == len(chosen) == 3
    for video, record in zip(page.videos, chosen, strict=True):
        frames, rate = decode(video)
        assert rate == 20
        assert len(frames) == record.steps + 1
    written = json.loads((summary.folder / "report.json").read_text())
    assert written["runs"][0]["all"]["success"] == summary.all.success
    assert [clip["exact"] for clip in written["runs"][0]["clips"]] == [True] * 3
    assert written["runs"][0]["invocations"][-1]["command"] == "embodied evaluate a=<b>"


def test_failures_are_chosen_first_and_from_all_tasks():
    def record(task, trial, outcome):
        return Record(Episode("s", task, trial), "t", "w", outcome, 5, 9, "p", "d", 1)

    plan = {0: "SSS", 1: "FFF", 2: "SFE"}
    outcome = {"S": Outcome.SUCCESS, "F": Outcome.FAILURE, "E": Outcome.ERROR}
    records = [record(task, i, outcome[o]) for task, row in plan.items() for i, o in enumerate(row)]
    chosen = [(r.episode.task, r.episode.seed, r.success) for r in choose(records, 7)]
    assert chosen == [
        (1, 0, False),
        (2, 1, False),
        (1, 1, False),
        (1, 2, False),
        (0, 0, True),
        (2, 0, True),
        (0, 1, True),
    ]
    assert choose(records, 2) == choose(records, 7)[:2]
    assert len(choose(records, 100)) == 8  # an error has no rollout


def test_a_replay_that_ends_otherwise_is_not_called_exact(settings, pool):
    summary = evaluate(replace(settings, tasks=[0], episodes=2), point_mass.Seeing(), pool=pool)
    folder, first = RunFolder(summary.folder), summary.records[0]
    trajectory = folder.trajectory(first.episode)
    folder.write_trajectory(first.episode, Trajectory(trajectory.actions * 0.9, trajectory.snapshot))
    clips = render_videos(folder, settings.env, summary.records, 2, size=64, stride=2, pool=pool)
    assert {clip.key: clip.exact for clip in clips} == {first.key: False, summary.records[1].key: True}
    assert [clip.fps for clip in clips] == [10, 10]
    times = {path: path.stat().st_mtime_ns for path in (folder.path / VIDEOS).glob("*.mp4")}
    assert render_videos(folder, settings.env, summary.records, 2, size=64, pool=pool) == clips
    assert {path: path.stat().st_mtime_ns for path in times} == times  # rendered once
    page = write_report(folder.path, "t", [ReportRun(folder, summary, clips)]).read_text()
    assert page.count("the replay ended otherwise than recorded") == 1


def test_several_runs_and_other_commands_sections_share_a_page(settings, pool, tmp_path):
    runs = []
    for name, policy in (("seeing", point_mass.Seeing()), ("hasty", point_mass.Seeing(replan=1))):
        summary = evaluate(replace(settings, tasks=[0], run=str(tmp_path / name)), policy, pool=pool)
        runs.append(ReportRun(RunFolder(summary.folder), summary, label=name))
    section = Section("Data set", "<p><em>trusted</em></p>", "a <note>", {"frames": 12})
    page = write_report(tmp_path, "Two <runs>", runs, [section], command="embodied demo")
    text = page.read_text()
    assert "<em>trusted</em>" in text
    assert "a &lt;note&gt;" in text
    assert "<title>Two &lt;runs&gt;</title>" in text
    parsed = Page(text)
    assert parsed.text.count("seeing") >= 3
    assert "embodied demo" in parsed.text
    assert json.loads((tmp_path / "report.json").read_text())["sections"] == {"Data set": {"frames": 12}}
    with pytest.raises(ValueError, match="at least one run with episodes"):
        write_report(tmp_path, "t", [ReportRun(runs[0].folder, summarise(tmp_path, []))])


def test_words_from_outside_are_escaped(settings, pool):
    words = "<script>alert(0)</script> 1"
    summary = evaluate(replace(settings, tasks=[0], episodes=1, instruction=words), point_mass.Seeing(), pool=pool)
    page = write_report(summary.folder, "t", [ReportRun(RunFolder(summary.folder), summary)]).read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(0)&lt;/script&gt; 1" in page


def test_a_video_holds_every_frame(tmp_path):
    frames = np.broadcast_to(np.linspace(40, 200, 30).astype(np.uint8)[:, None, None, None], (30, 64, 128, 3))
    write_mp4(tmp_path / "a.mp4", np.ascontiguousarray(frames), 20)
    embedded = "data:video/mp4;base64," + base64.b64encode((tmp_path / "a.mp4").read_bytes()).decode()
    decoded, rate = decode(embedded)
    assert (decoded.shape, rate) == ((30, 64, 128, 3), 20)
    assert np.abs(decoded.mean((1, 2, 3)) - frames.mean((1, 2, 3))).max() < 4
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_tallies_by_hand():
    def record(outcome, steps, wall):
        return Record(Episode("s", 0, steps), "t", "w", outcome, steps, 50, "p", "d", 1, wall_s=wall)

    group = [record(Outcome.SUCCESS, 10, 1.0), record(Outcome.SUCCESS, 20, 2.0), record(Outcome.FAILURE, 50, 6.0)]
    result = tally("t", [*group, record(Outcome.ERROR, 3, 100.0)])
    assert (result.success, result.failure, result.error, result.counted) == (2, 1, 1, 3)
    assert (result.rate, result.steps, result.wall_s) == (2 / 3, 15, 3.0)
    suite = summarise(Path(), [*group, Record(Episode("s", 1, 1), "u", "v", Outcome.SUCCESS, 4, 50, "p", "d", 1)])
    assert suite.rate == 3 / 4
    assert suite.suites[0].mean == (2 / 3 + 1) / 2
