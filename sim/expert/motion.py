"""Paths over the scene: how high to travel, up, over and down."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from sim.expert.controller import ALIGNED, TRAVEL, Arm, Tolerance
from sim.expert.geometry import GripperShape, vertical_span
from sim.expert.grasps import Grasp
from sim.expert.scene import Scene

CLEARANCE = 0.02
CORRIDOR_STEP = 0.01
SHIFTS = (0.04, 0.08, 0.12, 0.16, 0.2, 0.25)  # m


def corridor_height(scene: Scene, start: np.ndarray, end: np.ndarray, radius: float, without: frozenset[int]) -> float:
    """Highest point of the scene within `radius` of the segment start..end, seen from above."""
    along = (end - start)[:2]
    points = scene.obstacles(without).points
    share = np.clip((points[:, :2] - start[:2]) @ along / max(float(along @ along), 1e-9), 0, 1)
    near = np.linalg.norm(points[:, :2] - start[:2] - share[:, None] * along, axis=1) < radius
    tops = [vertical_span(planes, *np.stack([start, end])[:, :2].T)[1] for planes in scene.supports()]
    return float(max([-np.inf, *points[near, 2], *np.concatenate(tops or [np.zeros(0)])]))


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
) -> Generator[np.ndarray, None, bool]:
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


def reach_in(arm: Arm, grasp: Grasp, back: float, radius: float) -> Generator[np.ndarray, None, bool]:
    """From above to `back` metres before a grasp, exactly onto the hand's axis there (fingers that come down beside it
    land on what they should close around), and in, where all of the way may touch. Returns whether it arrived.

    radius: of the hand as `travel` has it.
    """
    gripper = arm.scene.gripper
    before = grasp.position - back * grasp.rotation[:, 2]
    yield from travel(arm, grasp.rotation, before, hand_below(gripper, grasp.rotation), radius)
    yield from arm.move(grasp.rotation, before, ALIGNED)
    if grasp.opening < gripper.reach:
        yield from arm.half_open(grasp.opening)
    return (yield from arm.move(grasp.rotation, grasp.position, near=np.inf))


def way_out(scene: Scene, load: np.ndarray, without: frozenset[int]) -> np.ndarray | None:
    """The shortest level shift (3,) of a load (points (N, 3), hand included) after which it can go straight up.

    Zero when it can already; None when no shift up to SHIFTS[-1] is free.
    """
    obstacles = scene.obstacles(without).near(load, SHIFTS[-1] + 0.02).points
    cells, inverse = np.unique(np.floor(load[:, :2] / CORRIDOR_STEP).astype(int), axis=0, return_inverse=True)
    low, high = np.full(len(cells), np.inf), np.full(len(cells), -np.inf)
    np.minimum.at(low, inverse.ravel(), load[:, 2])
    np.maximum.at(high, inverse.ravel(), load[:, 2])
    taken: dict[tuple[int, int], list[float]] = {}
    for point in obstacles[obstacles[:, 2] > low.min()]:
        taken.setdefault((int(point[0] // CORRIDOR_STEP), int(point[1] // CORRIDOR_STEP)), []).append(float(point[2]))

    def free(shift: np.ndarray, upwards: bool) -> bool:
        moved = cells + np.rint(shift / CORRIDOR_STEP).astype(int)
        for cell, bottom, top in zip(moved, low, high, strict=True):
            heights = taken.get((int(cell[0]), int(cell[1])), ())
            if any(z > bottom and (upwards or z < top) for z in heights):
                return False
        return True

    if free(np.zeros(2), True):
        return np.zeros(3)
    for far in SHIFTS:
        for angle in np.arange(12) * np.pi / 6:
            shift = far * np.array([np.cos(angle), np.sin(angle)])
            if free(shift, True) and all(free(shift * part, False) for part in (0.25, 0.5, 0.75)):
                return np.r_[shift, 0.0]
    return None
