"""What the arm's state becomes under actions, integrated without a simulator.

The response of robosuite's OSC to one action, fitted by least squares: each step's motion is `keep` times the motion
before plus `gain` times the motion asked for; fingers move at a constant speed between open and closed. It knows no
contacts: fingers that hold something are thought closed.

Shapes: B rollouts, T steps.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from embodied.data.rotations import axis_angle_to_matrix, continuous_axis_angle, matrix_to_axis_angle
from world_models.persist.actions import METRES, RADIANS


@dataclass(frozen=True)
class Proprioception:
    """keep, gain: of position and rotation. speed: of a finger, m a step, closing and opening. open: its far end, m."""

    keep: tuple[float, float] = (0.680, 0.758)
    gain: tuple[float, float] = (0.0814, 0.0498)
    speed: tuple[float, float] = (0.004, 0.003)
    open: float = 0.04

    def integrate(self, past: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """States so far (B, >= 1, 8) and actions (B, T, 7) -> states after each action (B, T, 8)."""
        past = np.asarray(past, np.float64)
        position, turn = past[:, -1, :3].copy(), axis_angle_to_matrix(past[:, -1, 3:6])
        moved, turned = np.zeros_like(position), np.zeros_like(position)
        if past.shape[1] > 1:
            moved = past[:, -1, :3] - past[:, -2, :3]
            turned = matrix_to_axis_angle(turn @ np.swapaxes(axis_angle_to_matrix(past[:, -2, 3:6]), -1, -2))
        finger, states, turns = (past[:, -1, 6] - past[:, -1, 7]) / 2, [], []
        for t in range(actions.shape[1]):
            moved = self.keep[0] * moved + self.gain[0] * METRES * actions[:, t, :3]
            turned = self.keep[1] * turned + self.gain[1] * RADIANS * actions[:, t, 3:6]
            position, turn = position + moved, axis_angle_to_matrix(turned) @ turn
            speed = np.where(actions[:, t, 6] > 0, -self.speed[0], self.speed[1]) * (actions[:, t, 6] != 0)
            finger = np.clip(finger + speed, 0.0, self.open)
            turns.append(turn)
            states.append(
                np.concatenate([position, np.zeros_like(position), finger[:, None], -finger[:, None]], axis=1)
            )
        result = np.stack(states, axis=1)
        for row, matrices in enumerate(np.stack(turns, axis=1)):
            result[row, :, 3:6] = continuous_axis_angle(matrices, past[row, -1, 3:6])
        return result.astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def fit(cls, episodes: list[tuple[np.ndarray, np.ndarray]]) -> Proprioception:
        """From (states (T, 8), actions (T, 7)) of episodes, by least squares over all axes alike."""
        rows: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for states, actions in episodes:
            turn = axis_angle_to_matrix(states[:, 3:6])
            steps = (np.diff(states[:, :3], axis=0), matrix_to_axis_angle(turn[1:] @ np.swapaxes(turn[:-1], -1, -2)))
            asked = (METRES * actions[:-1, :3], RADIANS * actions[:-1, 3:6])
            for store, step, wanted in zip(rows, steps, asked, strict=True):
                store.append(np.stack([step[1:], step[:-1], wanted[1:]], axis=-1).reshape(-1, 3))
        found = [_least_squares(np.concatenate(store)) for store in rows]
        return cls(keep=(found[0][0], found[1][0]), gain=(found[0][1], found[1][1]))


def _least_squares(rows: np.ndarray) -> tuple[float, float]:
    weights, *_ = np.linalg.lstsq(rows[:, 1:], rows[:, 0], rcond=None)
    return float(weights[0]), float(weights[1])
