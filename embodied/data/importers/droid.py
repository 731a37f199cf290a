"""DROID poses in our units, and DROID in the layout of Ctrl-World's packages (annotation/SPLIT/*.json, videos/).

What DROID records, checked against the arm's forward kinematics: position (m) and extrinsic xyz Euler angles (rad) of
the arm's flange in the robot's base frame (x forward, z up), gripper 0 open .. 1 closed. Here:
    observation.state  flange position moved `tool_offset` m along the tool's z axis, axis-angle without sign flips,
                       finger positions +-(1 - g) * 0.0425 m (Robotiq 2F-85, stroke 85 mm)
    action[t]          pose t -> pose t + 1 in units of 0.05 m and 0.5 rad, in base axes, over one frame of the data (so
                       values beyond 1 occur and are kept: clipping would lose motion); gripper 2 g - 1, from the
                       recorded command where there is one, else from the next state; no motion at the last frame
    raw.*              the recorded arrays, unchanged (float32)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from embodied.data.rotations import continuous_axis_angle, euler_to_matrix, matrix_to_axis_angle
from embodied.data.source import ColumnSpec, EpisodeInfo
from embodied.data.video import Video
from embodied.schema import ACTION, ACTION_DIM, ACTION_NAMES, IMAGE, STATE, STATE_DIM, STATE_NAMES, WRIST_IMAGE

THIRD_IMAGE = "observation.images.image3"
CAMERAS = {IMAGE: 0, WRIST_IMAGE: 2, THIRD_IMAGE: 1}  # files 0 and 1 are external, 2 is the wrist
HALF_STROKE = 0.0425
METRE, RADIAN = 0.05, 0.5  # one unit of action
RAW_RATE = 3  # raw arrays are at 15 Hz, frames at 5 Hz
RAW_KEYS = (
    "observation.state.cartesian_position",
    "observation.state.joint_position",
    "observation.state.gripper_position",
    "action.cartesian_position",
    "action.joint_position",
    "action.gripper_position",
    "action.joint_velocity",
)
FRAME_KEYS = ("states", "joints")  # arrays at the frames' own rate
STATE_SPEC = ColumnSpec("float32", (STATE_DIM,), STATE_NAMES)
ACTION_SPEC = ColumnSpec("float32", (ACTION_DIM,), ACTION_NAMES)
POSE_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


def droid_columns(
    cartesian: np.ndarray, gripper: np.ndarray, command: np.ndarray | None, tool_offset: float
) -> dict[str, np.ndarray]:
    """Pose (T, 6), gripper (T,) and gripper command (T,) as DROID has them -> state (T, 8) and action (T, 7)."""
    rotation = euler_to_matrix(cartesian[:, 3:])
    position = cartesian[:, :3] + tool_offset * rotation[:, :, 2]
    fingers = (1 - np.asarray(gripper, np.float64)) * HALF_STROKE
    state = np.column_stack([position, continuous_axis_angle(rotation), fingers, -fingers])
    action = np.zeros((len(position), ACTION_DIM))
    action[:-1, :3] = np.diff(position, axis=0) / METRE
    action[:-1, 3:6] = matrix_to_axis_angle(rotation[1:] @ rotation[:-1].transpose(0, 2, 1)) / RADIAN
    target = command if command is not None else np.append(gripper[1:], gripper[-1:])
    action[:, 6] = 2 * np.asarray(target) - 1
    return {STATE: state.astype(np.float32), ACTION: action.astype(np.float32)}


class DroidSource:
    """One package, e.g. droid_subset: every annotation file is an episode, empty texts and failures included."""

    def __init__(self, root: str | Path, tool_offset: float = 0.0) -> None:
        self.root = Path(root)
        self.name = self.root.resolve().name
        self.tool_offset = tool_offset
        self._files = sorted(
            (self.root / "annotation").glob("*/*.json"), key=lambda p: (p.parent.name, len(p.stem), p.stem)
        )
        if not self._files:
            raise ValueError(f"{self.root} should hold annotation/SPLIT/*.json, it has none: check the path")
        self._last: tuple[int, dict[str, Any]] | None = None
        self.episodes = [self._info(i) for i in range(len(self._files))]
        with self._open_video(0, 0) as video:
            self.cameras = dict.fromkeys(CAMERAS, video.size)
            self.fps = round(1 / float(np.median(np.diff(video.times))), 3)
        every = range(len(self._files))
        self._raw = [key for key in (*FRAME_KEYS, *RAW_KEYS) if all(key in self._read(i) for i in every)]
        self.columns = self._specs()

    def read_columns(self, episode: int) -> dict[str, np.ndarray]:
        """State, action and the raw arrays; 15 Hz ones as three rows side by side for each frame."""
        value = self._read(episode)
        states = np.array(value["states"], np.float64)
        command = None
        if "action.gripper_position" in value:
            command = _by_frame(np.array(value["action.gripper_position"], np.float64), len(states))[:, 0, 0]
        columns = droid_columns(states[:, :6], states[:, 6], command, self.tool_offset)
        for key in self._raw:
            rows = np.array(value[key], np.float64)
            rows = rows if key in FRAME_KEYS else _by_frame(rows, len(states)).reshape(len(states), -1)
            columns[f"raw.{key}"] = rows.astype(np.float32)
        return columns

    def read_frames(self, episode: int, camera: str) -> np.ndarray:
        """Frames (T, H, W, 3); a video that runs on after the last state is cut there."""
        return self.read_frames_at(episode, camera, np.arange(self.episodes[episode].length))

    def read_frames_at(self, episode: int, camera: str, frames: np.ndarray) -> np.ndarray:
        with self._open_video(episode, CAMERAS[camera]) as video:
            if len(video) <= frames.max(initial=0):
                raise ValueError(
                    f"{video.path} should have {self.episodes[episode].length} frames (one a state), it has "
                    f"{len(video)}: run `embodied data validate`"
                )
            return video.read(frames)

    def video_place(self, episode: int, camera: str) -> tuple[Path, int] | None:
        return self._video_path(episode, CAMERAS[camera]), 0

    def video_facts(self, episode: int, camera: str) -> tuple[int, float]:
        """Frames the file holds, whatever the states say, and frames per second."""
        with self._open_video(episode, CAMERAS[camera]) as video:
            return len(video), round(1 / float(np.median(np.diff(video.times))), 3) if len(video) > 1 else self.fps

    def _info(self, episode: int) -> EpisodeInfo:
        value = self._read(episode)
        path = self._files[episode]
        states = value.get("states")
        if not isinstance(states, list) or not states or any(len(row) != len(POSE_NAMES) for row in states):
            raise ValueError(
                f"{path}: 'states' should be rows of {len(POSE_NAMES)} numbers: correct or remove the file"
            )
        texts = value.get("texts") or [""]
        success = value.get("success")
        return EpisodeInfo(
            index=episode,
            length=len(states),
            task=str(texts[0]).strip(),
            suite="droid",
            success=None if success is None else bool(success),
            source=f"{self.name}/{path.parent.name}/{path.stem}",
            split=path.parent.name,
        )

    def _specs(self) -> dict[str, ColumnSpec]:
        specs = {STATE: STATE_SPEC, ACTION: ACTION_SPEC, "raw.states": ColumnSpec("float32", (7,), POSE_NAMES)}
        first = self.read_columns(0)
        return specs | {key: ColumnSpec("float32", first[key].shape[1:]) for key in first if key not in specs}

    def _read(self, episode: int) -> dict[str, Any]:
        if self._last is None or self._last[0] != episode:
            path = self._files[episode]
            try:
                value = json.loads(path.read_text())
            except json.JSONDecodeError as error:
                raise ValueError(f"{path} should be JSON ({error}): copy it again") from error
            if not isinstance(value, dict) or not {"states", "texts"} <= set(value):
                raise ValueError(f"{path} should hold one JSON object with 'states' and 'texts': copy it again")
            self._last = (episode, value)
        return self._last[1]

    def _open_video(self, episode: int, number: int) -> Video:
        """videos/SPLIT/NAME/N.mp4 by the annotation's own place: the paths written inside it are not followed."""
        return Video(self._video_path(episode, number))

    def _video_path(self, episode: int, number: int) -> Path:
        path = self._files[episode]
        return self.root / "videos" / path.parent.name / path.stem / f"{number}.mp4"


def _by_frame(values: np.ndarray, frames: int) -> np.ndarray:
    """Raw rows (R, ...) -> (frames, 3, D): rows 3 t .. 3 t + 2 of each frame, the last row repeated where they end."""
    values = values.reshape(len(values), -1)
    rows = np.minimum(np.arange(frames * RAW_RATE), len(values) - 1)
    return values[rows].reshape(frames, RAW_RATE, -1)


def is_droid(root: Path) -> bool:
    return (root / "annotation").is_dir() and (root / "videos").is_dir()


HUB_CAMERAS: Mapping[str, str] = {
    "observation.images.exterior_1_left": IMAGE,
    "observation.images.wrist_left": WRIST_IMAGE,
    "observation.images.exterior_2_left": THIRD_IMAGE,
}
HUB_POSE = ("observation.state.cartesian_position", "observation.state.gripper_position")
