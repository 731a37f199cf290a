"""Decodes a source once into a frame cache, episode by episode; kill it at any time and run it again.

An episode counts once its frames and columns are on disk (fsync) and its line stands in episodes.jsonl. meta.json,
which makes the folder a cache, is written last and atomically.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from embodied.data.cache import FORMAT, SAFE_NAME, VERSION, FrameCache
from embodied.data.resize import Fit, resize_frames
from embodied.data.source import ColumnSpec, EpisodeInfo, Selection, Source
from embodied.data.statistics import LEVELS, Statistics, column_statistics, image_histogram, image_statistics
from embodied.io import append_line, read_lines, write_json

Progress = Callable[[int, int], None]


@dataclass
class CacheConfig:
    """size: height and width of the frames, one number for both, empty for the source's own; cameras empty: all."""

    size: list[int] = field(default_factory=lambda: [128])
    fit: Fit = Fit.pad
    cameras: list[str] = field(default_factory=list)
    select: Selection = field(default_factory=Selection)
    image_statistics: bool = True


def build_cache(source: Source, out: str | Path, config: CacheConfig, progress: Progress | None = None) -> FrameCache:
    """Writes or finishes the cache `out` of `source` and opens it.

    Raises ValueError when `out` holds something else, or when an episode's frames and columns disagree in number.
    """
    folder = Path(out)
    if (folder / "meta.json").is_file():
        _check_plan(folder, _plan(source, config))
        return FrameCache(folder)
    builder = _Builder(source, folder, config)
    for position in range(builder.done, len(builder.chosen)):
        builder.write_episode(position)
        if progress is not None:
            progress(position + 1, len(builder.chosen))
    builder.finish()
    return FrameCache(folder)


class _Builder:
    def __init__(self, source: Source, folder: Path, config: CacheConfig) -> None:
        self.source, self.folder, self.config = source, folder, config
        self.chosen = config.select.apply(source.episodes)
        self.sizes = _sizes(source, config)
        self.infos = [source.episodes[position] for position in self.chosen]
        self.starts = np.concatenate([[0], np.cumsum([info.length for info in self.infos])]).astype(np.int64)
        self.frames = int(self.starts[-1])
        self._prepare()
        self.done = len(read_lines(folder / "episodes.jsonl"))

    def _prepare(self) -> None:
        plan = _plan(self.source, self.config)
        if not self.chosen:
            raise ValueError(f"{self.source.name}: the selection keeps no episode of {len(self.source.episodes)}")
        bad = [key for key in (*self.sizes, *self.source.columns) if not SAFE_NAME.fullmatch(key)]
        if bad:
            raise ValueError(f"{self.source.name}: {bad[0]!r} should be letters, digits, '.', '_' and '-': rename it")
        if (self.folder / "plan.json").is_file():
            _check_plan(self.folder, plan)
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise ValueError(f"{self.folder} should be empty or an unfinished cache: choose another out=")
        else:
            write_json(self.folder / "plan.json", plan)
        for name, per_frame in self._files().items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.truncate(self.frames * per_frame)
        with (self.folder / "histograms.bin").open("ab") as file:
            file.truncate(len(self.chosen) * self._histogram_bytes())

    def _files(self) -> dict[str, int]:
        """File -> bytes a frame."""
        frames = {f"frames/{key}.bin": height * width * 3 for key, (height, width) in self.sizes.items()}
        return frames | {f"columns/{key}.bin": spec.bytes_per_frame for key, spec in self.source.columns.items()}

    def _histogram_bytes(self) -> int:
        return len(self.sizes) * 3 * LEVELS * 8

    def write_episode(self, position: int) -> None:
        info, start = self.infos[position], int(self.starts[position])
        checksums: dict[str, int] = {}
        for key, values in self.source.read_columns(self.chosen[position]).items():
            if key not in self.source.columns:
                continue
            spec = self.source.columns[key]
            _check_rows(self.source.name, info, key, values, spec)
            content = np.ascontiguousarray(values, spec.dtype)
            checksums[key] = _write_at(self.folder / f"columns/{key}.bin", start * spec.bytes_per_frame, content)
        histograms = []
        for camera, size in self.sizes.items():
            frames = self.source.read_frames(self.chosen[position], camera)
            _check_rows(self.source.name, info, camera, frames, ColumnSpec("uint8", (*self.source.cameras[camera], 3)))
            small = np.ascontiguousarray(resize_frames(frames, size, self.config.fit))
            checksums[camera] = _write_at(
                self.folder / f"frames/{camera}.bin", start * int(np.prod(small.shape[1:])), small
            )
            histograms.append(
                image_histogram(small) if self.config.image_statistics else np.zeros((3, LEVELS), np.int64)
            )
        if histograms:
            _write_at(self.folder / "histograms.bin", position * self._histogram_bytes(), np.stack(histograms))
        append_line(self.folder / "episodes.jsonl", {**info.to_json(), "start": start, "crc32": checksums})

    def finish(self) -> None:
        """Statistics over everything, then meta.json."""
        columns = {key: asdict(spec) for key, spec in self.source.columns.items()}
        statistics = {key: value.to_json() for key, value in self._statistics().items()}
        meta = {
            "format": FORMAT,
            "version": VERSION,
            "name": self.source.name,
            "fps": self.source.fps,
            "episodes": len(self.chosen),
            "frames": self.frames,
            "cameras": {key: list(size) for key, size in self.sizes.items()},
            "columns": columns,
            "statistics": statistics,
            "plan": _plan(self.source, self.config),
        }
        write_json(self.folder / "meta.json", meta)

    def _statistics(self) -> dict[str, Statistics]:
        result = {}
        for key, spec in self.source.columns.items():
            values = np.memmap(self.folder / f"columns/{key}.bin", spec.dtype, "r", shape=(self.frames, *spec.shape))
            if np.dtype(spec.dtype).kind in "fiu":
                result[key] = column_statistics(values)
        if self.sizes and self.config.image_statistics:
            shape = (len(self.chosen), len(self.sizes), 3, LEVELS)
            totals = np.fromfile(self.folder / "histograms.bin", np.int64).reshape(shape).sum(axis=0)
            result |= {key: image_statistics(totals[i], self.frames) for i, key in enumerate(self.sizes)}
        return result


def _sizes(source: Source, config: CacheConfig) -> dict[str, tuple[int, int]]:
    unknown = [key for key in config.cameras if key not in source.cameras]
    if unknown:
        raise ValueError(f"{source.name} has cameras {', '.join(source.cameras)}, not {unknown[0]!r}: choose of these")
    size = config.size
    if len(size) > 2 or any(n < 1 for n in size):
        raise ValueError(f"size should be one or two positive numbers (or empty), got {list(size)}: e.g. size=[128]")
    chosen = config.cameras or list(source.cameras)
    return {key: (size[0], size[-1]) if size else source.cameras[key] for key in chosen}


def _plan(source: Source, config: CacheConfig) -> dict[str, Any]:
    """What decides the content. Another plan in the same folder is refused rather than mixed in."""
    chosen = config.select.apply(source.episodes)
    text = json.dumps([source.episodes[position].to_json() for position in chosen], sort_keys=True, default=str)
    return {
        "source": source.name,
        "episodes": hashlib.sha256(text.encode()).hexdigest(),
        "cameras": {key: list(size) for key, size in _sizes(source, config).items()},
        "fit": config.fit.value,
        "columns": {key: [spec.dtype, list(spec.shape)] for key, spec in source.columns.items()},
    }


def _check_plan(folder: Path, plan: dict[str, Any]) -> None:
    found = json.loads((folder / "plan.json").read_text()) if (folder / "plan.json").is_file() else {}
    different = [key for key in plan if found.get(key) != plan[key]]
    if different:
        raise ValueError(
            f"{folder} holds a cache with another {', '.join(different)}: choose another out= or delete that folder"
        )


def _check_rows(source: str, info: EpisodeInfo, key: str, values: np.ndarray, spec: ColumnSpec) -> None:
    expected = (info.length, *spec.shape)
    if values.shape != expected:
        raise ValueError(
            f"{source} episode {info.index}: {key} should be {expected}, got {values.shape}: "
            "run `embodied data validate` on the data set"
        )


def _write_at(path: Path, offset: int, values: np.ndarray) -> int:
    """Writes and syncs; the checksum of what was written."""
    with path.open("r+b") as file:
        file.seek(offset)
        _write_all(file, values)
        file.flush()
        os.fsync(file.fileno())
    return zlib.crc32(memoryview(values).cast("B"))


def _write_all(file: BinaryIO, values: np.ndarray) -> None:
    file.write(memoryview(values).cast("B"))


def verify_checksums(cache: FrameCache) -> list[tuple[int, str]]:
    """(episode position, key) of every episode whose bytes are not those that were written."""
    lines = read_lines(cache.folder / "episodes.jsonl")
    wrong = []
    for position, line in enumerate(lines):
        start = int(cache.episodes.start[position])
        rows = slice(start, start + int(cache.episodes.length[position]))
        for key, checksum in line.get("crc32", {}).items():
            if zlib.crc32(memoryview(np.ascontiguousarray(cache.rows(key).array()[rows])).cast("B")) != checksum:
                wrong.append((position, key))
        cache.release()
    return wrong
