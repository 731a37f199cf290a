"""DROID as the LeRobot hub has it (lerobot/droid_1.0.1: 15 Hz, three cameras, poses as DROID records them)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from embodied.data.importers.droid import ACTION_SPEC, HUB_CAMERAS, HUB_POSE, STATE_SPEC, droid_columns
from embodied.data.lerobot_meta import LeRobotMeta
from embodied.data.lerobot_reader import LeRobotSource
from embodied.data.source import ColumnSpec, EpisodeInfo
from embodied.schema import ACTION, STATE

COMMAND = "action.gripper_position"
TEXTS = ("language_instruction", "language_instruction_2", "language_instruction_3")


def is_droid_lerobot(meta: LeRobotMeta) -> bool:
    return all(key in meta.features for key in HUB_POSE)


class DroidLeRobotSource:
    """Cameras and columns under our names and units (see `droid`); every recorded column is kept as raw.NAME."""

    def __init__(self, root: str | Path, tool_offset: float = 0.0, lenient: bool = False) -> None:
        self._inner = LeRobotSource(root, lenient=lenient)
        self.name, self.fps = self._inner.name, self._inner.fps
        self.tool_offset = tool_offset
        self._cameras = {HUB_CAMERAS.get(key, key): key for key in self._inner.cameras}
        self.cameras = {ours: self._inner.cameras[theirs] for ours, theirs in self._cameras.items()}
        raw = {f"raw.{key}": spec for key, spec in self._inner.columns.items() if key != "timestamp"}
        self.columns: dict[str, ColumnSpec] = {STATE: STATE_SPEC, ACTION: ACTION_SPEC, **raw}
        self.episodes = [self._complete(i, info) for i, info in enumerate(self._inner.episodes)]

    def read_columns(self, episode: int) -> dict[str, np.ndarray]:
        raw = self._inner.read_columns(episode)
        cartesian, gripper = (np.asarray(raw[key], np.float64) for key in HUB_POSE)
        command = raw[COMMAND].reshape(-1) if COMMAND in raw else None
        columns = droid_columns(cartesian, gripper.reshape(-1), command, self.tool_offset)
        return columns | {f"raw.{key}": values for key, values in raw.items() if key != "timestamp"}

    def read_frames(self, episode: int, camera: str) -> np.ndarray:
        return self._inner.read_frames(episode, self._cameras[camera])

    def read_frames_at(self, episode: int, camera: str, frames: np.ndarray) -> np.ndarray:
        return self._inner.read_frames_at(episode, self._cameras[camera], frames)

    def video_place(self, episode: int, camera: str) -> tuple[Path, int] | None:
        return self._inner.video_place(episode, self._cameras[camera])

    def _complete(self, episode: int, info: EpisodeInfo) -> EpisodeInfo:
        """Instruction and success stand in the frame rows there; the episode's first row is asked."""
        features = self._inner.meta.features
        success, task = info.success, info.task.strip()
        first = None
        if (not task and any(key in features for key in TEXTS)) or "is_episode_successful" in features:
            first = self._inner.first_row(episode)
            task = task or next((str(first[key]).strip() for key in TEXTS if first.get(key)), "")
            success = bool(first["is_episode_successful"]) if "is_episode_successful" in first else success
        return replace(info, task=task, success=success, suite="droid")
