"""One self-contained HTML page (and its JSON) about one or several evaluation runs: no network, no other files.

    write_report(folder, "Demo", [ReportRun(folder_a, summary_a, clips_a), ...], [Section("Data set", html)])

Other commands add their own sections; a section's `html` is trusted, everything else is escaped.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from embodied.evaluation.records import Outcome, Record, RunFolder
from embodied.evaluation.summary import SuiteSummary, Summary, Tally
from embodied.evaluation.value_trace import draw
from embodied.evaluation.videos import Clip, embedded
from embodied.io import write_atomic, write_json

TEMPLATE = "report.html.j2"
SHOWN_VERSIONS = ("python", "mujoco", "robosuite", "hf-libero", "torch", "numpy", "embodied-stack", "commit")


@dataclass(frozen=True)
class ReportRun:
    """A run to show. `label` distinguishes runs; default: the policy's name."""

    folder: RunFolder
    summary: Summary
    clips: Sequence[Clip] = ()
    label: str = ""

    @property
    def name(self) -> str:
        return self.label or (self.summary.records[0].policy if self.summary.records else self.folder.path.name)


@dataclass(frozen=True)
class Section:
    """A part that another command adds: trusted HTML, shown before the details, and its data for the JSON."""

    title: str
    html: str
    note: str = ""
    data: dict[str, Any] = field(default_factory=dict)


def write_report(
    folder: Path,
    title: str,
    runs: Sequence[ReportRun],
    sections: Sequence[Section] = (),
    subtitle: str = "",
    command: str | None = None,
) -> Path:
    """Writes report.html and report.json into `folder`; returns the page's path. ValueError without any episode."""
    runs = [run for run in runs if run.summary.records]
    if not runs:
        raise ValueError("a report needs at least one run with episodes, got none")
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, number=_number, share=_share)
    style = (Path(__file__).parent / "report.css").read_text()
    page = environment.get_template(TEMPLATE).render(
        title=title,
        subtitle=subtitle,
        style=style,
        sections=sections,
        written=datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        runs=[_run(index, run) for index, run in enumerate(runs)],
        plots=_plots(runs),
        commands=[command] if command else _commands(runs),
    )
    write_json(folder / "report.json", _as_json(title, runs, sections, command))
    write_atomic(folder / "report.html", page.encode())
    return folder / "report.html"


def _run(index: int, run: ReportRun) -> dict[str, Any]:
    records = run.summary.records
    errors = [r for r in records if r.outcome is Outcome.ERROR]
    return {
        "index": index,
        "name": run.name,
        "all": run.summary.all,
        "facts": _facts(run),
        "suites": [_table(suite) for suite in run.summary.suites],
        "gallery": _gallery(run),
        "errors": [{"key": r.key, "error": r.error, "attempts": r.attempts} for r in errors[:20]],
        "error_count": len(errors),
        "details": _details(run),
    }


def _facts(run: ReportRun) -> list[dict[str, str]]:
    """Three figures to stand beside a single run's success rate."""
    everything, records = run.summary.all, run.summary.records
    rates = [tally.rate for suite in run.summary.suites for tally in suite.tasks if tally.rate is not None]
    steps = everything.steps
    median = "never" if steps is None else f"median, {steps / records[0].control_hz:.1f} s of robot time"
    inference = f"{everything.policy_s:.1f} s of it the policy"
    solved = f"of {len(rates)} tasks solved every time"
    return [
        {"name": "To success", "value": _number(steps), "unit": " steps", "note": median},
        {"name": "Perfect", "value": str(sum(rate == 1 for rate in rates)), "unit": "", "note": solved},
        {"name": "An episode", "value": _number(everything.wall_s, 1), "unit": " s", "note": inference},
    ]


def _table(suite: SuiteSummary) -> dict[str, Any]:
    rows = [_table_row(str(i), w, t) for i, w, t in zip(suite.indices, suite.languages, suite.tasks, strict=True)]
    return {
        "name": suite.name,
        "rows": rows,
        "all": _table_row("all", "", suite.all),
        "mean": suite.mean,
        "mean_interval": suite.mean_interval,
    }


def _table_row(index: str, words: str, tally: Tally) -> dict[str, Any]:
    return {"index": index, "words": words, "tally": tally, "interval": tally.interval}


def _plots(runs: Sequence[ReportRun]) -> list[dict[str, Any]]:
    """One block a suite: a row a task, in it a bar of every run."""
    names: dict[str, None] = {}
    for run in runs:
        names.update(dict.fromkeys(suite.name for suite in run.summary.suites))
    return [{"name": name, "rows": _plot_rows(name, runs), "limit": _limit(name, runs)} for name in names]


def _plot_rows(name: str, runs: Sequence[ReportRun]) -> list[dict[str, Any]]:
    rows: dict[int, dict[str, Any]] = {}
    for number, run in enumerate(runs):
        for suite in (s for s in run.summary.suites if s.name == name):
            for index, words, tally in zip(suite.indices, suite.languages, suite.tasks, strict=True):
                row = rows.setdefault(index, {"index": index, "words": words, "bars": []})
                row["bars"].append(_bar(number, run, suite, index, tally))
    return [rows[index] for index in sorted(rows)]


def _bar(number: int, run: ReportRun, suite: SuiteSummary, index: int, tally: Tally) -> dict[str, Any]:
    chosen = [r for r in run.summary.records if _belongs(r, suite, index) and r.outcome is not Outcome.ERROR]
    return {
        "run": number,
        "name": run.name,
        "tally": tally,
        "interval": tally.interval,
        "success_ticks": _ticks([r.steps for r in chosen if r.success]),
        "failure_ticks": _ticks([r.steps for r in chosen if not r.success]),
    }


def _belongs(record: Record, suite: SuiteSummary, index: int) -> bool:
    episode = record.episode
    return (episode.suite, episode.perturbation, episode.task) == (suite.suite, suite.perturbation, index)


def _ticks(steps: Sequence[int]) -> str:
    """An SVG path with one upright line an episode, x in control steps."""
    return "".join(f"M{step} 0V10" for step in sorted(steps))


def _limit(name: str, runs: Sequence[ReportRun]) -> int:
    """Right end of the axis of control steps."""
    wanted = {(s.suite, s.perturbation) for run in runs for s in run.summary.suites if s.name == name}
    records = [r for run in runs for r in run.summary.records]
    return max(r.max_steps for r in records if (r.episode.suite, r.episode.perturbation) in wanted)


def _gallery(run: ReportRun) -> list[dict[str, Any]]:
    records = {record.key: record for record in run.summary.records}
    return [
        {
            "record": records[clip.key],
            "exact": clip.exact,
            "video": embedded(run.folder.path / clip.file),
            "curves": _curves(run.folder, records[clip.key]),
        }
        for clip in run.clips
        if clip.key in records and (run.folder.path / clip.file).exists()
    ]


def _curves(folder: RunFolder, record: Record) -> list[dict[str, str]]:
    trace = folder.trajectory(record.episode).trace
    return [] if trace is None else draw(trace, record.steps)


def _details(run: ReportRun) -> list[tuple[str, str]]:
    """What a reader needs to judge or repeat a run, as rows of name and value."""
    first, protocol = run.summary.records[0], run.folder.protocol()
    every = {f"{name} {r.versions[name]}" for r in run.summary.records for name in SHOWN_VERSIONS if name in r.versions}
    rss = max(r.worker_rss_mb for r in run.summary.records)
    episodes = run.summary.all
    return [
        ("run folder", str(run.folder.path)),
        ("policy", f"{first.policy}, digest {first.policy_digest[:16]}"),
        ("looks", f"every {first.replan} actions (chunks of {protocol['policy']['chunk']})"),
        ("step limits", ", ".join(sorted({str(limit) for limit in protocol["max_steps"].values()}))),
        ("control rate", f"{first.control_hz} Hz"),
        ("an episode", f"{episodes.wall_s:.1f} s: simulator {episodes.sim_s:.1f} s, policy {episodes.policy_s:.2f} s"),
        ("memory of a worker", f"{rss:.0f} MB at most"),
        ("versions", ", ".join(sorted(every))),
    ]


def _commands(runs: Sequence[ReportRun]) -> list[str]:
    """The last command of every run."""
    return [run.folder.invocations()[-1]["command"] for run in runs if run.folder.invocations()]


def _as_json(title: str, runs: Sequence[ReportRun], sections: Sequence[Section], command: str | None) -> dict[str, Any]:
    return {
        "title": title,
        "command": command,
        "runs": [
            {
                "label": run.name,
                "folder": str(run.folder.path),
                **run.summary.to_json(),
                "protocol": run.folder.protocol(),
                "invocations": run.folder.invocations(),
                "clips": [vars(clip) for clip in run.clips],
            }
            for run in runs
        ],
        "sections": {section.title: section.data for section in sections if section.data},
    }


def _percent(value: float | None) -> str:
    """A rate for people: 97.5, 100, or a dash."""
    return "–" if value is None else f"{100 * value:.1f}".removesuffix(".0")


def _number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _share(value: float) -> str:
    """A rate as CSS takes it."""
    return f"{100 * value:.2f}%"
