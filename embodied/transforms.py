"""Transforms: dict -> new dict, each with its inverse. One Pipeline is saved with the checkpoint.

The same Pipeline object runs in training, in evaluation and on the robot. Arrays are numpy; transforms work on the
last axes, so one item, a batch and a batch with history go through alike. `forward` maps the item format
(`embodied.schema`) to what a model reads; `inverse` runs the mirror order and maps a model's actions back. Keys that a
dict does not hold are left out: an observation without actions goes through the same pipeline as a training batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from embodied.registry import registry

Item = dict[str, Any]
Statistics = Mapping[str, Mapping[str, Any]]

RANGES = {
    "mean_std": ("mean", "std"),
    "quantile": ("q01", "q99"),
    "min_max": ("min", "max"),
}
# Steps along rows and columns that turn an upright image into the convention.
FLIPS = {"upright": (1, 1), "mirrored": (1, -1), "bottom_up": (-1, 1)}


@runtime_checkable
class Transform(Protocol):
    """`inverse(forward(item)) == item` on the keys it touches; `to_json` holds the constructor's arguments."""

    def bind(self, statistics: Statistics) -> None:
        """Takes what it needs from the data's statistics. ValueError when they lack it."""
        ...

    def forward(self, item: Item) -> Item: ...

    def inverse(self, item: Item) -> Item: ...

    def to_json(self) -> dict[str, Any]: ...


class Normalize:
    """Scales the last axis of `key` by the data's statistics: (x - offset) / scale.

    mode: "mean_std" gives mean 0 and deviation 1; "quantile" maps q01..q99 and "min_max" min..max to -1..1.
    dims: indices on the last axis that are scaled, the others pass; None: all. floor: smallest scale, in the unit of
    the data, so that a dimension which hardly moves is not blown up.
    """

    def __init__(
        self, key: str, mode: str = "mean_std", dims: Sequence[int] | None = None, floor: float = 1e-3
    ) -> None:
        if mode not in RANGES:
            raise ValueError(f"Normalize mode should be one of {', '.join(RANGES)}, got {mode!r}")
        self.key, self.mode, self.floor = key, mode, floor
        self.dims = None if dims is None else list(dims)
        self.offset: np.ndarray | None = None
        self.scale: np.ndarray | None = None

    def bind(self, statistics: Statistics) -> None:
        names = RANGES[self.mode]
        if self.key not in statistics or any(name not in statistics[self.key] for name in names):
            raise ValueError(
                f"Normalize({self.key!r}, {self.mode}) needs statistics {' and '.join(names)} of that key, "
                f"got {sorted(statistics.get(self.key, {})) or 'none'}: run `embodied data stats` on the data set"
            )
        first, second = (np.asarray(statistics[self.key][name], dtype=np.float64) for name in names)
        offset, scale = (first, second) if self.mode == "mean_std" else ((first + second) / 2, (second - first) / 2)
        scale = np.maximum(scale, self.floor)
        if self.dims is not None:
            rest = np.setdiff1d(np.arange(offset.shape[-1]), self.dims)
            offset[rest], scale[rest] = 0.0, 1.0
        self.offset, self.scale = offset.astype(np.float32), scale.astype(np.float32)

    def forward(self, item: Item) -> Item:
        return _changed(item, self.key, lambda x: (x - self._bound()[0]) / self._bound()[1])

    def inverse(self, item: Item) -> Item:
        return _changed(item, self.key, lambda x: x * self._bound()[1] + self._bound()[0])

    def to_json(self) -> dict[str, Any]:
        return {"key": self.key, "mode": self.mode, "dims": self.dims, "floor": self.floor}

    def _bound(self) -> tuple[np.ndarray, np.ndarray]:
        if self.offset is None or self.scale is None:
            raise ValueError(f"Normalize({self.key!r}) should be bound to statistics first: put it in a Pipeline")
        return self.offset, self.scale


class RotationTo6D:
    """Replaces the axis-angle at `start`..`start`+3 of the last axis by the rotation matrix's first two columns.

    Axis-angle jumps between r and r - 2 pi r/|r| at rotations of pi, where LIBERO's gripper lives; six matrix entries
    do not (Zhou et al. 2019, "On the continuity of rotation representations"). The inverse gives the angle in [0, pi].
    """

    def __init__(self, key: str, start: int = 3) -> None:
        self.key, self.start = key, start

    def bind(self, statistics: Statistics) -> None:
        pass

    def forward(self, item: Item) -> Item:
        return _changed(item, self.key, lambda x: self._replace(x, 3, axis_angle_to_6d))

    def inverse(self, item: Item) -> Item:
        return _changed(item, self.key, lambda x: self._replace(x, 6, axis_angle_from_6d))

    def to_json(self) -> dict[str, Any]:
        return {"key": self.key, "start": self.start}

    def _replace(self, x: np.ndarray, size: int, function: Any) -> np.ndarray:
        start, stop = self.start, self.start + size
        if x.shape[-1] < stop:
            raise ValueError(f"{self.key} should have at least {stop} numbers on its last axis, got {x.shape[-1]}")
        return np.concatenate([x[..., :start], function(x[..., start:stop]), x[..., stop:]], axis=-1)


class ImageConvention:
    """Turns upright images (the item format) into the convention a model was trained with, and back.

    convention: "upright"; "bottom_up" (robosuite's raw arrays); "mirrored" left to right, which is what these become
    when turned by 180 degrees (LIBERO sets on the hub, openpi, LeRobot's LIBERO environment, the authors' PRTS).
    """

    def __init__(self, keys: Sequence[str], convention: str = "upright") -> None:
        if convention not in FLIPS:
            raise ValueError(f"image convention should be one of {', '.join(FLIPS)}, got {convention!r}")
        self.keys, self.convention = list(keys), convention

    def bind(self, statistics: Statistics) -> None:
        pass

    def forward(self, item: Item) -> Item:
        rows, columns = FLIPS[self.convention]
        for key in self.keys:
            item = _changed(item, key, lambda x: np.ascontiguousarray(x[..., ::rows, ::columns, :]), None)
        return item

    inverse = forward  # each of the three is its own inverse

    def to_json(self) -> dict[str, Any]:
        return {"keys": self.keys, "convention": self.convention}


class GripperConvention:
    """Maps the gripper command of the item format (-1 open .. +1 close) to another range, linearly.

    open, closed: the values the model uses, such as 1 and 0 (DROID, openpi) for open = 1.
    """

    def __init__(self, key: str = "action", open: float = 0.0, closed: float = 1.0, index: int = -1) -> None:  # noqa: A002
        if open == closed:
            raise ValueError(f"open and closed should differ, got {open} for both")
        self.key, self.open, self.closed, self.index = key, open, closed, index

    def bind(self, statistics: Statistics) -> None:
        pass

    def forward(self, item: Item) -> Item:
        return _changed(item, self.key, lambda x: self._set(x, self.open, (self.closed - self.open) / 2, -1.0))

    def inverse(self, item: Item) -> Item:
        return _changed(item, self.key, lambda x: self._set(x, -1.0, 2 / (self.closed - self.open), self.open))

    def to_json(self) -> dict[str, Any]:
        return {"key": self.key, "open": self.open, "closed": self.closed, "index": self.index}

    def _set(self, x: np.ndarray, offset: float, slope: float, origin: float) -> np.ndarray:
        x = x.copy()
        x[..., self.index] = offset + slope * (x[..., self.index] - origin)
        return x


class GripperLevels:
    """Rounds a predicted gripper command to the nearest of -1 (open), 0 (hold) and +1 (close) on the way back.

    robosuite moves the fingers by the sign of the command, so that a regressed 0.02 in place of the exact 0 with which
    demonstrations hold half-open fingers would close them. Forward leaves actions as they are.
    """

    def __init__(self, key: str = "action", index: int = -1) -> None:
        self.key, self.index = key, index

    def bind(self, statistics: Statistics) -> None:
        pass

    def forward(self, item: Item) -> Item:
        return item

    def inverse(self, item: Item) -> Item:
        return _changed(item, self.key, self._round)

    def to_json(self) -> dict[str, Any]:
        return {"key": self.key, "index": self.index}

    def _round(self, x: np.ndarray) -> np.ndarray:
        x = x.copy()
        x[..., self.index] = np.clip(np.round(x[..., self.index]), -1.0, 1.0)
        return x


class Pipeline:
    """Transforms in order, bound to statistics; the inverse runs them in mirror order.

    statistics: {key: {"mean": [...], "std": [...], "q01": ..., "q99": ..., "min": ..., "max": ...}}, lists of numbers.
    """

    def __init__(self, transforms: Sequence[Transform] = (), statistics: Statistics | None = None) -> None:
        self.transforms = list(transforms)
        self.statistics = {key: dict(value) for key, value in (statistics or {}).items()}
        for transform in self.transforms:
            transform.bind(self.statistics)

    def forward(self, item: Mapping[str, Any]) -> Item:
        result = dict(item)
        for transform in self.transforms:
            result = transform.forward(result)
        return result

    def inverse(self, item: Mapping[str, Any]) -> Item:
        result = dict(item)
        for transform in reversed(self.transforms):
            result = transform.inverse(result)
        return result

    def inverse_action(self, action: np.ndarray, key: str = "action") -> np.ndarray:
        """A model's actions (..., action_dim) in the item format."""
        return self.inverse({key: action})[key]

    def to_json(self) -> list[dict[str, Any]]:
        """The transforms as `_target_` and arguments; statistics are kept apart."""
        return [{"_target_": _path(type(transform)), **transform.to_json()} for transform in self.transforms]

    @classmethod
    def from_json(cls, entries: Any, statistics: Statistics | None = None) -> Pipeline:
        """The pipeline `to_json` described. ValueError for anything but registered transforms."""
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"a pipeline should be a list of objects with a _target_, got {type(entries).__name__}")
        return cls([_transform(entry) for entry in entries], statistics)


def _transform(entry: Mapping[str, Any]) -> Transform:
    target = entry.get("_target_")
    kind = registry().resolve(str(target))
    if not (isinstance(kind, type) and issubclass(kind, Transform)):
        raise ValueError(  # noqa: TRY004 - a wrong file, not a wrong call
            f"a pipeline's _target_ should be a transform, got {target!r}: refused"
        )
    try:
        return kind(**{key: value for key, value in entry.items() if key != "_target_"})
    except TypeError as error:
        raise ValueError(f"wrong arguments for transform {target}: {error}") from error


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _changed(item: Item, key: str, function: Any, dtype: Any = np.float32) -> Item:
    """A new dict with `function` applied to one key, if the item holds it."""
    if key not in item:
        return item
    value = np.asarray(item[key]) if dtype is None else np.asarray(item[key], dtype=dtype)
    return {**item, key: function(value)}


def axis_angle_to_6d(vector: np.ndarray) -> np.ndarray:
    """Axis-angle (..., 3) in rad -> first two columns of the rotation matrix (..., 6)."""
    vector = np.asarray(vector, dtype=np.float64)
    angle = np.linalg.norm(vector, axis=-1, keepdims=True)
    axis = vector / np.maximum(angle, 1e-12)
    sine, cosine = np.sin(angle), np.cos(angle)
    columns = [_rotate(unit, axis, sine, cosine) for unit in np.eye(3)[:2]]
    return np.concatenate(columns, axis=-1).astype(np.float32)


def _rotate(vector: np.ndarray, axis: np.ndarray, sine: np.ndarray, cosine: np.ndarray) -> np.ndarray:
    """Rodrigues' formula."""
    along = (axis * vector).sum(axis=-1, keepdims=True) * axis
    return vector * cosine + np.cross(axis, vector) * sine + along * (1 - cosine)


def axis_angle_from_6d(columns: np.ndarray) -> np.ndarray:
    """Two columns (..., 6), not necessarily orthonormal -> axis-angle (..., 3) in rad, angle in [0, pi]."""
    columns = np.asarray(columns, dtype=np.float64)
    x = columns[..., :3] / np.linalg.norm(columns[..., :3], axis=-1, keepdims=True)
    y = columns[..., 3:] - (x * columns[..., 3:]).sum(axis=-1, keepdims=True) * x
    y = y / np.linalg.norm(y, axis=-1, keepdims=True)
    matrix = np.stack([x, y, np.cross(x, y)], axis=-1)
    return _axis_angle(matrix).astype(np.float32)


def _axis_angle(matrix: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) -> axis-angle by the quaternion, which is well conditioned at every angle."""
    quaternion = _quaternion(matrix)
    quaternion = quaternion * np.where(quaternion[..., :1] < 0, -1.0, 1.0)
    norm = np.linalg.norm(quaternion[..., 1:], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(norm, quaternion[..., :1])
    return quaternion[..., 1:] / np.maximum(norm, 1e-12) * angle


def _quaternion(matrix: np.ndarray) -> np.ndarray:
    """(w, x, y, z): the largest of the four columns of the symmetric matrix 4 q q^T, normalised (Shepperd 1978)."""
    m = matrix
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    rows = [
        [1 + xx + yy + zz, wx, wy, wz],
        [wx, 1 + xx - yy - zz, xy, xz],
        [wy, xy, 1 - xx + yy - zz, yz],
        [wz, xz, yz, 1 - xx - yy + zz],
    ]
    outer = np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)
    best = np.argmax(np.diagonal(outer, axis1=-2, axis2=-1), axis=-1)
    column = np.take_along_axis(outer, best[..., None, None], axis=-2)[..., 0, :]
    return column / np.linalg.norm(column, axis=-1, keepdims=True)
