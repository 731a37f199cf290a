"""Arms of an ablation, each trained with several seeds, on the same episodes: paired differences with intervals.

The difference of two arms is the mean over tasks of the mean over episodes of the difference of success, each arm's
averaged over its training seeds. Its interval is a percentile bootstrap over both sources of chance: training seeds are
resampled within each arm, episodes (the same for both arms) within each task; tasks of a single episode, which shows
no chance by itself, among each other. With three seeds it is a rough one.

Shapes: S seeds of an arm, E episodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from embodied.bench.figures import Figure
from embodied.evaluation.compare import agree
from embodied.evaluation.records import Outcome, Record, RunFolder
from embodied.evaluation.results import group_key
from embodied.evaluation.statistics import SAMPLES, Interval, percentiles

Group = tuple[str, str]  # suite and perturbation


@dataclass
class AblationConfig:
    """arms: name -> one entry a training seed: an evaluation run, or several (one a suite, say)."""

    arms: dict[str, Any] = field(default_factory=dict)
    samples: int = SAMPLES
    seed: int = 0
    out: str | None = None


@dataclass(frozen=True)
class Difference:
    """One arm's rate minus another's in a suite under a perturbation."""

    arm: str
    against: str
    group: Group
    rate: float
    rate_against: float
    interval: Interval
    seeds: tuple[int, int]
    episodes: int

    @property
    def value(self) -> float:
        return self.rate - self.rate_against

    def figure(self) -> Figure:
        note = (
            f"95% {self.interval.low:+.3f} to {self.interval.high:+.3f} (bootstrap over seeds and episodes); "
            f"{self.rate:.3f} against {self.rate_against:.3f}; {self.seeds[0]} and {self.seeds[1]} training seeds, "
            f"{self.episodes} episodes each"
        )
        name = f"ablation.{self.arm}_over_{self.against}.{group_key(*self.group)}"
        return Figure(name, self.value, "difference of share", self.rate_against, note)


def ablation(config: AblationConfig) -> list[Difference]:
    """Every pair of arms in every suite and perturbation that they share. ValueError for runs that do not pair."""
    if len(config.arms) < 2:
        raise ValueError(f"an ablation needs two arms or more, got {sorted(config.arms)}: arms={{a: [RUN], b: [RUN]}}")
    _check_protocols(config.arms)
    arms = {name: [_outcomes(runs) for runs in seeds] for name, seeds in config.arms.items()}
    found = []
    for against, arm in combinations(arms, 2):
        shared = sorted(set.intersection(*(set(seed) for seed in (*arms[arm], *arms[against]))))
        groups: dict[Group, list[tuple[str, str]]] = {}
        for group, task, key in shared:
            groups.setdefault(group, []).append((task, key))
        if not groups:
            raise ValueError(
                f"{arm} and {against} share no episode that all their runs finished: evaluate the same ones"
            )
        for group, episodes in groups.items():
            a, b = (
                np.array([[seed[group, task, key] for task, key in episodes] for seed in arms[name]], float)
                for name in (arm, against)
            )
            weight_E = _task_weights([task for task, _ in episodes])
            interval = _bootstrap(a, b, [task for task, _ in episodes], config.samples, config.seed)
            rates = (float(a.mean(0) @ weight_E), float(b.mean(0) @ weight_E))
            found.append(Difference(arm, against, group, *rates, interval, (len(a), len(b)), len(episodes)))
    return found


def _bootstrap(a_SE: np.ndarray, b_SE: np.ndarray, tasks: Sequence[str], samples: int, seed: int) -> Interval:
    rng = np.random.default_rng(seed)
    names, index_E, count = np.unique(tasks, return_inverse=True, return_counts=True)
    stratum_E = np.where(count[index_E] == 1, len(names), index_E)
    strata = [np.flatnonzero(stratum_E == stratum) for stratum in np.unique(stratum_E)]
    shares = [len(np.unique(index_E[place])) / len(names) for place in strata]
    draws = np.empty(samples)
    for i in range(samples):
        a_E, b_E = (arm[rng.integers(len(arm), size=len(arm))].mean(0) for arm in (a_SE, b_SE))
        gap_E = a_E - b_E
        means = [gap_E[place[rng.integers(len(place), size=len(place))]].mean() for place in strata]
        draws[i] = np.dot(shares, means)
    return percentiles(draws, 0.95)


def _task_weights(tasks: Sequence[str]) -> np.ndarray:
    """(E,) so that tasks weigh the same."""
    _, index, count = np.unique(tasks, return_inverse=True, return_counts=True)
    return 1 / count[index] / len(count)


def _outcomes(runs: str | Sequence[str]) -> dict[tuple[Group, str, str], bool]:
    """One seed's successes by (suite and perturbation, task, episode); errors are left out."""
    found: dict[tuple[Group, str, str], bool] = {}
    for run in _paths(runs):
        for key, record in RunFolder(run).records().items():
            if record.outcome is not Outcome.ERROR:
                found[_group(record), str(record.episode.task), key] = record.success
    return found


def _group(record: Record) -> Group:
    return record.episode.suite, record.episode.perturbation


def _paths(runs: str | Sequence[str]) -> list[Path]:
    return [Path(run) for run in ([runs] if isinstance(runs, str) else runs)]


def _check_protocols(arms: Mapping[str, Sequence[Any]]) -> None:
    """Runs of one suite should be of one world. ValueError names what differs."""
    first: dict[str, tuple[Path, dict[str, Any]]] = {}
    for seeds in arms.values():
        for run in (path for runs in seeds for path in _paths(runs)):
            protocol = RunFolder(run).protocol()
            other, known = first.setdefault(protocol["env"]["suite"], (run, protocol))
            agree(other, run, known, protocol)
