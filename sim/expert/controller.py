"""Pose control with the simulator's delta actions: proportional, straight, stopping where it arrives or stalls."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np

from sim.expert.scene import Scene

OPEN, HOLD, CLOSE = -1.0, 0.0, 1.0  # gripper actions; exactly 0 keeps the fingers' command where it is
GAIN = 2.0
TURN_CAP = 0.5  # largest rotation action
NEAR, EXACT = 0.03, 0.01  # m: this close to the end of a move this exact the hand may touch
LOOK_AHEAD = 0.03  # m on the straight line, from where it is nearest to the hand, that a move aims
STALL_STEPS, STALL_PROGRESS = 10, 0.001
RAMP_STEPS, MAX_FINGER_STEPS = 8, 16
LET_GO = 0.006  # m each finger opens before the hand retreats


@dataclass(frozen=True)
class Tolerance:
    """When a move has arrived: within metres and radians, and slower than `speed` metres in a control step."""

    position: float
    angle: float
    speed: float = np.inf


FINE = Tolerance(0.006, 0.05)
TRAVEL = Tolerance(0.025, 0.25)
ALIGNED = Tolerance(0.007, 0.05, 0.004)  # before going in around an object, down between walls, in under a roof


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Axis times angle (3,) of a rotation matrix (3, 3)."""
    angle = np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1.0, 1.0))
    skew = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    if angle < 1e-6:
        return skew / 2
    if np.pi - angle < 1e-4:
        axis = np.sqrt(np.maximum((np.diag(rotation) + 1) / 2, 0))
        pivot = int(np.argmax(axis))
        axis = rotation[:, pivot] + np.eye(3)[pivot]
        return angle * axis / np.linalg.norm(axis)
    return angle * skew / (2 * np.sin(angle))


def turned(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rotation matrix (3, 3) by `angle` (rad) about a unit axis (3,)."""
    k = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * (k @ k)


def pose_action(
    rotation: np.ndarray,
    position: np.ndarray,
    to_rotation: np.ndarray,
    to_position: np.ndarray,
    output_max: np.ndarray,
    pace: float = 1.0,
) -> np.ndarray:
    """Action (6,) towards a pose: GAIN times the error in units of full action, scaled to keep its direction, and all
    of it times `pace`."""
    move = GAIN * (to_position - position) / output_max[:3]
    move /= max(1.0, np.abs(move).max())
    turn = GAIN * rotation_vector(to_rotation @ rotation.T) / output_max[3:]
    turn /= max(1.0, np.abs(turn).max() / TURN_CAP)
    return pace * np.r_[move, turn]


class Line:
    """A straight way between two points (3,). Aiming at its end corrects what pushes the hand aside only when near."""

    def __init__(self, start: np.ndarray, end: np.ndarray) -> None:
        self.end = end
        self.direction = (end - start) / max(float(np.linalg.norm(end - start)), 1e-9)
        self.step = LOOK_AHEAD / max(float(np.abs(self.direction).max()), 1e-9)

    def ahead(self, position: np.ndarray) -> np.ndarray:
        """Where to aim (3,) from a position (3,): LOOK_AHEAD on, along the axis that it mostly runs along."""
        left = float((self.end - position) @ self.direction)
        return self.end - max(left - self.step, 0.0) * self.direction


class Arm:
    """Motions of the hand as generators of actions (7,): the simulator steps between two of them.

    `return` values (via `yield from`) tell whether the motion arrived. pace: share of full speed, in (0, 1]; contact:
    of that, in the last move to a grasp or a placement (tolerance FINE). touching: whether the action given last may
    touch: all but moves through free space, up to where they come near the end of exact ones.
    """

    def __init__(self, scene: Scene, pace: float = 1.0, contact: float = 1.0) -> None:
        self.scene, self.pace, self.contact = scene, pace, contact
        self.gripper = OPEN
        self.touching = True

    def toward(
        self, rotation: np.ndarray, position: np.ndarray, pace: float | None = None, touching: bool = True
    ) -> np.ndarray:
        """The action (7,) that goes towards a pose, the fingers as they are commanded. pace: in place of the arm's."""
        now_rotation, now_position = self.scene.hand()
        share = self.pace if pace is None else pace
        self.touching = touching
        move = pose_action(now_rotation, now_position, rotation, position, self.scene.output_max, share)
        return np.r_[move, self.gripper].astype(np.float32)

    def move(
        self,
        rotation: np.ndarray,
        position: np.ndarray,
        tolerance: Tolerance = FINE,
        limit: int = 150,
        near: float = NEAR,
    ) -> Generator[np.ndarray, None, bool]:
        """Goes straight to a pose, back onto the line when pushed off it. Returns True when there, False when it
        stalled or took `limit` steps (at full speed: a slower pace has as many more). near: m before its end, from
        where an exact one may touch."""
        best, stalled, last = np.inf, 0, np.full(3, np.inf)
        line = Line(self.scene.hand()[1], position)
        pace = self.pace * (self.contact if tolerance == FINE else 1.0)
        for _ in range(round(limit / pace)):
            now_rotation, now_position = self.scene.hand()
            speed, last = float(np.linalg.norm(now_position - last)), now_position
            far = float(np.linalg.norm(position - now_position))
            askew = float(np.linalg.norm(rotation_vector(rotation @ now_rotation.T)))
            if far < tolerance.position and askew < tolerance.angle and speed <= tolerance.speed:
                return True
            error = max(far - tolerance.position, 0) + 0.1 * max(askew - tolerance.angle, 0)
            stalled = 0 if error < best - STALL_PROGRESS * pace else stalled + 1
            best = min(best, error)
            if stalled >= STALL_STEPS:
                return False
            yield self.toward(rotation, line.ahead(now_position), pace, tolerance.position <= EXACT and far < near)
        return False

    def hold(self, steps: int) -> Iterator[np.ndarray]:
        """Keeps the present pose for some steps."""
        rotation, position = self.scene.hand()
        for _ in range(steps):
            yield self.toward(rotation, position)

    def fingers(self, command: float) -> Iterator[np.ndarray]:
        """Closes until the fingers rest, or opens until they have let go, where the hand is.

        The gripper's command takes eight steps from one end to the other, so fingers that rest earlier may still wait
        for it.
        """
        self.gripper = command
        rotation, position = self.scene.hand()
        first = before = self.scene.fingers()
        for step in range(MAX_FINGER_STEPS):
            yield self.toward(rotation, position)
            now = self.scene.fingers()
            if command == OPEN and (now - first).min() > LET_GO:
                return
            if step + 1 >= RAMP_STEPS and np.abs(now - before).max() < 4e-4:
                return
            before = now

    def half_open(self, opening: float) -> Iterator[np.ndarray]:
        """From fully open fingers to about `opening` metres each, where they are held from then on."""
        rotation, position = self.scene.hand()
        self.gripper = CLOSE
        for _ in range(round((self.scene.gripper.reach - opening) / (self.scene.gripper.reach / RAMP_STEPS))):
            yield self.toward(rotation, position)
        self.gripper = HOLD
