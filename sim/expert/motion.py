"""Paths over the scene: how high to travel, up, over and down."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sim.expert.controller import TRAVEL, Arm, Tolerance
from sim.expert.geometry import GripperShape
from sim.expert.scene import Scene

CLEARANCE = 0.02
CORRIDOR_STEP = 0.01


def corridor_height(scene: Scene, start: np.ndarray, end: np.ndarray, radius: float, without: frozenset[int]) -> float:
    """Highest point of the scene within `radius` of the segment start..end, seen from above."""
    low = np.minimum(start[:2], end[:2]) - radius
    high = np.maximum(start[:2], end[:2]) + radius
    heights = scene.heights(low, high, CORRIDOR_STEP, without)
    i, j = np.meshgrid(*(np.arange(n) for n in heights.top.shape), indexing="ij")
    cells = heights.origin + np.stack([i, j], -1) * heights.step
    along = end[:2] - start[:2]
    length = max(float(along @ along), 1e-9)
    share = np.clip((cells - start[:2]) @ along / length, 0, 1)
    near = np.linalg.norm(cells - start[:2] - share[..., None] * along, axis=2) < radius
    top = heights.top[near]
    return float(top.max()) if len(top) else -np.inf


def hand_below(gripper: GripperShape, rotation: np.ndarray) -> float:
    """How far the lowest point of the open hand is below the grip site (m)."""
    boxes = gripper.boxes(gripper.reach, 0.0, 0.0)
    corners = np.concatenate([box[np.indices((2, 2, 2)).reshape(3, -1).T, np.arange(3)] for box in boxes])
    return float(-(corners @ rotation.T)[:, 2].min())


def travel(
    arm: Arm,
    rotation: np.ndarray,
    position: np.ndarray,
    load_below: float,
    radius: float,
    without: frozenset[int] = frozenset(),
) -> Iterator[np.ndarray]:
    """Goes to above `position`, high enough for the hand and its load, then to `position` at travelling tolerance.

    load_below: how far the lowest point (fingertips or held object) hangs below the grip site. radius: of hand or load,
    seen from above. Returns True when it arrived.
    """
    _, start = arm.scene.hand()
    top = corridor_height(arm.scene, start, position, radius, without)
    safe = max(top + CLEARANCE + load_below, position[2])
    if start[2] < safe - 0.01:
        here = arm.scene.hand()[0]
        yield from arm.move(here, np.array([start[0], start[1], safe]), Tolerance(0.02, 0.5))
    over = np.array([position[0], position[1], safe])
    tolerance = TRAVEL if safe > position[2] + 0.03 else Tolerance(0.015, 0.12)
    return (yield from arm.move(rotation, over, tolerance))
