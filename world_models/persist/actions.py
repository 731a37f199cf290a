"""The action of a frame: the absolute end-effector pose at it (Ctrl-World), or the motions that lead to it.

Rotations as six numbers: axis-angle and Euler angles jump at half turns, where a downward gripper lives. Positions and
the gripper are scaled so that the data's 1st and 99th percentiles become -1 and 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from embodied.data.rotations import axis_angle_to_matrix
from embodied.schema import ACTION, STATE
from embodied.transforms import Item, Statistics, axis_angle_to_6d

FRAME_ACTION = "frame_action"
METRES, RADIANS = 0.05, 0.5  # of an action of 1, see embodied.schema
KINDS = ("observed", "commanded")


def commanded_pose(state: np.ndarray, action: np.ndarray) -> np.ndarray:
    """The pose that an action (..., 7) asks for in a state (..., 8): position, six rotation numbers (..., 9)."""
    turn = axis_angle_to_matrix(action[..., 3:6] * RADIANS) @ axis_angle_to_matrix(state[..., 3:6])
    columns = np.concatenate([turn[..., 0], turn[..., 1]], axis=-1)
    return np.concatenate([state[..., :3] + METRES * action[..., :3], columns], axis=-1)


def observed_pose(state: np.ndarray) -> np.ndarray:
    """Position and six rotation numbers (..., 9) of a state (..., 8)."""
    return np.concatenate([state[..., :3], axis_angle_to_6d(state[..., 3:6])], axis=-1)


class FramePoses:
    """Adds FRAME_ACTION (..., T, 10): position, rotation as six numbers, gripper.

    observed: state (..., T, 8) at the frames; the gripper is the fingers' distance. commanded: state and action
    (..., T, .) one step of the data before each frame, that is what the arm was last told; the gripper is the command.
    """

    def __init__(self, key: str = STATE, kind: str = "observed", action: str = ACTION) -> None:
        if kind not in KINDS:
            raise ValueError(f"poses should be one of {', '.join(KINDS)}, got {kind!r}")
        self.key, self.kind, self.action = key, kind, action
        self._offset = self._scale = np.zeros(0)

    width = 10

    def bind(self, statistics: Statistics) -> None:
        if "q01" not in statistics.get(self.key, {}):
            raise ValueError(f"FramePoses needs percentiles of {self.key}: run `embodied data stats` on the data set")
        low, high = (np.asarray(statistics[self.key][name], np.float64) for name in ("q01", "q99"))
        offset, scale = (low + high) / 2, np.maximum((high - low) / 2, 1e-3)
        fingers = (offset[6] - offset[7], scale[6] + scale[7]) if self.kind == "observed" else (0.0, 1.0)
        self._offset = np.array([*offset[:3], *[0.0] * 6, fingers[0]])
        self._scale = np.array([*scale[:3], *[1.0] * 6, fingers[1]])

    def forward(self, item: Item) -> Item:
        if self.key not in item or (self.kind == "commanded" and self.action not in item):
            return item
        state = np.asarray(item[self.key], np.float64)
        if self.kind == "observed":
            pose, gripper = observed_pose(state), state[..., 6:7] - state[..., 7:8]
        else:
            action = np.asarray(item[self.action], np.float64)
            pose, gripper = commanded_pose(state, action), action[..., 6:7]
        value = (np.concatenate([pose, gripper], axis=-1) - self._offset) / self._scale
        return {**item, FRAME_ACTION: value.astype(np.float32)}

    def inverse(self, item: Item) -> Item:
        return {key: value for key, value in item.items() if key != FRAME_ACTION}

    def to_json(self) -> dict[str, Any]:
        return {"key": self.key, "kind": self.kind, "action": self.action}

    def offsets(self, frames: list[int], skip: int) -> dict[str, list[int]]:  # noqa: ARG002
        """What to read, relative to the sample's frame, for the frames at these offsets."""
        before = [offset - 1 for offset in frames]
        return {self.key: frames} if self.kind == "observed" else {self.key: before, self.action: before}


class FrameActions:
    """Adds FRAME_ACTION (..., T, 7 * skip): all actions between the frame before and the frame, as they are."""

    def __init__(self, action: str = ACTION, skip: int = 2) -> None:
        self.action, self.skip = action, skip
        self.width = 7 * skip

    def bind(self, statistics: Statistics) -> None:
        pass

    def forward(self, item: Item) -> Item:
        if self.action not in item:
            return item
        value = np.asarray(item[self.action], np.float32)
        frames = value.shape[-2] // self.skip
        return {**item, FRAME_ACTION: value.reshape(*value.shape[:-2], frames, self.width)}

    inverse = FramePoses.inverse

    def to_json(self) -> dict[str, Any]:
        return {"action": self.action, "skip": self.skip}

    def offsets(self, frames: list[int], skip: int) -> dict[str, list[int]]:
        return {self.action: [offset - skip + i for offset in frames for i in range(skip)]}
