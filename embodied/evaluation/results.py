"""Published figures: from run records to docs/results/NAME.json, and from there to the tables in the documents."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embodied.bench.figures import Figure, origins, read_figures, write_figures
from embodied.evaluation.records import RunFolder
from embodied.evaluation.statistics import bootstrap_mean
from embodied.evaluation.summary import SuiteSummary, Summary, summarise
from embodied.io import read_lines

FOLDER = Path("docs/results")
BLOCK = re.compile(r"(<!-- results (?P<name>[\w-]+)(?P<only>(?: [\w.*]+)*) -->\n).*?(<!-- /results -->)", re.DOTALL)


@dataclass
class ResultsConfig:
    """`name` with `runs` (evaluation folders), `training` (training runs, those that it started from included) and
    `extra` (figures files, whose figures keep their commands) writes a file first; tables always follow."""

    name: str | None = None
    runs: list[str] = field(default_factory=list)
    training: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    documents: list[str] = field(default_factory=lambda: ["README.md", "docs"])
    check: bool = False


def publish(config: ResultsConfig, command: str) -> Path:
    """Writes docs/results/NAME.json from evaluation runs and figures files. ValueError without anything to write."""
    taken = [Path(path) for path in config.extra]
    figures = [figure for path in taken for figure in read_figures(path)]
    sources = [origin for path in taken for origin in origins(path)]
    if config.training:
        figures = training_figures([Path(run) for run in config.training]) + figures
    figures = success_figures([_summary(Path(run)) for run in config.runs]) + figures
    if not config.name or not figures:
        raise ValueError("publishing needs name=NAME and runs=[...], training=[...] or extra=[...]: give them, or none")
    path = FOLDER / f"{config.name}.json"
    write_figures(path, figures, command, sources)
    return path


def training_figures(runs: Sequence[Path]) -> list[Figure]:
    """What training took, summed over runs: CPU and wall minutes, steps. ValueError for a folder without metrics."""
    cpu, wall, steps = 0.0, 0.0, []
    for run in runs:
        lines = read_lines(run / "metrics.jsonl")
        if not lines:
            raise ValueError(
                f"training should name folders of `embodied train`, got {str(run)!r}: correct training=[...]"
            )
        cpu += sum(line.get("cpu_seconds", 0.0) for line in lines)
        wall += sum(line.get("seconds", 0.0) for line in lines)
        steps.append(str(lines[-1]["step"]))
    note = f"steps {' + '.join(steps)}; features and frames cached before"
    return [
        Figure("train_cpu_minutes", cpu / 60, "min", None, note),
        Figure("train_wall_minutes", wall / 60, "min", None, "with whatever else ran on the machine"),
    ]


def _summary(run: Path) -> Summary:
    folder = RunFolder(run)
    if not folder.exists:
        raise ValueError(f"runs should name folders of `embodied evaluate`, got {str(run)!r}: correct runs=[...]")
    return summarise(run, folder.records().values())


def success_figures(summaries: Sequence[Summary]) -> list[Figure]:
    """success.SUITE for every suite and, for several, success.meanN: the mean of the suites' task means."""
    suites = [suite for summary in summaries for suite in summary.suites]
    figures = [
        Figure(f"success.{group_key(suite.suite, suite.perturbation)}", _share(suite), "share", None, _note(suite))
        for suite in suites
    ]
    if len(suites) > 1:
        mean = sum(_share(suite) for suite in suites) / len(suites)
        counts = {
            f"{s.name}/{i}": (t.success, t.counted) for s in suites for i, t in zip(s.indices, s.tasks, strict=True)
        }
        interval = bootstrap_mean(counts)
        note = f"95% {interval.low:.3f} to {interval.high:.3f} (bootstrap stratified by task), {len(counts)} tasks"
        figures.append(Figure(f"success.mean{len(suites)}", mean, "share", None, note))
    return figures


def group_key(suite: str, perturbation: str) -> str:
    """A suite under a perturbation in a figure's name."""
    return suite if perturbation == "none" else f"{suite}.{re.sub(r'[^0-9a-zA-Z]+', '_', perturbation)}"


def _share(suite: SuiteSummary) -> float:
    if suite.mean is None:
        raise ValueError(f"{suite.name} has no counted episode: nothing to publish")
    return suite.mean


def _note(suite: SuiteSummary) -> str:
    tally, interval = suite.all, suite.all.interval
    errors = f", {tally.error} simulator errors" if tally.error else ""
    return (
        f"{tally.success} of {tally.counted} episodes, 95% {interval.low:.3f} to {interval.high:.3f} (Wilson){errors}"
    )


def write_tables(documents: Iterable[str], check: bool = False) -> list[Path]:
    """Rewrites every `<!-- results NAME [figure ...] -->` block. Returns the documents that changed (or would)."""
    changed = []
    for path in sorted(_pages(documents)):
        old = path.read_text()
        new = BLOCK.sub(lambda match: f"{match[1]}{markdown(match['name'], match['only'].split())}{match[4]}", old)
        if new != old:
            changed.append(path)
            if not check:
                path.write_text(new)
    return changed


def _pages(documents: Iterable[str]) -> set[Path]:
    named = [Path(document) for document in documents]
    return {page for path in named for page in (path.glob("**/*.md") if path.is_dir() else [path])}


def markdown(name: str, only: Sequence[str] = ()) -> str:
    """A figures file as a Markdown table with what it was measured on. `only`: figure names, `*` at the end allowed."""
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"a document shows results {name!r}, but {path} does not exist: publish it first")
    figures = [f for f in read_figures(path) if not only or any(_matches(f.name, pattern) for pattern in only)]
    rows = [f"| `{f.name}` | {_value(f)} | {f.note} |" for f in figures]
    table = ["| figure | value | |", "|---|---:|---|", *rows]
    shown = {f.name for f in figures}
    footing = [_footing(origin) for origin in origins(path) if shown & set(origin["figures"])]
    return "\n".join([*table, "", "\\\n".join(footing), ""])


def _matches(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _value(figure: Figure) -> str:
    if figure.unit == "share":
        return f"{100 * figure.value:.1f}%"
    return f"{figure.value:,.4g} {figure.unit}" if abs(figure.value) < 1000 else f"{figure.value:,.0f} {figure.unit}"


def _footing(content: Mapping[str, Any]) -> str:
    machine, versions = content["machine"], content["versions"]
    shown = ", ".join(
        f"{key} {versions[key]}" for key in ("mujoco", "robosuite", "torch", "lerobot") if key in versions
    )
    place = f"{machine.get('cpu', 'unknown CPU')}, {machine.get('cores')} cores"
    return f"{place}; {shown}; {content['date'][:10]}, commit {str(content['commit'])[:12]}. `{content['command']}`"
