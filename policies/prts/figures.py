"""Pictures for the documentation: `python -m policies.prts.figures mask|tabular OUT.png`."""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Any

from policies.prts.layout import PAD, Role, make_layout
from policies.prts.role_mask import role_mask


def draw_mask(out: Path, counts: tuple[int, ...] = (6, 4, 4, 5, 5)) -> None:
    """The role-aware mask of one sample: queries down, keys across, filled where seen; position ids along the axes."""
    plt = _pyplot()
    layout = make_layout([counts])
    seen, roles = role_mask(layout)[0], layout.role_BT[0]
    picture = seen * (roles[:, None] + 1)
    figure, axes = plt.subplots(figsize=(8, 7))
    axes.imshow(picture, cmap=plt.matplotlib.colors.ListedColormap(["white", *plt.cm.tab10.colors[:5]]), vmin=0, vmax=5)
    edges = [0, *layout.counts_SR[0].cumsum(0).tolist()]
    middle = [(a + b) / 2 - 0.5 for a, b in pairwise(edges)]
    names = [f"{role.name}\n{_positions(layout, role)}" for role in Role]
    axes.set_xticks(middle, names, fontsize=7)
    axes.set_yticks(middle, names, fontsize=7)
    for edge in edges[1:-1]:
        axes.axhline(edge - 0.5, color="black", linewidth=0.5)
        axes.axvline(edge - 0.5, color="black", linewidth=0.5)
    axes.set_xlabel("keys (role, position ids)")
    axes.set_ylabel("queries")
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    _save(plt, figure, out)


def draw_tabular(out: Path) -> None:
    """Learned inner product against the exact log discounted occupancy of the grid world, one colour a goal."""
    from policies.prts.tabular import GridWorld, learn_occupancy

    plt = _pyplot()
    result = learn_occupancy(GridWorld())
    figure, axes = plt.subplots(figsize=(5, 5))
    for goal in range(result.exact.shape[1]):
        axes.scatter(result.exact[:, goal], result.learned[:, goal], s=8, label=f"goal {goal}")
    ends = [result.exact.min(), result.exact.max()]
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.set_xlabel("exact log Q(l | s, a), mean over (s, a) taken out")
    axes.set_ylabel("learned scaled inner product, mean taken out")
    axes.set_title(f"correlation {result.correlation:.3f}, rms error {result.error:.2f} nats", fontsize=9)
    axes.legend()
    _save(plt, figure, out)


def _positions(layout: Any, role: Role) -> str:
    ids = layout.position_BT[0][(layout.role_BT[0] == role) & (layout.role_BT[0] != PAD)].tolist()
    return f"{ids[0]}..{ids[-1]}"


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(plt: Any, figure: Any, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(out, dpi=110, metadata={"Software": None})
    plt.close(figure)
    print(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figure", choices=["mask", "tabular"])
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    {"mask": draw_mask, "tabular": draw_tabular}[arguments.figure](arguments.out)


if __name__ == "__main__":
    main()
