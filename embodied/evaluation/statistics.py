"""Intervals and tests for success rates. Everything here takes counts or 0/1 outcomes; nothing is approximated by a
normal where an exact or score method is at hand.

- One rate: Wilson's score interval (Wilson 1927).
- The mean over tasks: bootstrap stratified by task, seeded. Resampling n outcomes of which k are successes is a
  binomial draw, so it is drawn as one.
- Two runs of the same episodes: exact McNemar test (binomial on the discordant pairs), Tango's score interval for
  the paired difference (Tango 1998, Statistics in Medicine 17:891-908) and, stratified by task, a paired bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

SAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    low: float
    high: float
    confidence: float = 0.95


@dataclass(frozen=True)
class Paired:
    """Outcomes of the same episodes under A and B. `difference` is B's rate minus A's."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def pairs(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def difference(self) -> float:
        return (self.only_b - self.only_a) / self.pairs


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a rate; [0, 1] without trials. ValueError for impossible counts."""
    _check_counts(successes, trials, confidence)
    if trials == 0:
        return Interval(0.0, 1.0, confidence)
    z = _quantile(confidence)
    rate, shrink = successes / trials, 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / shrink
    half = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials)) / shrink
    low = 0.0 if successes == 0 else centre - half  # exact where rounding would leave 1e-17
    high = 1.0 if successes == trials else centre + half
    return Interval(low, high, confidence)


def bootstrap_mean(
    counts: Mapping[str, tuple[int, int]], confidence: float = 0.95, samples: int = SAMPLES, seed: int = 0
) -> Interval:
    """Percentile interval of the mean over tasks of the success rate, episodes resampled within each task.

    `counts` maps a task to (successes, trials); tasks without trials are left out. With every task at 0 or at 1
    it has no width: read the Wilson interval of the pooled episodes then.
    """
    filled = [pair for pair in counts.values() if pair[1] > 0]
    if not filled:
        return Interval(0.0, 1.0, confidence)
    rng = np.random.default_rng(seed)
    rates = [rng.binomial(n, k / n, samples) / n for k, n in filled]
    return percentiles(np.mean(rates, axis=0), confidence)


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact p-value that A and B succeed equally often, from the discordant pairs."""
    discordant = only_a + only_b
    if discordant == 0:
        return 1.0
    tail = sum(math.comb(discordant, i) for i in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**discordant)


def tango(paired: Paired, confidence: float = 0.95) -> Interval:
    """Tango's score interval of B's success rate minus A's on the same episodes."""
    if paired.pairs == 0:
        return Interval(-1.0, 1.0, confidence)
    z = _quantile(confidence)
    centre = paired.difference

    def edge(limit: float) -> float:
        inside, outside = centre, limit
        for _ in range(80):  # bisection to the end of double precision
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if abs(_tango_score(paired, middle)) < z else (inside, middle)
        return (inside + outside) / 2

    low = -1.0 if abs(_tango_score(paired, -1.0)) < z else edge(-1.0)
    high = 1.0 if abs(_tango_score(paired, 1.0)) < z else edge(1.0)
    return Interval(low, high, confidence)


def _tango_score(paired: Paired, delta: float) -> float:
    """Score statistic of "B minus A is delta" (Tango 1998, eq. 11-13): its variance uses the constrained MLE."""
    n, b, c = paired.pairs, paired.only_b, paired.only_a
    top = b - c - n * delta
    if top == 0:
        return 0.0
    # 2n q^2 + B q + C = 0 for q, the probability of "only A"
    linear = -b - c + (2 * n - b + c) * delta
    constant = -c * delta * (1 - delta)
    q = (math.sqrt(max(0.0, linear * linear - 8 * n * constant)) - linear) / (4 * n)
    variance = n * (2 * q + delta * (1 - delta))
    return math.copysign(math.inf, top) if variance <= 0 else top / math.sqrt(variance)


def bootstrap_difference(
    tasks: Mapping[str, Paired], confidence: float = 0.95, samples: int = SAMPLES, seed: int = 0
) -> Interval:
    """Percentile interval of the mean over tasks of B's rate minus A's, pairs resampled within each task."""
    filled = [paired for paired in tasks.values() if paired.pairs > 0]
    if not filled:
        return Interval(-1.0, 1.0, confidence)
    rng = np.random.default_rng(seed)
    differences = []
    for paired in filled:
        cells = np.array([paired.only_a, paired.only_b, paired.both + paired.neither])
        drawn = rng.multinomial(paired.pairs, cells / paired.pairs, samples)
        differences.append((drawn[:, 1] - drawn[:, 0]) / paired.pairs)
    return percentiles(np.mean(differences, axis=0), confidence)


def pair(a: Sequence[bool], b: Sequence[bool]) -> Paired:
    """Counts of the four joint outcomes. ValueError when the two have different lengths."""
    if len(a) != len(b):
        raise ValueError(f"paired outcomes should have equal lengths, got {len(a)} and {len(b)}")
    joint = [(bool(x), bool(y)) for x, y in zip(a, b, strict=True)]
    return Paired(*(joint.count(cell) for cell in ((True, True), (True, False), (False, True), (False, False))))


def percentiles(draws: np.ndarray, confidence: float) -> Interval:
    """The interval that holds the middle `confidence` of bootstrap draws."""
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high), confidence)


def _quantile(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _check_counts(successes: int, trials: int, confidence: float) -> None:
    if not 0 <= successes <= trials:
        raise ValueError(f"successes should be 0 to the {trials} trials, got {successes}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence should lie between 0 and 1, got {confidence}")
