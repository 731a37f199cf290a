"""The page of a training run: its loss curves and settings, one HTML file without scripts."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path

from embodied.io import read_lines, write_atomic
from embodied.training.metrics import METRICS

WIDTH, HEIGHT, MARGIN = 520, 200, 42
STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:1120px;margin:2em auto;padding:0 1em;color:#222}"
    "figure{display:inline-block;margin:0 1em 1em 0}figcaption{font-weight:600}"
    "pre{background:#f5f5f5;padding:1em;overflow:auto}"
)


def write_report(run: Path) -> Path:
    """report.html of a run folder, from its metrics.jsonl and config.json."""
    lines = read_lines(run / METRICS)
    names = list(dict.fromkeys(key for line in lines for key in line if key != "step"))
    figures = [_figure(name, [(line["step"], line[name]) for line in lines if name in line]) for name in names]
    config = json.dumps(json.loads((run / "config.json").read_text()), indent=2)
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(run.name)}</title><style>{STYLE}</style>"
        f"<h1>Training run {html.escape(run.name)}</h1>{''.join(figures)}"
        f"<h2>Settings</h2><pre>{html.escape(config)}</pre></html>"
    )
    path = run / "report.html"
    write_atomic(path, page.encode())
    return path


def _figure(name: str, points: Sequence[tuple[float, float]]) -> str:
    return f"<figure><figcaption>{html.escape(name)}</figcaption>{curve_svg(points)}</figure>"


def curve_svg(points: Sequence[tuple[float, float]]) -> str:
    """A line through (x, y) points as SVG, axes labelled at their ends; points that are not finite are left out."""
    finite = [(x, y) for x, y in points if y == y and abs(y) != float("inf")]
    if not finite:
        return "<p>no finite values</p>"
    xs, ys = [x for x, _ in finite], [y for _, y in finite]
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)

    def place(x: float, y: float) -> str:
        across = MARGIN + (WIDTH - 2 * MARGIN) * (x - left) / ((right - left) or 1)
        down = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (y - low) / ((high - low) or 1)
        return f"{across:.1f},{down:.1f}"

    path = " ".join(place(x, y) for x, y in finite)
    labels = [
        (MARGIN, HEIGHT - MARGIN + 16, "start", f"{left:g}"),
        (WIDTH - MARGIN, HEIGHT - MARGIN + 16, "end", f"step {right:g}"),
        (MARGIN, HEIGHT - MARGIN - 4, "start", f"{low:.4g}"),
        (MARGIN, MARGIN - 6, "start", f"{high:.4g}"),
    ]
    texts = "".join(f'<text x="{x}" y="{y}" text-anchor="{a}" font-size="11">{t}</text>' for x, y, a, t in labels)
    frame = f'<rect x="{MARGIN}" y="{MARGIN}" width="{WIDTH - 2 * MARGIN}" height="{HEIGHT - 2 * MARGIN}" '
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img">{frame}fill="none" stroke="#ccc"/>'
        f'<polyline points="{path}" fill="none" stroke="#1f5fa8" stroke-width="1.5"/>{texts}</svg>'
    )
