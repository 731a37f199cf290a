"""Line plots of an episode's columns as SVG, one time axis for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from embodied.data.source import ColumnSpec
from embodied.schema import ACTION, ACTION_DIM, EXECUTED_ACTION, STATE, STATE_DIM

WIDTH, HEIGHT = 600, 110
GROUPS = {
    (STATE, STATE_DIM): (("position, m", 0, 3), ("orientation, rad", 3, 6), ("fingers, m", 6, 8)),
    (ACTION, ACTION_DIM): (("action: translation", 0, 3), ("action: rotation", 3, 6), ("action: gripper", 6, 7)),
}
MOST_LINES = 8


@dataclass(frozen=True)
class Line:
    """One curve: `points` is an SVG polyline's attribute, `colour` a number of the palette."""

    name: str
    points: str
    colour: int


@dataclass(frozen=True)
class Plot:
    """Curves with a common range of values."""

    title: str
    lines: list[Line]
    low: float
    high: float


def episode_plots(columns: Mapping[str, np.ndarray], specs: Mapping[str, ColumnSpec]) -> list[Plot]:
    """Plots of state, action and executed action where the episode has them."""
    plots: list[Plot] = []
    for key in (STATE, ACTION, EXECUTED_ACTION):
        if key not in columns or (
            key == EXECUTED_ACTION and ACTION in columns and np.array_equal(columns[key], columns[ACTION])
        ):
            continue
        values = columns[key].reshape(len(columns[key]), -1)
        names = specs[key].names or tuple(str(i) for i in range(values.shape[1]))
        groups = GROUPS.get((key, values.shape[1])) or ((key, 0, min(values.shape[1], MOST_LINES)),)
        plots += [_plot(title, values[:, first:last], names[first:last]) for title, first, last in groups]
    return plots


def _plot(title: str, values: np.ndarray, names: tuple[str, ...]) -> Plot:
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    span = high - low or 1.0
    x = np.linspace(0, WIDTH, len(values)) if len(values) > 1 else np.array([WIDTH / 2])
    lines = []
    for i, name in enumerate(names):
        y = HEIGHT - 4 - (values[:, i] - low) / span * (HEIGHT - 8)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True) if np.isfinite(b))
        lines.append(Line(name, points, i))
    return Plot(title, lines, low, high)
