"""One self-contained HTML page of episodes: videos with state and action plots that move along. No network needed."""

from __future__ import annotations

import base64
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embodied.data.resize import Fit, resize_frames
from embodied.data.show.plots import HEIGHT, WIDTH, episode_plots
from embodied.data.source import EpisodeInfo, Source
from embodied.data.video_writer import VideoCodec, VideoSettings, encode_video
from embodied.io import write_atomic

MOST_ROWS = 192  # pixels of a video's height
LEAST_SIDE = 64  # what encoders take
BINS = 12
OUTCOMES = {True: "success", False: "failure", None: ""}


def show_page(source: Source, episodes: Sequence[int], out: Path) -> Path:
    """Writes the page about these episodes (positions) and a summary of the whole data set."""
    import jinja2

    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("page.html.j2").render(
        style=(here / "page.css").read_text(),
        script=(here / "page.js").read_text(),
        facts=_facts(source),
        tasks=_tasks(source.episodes),
        bars=_bars(source.episodes),
        episodes=[_episode(source, i) for i in episodes],
        width=WIDTH,
        height=HEIGHT,
    )
    write_atomic(out, page.encode())
    return out


def _facts(source: Source) -> dict[str, Any]:
    frames = sum(info.length for info in source.episodes)
    minutes = frames / source.fps / 60
    return {
        "name": source.name,
        "episodes": len(source.episodes),
        "frames": frames,
        "fps": f"{source.fps:g}",
        "duration": f"{minutes:.1f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours",
        "cameras": [f"{key} {height} x {width}" for key, (height, width) in source.cameras.items()],
        "columns": [f"{key} {list(spec.shape)}" for key, spec in source.columns.items()],
    }


def _tasks(episodes: Sequence[EpisodeInfo]) -> list[dict[str, Any]]:
    """Instructions with their episodes, successes (where known) and mean length."""
    rows = []
    for (suite, task), count in Counter((info.suite, info.task) for info in episodes).most_common():
        own = [info for info in episodes if (info.suite, info.task) == (suite, task)]
        known = [info.success for info in own if info.success is not None]
        rate = f"{sum(known)} of {len(known)}" if known else "unknown"
        mean = f"{np.mean([info.length for info in own]):.0f}"
        rows.append({"suite": suite, "task": task, "episodes": count, "success": rate, "length": mean})
    return rows


def _bars(episodes: Sequence[EpisodeInfo]) -> list[dict[str, Any]]:
    """A histogram of episode lengths; share: of the tallest bar."""
    counts, edges = np.histogram([info.length for info in episodes], BINS)
    return [
        {"from": round(low), "to": round(high), "count": int(count), "share": count / max(counts.max(), 1)}
        for count, low, high in zip(counts, edges, edges[1:], strict=False)
    ]


def _episode(source: Source, position: int) -> dict[str, Any]:
    info = source.episodes[position]
    return {
        "number": position,
        "task": info.task,
        "suite": info.suite,
        "outcome": OUTCOMES[info.success],
        "origin": info.source,
        "length": info.length,
        "seconds": f"{info.length / source.fps:.1f}",
        "duration": info.length / source.fps,
        "cameras": ", ".join(source.cameras),
        "video": _video(source, position),
        "plots": episode_plots(source.read_columns(position), source.columns),
    }


def _video(source: Source, position: int) -> str:
    """All cameras side by side as base64 of an H.264 file; "" for a data set without cameras."""
    if not source.cameras:
        return ""
    views = [_sized(source.read_frames(position, camera)) for camera in source.cameras]
    frames = np.concatenate(views, axis=2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "episode.mp4"
        encode_video(frames, path, max(1, round(source.fps)), VideoSettings(VideoCodec.h264, crf=26, gop=20))
        return base64.b64encode(path.read_bytes()).decode()


def _sized(frames: np.ndarray) -> np.ndarray:
    """At most 192 rows, at least 64, even sides, the same aspect ratio to a pixel."""
    height, width = frames.shape[1:3]
    scale = min(1.0, MOST_ROWS / height)
    scale = max(scale, LEAST_SIDE / min(height, width))
    size = (max(LEAST_SIDE, round(height * scale / 2) * 2), max(LEAST_SIDE, round(width * scale / 2) * 2))
    return resize_frames(frames, size, Fit.stretch)
