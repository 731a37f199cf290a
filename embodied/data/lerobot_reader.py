"""Reads LeRobot data sets (v3.0, v2.x) in whole episodes and in batches, without importing lerobot.

LeRobot reads an item at a time: a table row, a seek and a decode per camera. Here a batch is read together: columns
are numpy arrays, the wanted frames of each video are decoded in one pass in file order, and videos stay open. Values
and pixels are those LeRobot's own reader gives (its `pyav` backend).
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from embodied.data.lerobot_meta import LeRobotMeta, read_meta
from embodied.data.source import ColumnSpec, EpisodeInfo
from embodied.data.video import Video
from embodied.schema import TASK

OPEN_VIDEOS, OPEN_SCATTERED = 16, 200  # each holds up to two file descriptors


class TableFiles:
    """The parquet rows of episodes; the last file read stays in memory."""

    def __init__(self, meta: LeRobotMeta) -> None:
        self.meta = meta
        self._table: tuple[Path, Any] | None = None

    def rows(self, episode: int) -> Any:
        """All rows of the episode at this position, however many (a pyarrow table)."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.meta.data_file(self.meta.episodes[episode])
        if self._table is None or self._table[0] != path:
            try:
                self._table = (path, pq.read_table(path))
            except (OSError, pa.ArrowInvalid) as error:
                raise ValueError(f"{path} cannot be read ({error}): copy the data set again") from error
        table = self._table[1]
        if "episode_index" not in table.column_names:
            raise ValueError(f"{path} has no column 'episode_index': copy the data set again")
        number = int(self.meta.episodes[episode]["episode_index"])
        found = np.flatnonzero(table["episode_index"].to_numpy() == number)
        in_one_piece = len(found) == 0 or found[-1] - found[0] == len(found) - 1
        return table.slice(int(found[0]), len(found)) if in_one_piece and len(found) else table.take(found)


class LeRobotSource:
    """A LeRobot folder as a `Source`; cameras and columns keep the names they have there.

    mirrored: cameras stored mirrored left to right (LIBERO's sets on the hub) are mirrored back. lenient: episodes
    whose table and metadata disagree are opened too (for repair), as far as they go. scattered: frames will be asked
    for here and there, not in order.
    """

    def __init__(
        self, root: str | Path, mirrored: bool = False, lenient: bool = False, scattered: bool = False
    ) -> None:
        self.meta = read_meta(root)
        self.root = self.meta.root
        self.name = self.root.resolve().name
        self.fps = self.meta.fps
        self.mirrored, self.lenient, self.scattered = mirrored, lenient, scattered
        self._places: dict[tuple[int, str], tuple[Path, float]] = {}
        self.cameras = {key: self.meta.size(key) for key in (*self.meta.video_keys, *self.meta.image_keys)}
        self.columns: dict[str, ColumnSpec] = self.meta.numeric_columns()
        self.episodes = _episode_infos(self.meta, lenient)
        lengths = [info.length for info in self.episodes]
        self.starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self._tables = TableFiles(self.meta)
        self._videos: OrderedDict[Path, Video] = OrderedDict()

    @property
    def frames(self) -> int:
        return int(self.starts[-1])

    def read_columns(self, episode: int) -> dict[str, np.ndarray]:
        """Arrays (length, *shape) of every numeric column. ValueError when the table has another number of rows."""
        rows = self._rows(episode)
        missing = [key for key in self.columns if key not in rows.column_names]
        if missing:
            raise ValueError(f"{self.root}: column {missing[0]!r} of meta/info.json is not in the data: write it again")
        return {key: column_array(rows[key], spec) for key, spec in self.columns.items()}

    def read_frames(self, episode: int, camera: str) -> np.ndarray:
        """Frames (length, H, W, 3) uint8."""
        return self.read_frames_at(episode, camera, np.arange(self.episodes[episode].length))

    def read_frames_at(self, episode: int, camera: str, frames: np.ndarray) -> np.ndarray:
        """Frames (N, H, W, 3) uint8 by their number in the episode."""
        if camera in self.meta.image_keys:
            images = self._rows(episode)[camera]
            result = np.stack([_decode_image(images[int(i)].as_py()) for i in frames])
        else:
            row = self.meta.episodes[episode]
            video = self._video(self.meta.video_file(row, camera))
            times = self.meta.video_start(row, camera) + frames / self.fps
            result = video.read(video.numbers_at(times, tolerance=0.5 / self.fps))
        return result[:, :, ::-1] if self.mirrored else result

    def read_scattered(self, camera: str, episodes: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Frame frames[i] of episode episodes[i], both (N,), ascending: (N, H, W, 3). One decoding pass a file."""
        if camera in self.meta.image_keys:
            return np.concatenate(
                [self.read_frames_at(int(i), camera, frames[episodes == i]) for i in np.unique(episodes)]
            )
        places = [self._place(int(i), camera) for i in episodes]
        times = np.array([start for _, start in places]) + frames / self.fps
        result = np.empty((len(frames), *self.cameras[camera], 3), np.uint8)
        for path in dict.fromkeys(path for path, _ in places):
            inside = np.array([place[0] == path for place in places])
            video = self._video(path)
            result[inside] = video.read(video.numbers_at(times[inside], tolerance=0.5 / self.fps))
        return result[:, :, ::-1] if self.mirrored else result

    def _place(self, episode: int, camera: str) -> tuple[Path, float]:
        """The video file of an episode and the second at which it begins there."""
        if (episode, camera) not in self._places:
            row = self.meta.episodes[episode]
            place = (self.meta.video_file(row, camera), self.meta.video_start(row, camera))
            self._places[episode, camera] = place
        return self._places[episode, camera]

    def video_place(self, episode: int, camera: str) -> tuple[Path, int] | None:
        """File and number of the first frame, when the pictures in it are those that `read_frames` gives."""
        if self.mirrored or camera in self.meta.image_keys:
            return None
        row = self.meta.episodes[episode]
        path = self.meta.video_file(row, camera)
        start = np.array([self.meta.video_start(row, camera)])
        return path, int(self._video(path).numbers_at(start, 0.5 / self.fps)[0])

    def first_row(self, episode: int) -> dict[str, Any]:
        """The first row of the episode's table, every column by name."""
        return self._rows(episode).slice(0, 1).to_pylist()[0]

    def close(self) -> None:
        while self._videos:
            self._videos.popitem()[1].close()

    def _rows(self, episode: int) -> Any:
        rows, length = self._tables.rows(episode), self.episodes[episode].length
        if len(rows) != length and not self.lenient:
            raise ValueError(
                f"{self.meta.data_file(self.meta.episodes[episode])}: episode {episode} should have {length} rows, got "
                f"{len(rows)}: run `embodied data validate`"
            )
        return rows

    def _video(self, path: Path) -> Video:
        if path not in self._videos:
            self._videos[path] = Video(path, self.scattered)
            while len(self._videos) > (OPEN_SCATTERED if self.scattered else OPEN_VIDEOS):
                self._videos.popitem(last=False)[1].close()
        self._videos.move_to_end(path)
        return self._videos[path]


class BatchReader:
    """Batches straight from the files of a LeRobot data set: get_batch(indices) equals LeRobot's items, stacked.

    offsets: key -> frame offsets (LeRobot's delta_timestamps times fps); such keys get a time axis and KEY_is_pad.
    Numeric columns of the whole set are held in memory (a few hundred bytes a frame), frames never.
    """

    def __init__(self, root: str | Path, offsets: Mapping[str, list[int]] | None = None) -> None:
        self.source = LeRobotSource(root, scattered=True)
        self.offsets = {key: np.array(values, np.int64) for key, values in (offsets or {}).items()}
        unknown = [key for key in self.offsets if key not in (*self.source.cameras, *self.source.columns)]
        if unknown:
            raise ValueError(f"{root}: no camera or column {unknown[0]!r} to read at offsets: check the name")
        parts = [self.source.read_columns(i) for i in range(len(self.source.episodes))]
        self.columns = {key: np.concatenate([part[key] for part in parts]) for key in self.source.columns}

    def __len__(self) -> int:
        return self.source.frames

    def get_batch(self, indices: np.ndarray) -> dict[str, Any]:
        """Frame numbers of the data set (B,) -> arrays with a leading batch axis; images (B[, K], H, W, 3) uint8."""
        indices = np.asarray(indices, np.int64)
        if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"indices should lie in [0, {len(self)}), got {indices.min()} to {indices.max()}")
        episode = self._episode_of(indices)
        first, last = self.source.starts[episode][:, None], self.source.starts[episode + 1][:, None] - 1
        batch: dict[str, Any] = {"index": indices, "episode_index": episode, "frame_index": indices - first[:, 0]}
        for key in (*self.source.cameras, *self.columns):
            wanted = indices[:, None] + self.offsets.get(key, np.zeros(1, np.int64))
            inside = np.clip(wanted, first, last)
            values = self.columns[key][inside] if key in self.columns else self._frames(key, inside)
            batch[key] = values if key in self.offsets else values[:, 0]
            if key in self.offsets:
                batch[f"{key}_is_pad"] = inside != wanted
        batch[TASK] = [self.source.episodes[i].task for i in episode]
        return batch

    def _episode_of(self, indices: np.ndarray) -> np.ndarray:
        return np.asarray(np.searchsorted(self.source.starts, indices, side="right") - 1)

    def _frames(self, camera: str, wanted: np.ndarray) -> np.ndarray:
        """Frames of global numbers (B, K), every distinct one decoded once, file by file in file order."""
        numbers, inverse = np.unique(wanted, return_inverse=True)
        episode = self._episode_of(numbers)
        frames = self.source.read_scattered(camera, episode, numbers - self.source.starts[episode])
        return frames[inverse.reshape(wanted.shape)]

    def close(self) -> None:
        self.source.close()


def _episode_infos(meta: LeRobotMeta, lenient: bool) -> list[EpisodeInfo]:
    records = _records(meta.root)
    infos = []
    for position, row in enumerate(meta.episodes):
        number, length = int(row["episode_index"]), int(row["length"])
        span = int(row["dataset_to_index"]) - int(row["dataset_from_index"]) if meta.is_v3 else length
        if not lenient and (number != position or length <= 0):
            raise ValueError(
                f"{meta.root}/meta: episode {position} should have number {position} and a positive length, got number "
                f"{number} and length {length}: run `embodied data validate`"
            )
        if not lenient and span != length:
            raise ValueError(
                f"{meta.root}/meta: episode {number} has length {length} but spans frames "
                f"{row['dataset_from_index']} to {row['dataset_to_index']}: run `embodied data validate`"
            )
        record = {**records.get(number, {}), **{key: row[key] for key in row if "/" not in key}}
        infos.append(_info(meta, record, max(length, 1)))
    return infos


def _info(meta: LeRobotMeta, record: Mapping[str, Any], length: int) -> EpisodeInfo:
    number = int(record["episode_index"])
    success = record.get("success", record.get("is_episode_successful"))
    extra = {key: record[key] for key in ("seed", "noise", "record") if key in record}
    return EpisodeInfo(
        index=number,
        length=length,
        task=meta.task_of(record),
        suite=str(record.get("suite", "")),
        task_index=int(record.get("task_index", record.get("task", -1))),
        success=None if success is None or success < 0 else bool(success),
        source=str(record.get("source", f"{meta.root.resolve().name}/{number}")),
        split=str(record.get("split", "")),
        extra=extra,
    )


def _records(root: Path) -> dict[int, dict[str, Any]]:
    """records/episodes.jsonl beside the data set, when there is one: suite, task number, seed of each episode."""
    path = root / "records" / "episodes.jsonl"
    if not path.is_file():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return {int(row["episode"]): row for row in rows if isinstance(row, dict) and "episode" in row}


def column_array(column: Any, spec: ColumnSpec) -> np.ndarray:
    """A parquet column -> (rows, *shape). ValueError when rows differ in length or hold nothing."""
    import pyarrow as pa

    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    rows = len(array)
    if array.null_count:
        raise ValueError(f"a column of shape {spec.shape} has {array.null_count} empty rows: write the data set again")
    while pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type) or pa.types.is_large_list(array.type):
        array = array.flatten()
    values = array.to_numpy(zero_copy_only=False)
    if values.size != rows * int(np.prod(spec.shape, dtype=np.int64)):
        raise ValueError(f"a column should have {rows} rows of shape {spec.shape}, got {values.size} values in all")
    return np.ascontiguousarray(values, spec.dtype).reshape(rows, *spec.shape)


def _decode_image(value: Mapping[str, Any]) -> np.ndarray:
    """An image stored in the table as {"bytes", "path"}; paths are not followed."""
    import io

    from PIL import Image

    content = value.get("bytes") if isinstance(value, Mapping) else None
    if not content:
        raise ValueError("an image of the table has no bytes of its own: embed the images or store videos")
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))
