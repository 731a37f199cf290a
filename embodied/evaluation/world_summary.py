"""What an evaluation of world models found: means, curves over interactions, paired wins with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from embodied.bench.figures import Figure
from embodied.evaluation.statistics import Interval
from embodied.evaluation.world_metrics import LOWER_IS_BETTER
from embodied.evaluation.world_statistics import bootstrap_mean_of

SHORT = {"observation.images.image": "external", "observation.images.image2": "wrist"}


@dataclass(frozen=True)
class Wins:
    """How often a model beats `against` on the same clips. A clip is won when most of its metrics are better."""

    model: str
    against: str
    clips: int
    rate: float
    interval: Interval
    by_metric: dict[str, float]


@dataclass
class WorldSummary:
    """means: model -> mode -> metric -> camera. curves: the same, a number an interaction."""

    folder: Path
    against: str
    metrics: list[str]
    cameras: list[str]
    means: dict[str, dict[str, dict[str, dict[str, float]]]] = field(default_factory=dict)
    curves: dict[str, dict[str, dict[str, dict[str, list[float]]]]] = field(default_factory=dict)
    wins: list[Wins] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        wins = [
            {**vars(win), "interval": [win.interval.low, win.interval.high], "by_metric": win.by_metric}
            for win in self.wins
        ]
        return {"against": self.against, "means": self.means, "curves": self.curves, "wins": wins}

    def figures(self) -> list[Figure]:
        """closed_loop.MODEL.METRIC.CAMERA, win_rate.MODEL_over_MODEL, and win_rate of the last model over `against`."""
        found = []
        for model, modes in self.means.items():
            for mode, rows in modes.items():
                name = "closed_loop" if mode == "closed" else "teacher_forced"
                for metric, cameras in rows.items():
                    base = self.means.get(self.against, {}).get(mode, {}).get(metric, {})
                    found += [
                        Figure(f"{name}.{model}.{metric}.{short(camera)}", value, "", base.get(camera))
                        for camera, value in cameras.items()
                        if value == value
                    ]
        for win in self.wins:
            low, high = win.interval.low, win.interval.high
            note = f"95% {low:.3f} to {high:.3f} (bootstrap over episodes), {win.clips} clips"
            found.append(Figure(f"win_rate.{win.model}_over_{win.against}", win.rate, "share", 0.5, note))
        last = list(self.means)[-1]
        for win in [win for win in self.wins if (win.model, win.against) == (last, self.against)]:
            note = f"{win.model} against {win.against}, {win.clips} clips"
            found += [
                Figure("win_rate", win.rate, "share", 0.5, note),
                Figure("win_rate_low", win.interval.low, "share", 0.5, note),
            ]
        return found

    def table(self) -> str:
        """Closed-loop and teacher-forced means as text."""
        columns = [(metric, camera) for metric in self.metrics for camera in self.cameras]
        lines = [" ".join(["model".ljust(28), *(f"{m} {short(c)}".rjust(20) for m, c in columns)])]
        for model, modes in self.means.items():
            for mode, rows in modes.items():
                values = [f"{rows[metric][camera]:20.4f}" for metric, camera in columns]
                lines.append(" ".join([f"{model} ({mode})".ljust(28), *values]))
        for win in self.wins:
            low, high = 100 * win.interval.low, 100 * win.interval.high
            share = f"{100 * win.rate:.0f}% of {win.clips} clips ({low:.0f} to {high:.0f}%)"
            lines.append(f"{win.model} beats {win.against} on {share}")
        return "\n".join(lines)


def short(camera: str) -> str:
    return SHORT.get(camera, camera.rpartition(".")[2])


def summarise(results: Sequence[Any], against: str, folder: Path) -> WorldSummary:
    """`results`: world.Result's. ValueError without any."""
    if not results:
        raise ValueError(f"{folder} holds no results: run evaluate-world")
    cameras = list(results[0].scores)
    metrics = list(results[0].scores[cameras[0]])
    summary = WorldSummary(folder, against, metrics, cameras)
    groups: dict[tuple[str, str], list[Any]] = {}
    for result in results:
        groups.setdefault((result.model, result.mode), []).append(result)
    for (model, mode), rows in groups.items():
        means = {m: {c: _mean([row.mean(m, c) for row in rows]) for c in cameras} for m in metrics}
        curves = {m: {c: _curve([row.scores[c][m] for row in rows]) for c in cameras} for m in metrics}
        summary.means.setdefault(model, {})[mode] = means
        summary.curves.setdefault(model, {})[mode] = curves
    closed = {model: rows for (model, mode), rows in groups.items() if mode == "closed"}
    order = sorted(closed, key=lambda model: (not model.startswith("copy_"), model != against))
    for number, model in enumerate(order):
        for other in order[:number]:
            base = {row.clip.key: row for row in closed[other]}
            summary.wins.append(paired(closed[model], base, metrics, model, other))
    return summary


def paired(rows: Sequence[Any], base: dict[str, Any], metrics: Sequence[str], model: str, against: str) -> Wins:
    """Clips that both have, each metric averaged over cameras and interactions; the masked score is no vote."""
    voting = [metric for metric in metrics if not metric.endswith("_moving")]
    pairs = [(row, base[row.clip.key]) for row in rows if row.clip.key in base]
    better = {
        metric: np.array([_better(a.mean(metric), b.mean(metric), metric) for a, b in pairs]) for metric in metrics
    }
    votes = np.stack([better[metric] for metric in voting]).mean(0)
    won = np.where(votes > 0.5, 1.0, np.where(votes == 0.5, 0.5, 0.0))
    interval = bootstrap_mean_of(won, np.array([row.clip.episode for row, _ in pairs]))
    by_metric = {metric: float(np.nanmean(value)) for metric, value in better.items()}
    return Wins(model, against, len(pairs), float(won.mean()), interval, by_metric)


def _better(a: float, b: float, metric: str) -> float:
    if a != a or b != b:
        return float("nan")
    gap = b - a if metric in LOWER_IS_BETTER else a - b
    return 1.0 if gap > 0 else 0.5 if gap == 0 else 0.0


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if value == value]
    return float(np.mean(finite)) if finite else float("nan")


def _curve(rows: Sequence[Sequence[float]]) -> list[float]:
    return [_mean([row[i] for row in rows]) for i in range(len(rows[0]))]
