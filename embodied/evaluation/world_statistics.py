"""Statistics of world-model evaluation: intervals over episodes, and how well one ranking of policies tells another.

MMRV (SIMPLER, Li et al. 2024): for each policy the largest real difference to a policy that it is ranked wrongly
against, averaged over policies; 0 is best.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embodied.evaluation.statistics import SAMPLES, Interval


def bootstrap_mean_of(
    values: np.ndarray, groups: np.ndarray, confidence: float = 0.95, samples: int = SAMPLES, seed: int = 0
) -> Interval:
    """Percentile interval of the mean of values (N,), whole groups (N,) resampled: clips of an episode are alike."""
    _, index = np.unique(groups, return_inverse=True)
    total, count = np.bincount(index, values), np.bincount(index)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(count), size=(samples, len(count)))
    means = total[drawn].sum(1) / count[drawn].sum(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high), confidence)


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    """Correlation; NaN when one side does not vary."""
    a, b = np.asarray(x, float), np.asarray(y, float)
    if a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 1, ties share their mean rank."""
    v = np.asarray(values, float)
    return np.array([(v < x).sum() + ((v == x).sum() + 1) / 2 for x in v])


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    return pearson(ranks(x).tolist(), ranks(y).tolist())


def mmrv(real: Sequence[float], predicted: Sequence[float]) -> float:
    """Mean maximum rank violation of policies' real success rates by predicted ones."""
    r, p = np.asarray(real, float), np.asarray(predicted, float)
    if r.shape != p.shape or r.ndim != 1 or len(r) < 2:
        raise ValueError(f"MMRV needs two rates for each of at least two policies, got {r.shape} and {p.shape}")
    wrong = (p[:, None] < p[None]) != (r[:, None] < r[None])
    return float((np.abs(r[:, None] - r[None]) * wrong).max(1).mean())


def bootstrap_policies(
    real: np.ndarray, predicted: np.ndarray, statistic: str = "pearson", samples: int = 2000, seed: int = 0
) -> Interval:
    """Interval of a statistic over outcomes (policies, episodes) of both worlds, the shared episodes resampled."""
    function = {"pearson": pearson, "spearman": spearman, "mmrv": mmrv}[statistic]
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(samples):
        chosen = rng.integers(real.shape[1], size=real.shape[1])
        found.append(function(real[:, chosen].mean(1).tolist(), predicted[:, chosen].mean(1).tolist()))
    low, high = np.nanquantile(found, [0.025, 0.975])
    return Interval(float(low), float(high))
