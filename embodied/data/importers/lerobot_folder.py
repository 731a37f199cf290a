"""A LeRobot folder (v3.0 or v2.x) under our names and conventions: keys renamed, cameras upright, angles continuous."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path

import numpy as np

from embodied.data.lerobot_reader import LeRobotSource
from embodied.data.rotations import axis_angle_to_matrix, continuous_axis_angle, euler_to_matrix
from embodied.schema import ACTION, ACTION_DIM, ACTION_NAMES, IMAGE, STATE, STATE_DIM, STATE_NAMES, WRIST_IMAGE

ALIASES: Mapping[str, str] = {
    "image": IMAGE,
    "wrist_image": WRIST_IMAGE,
    "observation.images.wrist_image": WRIST_IMAGE,
    "state": STATE,
    "actions": ACTION,
}


class Angles(Enum):
    """How entries 3 to 5 of the state give the orientation; keep: leave them as they are."""

    keep = "keep"
    axis_angle = "axis_angle"
    euler_xyz = "euler_xyz"


class LeRobotFolderSource:
    """rename: their name -> ours, on top of the usual aliases. mirrored: cameras are stored mirrored left to right."""

    def __init__(
        self,
        root: str | Path,
        rename: Mapping[str, str] | None = None,
        mirrored: bool = False,
        angles: Angles = Angles.keep,
        lenient: bool = False,
    ) -> None:
        self._inner = LeRobotSource(root, mirrored, lenient)
        self.name, self.fps, self.angles = self._inner.name, self._inner.fps, angles
        self.episodes = self._inner.episodes
        names = {key: (rename or {}).get(key, ALIASES.get(key, key)) for key in self._keys()}
        twice = [key for key in names.values() if list(names.values()).count(key) > 1]
        unknown = [key for key in (rename or {}) if key not in names]
        if twice or unknown:
            problem = f"two keys would become {twice[0]!r}" if twice else f"there is no {unknown[0]!r}"
            raise ValueError(f"{root}: rename should name its keys ({', '.join(names)}) one to one: {problem}")
        self._names = names
        self.cameras = {names[key]: size for key, size in self._inner.cameras.items()}
        self.columns = {names[key]: spec for key, spec in self._inner.columns.items()}
        for key, size, entries in ((STATE, STATE_DIM, STATE_NAMES), (ACTION, ACTION_DIM, ACTION_NAMES)):
            if key in self.columns and self.columns[key].shape == (size,):
                self.columns[key] = replace(self.columns[key], names=entries)

    def read_columns(self, episode: int) -> dict[str, np.ndarray]:
        columns = {self._names[key]: values for key, values in self._inner.read_columns(episode).items()}
        if self.angles is not Angles.keep and STATE in columns:
            state = columns[STATE].copy()
            to_matrix = euler_to_matrix if self.angles is Angles.euler_xyz else axis_angle_to_matrix
            state[:, 3:6] = continuous_axis_angle(to_matrix(state[:, 3:6]))
            columns[STATE] = state
        return columns

    def read_frames(self, episode: int, camera: str) -> np.ndarray:
        return self._inner.read_frames(episode, self._theirs(camera))

    def read_frames_at(self, episode: int, camera: str, frames: np.ndarray) -> np.ndarray:
        return self._inner.read_frames_at(episode, self._theirs(camera), frames)

    def video_place(self, episode: int, camera: str) -> tuple[Path, int] | None:
        return self._inner.video_place(episode, self._theirs(camera))

    def _theirs(self, camera: str) -> str:
        return next(key for key in self._inner.cameras if self._names[key] == camera)

    def _keys(self) -> list[str]:
        return [*self._inner.cameras, *self._inner.columns]
