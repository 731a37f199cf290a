"""The page of a world-model evaluation: tables, curves over interactions, side-by-side videos. One HTML file."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embodied.evaluation.videos import embedded, write_mp4
from embodied.evaluation.world_clips import Clip, Imagining, read_clips, stream
from embodied.evaluation.world_summary import WorldSummary, short
from embodied.io import write_atomic

COLOURS = ("#1f5fa8", "#c2571a", "#2e7d4f", "#8b3f8f", "#777777", "#b8860b", "#0f8b8d", "#a83232")
WIDTH, HEIGHT, MARGIN = 460, 200, 40
ENLARGE = 2  # of pixels in videos


def write_world_report(
    folder: Path,
    summary: WorldSummary,
    worlds: Mapping[str, Imagining],
    cache: Any,
    clips: Sequence[Clip],
    config: Any,
    command: str,
) -> Path:
    """report.html in the run's folder; videos are rendered once and kept beside it."""
    chosen = [clips[i] for i in np.unique(np.linspace(0, len(clips) - 1, min(config.videos, len(clips))).astype(int))]
    videos = [_video(folder, clip, worlds, cache, config) for clip in chosen] if config.videos else []
    style = (Path(__file__).parent / "report.css").read_text()
    names = " | ".join(["truth", *worlds, f"difference of {list(worlds)[-1]}"])
    parts = [
        f"<h1>World models, {config.clips.interactions} interactions</h1>",
        f"<p>{len(clips)} held-out clips of {html.escape(str(config.clips.path))}; frames after an episode's end are "
        "left out. psnr_moving: only pixels that differ from the start.</p>",
        _table(summary),
        _wins(summary),
        "<h2>Over the rollout, closed loop</h2>",
        *[_plot(summary, metric, camera) for metric in summary.metrics for camera in summary.cameras],
        f"<h2>Rollouts</h2><p>{html.escape(names)}</p>" if videos else "",
        *[f'<figure><video controls loop muted src="{embedded(path)}"></video></figure>' for path in videos],
        f"<h2>Command</h2><pre>{html.escape(command)}</pre>",
    ]
    body = f"<main>{''.join(parts)}</main>"
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>World models</title><style>{style}</style>"
    path = folder / "report.html"
    write_atomic(path, f"{head}{body}</html>".encode())
    return path


def _table(summary: WorldSummary) -> str:
    columns = [(metric, camera) for metric in summary.metrics for camera in summary.cameras]
    head = "".join(f"<th>{html.escape(metric)}<br>{short(camera)}</th>" for metric, camera in columns)
    rows = []
    for model, modes in summary.means.items():
        for mode, means in modes.items():
            cells = "".join(f"<td>{means[metric][camera]:.3f}</td>" for metric, camera in columns)
            rows.append(f"<tr><th>{html.escape(model)}, {mode}</th>{cells}</tr>")
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _wins(summary: WorldSummary) -> str:
    items = []
    for win in summary.wins:
        by_metric = ", ".join(f"{name} {100 * value:.0f}%" for name, value in win.by_metric.items())
        items.append(
            f"<li>{html.escape(win.model)} beats {html.escape(win.against)} on {100 * win.rate:.0f}% of {win.clips} "
            f"clips (95% interval {100 * win.interval.low:.0f} to {100 * win.interval.high:.0f}%): {by_metric}</li>"
        )
    return f"<h2>Paired, closed loop</h2><ul>{''.join(items)}</ul>" if items else ""


def _plot(summary: WorldSummary, metric: str, camera: str) -> str:
    curves = {model: modes["closed"][metric][camera] for model, modes in summary.curves.items() if "closed" in modes}
    values = [v for curve in curves.values() for v in curve if v == v]
    if not values:
        return ""
    low, high, last = min(values), max(values), max(len(c) for c in curves.values())
    lines, legend = [], []
    for (model, curve), colour in zip(curves.items(), COLOURS * 4, strict=False):
        points = " ".join(
            f"{MARGIN + (WIDTH - 2 * MARGIN) * i / max(1, last - 1):.1f},"
            f"{HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (v - low) / ((high - low) or 1):.1f}"
            for i, v in enumerate(curve)
            if v == v
        )
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        legend.append(f'<span style="color:{colour}">&#9632; {html.escape(model)}</span>')
    texts = (
        f'<text x="2" y="{MARGIN}" font-size="11">{high:.3g}</text>'
        f'<text x="2" y="{HEIGHT - MARGIN}" font-size="11">{low:.3g}</text>'
        f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 8}" font-size="11" text-anchor="end">interaction {last}</text>'
    )
    caption = f"{html.escape(metric)}, {short(camera)}: {' '.join(legend)}"
    svg = f'<svg width="{WIDTH}" height="{HEIGHT}" role="img">{"".join(lines)}{texts}</svg>'
    return f'<figure style="display:inline-block"><figcaption>{caption}</figcaption>{svg}</figure>'


def _video(folder: Path, clip: Clip, worlds: Mapping[str, Imagining], cache: Any, config: Any) -> Path:
    """Truth, every model, and the last model's difference side by side, cameras above each other."""
    path = folder / "videos" / f"{clip.episode}-{clip.start}-{'-'.join(worlds)}.mp4"
    if path.is_file():
        return path
    columns: list[np.ndarray] = []
    for number, world in enumerate(worlds.values()):
        batch = read_clips(cache, [clip], world, config.clips.interactions)
        frames = world.rollout(batch, config.clips.interactions, [stream(clip, config.seed)])
        if number == 0:
            columns.append(_stack(world.truth(batch)))
        columns.append(_stack(frames))
    difference = np.abs(columns[-1].astype(int) - columns[0].astype(int)) * 2
    columns.append(np.clip(difference, 0, 255).astype(np.uint8))
    joined = np.concatenate(columns, axis=2)
    count = min(len(joined), max(1, clip.steps // next(iter(worlds.values())).skip))
    joined = joined[:count].repeat(ENLARGE, axis=1).repeat(ENLARGE, axis=2)
    write_mp4(path, joined, max(1, round(cache.fps / next(iter(worlds.values())).skip)))
    return path


def _stack(frames: Mapping[str, Any]) -> np.ndarray:
    """Cameras (1, T, H, W, 3) above each other: (T, V * H, W, 3)."""
    return np.concatenate([value[0].cpu().numpy() for value in frames.values()], axis=1)
