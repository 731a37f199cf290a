from __future__ import annotations

import numpy as np
import pytest

from embodied.data.statistics import Statistics, column_statistics, image_histogram, image_statistics


def test_hand_computed_values() -> None:
    stats = column_statistics(np.array([[0.0, 10.0], [1.0, 10.0], [2.0, 10.0], [7.0, 10.0]]))
    assert stats.mean.tolist() == [2.5, 10.0]
    assert stats.std[0] == pytest.approx(np.sqrt((6.25 + 2.25 + 0.25 + 20.25) / 4))
    assert stats.std[1] == 0
    assert (stats.min[0], stats.max[0], stats.count) == (0, 7, 4)
    assert stats.q50[0] == 1.5
    assert stats.q99[0] == pytest.approx(2 + 5 * (0.99 * 3 - 2))


def test_not_an_average_of_averages() -> None:
    """Two episodes of unlike length: the quantile of all values, where LeRobot's weighted mean gives something else."""
    short, long = np.zeros((10, 1)), np.arange(90.0)[:, None]
    stats = column_statistics([short, long])
    everything = np.concatenate([short, long])
    assert stats.q99[0] == pytest.approx(np.quantile(everything, 0.99))
    weighted = (10 * np.quantile(short, 0.99) + 90 * np.quantile(long, 0.99)) / 100
    assert abs(stats.q99[0] - weighted) > 5


def test_histogram_statistics_equal_those_of_the_pixels() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), np.uint8)
    exact = column_statistics(frames.reshape(-1, 3).astype(np.float64) / 255)
    ours = image_statistics(image_histogram(frames), len(frames))
    for key in ("mean", "std", "min", "max", "q01", "q10", "q50", "q90", "q99"):
        assert np.allclose(getattr(ours, key).ravel(), getattr(exact, key), atol=1e-12), key
    assert ours.mean.shape == (3, 1, 1)
    assert ours.count == 5


def test_json_round_trip() -> None:
    stats = column_statistics(np.random.default_rng(1).normal(size=(20, 3)))
    back = Statistics.from_json(stats.to_json())
    assert all(np.array_equal(getattr(back, key), getattr(stats, key)) for key in vars(stats))


def test_nan_is_named() -> None:
    values = np.zeros((5, 2))
    values[3, 1] = np.nan
    with pytest.raises(ValueError, match="component 1 at frame 3"):
        column_statistics(values)
