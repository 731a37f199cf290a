"""The simulator benchmark: ratios by hand, a small real run, and the memory of a worker."""

from __future__ import annotations

import pytest

from sim.bench import SimBench
from sim.bench_memory import SETTLED, measure, memory_figures


def test_ratios_are_medians_over_rounds_of_summed_times() -> None:
    bench = SimBench(suites=["a", "b"], steps=10)
    bench._times = {
        "a/stock_physics": [4.0, 6.0, 8.0],
        "b/stock_physics": [2.0, 2.0, 2.0],
        "a/physics": [2.0, 2.0, 2.0],
        "b/physics": [1.0, 2.0, 0.5],
        "a/stock_images": [9.0, 9.0, 9.0],
        "b/stock_images": [9.0, 9.0, 9.0],
        "a/lazy": [1.0, 1.0, 1.0],
        "b/lazy": [2.0, 2.0, 2.0],
        "a/lerobot": [5.0, 6.0, 7.0],
    }
    physics, lazy, lerobot = bench._ratios(["a", "b"])
    assert physics.value == 2.0  # rounds: 6/3, 8/4, 10/2.5
    assert physics.baseline == 2.5  # 20 steps in the median round's 8 s
    assert (lazy.value, lerobot.value) == (6.0, 6.0)
    assert "rounds 2.00..4.00; a 3.00, b 1.71" in physics.note


@pytest.mark.slow
def test_a_small_run_measures_something() -> None:
    bench = SimBench(suites=["robosuite"], steps=4, chunk=4, rounds=1, resets=0, image_size=32)
    lines: list[str] = []
    figures = {figure.name: figure for figure in bench.run(lines.append)}
    assert set(figures) == {"physics_speedup", "lazy_speedup"}
    assert figures["physics_speedup"].value > 1.2
    assert figures["lazy_speedup"].value > 2
    assert "robosuite, round 1 of 1" in lines[-1]


@pytest.mark.slow
def test_a_workers_memory_stays() -> None:
    resets = SETTLED + 5
    size, growth = memory_figures("robosuite", resets, lambda line: None)
    assert 200 < size.value < 1500
    assert growth.value < 5


def test_a_worker_that_dies_is_an_error() -> None:
    with pytest.raises(ValueError, match="ended after 0"):
        measure("no_such_suite", 2, lambda line: None)
