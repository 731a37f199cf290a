"""What every trajectory format looks like to the rest of the data layer: a `Source` of whole episodes.

Readers and importers convert to the item format of `embodied.schema` before anything else sees their values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol, runtime_checkable

import numpy as np

TIMESTAMP = "timestamp"


@dataclass(frozen=True)
class EpisodeInfo:
    """One episode of a source. `success` None: unknown. `extra`: what else the format knew of it."""

    index: int
    length: int
    task: str
    suite: str = ""
    task_index: int = -1
    success: bool | None = None
    source: str = ""
    split: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> EpisodeInfo:
        known = {f.name for f in fields(EpisodeInfo)}
        return EpisodeInfo(**{key: item for key, item in value.items() if key in known})


@dataclass(frozen=True)
class ColumnSpec:
    """Type of one per-frame array: numpy dtype name and the shape of one frame's value."""

    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] | None = None

    @property
    def bytes_per_frame(self) -> int:
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))


@runtime_checkable
class Source(Protocol):
    """Whole episodes, read one at a time. Images come upright, values in the units of `embodied.schema`."""

    name: str
    fps: float
    cameras: dict[str, tuple[int, int]]
    columns: dict[str, ColumnSpec]
    episodes: list[EpisodeInfo]

    def read_columns(self, episode: int) -> dict[str, np.ndarray]:
        """Arrays (length, *shape) of the episode at this position of `episodes`."""
        ...

    def read_frames(self, episode: int, camera: str) -> np.ndarray:
        """Frames (length, H, W, 3), uint8."""
        ...


@dataclass
class Selection:
    """Which episodes of a source to take. Empty or None: all."""

    suites: list[str] = field(default_factory=list)
    split: str | None = None
    success: bool | None = None
    with_task: bool = False
    limit: int | None = None

    def apply(self, episodes: Iterable[EpisodeInfo]) -> list[int]:
        """Positions of the chosen episodes, in order."""
        chosen = [
            position
            for position, episode in enumerate(episodes)
            if (not self.suites or episode.suite in self.suites)
            and (self.split is None or episode.split == self.split)
            and (self.success is None or episode.success is self.success)
            and (not self.with_task or bool(episode.task.strip()))
        ]
        return chosen if self.limit is None else chosen[: self.limit]
