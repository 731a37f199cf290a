"""Writes a LeRobotDataset v3 that survives kill -9 at any moment and can be appended to.

The order of one episode's commit makes that so: videos (one file per episode and camera), frame rows, tasks and episode
rows first, each file written whole beside its place and renamed; meta/info.json last. A reader counts episodes by
info.json, so what a killed writer left behind it comes after the last episode and is not looked at; the next writer
removes it. Frames of every video and rows of every column are compared before any file is moved into place.

    with EpisodeWriter.open(root, simulation_layout(128)) as writer:
        writer.append(encode_episode(writer.staging / "0", layout, columns, images, task, metadata))
        writer.finalize()
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embodied.data import lerobot_layout as fmt
from embodied.data.lerobot_layout import Layout
from embodied.data.statistics import Statistics, column_statistics, image_statistics
from embodied.data.video_writer import count_frames, encode_video, pixel_histogram
from embodied.io import take_lock, write_atomic, write_json

OURS = "meta/embodied.json"
HISTOGRAMS = "meta/image_histograms.bin"
STAGING = ".staging"
LOCK = ".writer.lock"
HISTOGRAM_DTYPE = np.dtype("<u4")

StatisticsFunction = Callable[[Path], Mapping[str, Statistics]]


@dataclass(frozen=True)
class EncodedEpisode:
    """One episode ready to commit. Columns (T, D) float32; videos: key -> finished file of T frames.

    `histograms`: key -> (3, 256) counts of the pixel values of all T images before compression.
    """

    columns: dict[str, np.ndarray]
    videos: dict[str, Path]
    histograms: dict[str, np.ndarray]
    task: str
    metadata: dict[str, Any]


def encode_episode(
    folder: Path,
    layout: Layout,
    columns: Mapping[str, np.ndarray],
    images: Mapping[str, np.ndarray],
    task: str,
    metadata: Mapping[str, Any],
) -> EncodedEpisode:
    """Encodes the images (T, H, W, 3) of one episode into `folder`: the costly part, which any process may do.

    Raises ValueError when keys, image sizes or lengths do not match the layout.
    """
    _check_keys("images", images, layout.images)
    for key, size in layout.images.items():
        if images[key].shape[1:3] != tuple(size):
            raise ValueError(f"{key} should be {size} (height, width) in this data set, got {images[key].shape[1:3]}")
    videos = {key: folder / f"{key}.mp4" for key in layout.images}
    for key, path in videos.items():
        encode_video(images[key], path, layout.fps, layout.video)
    histograms = {key: pixel_histogram(images[key]) for key in layout.images}
    return EncodedEpisode(dict(columns), videos, histograms, task, dict(metadata))


class EpisodeWriter:
    """The one writer of a data set: `open`, `append` any number of episodes, `finalize`, `close`."""

    def __init__(self, root: Path, layout: Layout, lock: int) -> None:
        """Use `open`."""
        self.root, self.layout = root, layout
        self.staging = root / STAGING
        self._lock = lock
        self._rows: list[pa.Table] = []  # episode rows of the newest table file
        self._frames: list[pa.Table] = []  # frame rows, one table an episode, of the newest table file
        self.tasks: list[str] = []
        self.total_episodes = self.total_frames = 0

    @classmethod
    def open(cls, root: Path, layout: Layout) -> EpisodeWriter:
        """Starts a data set, or opens one for appending after removing what a killed writer did not commit.

        Raises ValueError when another process is writing to it, when it has another layout, or is not ours.
        """
        writer = cls(root, layout, take_lock(root / LOCK))
        try:
            writer._check_layout()
            writer._recover()
        except ValueError:
            writer.close()
            raise
        return writer

    def append(self, episode: EncodedEpisode) -> int:
        """Commits one episode and returns its index. Raises ValueError, before touching the data set, on bad counts."""
        frames = self._check_episode(episode)
        index, start = self.total_episodes, self.total_frames
        self._place_videos(episode, index)
        self._append_histograms(episode, index)
        new_task = episode.task not in self.tasks
        tasks = [*self.tasks, episode.task] if new_task else self.tasks
        steps = fmt.index_columns(frames, self.layout.fps, index, start, tasks.index(episode.task))
        columns = {**episode.columns, **steps}
        if index % fmt.TABLE_EPISODES == 0:
            self._rows, self._frames = [], []
        self._frames.append(fmt.frames_table(self.layout, columns))
        self._write_frames(index)
        if new_task:
            _write_parquet(self.root / fmt.TASKS, [fmt.tasks_table(tasks)])
        row = fmt.episode_row(self.layout, index, frames, start, episode.task, episode.metadata)
        row.update(self._statistics(columns, episode.histograms, frames))
        self._rows.append(pa.Table.from_pylist([row]))
        self._write_rows(index)
        write_json(self.root / fmt.INFO, self.layout.info(index + 1, start + frames, len(tasks)))  # the commit
        self.total_episodes, self.total_frames, self.tasks = index + 1, start + frames, tasks
        return index

    def episodes(self) -> list[dict[str, Any]]:
        """The committed rows of meta/episodes, statistics left out."""
        return committed_episodes(self.root)

    def finalize(self, statistics: StatisticsFunction | None = None) -> None:
        """Writes meta/stats.json over all committed episodes and removes the staging folder. Append may go on after.

        `statistics` computes them from the data set's folder, by feature; None: `exact_statistics`.
        """
        if self.total_episodes == 0:
            raise ValueError(f"{self.root} should hold at least one episode before it is finalized, it holds none")
        values = (statistics or exact_statistics)(self.root)
        write_json(self.root / fmt.STATS, {key: value.to_json() for key, value in values.items()})
        shutil.rmtree(self.staging, ignore_errors=True)

    def close(self) -> None:
        """Lets the next writer in. Nothing is buffered, so nothing is lost without it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()

    def _check_layout(self) -> None:
        """Writes the layout of a new data set; compares it with that of an old one."""
        path = self.root / OURS
        layout = self.layout.to_json()
        if not path.exists():
            foreign = [name for name in ("data", "meta", "videos") if (self.root / name).exists()]
            if foreign:
                raise ValueError(f"{self.root} should be a new folder or a data set of ours, it has {foreign}")
            write_json(path, {"format": 1, "layout": layout})
            return
        held = json.loads(path.read_text())["layout"]
        different = [key for key in layout if held.get(key) != layout[key]]
        if different:
            raise ValueError(
                f"{self.root} has another layout: {different[0]} is {held.get(different[0])} there, "
                f"{layout[different[0]]} asked for; write to another folder"
            )

    def _recover(self) -> None:
        """Reads what is committed and removes everything else."""
        info = self.root / fmt.INFO
        held = json.loads(info.read_text()) if info.exists() else {"total_episodes": 0, "total_frames": 0}
        count = self.total_episodes = held["total_episodes"]
        self.total_frames = held["total_frames"]
        shutil.rmtree(self.staging, ignore_errors=True)
        for folder in ("data", "meta", "videos"):
            for temporary in (self.root / folder).rglob(".*.tmp"):
                temporary.unlink()
        _remove_from(self.root, fmt.DATA_PATH, "data", -(-count // fmt.TABLE_EPISODES))
        _remove_from(self.root, fmt.EPISODES_PATH, "meta/episodes", -(-count // fmt.TABLE_EPISODES))
        for key in self.layout.images:
            _remove_from(self.root, fmt.VIDEO_PATH.replace("{video_key}", key), f"videos/{key}", count)
        self._cut_histograms(count)
        self.tasks = _read_tasks(self.root)[: held.get("total_tasks", 0)]
        if count == 0:
            (self.root / fmt.TASKS).unlink(missing_ok=True)
            return
        self._recover_tables(count)

    def _recover_tables(self, count: int) -> None:
        first = (count - 1) // fmt.TABLE_EPISODES * fmt.TABLE_EPISODES
        rows = _read_parquet(fmt.table_path(self.root, fmt.EPISODES_PATH, first))
        frames = _read_parquet(fmt.table_path(self.root, fmt.DATA_PATH, first))
        self._rows = [rows.slice(i, 1) for i in range(count - first)]
        lengths = [row["length"][0].as_py() for row in self._rows]
        starts = np.cumsum([0, *lengths])
        self._frames = [frames.slice(start, size) for start, size in zip(starts, lengths, strict=False)]
        if len(rows) > len(self._rows):
            self._write_rows(count - 1)
        if len(frames) > starts[-1]:
            self._write_frames(count - 1)
        if len(_read_tasks(self.root)) > len(self.tasks):
            _write_parquet(self.root / fmt.TASKS, [fmt.tasks_table(self.tasks)])

    def _check_episode(self, episode: EncodedEpisode) -> int:
        """Its number of frames, if rows and frames agree everywhere."""
        _check_keys("columns", episode.columns, self.layout.columns)
        _check_keys("videos", episode.videos, self.layout.images)
        _check_keys("metadata", episode.metadata, self.layout.metadata)
        counts = {f"{key} (video)": count_frames(path, self.layout.fps) for key, path in episode.videos.items()}
        for key, values in episode.columns.items():
            width = len(self.layout.columns[key])
            if values.ndim != 2 or values.shape[1] != width:
                raise ValueError(f"{key} should be (frames, {width}), got {values.shape}")
            if not np.isfinite(values).all():
                raise ValueError(f"{key} should be finite, frame {np.argwhere(~np.isfinite(values))[0][0]} is not")
            counts[key] = len(values)
        if len(set(counts.values())) != 1 or min(counts.values()) == 0:
            raise ValueError(f"an episode should have equally many rows and video frames, got {counts}: not committed")
        if not episode.task and "has_task" not in self.layout.metadata:
            raise ValueError("an episode should have an instruction, got an empty one")
        return next(iter(counts.values()))

    def _place_videos(self, episode: EncodedEpisode, index: int) -> None:
        for key, path in episode.videos.items():
            place = fmt.video_path(self.root, key, index)
            place.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            path.replace(place)

    def _append_histograms(self, episode: EncodedEpisode, index: int) -> None:
        self._cut_histograms(index)
        block = np.stack([episode.histograms[key] for key in self.layout.images]).astype(HISTOGRAM_DTYPE)
        with (self.root / HISTOGRAMS).open("ab") as file:
            file.write(block.tobytes())

    def _cut_histograms(self, episodes: int) -> None:
        path = self.root / HISTOGRAMS
        if path.exists():
            os.truncate(path, episodes * len(self.layout.images) * 3 * 256 * HISTOGRAM_DTYPE.itemsize)

    def _statistics(
        self, columns: Mapping[str, np.ndarray], histograms: Mapping[str, np.ndarray], frames: int
    ) -> dict[str, list]:
        """The columns `stats/FEATURE/NAME` of meta/episodes."""
        values = {key: image_statistics(histograms[key], frames) for key in self.layout.images}
        values |= {key: column_statistics(_as_rows(column)) for key, column in columns.items()}
        return {f"stats/{key}/{name}": item for key, value in values.items() for name, item in value.to_json().items()}

    def _write_frames(self, index: int) -> None:
        _write_parquet(fmt.table_path(self.root, fmt.DATA_PATH, index), self._frames)

    def _write_rows(self, index: int) -> None:
        _write_parquet(fmt.table_path(self.root, fmt.EPISODES_PATH, index), [pa.concat_tables(self._rows)])


def committed_episodes(root: Path) -> list[dict[str, Any]]:
    """Rows of meta/episodes that info.json counts, statistics left out; none when nothing is committed."""
    info = root / fmt.INFO
    if not info.exists():
        return []
    count = json.loads(info.read_text())["total_episodes"]
    rows: list[dict[str, Any]] = []
    for path in sorted((root / "meta/episodes").glob("*/*.parquet")):
        names = [name for name in pq.read_schema(path).names if not name.startswith("stats/")]
        rows += pq.ParquetFile(path).read(columns=names).to_pylist()
    return rows[:count]


def image_histograms(root: Path, keys: list[str], episodes: int) -> dict[str, np.ndarray]:
    """Summed histograms (3, 256) of the pixels, before compression, of the first `episodes` episodes."""
    values = np.fromfile(root / HISTOGRAMS, HISTOGRAM_DTYPE).reshape(-1, len(keys), 3, 256)
    return dict(zip(keys, values[:episodes].sum(0, dtype=np.int64), strict=True))


def exact_statistics(root: Path) -> dict[str, Statistics]:
    """Statistics of all frames of a data set this writer made, from every value: LeRobot's quantiles are not."""
    info = json.loads((root / fmt.INFO).read_text())
    frames, episodes = info["total_frames"], info["total_episodes"]
    cameras = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    histograms = image_histograms(root, cameras, episodes)
    images = {key: image_statistics(histograms[key], frames) for key in cameras}
    files = [_read_parquet(path) for path in sorted((root / "data").glob("*/*.parquet"))]
    table = pa.concat_tables(files).slice(0, frames)
    columns = {key: _as_array(table[key].combine_chunks()) for key in table.column_names}
    return {**images, **{key: column_statistics(_as_rows(column)) for key, column in columns.items()}}


def _as_array(values: pa.Array) -> np.ndarray:
    flat = values.flatten() if pa.types.is_fixed_size_list(values.type) else values
    return flat.to_numpy(zero_copy_only=False).reshape(len(values), -1)


def _as_rows(values: np.ndarray) -> np.ndarray:
    """(T,) or (T, D) -> (T, D)."""
    return values.reshape(len(values), -1)


def _check_keys(what: str, got: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    if set(got) != set(expected):
        raise ValueError(f"{what} should be {sorted(expected)}, got {sorted(got)}")


def _write_parquet(path: Path, tables: list[pa.Table]) -> None:
    """One row group a table: LeRobot's own files have one an episode."""
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, tables[0].schema, compression="snappy") as writer:
        for table in tables:
            writer.write_table(table)
    write_atomic(path, sink.getvalue())


def _read_parquet(path: Path) -> pa.Table:
    return pq.ParquetFile(path).read()


def _read_tasks(root: Path) -> list[str]:
    path = root / fmt.TASKS
    return _read_parquet(path)["task"].to_pylist() if path.exists() else []


def _remove_from(root: Path, template: str, folder: str, count: int) -> None:
    """Removes every file of a chunked folder but the first `count`."""
    places = (divmod(i, fmt.CHUNK_FILES) for i in range(count))
    kept = {root / template.format(chunk_index=chunk, file_index=file) for chunk, file in places}
    for path in (root / folder).glob("*/*"):
        if path not in kept:
            path.unlink()
