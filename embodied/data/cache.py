"""A decoded data set in one folder: memory-mapped uint8 frames at the training size and numpy columns.

Layout (all little endian, C order, one row a frame, episodes one after another):
    meta.json             schema, sizes, exact statistics; written last, so a folder that has it is whole
    episodes.jsonl        one line an episode: start, length, task, suite, success, where it came from, checksums
    frames/CAMERA.bin     uint8 (T, H, W, 3)
    columns/NAME.bin      any dtype (T, ...)
    columns/NAME.json     for columns attached later, such as frozen vision features
Opening reads meta.json and episodes.jsonl and compares every file's size with them; nothing else is loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from embodied.data.columns import ColumnWriter
from embodied.data.rows import RowReader
from embodied.data.source import ColumnSpec, EpisodeInfo
from embodied.data.statistics import Statistics
from embodied.schema import IMAGE_AGE

FORMAT = "embodied-frame-cache"
VERSION = 1
SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


class EpisodeTable:
    """The episodes of a cache as arrays of one entry each.

    start, length: int64 frames; task_id: int32 into `languages`; suite_id: int32 into `suites`; success: int8,
    1 yes, 0 no, -1 unknown.
    """

    def __init__(self, infos: list[EpisodeInfo]) -> None:
        self.infos = infos
        self.length = np.array([info.length for info in infos], np.int64)
        self.start = np.concatenate([[0], np.cumsum(self.length)[:-1]]).astype(np.int64)[: len(infos)]
        self.languages, self.task_id = _codes([info.task for info in infos])
        self.suites, self.suite_id = _codes([info.suite for info in infos])
        self.success = np.array([-1 if info.success is None else int(info.success) for info in infos], np.int8)

    def __len__(self) -> int:
        return len(self.infos)

    def of_frame(self, frames: np.ndarray) -> np.ndarray:
        """The episode of each frame number."""
        return np.searchsorted(self.start, frames, side="right") - 1


def _codes(values: list[str]) -> tuple[list[str], np.ndarray]:
    names = list(dict.fromkeys(values))
    number = {name: i for i, name in enumerate(names)}
    return names, np.array([number[value] for value in values], np.int32)


class FrameCache:
    """A cache folder, opened lazily. Raises ValueError when the folder is no whole cache or its files disagree."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.meta = _read_meta(self.folder)
        self.name: str = self.meta["name"]
        self.fps = float(self.meta["fps"])
        self.frames = int(self.meta["frames"])
        self.cameras: dict[str, tuple[int, int]] = {
            _safe(key): (int(size[0]), int(size[1])) for key, size in self.meta["cameras"].items()
        }
        self.specs: dict[str, ColumnSpec] = {_safe(key): _spec(value) for key, value in self.meta["columns"].items()}
        self.episodes = EpisodeTable(_read_episodes(self.folder))
        self._rows: dict[str, RowReader] = {}
        self._check_sizes()

    @cached_property
    def image_every(self) -> int:
        """Frames from one rendered picture to the next, the same for all episodes from their first frame on.

        ValueError when the column `image_age` says otherwise (rows were cut off an episode's beginning).
        """
        if IMAGE_AGE not in self.specs:
            return 1
        age = self.column(IMAGE_AGE).ravel()
        every = int(age.max(initial=0)) + 1
        since_start = np.arange(self.frames) - np.repeat(self.episodes.start, self.episodes.length)
        wrong = np.flatnonzero(since_start % every != age)
        if len(wrong):
            raise ValueError(
                f"{self.folder}: frame {wrong[0]} should have pictures of age {since_start[wrong[0]] % every}, "
                f"{IMAGE_AGE} says {age[wrong[0]]:g}: render the collection again"
            )
        return every

    @property
    def statistics(self) -> dict[str, Statistics]:
        """Exact statistics by key; images scaled to [0, 1]."""
        return {key: Statistics.from_json(value) for key, value in self.meta["statistics"].items()}

    @property
    def columns(self) -> list[str]:
        """Names of the built-in columns and of the attached ones that are complete."""
        attached = (path.stem for path in sorted((self.folder / "columns").glob("*.json")))
        return [*self.specs, *(name for name in attached if name not in self.specs and self._attached(name))]

    def images(self, camera: str) -> np.ndarray:
        """Frames (T, H, W, 3), uint8, memory-mapped, read-only."""
        if camera not in self.cameras:
            raise ValueError(f"{self.folder} has cameras {', '.join(self.cameras)}, not {camera!r}: choose one of them")
        return self.rows(camera).array()

    def column(self, name: str) -> np.ndarray:
        """Values (T, ...) of a built-in or attached column, memory-mapped, read-only."""
        if name in self.cameras:
            raise ValueError(f"{name!r} is a camera of {self.folder}: use images()")
        return self.rows(name).array()

    def rows(self, key: str) -> RowReader:
        """Reads any rows of a camera or column, whichever has this name. ValueError when neither does."""
        if key not in self._rows:
            spec = ColumnSpec("uint8", (*self.cameras[key], 3)) if key in self.cameras else self.specs.get(key)
            spec = spec or self._attached(key)
            if spec is None:
                raise ValueError(
                    f"{self.folder} has cameras {', '.join(self.cameras)} and columns {', '.join(self.columns)}, "
                    f"not {key!r}: choose one of them, or finish attaching it"
                )
            kind = "frames" if key in self.cameras else "columns"
            self._rows[key] = RowReader(self.folder / kind / f"{key}.bin", self.frames, spec)
        return self._rows[key]

    def add_column(self, name: str, shape: tuple[int, ...], dtype: str, digest: str = "") -> ColumnWriter:
        """A writer for a new per-frame column; opened again after a crash it goes on where it was.

        `digest` names what computes the values (weights, settings): another digest is refused.
        """
        if name in self.specs or name in self.cameras:
            raise ValueError(f"{name!r} is a built-in column of {self.folder}: choose another name")
        self._rows.pop(name, None)
        return ColumnWriter(self.folder / "columns", _safe(name), self.frames, ColumnSpec(dtype, tuple(shape)), digest)

    def release(self) -> None:
        """Gives mapped pages back, so that resident memory does not grow with what `images` and `column` read."""
        for reader in self._rows.values():
            reader.release()

    def _attached(self, name: str) -> ColumnSpec | None:
        path = self.folder / "columns" / f"{_safe(name)}.json"
        if not path.exists():
            return None
        value = json.loads(path.read_text())
        spec = _spec(value)
        if value["done"] != self.frames:
            return None
        _check_size(self.folder / "columns" / f"{name}.bin", self.frames * spec.bytes_per_frame)
        return spec

    def _check_sizes(self) -> None:
        if len(self.episodes) != self.meta["episodes"] or int(self.episodes.length.sum()) != self.frames:
            raise ValueError(
                f"{self.folder}: meta.json says {self.meta['episodes']} episodes and {self.frames} frames, "
                f"episodes.jsonl has {len(self.episodes)} and {int(self.episodes.length.sum())}: copy or build it again"
            )
        for camera, (height, width) in self.cameras.items():
            _check_size(self.folder / "frames" / f"{camera}.bin", self.frames * height * width * 3)
        for name, spec in self.specs.items():
            _check_size(self.folder / "columns" / f"{name}.bin", self.frames * spec.bytes_per_frame)


def is_cache(folder: Path) -> bool:
    """Whether the folder holds a cache, finished or not."""
    return (folder / "meta.json").is_file() or (folder / "plan.json").is_file()


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / "meta.json"
    if not path.is_file():
        unfinished = (folder / "plan.json").is_file()
        hint = "run the same `embodied data cache` command again to finish it" if unfinished else "check the path"
        raise ValueError(f"{folder} should be a finished frame cache, it has no meta.json: {hint}")
    meta = json.loads(path.read_text())
    found = (meta.get("format"), meta.get("version")) if isinstance(meta, dict) else (None, None)
    if found != (FORMAT, VERSION):
        raise ValueError(f"{path} should be {FORMAT} version {VERSION}, got {found}: build the cache again")
    missing = {"name", "fps", "frames", "episodes", "cameras", "columns", "statistics"} - set(meta)
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}: build the cache again")
    return meta


def _read_episodes(folder: Path) -> list[EpisodeInfo]:
    path = folder / "episodes.jsonl"
    if not path.is_file():
        raise ValueError(f"{folder} lacks episodes.jsonl: copy or build the cache again")
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    infos = [EpisodeInfo.from_json(row) for row in rows]
    bad = next((info for info in infos if info.length <= 0), None)
    if bad is not None:
        raise ValueError(f"{path}: episode {bad.index} has length {bad.length}, expected 1 or more: build it again")
    return infos


def _spec(value: Mapping[str, Any]) -> ColumnSpec:
    dtype = np.dtype(value["dtype"])
    if dtype.kind not in "fiub":
        raise ValueError(f"a column's dtype should be numeric or bool, got {dtype}: build the cache again")
    names = value.get("names")
    return ColumnSpec(dtype.name, tuple(int(n) for n in value["shape"]), tuple(names) if names else None)


def _safe(name: str) -> str:
    if not SAFE_NAME.fullmatch(name) or ".." in name:
        raise ValueError(f"a column or camera is named {name!r}: letters, digits, '.', '_' and '-' only")
    return name


def _check_size(path: Path, expected: int) -> None:
    size = path.stat().st_size if path.is_file() else None
    if size != expected:
        came = "it is missing" if size is None else f"got {size}"
        raise ValueError(f"{path} should have {expected} bytes by its metadata, {came}: copy or build it again")
