"""Curves of `embodied value` as a picture: one panel an episode, the right instruction black, wrong ones coloured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from embodied.evaluation.value import Curve

PANELS = 12
COLUMNS = 3


def draw_curves(curves: Sequence[Curve], out: Path) -> None:
    """Up to twelve episodes, spread over the list."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    step = max(1, len(curves) // PANELS)
    shown = list(curves)[::step][:PANELS]
    rows = -(-len(shown) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(4.2 * COLUMNS, 2.6 * rows), squeeze=False)
    for panel in axes.ravel()[len(shown) :]:
        panel.set_visible(False)
    for panel, curve in zip(axes.ravel(), shown, strict=False):
        for i in range(curve.values.shape[1] - 1, -1, -1):
            color = "black" if i == 0 else f"C{i - 1}"
            panel.plot(curve.frames, curve.values[:, i], color=color, linewidth=1.6 if i == 0 else 0.9)
        panel.set_title(curve.instructions[0], fontsize=7)
        panel.tick_params(labelsize=6)
    figure.supxlabel("frame", fontsize=8)
    figure.supylabel("value (log-reachability up to a constant of the goal)", fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=100, metadata={"Software": None})
    plt.close(figure)
