"""Writes any source as a LeRobotDataset v3 in the item format. Resumable: committed episodes are not done again.

Videos that need no change are copied as they are, not encoded a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from embodied.data.lerobot_layout import Layout
from embodied.data.source import TIMESTAMP, EpisodeInfo, Source
from embodied.data.statistics import image_histogram
from embodied.data.video_writer import VideoCodec, VideoSettings, encode_video

METADATA = {"suite": "str", "task_index": "int", "success": "int", "source": "str", "split": "str", "has_task": "bool"}
SKIPPED = {TIMESTAMP}  # the writer's own


def import_source(
    source: Source,
    out: str | Path,
    keep: Mapping[int, int],
    codec: VideoCodec | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes episodes `keep` (position -> number of frames from its start) of `source` to the folder `out`.

    success is kept as 1, 0 or -1 (unknown; also for an episode that was cut). Columns become float32. codec None: as
    the source's videos, AV1 where there are none. Raises ValueError when `out` holds another data set.
    """
    from embodied.data.lerobot_writer import EpisodeWriter

    layout = _layout(source, codec)
    with EpisodeWriter.open(Path(out), layout) as writer:
        done = [row["source"] for row in writer.episodes()]
        chosen = list(keep.items())
        expected = [source.episodes[position].source for position, _ in chosen[: len(done)]]
        if done != expected:
            raise ValueError(f"{out} holds episodes of another source or selection: choose another out=")
        for number, (position, frames) in enumerate(chosen[len(done) :], len(done)):
            writer.append(_encode(source, position, frames, layout, writer.staging / str(number), codec is None))
            if progress is not None:
                progress(number + 1, len(chosen))
        writer.finalize()
    return Path(out)


def _layout(source: Source, codec: VideoCodec | None) -> Layout:
    if abs(source.fps - round(source.fps)) > 1e-6:
        raise ValueError(f"{source.name} runs at {source.fps} frames per second, a data set needs a whole number")
    columns = {}
    for key, spec in source.columns.items():
        size = int(np.prod(spec.shape, dtype=np.int64))
        named = spec.names is not None and len(spec.names) == size
        columns[key] = tuple(spec.names or ()) if named else tuple(str(i) for i in range(size))
    columns = {key: names for key, names in columns.items() if key not in SKIPPED}
    video = VideoSettings(codec or _source_codec(source))
    return Layout(dict(source.cameras), columns, dict(METADATA), round(source.fps), "panda", video)


def _source_codec(source: Source) -> VideoCodec:
    from embodied.data.video_copy import codec_name

    place = _video_place(source, 0, next(iter(source.cameras), ""))
    name = None if place is None else codec_name(place[0])
    return VideoCodec[name] if name else VideoCodec.av1


def _video_place(source: Source, episode: int, camera: str) -> tuple[Path, int] | None:
    """File and first frame of an episode whose pictures are stored as they are read; None when they are changed."""
    place = getattr(source, "video_place", None)
    return None if place is None or not camera else place(episode, camera)


def _encode(source: Source, position: int, frames: int, layout: Layout, folder: Path, copy: bool) -> Any:
    from embodied.data.lerobot_writer import EncodedEpisode

    info = source.episodes[position]
    if not 0 < frames <= info.length:
        raise ValueError(f"episode {position} has {info.length} frames, {frames} cannot be kept")
    info = info if frames == info.length else replace(info, success=None)
    columns = {
        key: np.asarray(values[:frames], np.float32).reshape(frames, -1)
        for key, values in source.read_columns(position).items()
        if key in layout.columns
    }
    videos, histograms = {}, {}
    for camera in layout.images:
        images = _read_images(source, position, camera, frames)
        videos[camera] = folder / f"{camera}.mp4"
        histograms[camera] = image_histogram(images)
        if not (copy and _copied(source, position, camera, frames, videos[camera], layout)):
            encode_video(images, videos[camera], layout.fps, layout.video)
    return EncodedEpisode(columns, videos, histograms, info.task, _metadata(info))


def _read_images(source: Source, position: int, camera: str, frames: int) -> np.ndarray:
    """The first frames; of a damaged video no more than these are read, where the source can."""
    read = getattr(source, "read_frames_at", None)
    return source.read_frames(position, camera)[:frames] if read is None else read(position, camera, np.arange(frames))


def _copied(source: Source, position: int, camera: str, frames: int, out: Path, layout: Layout) -> bool:
    from embodied.data.video_copy import codec_name, copy_frames

    place = _video_place(source, position, camera)
    if place is None or codec_name(place[0]) != layout.video.codec.name:
        return False
    return copy_frames(place[0], place[1], frames, out, layout.fps)


def _metadata(info: EpisodeInfo) -> dict[str, Any]:
    return {
        "suite": info.suite,
        "task_index": info.task_index,
        "success": -1 if info.success is None else int(info.success),
        "source": info.source,
        "split": info.split,
        "has_task": bool(info.task.strip()),
    }
