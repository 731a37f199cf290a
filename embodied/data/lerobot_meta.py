"""The metadata of a LeRobot data set (v3.0 and v2.x), read without importing lerobot, and trusted with nothing.

File names come from templates in meta/info.json: only plain integer fields are filled in and the result must stay
inside the data set. Symbolic links are followed (the hub's cache is made of them).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import Any

import numpy as np

from embodied.data.source import ColumnSpec

FIELDS = {"chunk_index", "file_index", "episode_chunk", "episode_index", "video_key", "image_key"}
NUMBER = re.compile(r"(0?\d{1,2}d)?")
INDEX_FEATURES = ("frame_index", "episode_index", "index", "task_index")
EPISODE_STATISTICS = "stats/"
COMMITTED = "meta/embodied.json"


@dataclass(frozen=True)
class LeRobotMeta:
    """`episodes`: one dict a row (episode_index, length, tasks, and in v3 where its data lie), in order."""

    root: Path
    version: str
    fps: float
    features: dict[str, dict[str, Any]]
    episodes: list[dict[str, Any]]
    tasks: dict[int, str]
    info: dict[str, Any]

    @property
    def is_v3(self) -> bool:
        return self.version.startswith("v3")

    @property
    def video_keys(self) -> list[str]:
        return [key for key, feature in self.features.items() if feature["dtype"] == "video"]

    @property
    def image_keys(self) -> list[str]:
        return [key for key, feature in self.features.items() if feature["dtype"] == "image"]

    def numeric_columns(self) -> dict[str, ColumnSpec]:
        """Per-frame arrays: every feature of a numeric type, without LeRobot's own counters."""
        specs = {}
        for key, feature in self.features.items():
            if feature["dtype"] in ("video", "image", "string", "language") or key in INDEX_FEATURES:
                continue
            shape = tuple(int(n) for n in feature["shape"])
            specs[key] = ColumnSpec(np.dtype(feature["dtype"]).name, () if shape == (1,) else shape, _names(feature))
        return specs

    def size(self, key: str) -> tuple[int, int]:
        """Height and width of a camera by the metadata."""
        shape = [int(n) for n in self.features[key]["shape"]]
        channels_first = len(shape) == 3 and shape[0] in (1, 3) and shape[2] not in (1, 3)
        return (shape[1], shape[2]) if channels_first else (shape[0], shape[1])

    def data_file(self, row: Mapping[str, Any]) -> Path:
        if self.is_v3:
            return self._path("data_path", chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        return self._path("data_path", **self._v2_fields(row))

    def video_file(self, row: Mapping[str, Any], key: str) -> Path:
        if self.is_v3:
            chunk, file = row[f"videos/{key}/chunk_index"], row[f"videos/{key}/file_index"]
            return self._path("video_path", video_key=key, chunk_index=chunk, file_index=file)
        return self._path("video_path", video_key=key, **self._v2_fields(row))

    def video_start(self, row: Mapping[str, Any], key: str) -> float:
        """Seconds into the file at which the episode begins."""
        return float(row[f"videos/{key}/from_timestamp"]) if self.is_v3 else 0.0

    def task_of(self, row: Mapping[str, Any]) -> str:
        """The episode's first instruction; "" when it has none."""
        tasks = row.get("tasks")
        return str(tasks[0]) if isinstance(tasks, list) and tasks and tasks[0] is not None else ""

    def _v2_fields(self, row: Mapping[str, Any]) -> dict[str, int]:
        episode = int(row["episode_index"])
        return {"episode_index": episode, "episode_chunk": episode // int(self.info.get("chunks_size", 1000))}

    def _path(self, template: str, **values: Any) -> Path:
        return safe_path(self.root, str(self.info[template]), values)


def safe_path(root: Path, template: str, values: Mapping[str, Any]) -> Path:
    """The file a template names. ValueError when the template or the result could leave the data set."""
    for _, name, form, conversion in Formatter().parse(template):
        if name is None:
            continue
        if name not in FIELDS or conversion or not NUMBER.fullmatch(form or ""):
            raise ValueError(
                f"{root}/meta/info.json: path template {template!r} should use plain fields such as "
                "{chunk_index:03d}: correct it"
            )
    filled = {key: value if key.endswith("_key") else int(value) for key, value in values.items()}
    try:
        name = template.format(**filled)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{root}/meta/info.json: path template {template!r} cannot be filled ({error})") from error
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise ValueError(f"{root}: the metadata name a file outside the data set, {name!r}: refused")
    return root / path


def read_meta(root: str | Path) -> LeRobotMeta:
    """Reads meta/ of a v3.0 or v2.x data set. ValueError names the file and key that is wrong or missing."""
    root = Path(root)
    info = _read_json(root / "meta" / "info.json")
    version = str(info.get("codebase_version"))
    if not re.fullmatch(r"v(3|2)\.\d", version):
        raise ValueError(f"{root}/meta/info.json: codebase_version should be v3.0 or v2.x, got {version!r}")
    missing = [key for key in ("fps", "features", "data_path") if not info.get(key)]
    if missing:
        raise ValueError(f"{root}/meta/info.json lacks {missing[0]!r}: copy or write the data set again")
    fps = info["fps"]
    if not isinstance(fps, (int, float)) or not 0 < fps < 10_000:
        raise ValueError(f"{root}/meta/info.json: fps should be a positive number, got {fps!r}")
    features = info["features"]
    for key, feature in features.items():
        _check_feature(root, key, feature)
    v3 = version.startswith("v3")
    episodes = _v3_episodes(root) if v3 else _read_jsonl(root / "meta" / "episodes.jsonl")
    tasks = _v3_tasks(root) if v3 else _v2_tasks(root)
    _check_episodes(root, episodes, features, v3)
    episodes.sort(key=lambda row: row["episode_index"])
    if (root / COMMITTED).is_file():  # written by us: what a killed writer left behind comes after the counted ones
        episodes = episodes[: int(info.get("total_episodes", len(episodes)))]
    return LeRobotMeta(root, version, float(fps), features, episodes, tasks, info)


def _check_feature(root: Path, key: str, feature: Any) -> None:
    good = isinstance(feature, dict) and isinstance(feature.get("dtype"), str)
    shape = feature.get("shape") if good else None
    if not good or not isinstance(shape, list) or not all(isinstance(n, int) and 0 <= n < 10**6 for n in shape):
        raise ValueError(f"{root}/meta/info.json: feature {key!r} should have a dtype and a shape, got {feature!r}")
    if "/" in key or "\\" in key or ".." in key:
        raise ValueError(f"{root}/meta/info.json: feature name {key!r} could name a file elsewhere: refused")


def _check_episodes(root: Path, rows: list[dict[str, Any]], features: Mapping[str, Any], v3: bool) -> None:
    """Every row has its numbers. ValueError names the first that is missing or no number."""
    needed = ["episode_index", "length"]
    if v3:
        needed += ["data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index"]
        cameras = [key for key, feature in features.items() if feature["dtype"] == "video"]
        needed += [
            f"videos/{key}/{name}" for key in cameras for name in ("chunk_index", "file_index", "from_timestamp")
        ]
    for number, row in enumerate(rows):
        bad = [key for key in needed if not isinstance(row.get(key), (int, float))] if isinstance(row, dict) else needed
        if bad:
            raise ValueError(
                f"{root}/meta: row {number} of the episodes should have a number {bad[0]!r}: write it again"
            )


def _v3_episodes(root: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    for path in sorted((root / "meta" / "episodes").glob("chunk-*/file-*.parquet")):
        names = [name for name in pq.read_schema(path).names if not name.startswith(EPISODE_STATISTICS)]
        rows += pq.read_table(path, columns=names).to_pylist()
    return rows


def _v3_tasks(root: Path) -> dict[int, str]:
    import pyarrow.parquet as pq

    path = root / "meta" / "tasks.parquet"
    if not path.is_file():
        return {}
    rows = pq.read_table(path).to_pylist()
    name = next((key for key in ("task", "__index_level_0__") if rows and key in rows[0]), None)
    return {int(row["task_index"]): str(row[name]) for row in rows} if name else {}


def _v2_tasks(root: Path) -> dict[int, str]:
    return {int(row["task_index"]): str(row["task"]) for row in _read_jsonl(root / "meta" / "tasks.jsonl")}


def _names(feature: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = feature.get("names")
    if isinstance(names, dict):
        names = next(iter(names.values()), None)
    return tuple(str(name) for name in names) if isinstance(names, list) else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is missing: this should be the folder of a LeRobot data set")
    try:
        value = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} should be JSON ({error}): copy the data set again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} should hold one JSON object, got {type(value).__name__}")  # noqa: TRY004
    return value


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ValueError(f"{path} is missing: copy the data set again")
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} should hold one JSON object a line ({error}): copy the data set again") from error
