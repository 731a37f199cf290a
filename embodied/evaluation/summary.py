"""Records -> counts, rates and intervals, per task and suite; as JSON and as a printed table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from embodied.evaluation.records import Outcome, Record
from embodied.evaluation.statistics import Interval, bootstrap_mean, wilson


@dataclass(frozen=True)
class Tally:
    """Counts of one group of episodes. Errors are counted apart and are in no rate. Times are seconds."""

    name: str
    success: int
    failure: int
    error: int
    steps: float | None  # median of the successful episodes
    wall_s: float  # mean of an episode
    sim_s: float
    policy_s: float

    @property
    def counted(self) -> int:
        return self.success + self.failure

    @property
    def rate(self) -> float | None:
        return self.success / self.counted if self.counted else None

    @property
    def interval(self) -> Interval:
        """Wilson, 95%."""
        return wilson(self.success, self.counted)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "episodes": self.counted, "rate": self.rate, "wilson_95": _ends(self.interval)}


@dataclass(frozen=True)
class SuiteSummary:
    """One suite under one perturbation. `mean` is the mean over tasks, with its stratified bootstrap interval."""

    suite: str
    perturbation: str
    all: Tally
    tasks: list[Tally]
    languages: list[str]
    indices: list[int]
    mean: float | None
    mean_interval: Interval

    @property
    def name(self) -> str:
        return self.suite if self.perturbation == "none" else f"{self.suite} / {self.perturbation}"

    def to_json(self) -> dict[str, Any]:
        tasks = [
            {"task": index, "language": words, **tally.to_json()}
            for index, words, tally in zip(self.indices, self.languages, self.tasks, strict=True)
        ]
        mean = {"mean_over_tasks": self.mean, "bootstrap_95": _ends(self.mean_interval)}
        return {"suite": self.suite, "perturbation": self.perturbation, **self.all.to_json(), **mean, "tasks": tasks}


@dataclass
class Summary:
    """What an evaluation came to. `report` is the page, once written."""

    folder: Path
    suites: list[SuiteSummary]
    records: list[Record] = field(repr=False)
    report: Path | None = None

    @property
    def all(self) -> Tally:
        return tally("all", self.records)

    @property
    def rate(self) -> float | None:
        """Success rate of all episodes that did not end in an error."""
        return self.all.rate

    def to_json(self) -> dict[str, Any]:
        return {"all": self.all.to_json(), "suites": [suite.to_json() for suite in self.suites]}

    def table(self) -> str:
        return "\n\n".join(_table(suite) for suite in self.suites)


def summarise(folder: Path, records: Iterable[Record]) -> Summary:
    """Groups records by suite and perturbation, then by task."""
    ordered = sorted(records, key=lambda r: (r.episode.suite, r.episode.perturbation, r.episode.task, r.key))
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in ordered:
        groups.setdefault((record.episode.suite, record.episode.perturbation), []).append(record)
    return Summary(folder, [_suite(*key, group) for key, group in groups.items()], ordered)


def tally(name: str, records: Sequence[Record]) -> Tally:
    """Counts and times of a group of records."""
    count = {outcome: sum(r.outcome is outcome for r in records) for outcome in Outcome}
    ran = [r for r in records if r.outcome is not Outcome.ERROR]
    steps = [r.steps for r in ran if r.success]
    return Tally(
        name,
        count[Outcome.SUCCESS],
        count[Outcome.FAILURE],
        count[Outcome.ERROR],
        median(steps) if steps else None,
        *(_mean([getattr(r, key) for r in ran]) for key in ("wall_s", "sim_s", "policy_s")),
    )


def _suite(suite: str, perturbation: str, records: list[Record]) -> SuiteSummary:
    by_task: dict[int, list[Record]] = {}
    for record in records:
        by_task.setdefault(record.episode.task, []).append(record)
    tallies = [tally(group[0].task_name, group) for group in by_task.values()]
    rates = [t.rate for t in tallies if t.rate is not None]
    return SuiteSummary(
        suite,
        perturbation,
        tally(suite, records),
        tallies,
        [group[0].language for group in by_task.values()],
        list(by_task),
        _mean(rates) if rates else None,
        bootstrap_mean({str(i): (t.success, t.counted) for i, t in enumerate(tallies)}),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _ends(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _table(suite: SuiteSummary) -> str:
    """One suite as text: a line a task, then all of them."""
    head = ("task", "success", "rate %", "95% (Wilson)", "error", "steps", "s/episode", "instruction")
    lines = [
        (str(index), *_cells(tally), words if len(words) <= 48 else words[:47] + "…")
        for index, words, tally in zip(suite.indices, suite.languages, suite.tasks, strict=True)
    ]
    interval = suite.mean_interval
    note = f"mean over tasks {percent(suite.mean)}"
    if interval.low < interval.high:  # every task at 0 or at 100%: resampling within tasks says nothing
        note += f" [{percent(interval.low)}, {percent(interval.high)}] (bootstrap)"
    lines.append(("all", *_cells(suite.all), note))
    widths = [max(len(row[i]) for row in [head, *lines]) for i in range(len(head))]
    rows = [_row(row, widths) for row in [head, *lines]]
    return "\n".join([suite.name, rows[0], "-" * min(120, len(rows[0])), *rows[1:]])


def _cells(tally: Tally) -> tuple[str, ...]:
    interval = tally.interval
    return (
        f"{tally.success}/{tally.counted}",
        percent(tally.rate),
        f"{percent(interval.low)} - {percent(interval.high)}",
        str(tally.error),
        "-" if tally.steps is None else f"{tally.steps:.0f}",
        f"{tally.wall_s:.1f}",
    )


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    numbers = "  ".join(cell.rjust(width) for cell, width in zip(cells[:-1], widths, strict=False))
    return f"{numbers}  {cells[-1]}"
