"""Two runs of the same episodes: who succeeded where the other did not, and whether that can be chance.

Episodes pair by identity (suite, task, initial state, seed, perturbation, instruction). What would make the pair
something else than two policies in one world (other limits, environment, simulator) is refused; what may differ on
purpose but explains a difference (replan, commit, library versions) is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embodied.evaluation.records import Outcome, Record, RunFolder, differences
from embodied.evaluation.statistics import Interval, Paired, bootstrap_difference, mcnemar_exact, pair, tango
from embodied.evaluation.summary import percent

MUST_MATCH = ("env", "max_steps", "simulator")
LOOKS = ("image_size", "images", "cameras", "render_mode")  # of an environment: what policies see, not what happens


@dataclass
class CompareConfig:
    """Settings of `embodied compare`."""

    out: str | None = None  # JSON file
    only_common: bool = False  # leave out episodes that only one run has
    confidence: float = 0.95
    samples: int = 10_000  # bootstrap
    seed: int = 0


@dataclass(frozen=True)
class Line:
    """One row: a task, or all. `difference` is B's rate minus A's over the paired episodes."""

    name: str
    words: str
    paired: Paired
    tango: Interval
    p: float

    @property
    def rate_a(self) -> float:
        return (self.paired.both + self.paired.only_a) / self.paired.pairs

    @property
    def rate_b(self) -> float:
        return (self.paired.both + self.paired.only_b) / self.paired.pairs

    def to_json(self) -> dict[str, Any]:
        rates = {"rate_a": self.rate_a, "rate_b": self.rate_b, "difference": self.paired.difference}
        interval = [self.tango.low, self.tango.high]
        return {
            "name": self.name,
            "instruction": self.words,
            "pairs": self.paired.pairs,
            **asdict(self.paired),
            **rates,
            "tango": interval,
            "mcnemar_exact_p": self.p,
        }


@dataclass(frozen=True)
class Comparison:
    a: str
    b: str
    policies: tuple[str, str]
    confidence: float
    tasks: list[Line]
    all: Line
    mean_difference: float  # over tasks, each weighing the same
    bootstrap: Interval
    errors: list[str]  # episodes that ended in an error in either run: not paired
    left_out: int  # episodes of one run only
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        stratified = {"difference": self.mean_difference, "bootstrap": [self.bootstrap.low, self.bootstrap.high]}
        return {
            "a": self.a,
            "b": self.b,
            "policies": list(self.policies),
            "confidence": self.confidence,
            "all": self.all.to_json(),
            "mean_over_tasks": stratified,
            "tasks": [line.to_json() for line in self.tasks],
            "errors": self.errors,
            "left_out": self.left_out,
            "notes": self.notes,
        }


def compare_runs(path_a: Path, path_b: Path, config: CompareConfig | None = None) -> Comparison:
    """Pairs two run folders. ValueError, which says what to do, when they cannot be paired."""
    config = config or CompareConfig()
    a, b = RunFolder(path_a), RunFolder(path_b)
    notes = agree(path_a, path_b, a.protocol(), b.protocol())
    records_a, records_b = a.records(), b.records()
    common = _common(path_a, path_b, records_a, records_b, config.only_common)
    errors = [key for key in common if Outcome.ERROR in (records_a[key].outcome, records_b[key].outcome)]
    keys = [key for key in common if key not in set(errors)]
    if not keys:
        raise ValueError(f"{path_a} and {path_b} share no episode that both finished without an error: nothing to pair")
    notes += _version_notes(records_a, records_b, keys)
    by_task: dict[str, list[str]] = {}
    for key in keys:
        by_task.setdefault(_task(records_a[key]), []).append(key)
    cells = {name: _paired(group, records_a, records_b) for name, group in by_task.items()}
    words = {name: records_a[group[0]].language for name, group in by_task.items()}
    return Comparison(
        str(path_a),
        str(path_b),
        (records_a[keys[0]].policy, records_b[keys[0]].policy),
        config.confidence,
        [_line(name, words[name], paired, config.confidence) for name, paired in cells.items()],
        _line("all", "", _paired(keys, records_a, records_b), config.confidence),
        sum(paired.difference for paired in cells.values()) / len(cells),
        bootstrap_difference(cells, config.confidence, config.samples, config.seed),
        errors,
        len(records_a.keys() ^ records_b.keys()),
        notes,
    )


def agree(path_a: Path, path_b: Path, a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Refuses protocols that must not differ; returns in words what may."""
    worlds = [{**protocol, "env": {k: v for k, v in protocol["env"].items() if k not in LOOKS}} for protocol in (a, b)]
    refused = [line for key in MUST_MATCH for line in differences(worlds[0][key], worlds[1][key], key)]
    if refused:
        raise ValueError(
            f"{path_a} and {path_b} should have run the same episodes in the same simulator, but differ in "
            f"{'; '.join(refused)}: evaluate one of them again with the other's settings"
        )
    looks = [{k: v for k, v in protocol["env"].items() if k in LOOKS} for protocol in (a, b)]
    notes = [f"images differ: {line}" for line in differences(looks[0], looks[1])]
    if a["executed"] != b["executed"]:
        notes.append(f"replan differs: A looks every {a['executed']} actions, B every {b['executed']}")
    return notes


def _version_notes(a: Mapping[str, Record], b: Mapping[str, Record], keys: list[str]) -> list[str]:
    changed = {line for key in keys for line in differences(a[key].versions, b[key].versions)}
    return [f"version differs: {line}" for line in sorted(changed)]


def _common(
    path_a: Path, path_b: Path, a: Mapping[str, Record], b: Mapping[str, Record], only_common: bool
) -> list[str]:
    """Keys of both runs in order. ValueError when one has others, unless these are to be left out."""
    only_a, only_b = sorted(a.keys() - b.keys()), sorted(b.keys() - a.keys())
    if (only_a or only_b) and not only_common:
        parts = [
            f"{len(only)} episodes are only in {path} (such as {only[0]})"
            for path, only in ((path_a, only_a), (path_b, only_b))
            if only
        ]
        raise ValueError(f"the runs differ in their episodes: {'; '.join(parts)}: finish both, or add only_common=true")
    shared = a.keys() & b.keys()
    return sorted(shared, key=lambda k: (a[k].episode.suite, a[k].episode.perturbation, a[k].episode.task, k))


def _task(record: Record) -> str:
    episode = record.episode
    variant = "" if episode.perturbation == "none" else f"/{episode.perturbation}"
    return f"{episode.suite}/{episode.task}{variant}"


def _paired(keys: list[str], a: Mapping[str, Record], b: Mapping[str, Record]) -> Paired:
    return pair([a[key].success for key in keys], [b[key].success for key in keys])


def _line(name: str, words: str, paired: Paired, confidence: float) -> Line:
    return Line(name, words, paired, tango(paired, confidence), mcnemar_exact(paired.only_a, paired.only_b))


def print_comparison(comparison: Comparison) -> None:
    """A table: a row a task, then all, then what to know about it."""
    print(f"A  {comparison.policies[0]}  {comparison.a}\nB  {comparison.policies[1]}  {comparison.b}\n")
    level = f"{100 * comparison.confidence:.0f}%"
    head = ("task", "pairs", "A %", "B %", "B - A", f"{level} (Tango)", "only A", "only B", "p (McNemar)")
    rows = [head, *(_cells(line) for line in [*comparison.tasks, comparison.all])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    for row in rows:
        print(row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)))
    low, high = percent(comparison.bootstrap.low), percent(comparison.bootstrap.high)
    spread = f" [{low}, {high}] ({level}, paired bootstrap stratified by task)" if low != high else ""
    print(f"\nmean over tasks, B - A: {100 * comparison.mean_difference:+.1f} points{spread}")
    if comparison.errors:
        print(f"{len(comparison.errors)} episodes ended in a simulator error in A or B and are not paired")
    if comparison.left_out:
        print(f"{comparison.left_out} episodes that only one run has are left out")
    for note in comparison.notes:
        print(f"note: {note}")


def _cells(line: Line) -> tuple[str, ...]:
    return (
        line.name,
        str(line.paired.pairs),
        percent(line.rate_a),
        percent(line.rate_b),
        f"{100 * line.paired.difference:+.1f}",
        f"{percent(line.tango.low)} to {percent(line.tango.high)}",
        str(line.paired.only_a),
        str(line.paired.only_b),
        f"{line.p:.3g}",
    )
