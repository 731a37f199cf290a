"""Exact statistics over a whole data set: every value counts once.

LeRobot 0.6.1 averages the quantiles of episodes, which are not quantiles of the data set; these are. Quantiles
interpolate linearly between order statistics (numpy's default, Hyndman and Fan's type 7).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
LEVELS = 256


@dataclass(frozen=True)
class Statistics:
    """Per-component statistics in float64, each of the value's shape; `count` is the number of frames."""

    mean: np.ndarray
    std: np.ndarray
    min: np.ndarray
    max: np.ndarray
    q01: np.ndarray
    q10: np.ndarray
    q50: np.ndarray
    q90: np.ndarray
    q99: np.ndarray
    count: int

    def to_json(self) -> dict[str, Any]:
        """The form of LeRobot's meta/stats.json: lists, `count` in a list of one."""
        values: dict[str, Any] = {
            key: np.asarray(value).tolist() for key, value in vars(self).items() if key != "count"
        }
        return {**values, "count": [self.count]}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Statistics:
        arrays = {key: np.asarray(item, np.float64) for key, item in value.items() if key != "count"}
        return Statistics(**arrays, count=int(np.asarray(value["count"]).reshape(-1)[0]))


def column_statistics(parts: np.ndarray | Sequence[np.ndarray]) -> Statistics:
    """Statistics of frames (T, ...) given as one array or as several whose frames belong together.

    One component is held in memory at a time, so a memory-mapped column of any length works. Raises ValueError when
    there are no frames or a value is not finite.
    """
    parts = [parts] if isinstance(parts, np.ndarray) else list(parts)
    count = sum(len(part) for part in parts)
    if count == 0:
        raise ValueError("statistics need at least one frame, got none: choose a data set with episodes")
    shape = parts[0].shape[1:]
    flat = [part.reshape(len(part), -1) for part in parts]
    rows = [_component(np.concatenate([part[:, i] for part in flat]), i) for i in range(flat[0].shape[1])]
    stacked = {key: np.array([row[key] for row in rows]).reshape(shape) for key in rows[0]}
    return Statistics(**stacked, count=count)


def _component(values: np.ndarray, index: int) -> dict[str, float]:
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        frame = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(
            f"statistics need finite values, got {values[frame]} in component {index} at frame {frame}: "
            "run `embodied data validate` on the data set"
        )
    result = dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values())), strict=True))
    result |= {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
    return {key: float(value) for key, value in result.items()}


def image_histogram(frames: np.ndarray) -> np.ndarray:
    """Pixels per channel and level of frames (T, H, W, 3) uint8: (3, 256) int64."""
    import torch

    flat = torch.from_numpy(np.ascontiguousarray(frames)).reshape(-1, 3)
    return np.stack([torch.bincount(flat[:, c], minlength=LEVELS).numpy() for c in range(3)]).astype(np.int64)


def image_statistics(histogram: np.ndarray, frames: int) -> Statistics:
    """Statistics of all pixels from their histogram (3, 256), scaled to [0, 1], shape (3, 1, 1) as LeRobot has them."""
    levels = np.arange(LEVELS) / (LEVELS - 1)
    total = histogram.sum(axis=1)
    mean = histogram @ levels / total
    std = np.sqrt((histogram * (levels[None] - mean[:, None]) ** 2).sum(axis=1) / total)
    result = {"mean": mean, "std": std}
    result["min"] = np.array([levels[row > 0][0] for row in histogram])
    result["max"] = np.array([levels[row > 0][-1] for row in histogram])
    for key, q in QUANTILES.items():
        result[key] = np.array([_histogram_quantile(row, q) for row in histogram]) / (LEVELS - 1)
    return Statistics(**{key: value.reshape(3, 1, 1) for key, value in result.items()}, count=frames)


def _histogram_quantile(row: np.ndarray, q: float) -> float:
    """The linearly interpolated quantile of the multiset that a histogram stands for."""
    cumulative = np.cumsum(row)
    position = q * (int(cumulative[-1]) - 1)
    below, above = int(np.floor(position)), int(np.ceil(position))
    low, high = np.searchsorted(cumulative, [below, above], side="right")
    return float(low + (high - low) * (position - below))
