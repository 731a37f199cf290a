"""Intervals and tests against scipy, statsmodels, closed forms and a brute-force score test."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from embodied.evaluation.statistics import (
    Paired,
    bootstrap_difference,
    bootstrap_mean,
    mcnemar_exact,
    pair,
    tango,
    wilson,
)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (0, 50), (1, 50), (39, 40), (50, 50), (497, 500)])
def test_wilson_equals_statsmodels(successes, trials, confidence):
    ours = wilson(successes, trials, confidence)
    assert (ours.low, ours.high) == pytest.approx(
        proportion_confint(successes, trials, alpha=1 - confidence, method="wilson"), abs=1e-12
    )


def test_wilson_by_hand():
    # z = 1.959964: (0.5 + z^2/20) / (1 + z^2/10) = 0.5; half width z sqrt(0.025 + z^2/400) / (1 + z^2/10)
    z = 1.959963984540054
    half = z * math.sqrt(0.025 + z * z / 400) / (1 + z * z / 10)
    ours = wilson(5, 10)
    assert (ours.low, ours.high) == pytest.approx((0.5 - half, 0.5 + half))
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0, 1)


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="successes should be 0 to the 3 trials, got 4"):
        wilson(4, 3)
    with pytest.raises(ValueError, match="confidence"):
        wilson(1, 3, 95)


def test_bootstrap_of_one_task_is_the_binomial_distribution():
    interval = bootstrap_mean({"a": (30, 50)}, samples=200_000, seed=1)
    expected = stats.binom.ppf([0.025, 0.975], 50, 0.6) / 50
    assert (interval.low, interval.high) == pytest.approx(expected, abs=1e-12)


def test_bootstrap_agrees_with_scipy_resampling_within_tasks():
    counts = {"easy": (19, 20), "hard": (4, 20), "middle": (12, 20)}
    outcomes = [np.repeat([1.0, 0.0], [k, n - k]) for k, n in counts.values()]
    theirs = stats.bootstrap(
        outcomes,
        lambda *tasks, axis=-1: np.mean([t.mean(axis) for t in tasks], axis=0),
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(0),
        vectorized=True,
    ).confidence_interval
    ours = bootstrap_mean(counts, samples=20_000)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.017)  # one episode of 60
    # stratified: narrower than resampling the 60 episodes as one heap
    pooled = stats.binom.ppf([0.025, 0.975], 60, 35 / 60) / 60
    assert ours.high - ours.low < pooled[1] - pooled[0]


def test_bootstrap_weighs_tasks_equally_and_is_seeded():
    counts = {"many": (1000, 1000), "few": (0, 1000)}
    assert bootstrap_mean(counts).low == bootstrap_mean(counts).high == 0.5
    spread = {"a": (5, 10), "b": (9, 10)}
    assert bootstrap_mean(spread, seed=3) == bootstrap_mean(spread, seed=3)
    assert bootstrap_mean({**spread, "none": (0, 0)}) == bootstrap_mean(spread)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (0, 5), (5, 1), (7, 7), (3, 12), (40, 60)])
def test_mcnemar_equals_statsmodels_and_scipy(only_a, only_b):
    ours = mcnemar_exact(only_a, only_b)
    assert ours == pytest.approx(min(1.0, mcnemar([[9, only_a], [only_b, 4]], exact=True).pvalue), abs=1e-12)
    if only_a + only_b:
        assert ours == pytest.approx(stats.binomtest(only_a, only_a + only_b).pvalue, abs=1e-12)


def test_mcnemar_by_hand():
    assert mcnemar_exact(0, 5) == 2 / 32
    assert mcnemar_exact(1, 5) == 2 * (1 + 6) / 64


def brute_score(paired: Paired, delta: float) -> float:
    """Score statistic with the constrained maximum likelihood found numerically."""
    n, b, c = paired.pairs, paired.only_b, paired.only_a

    def loss(q):  # P(only A) = q, P(only B) = q + delta, concordant the rest
        terms = ((c, q), (b, q + delta), (n - b - c, 1 - 2 * q - delta))
        return -sum(count * math.log(max(p, 1e-300)) for count, p in terms if count)

    q = optimize.minimize_scalar(loss, bounds=(max(0, -delta), (1 - delta) / 2), options={"xatol": 1e-12}).x
    return (b - c - n * delta) / math.sqrt(n * (2 * q + delta - delta * delta))


@pytest.mark.parametrize("cells", [(36, 2, 12, 0), (20, 5, 9, 16), (40, 0, 7, 3), (10, 30, 5, 5), (97, 1, 2, 100)])
def test_tango_interval_ends_where_the_score_test_does(cells):
    paired = Paired(*cells)
    interval = tango(paired)
    assert interval.low < paired.difference < interval.high
    for end in (interval.low, interval.high):
        assert abs(brute_score(paired, end)) == pytest.approx(stats.norm.ppf(0.975), abs=2e-4)


def test_tango_is_antisymmetric_and_bounded():
    ours, swapped = tango(Paired(20, 3, 8, 9)), tango(Paired(20, 8, 3, 9))
    assert (ours.low, ours.high) == pytest.approx((-swapped.high, -swapped.low), abs=1e-12)
    equal = tango(Paired(50, 0, 0, 0))
    # no discordant pair among n: the score interval is +-z^2 / (n + z^2)
    z2 = stats.norm.ppf(0.975) ** 2
    assert (equal.low, equal.high) == pytest.approx((-z2 / (50 + z2), z2 / (50 + z2)), abs=1e-9)
    assert tango(Paired(0, 0, 0, 0)).low == -1


def test_tango_covers_the_true_difference():
    rng = np.random.default_rng(0)
    probabilities, covered = np.array([0.55, 0.1, 0.25, 0.1]), 0
    for cells in rng.multinomial(60, probabilities, 600):
        interval = tango(Paired(*(int(c) for c in cells)))
        covered += interval.low <= 0.15 <= interval.high
    assert covered / 600 == pytest.approx(0.95, abs=0.03)


def test_paired_bootstrap_has_the_closed_forms_spread():
    tasks = {"a": Paired(10, 4, 12, 24), "b": Paired(30, 10, 5, 5)}
    # variance of a task's mean difference: (p_b + p_a - (p_b - p_a)^2) / n, averaged over two tasks
    variance = ((0.32 - 0.16**2) / 50 + (0.3 - 0.1**2) / 50) / 4
    interval = bootstrap_difference(tasks, samples=50_000)
    centre = (0.16 - 0.1) / 2
    half = 1.96 * math.sqrt(variance)
    assert (interval.low, interval.high) == pytest.approx((centre - half, centre + half), abs=0.011)


def test_pair_counts():
    assert pair([1, 1, 0, 0, 1], [1, 0, 1, 0, 1]) == Paired(2, 1, 1, 1)
    assert pair([1, 0], [0, 1]).difference == 0
    with pytest.raises(ValueError, match="equal lengths, got 1 and 2"):
        pair([True], [True, False])
