"""Two-finger grasps planned on surface points: antipodal contacts, free fingers, palm and wrist on the way in.

The planner knows no object classes: rims of bowls and mugs, boxes, bottles and handles come out of the same search.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from sim.expert.geometry import Cloud, GripperShape, hits
from sim.expert.kernels import touched

YAWS = 12
ANCHORS = 40
DEPTHS = (0.0055, 0.011, 0.016, 0.021, 0.026)  # m of the grip site below the object's local top
LOOKED_AT, ENOUGH = 250, 60  # candidates checked for collisions at first; free ones that are enough
CELL = np.array([0.008, 0.008, 0.0025])  # m, in the hand's axes; of a cell the best is kept
_CORNERS = np.indices((2, 2, 2)).reshape(3, -1).T
DEPTH_GAIN = 6.0  # per metre
SKEW_COST = 20.0  # per metre between the middles of both contacts, across the closing direction
SEAM_COST, SEAM_EDGE = 0.3, 0.003  # for contact across the seam of two solids; m looked at around a pad
TOUCH = 0.004  # m: surface this close to the outermost point touches the finger
MOST_POINTS = 2500  # of a surface looked at for contacts
MIN_ANTIPODALITY = 0.45
MAX_WIDTH = 0.0715  # m between contacts, of 0.08 m fully open
APPROACH = 0.12  # m of straight way in that has to be free
LEVER_COST, WIDTH_COST, TURN_COST = 2.0, 1.0, 0.15  # per m, m and rad
NARROW_GAP = 0.004  # m between half-open finger and object
CLOSING, CLOSING_MARGIN = np.array([0.6, 0.3, 0.12]), 0.001  # of the reach: openings looked at between; m
OWN_MARGIN, OTHER_MARGIN = 0.0015, 0.005  # m around the hand: to the object itself, to everything else


@dataclass(frozen=True)
class Grasp:
    """Hand pose at closing: rotation (3, 3), position (3,) of the grip site; width between contacts (m); score;
    opening: how far each finger is open (m) on the way in."""

    rotation: np.ndarray
    position: np.ndarray
    width: float
    score: float
    opening: float


@dataclass(frozen=True)
class Obstacles:
    """What the hand must not touch: points (N, 3) of other things, world planes (F, 4) of tables and floors."""

    points: np.ndarray
    supports: list[np.ndarray]


def down(yaw: float) -> np.ndarray:
    """Rotation (3, 3) of a hand that points down; at yaw 0 its fingers close along world y, as at robosuite's start."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]]) @ np.array([[0, 1.0, 0], [1, 0, 0], [0, 0, -1]])


def yaw_of(rotation: np.ndarray) -> float:
    """The yaw (rad) of a hand that points about down, 0 as in `down`."""
    return float(np.arctan2(-rotation[0, 0], rotation[1, 0]))


def wrap(angle: np.ndarray | float) -> np.ndarray | float:
    """An angle modulo pi into [-pi/2, pi/2): a two-finger hand is the same after half a turn."""
    return (np.asarray(angle) + np.pi / 2) % np.pi - np.pi / 2


def candidate_yaws(points: np.ndarray) -> np.ndarray:
    """Twelve even yaws and the two principal axes of the points seen from above, in [-pi/2, pi/2)."""
    even = np.arange(YAWS) * np.pi / YAWS - np.pi / 2
    return np.unique(np.round(np.r_[even, principal_yaws(points)], 6))


def principal_yaws(points: np.ndarray) -> np.ndarray:
    """Yaws (2,) at which the fingers close along a principal axis of the points (N, 3) seen from above."""
    centered = points[:, :2] - points[:, :2].mean(0)
    _, axes = np.linalg.eigh(centered.T @ centered)
    return np.round(wrap(np.array([np.arctan2(-axis[0], axis[1]) for axis in axes.T]) + 1e-7), 6)


def anchors(points: np.ndarray, count: int = ANCHORS) -> np.ndarray:
    """Farthest-point sample (K, 3) of the points, starting at the one farthest from the mean: no randomness."""
    distance = np.linalg.norm(points - points.mean(0), axis=1)
    chosen = [int(np.argmax(distance))]
    distance = np.full(len(points), np.inf)
    for _ in range(min(count, len(points)) - 1):
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
        chosen.append(int(np.argmax(distance)))
    return points[chosen]


@dataclass(frozen=True)
class Search:
    """rotations: hand orientations to try instead of pointing down. margin: m around the hand to other things. own:
    surface points (N, 3) of the whole moving thing, when the cloud is a part of it. narrow: half-open fingers allowed.
    """

    rotations: list[np.ndarray] | None = None
    margin: float = OTHER_MARGIN
    own: np.ndarray | None = None
    narrow: bool = False


def plan_grasps(
    cloud: Cloud,
    center: np.ndarray,
    gripper: GripperShape,
    obstacles: Obstacles,
    hand: np.ndarray,
    search: Search = Search(),
) -> list[Grasp]:
    """Collision-free grasps of an object, best first: all, or those among the better candidates when these are enough.

    cloud: the object's surface in the world. center (3,): of mass, or where it should be held. hand: present rotation
    (3, 3) of the hand; turning far from it costs a little.
    """
    rotations = search.rotations or [down(yaw) for yaw in candidate_yaws(cloud.points)]
    own = cloud.points if search.own is None else search.own
    around = np.concatenate([anchors(cloud.points), center[None]])
    found = []
    for rotation in rotations:
        position, width, quality = contacts(cloud, around @ rotation, rotation, gripper)
        keep = thinned(position @ rotation, quality)
        position, width, quality = position[keep], width[keep], quality[keep]
        lever = np.linalg.norm(np.cross(position - center, rotation[:, 2]), axis=1)
        score = quality - LEVER_COST * lever - WIDTH_COST * width - TURN_COST * turn_between(hand, rotation)
        found.append((rotation, position, width, score))
    scores = np.sort(np.concatenate([score for *_, score in found]))[::-1]
    result: list[Grasp] = []
    for high, low in pairwise((np.inf, *scores[LOOKED_AT - 1 :: LOOKED_AT * 3], -np.inf)):
        for rotation, position, width, score in found:
            part = np.flatnonzero((score < high) & (score >= low))
            free = _free(position[part], width[part], rotation, gripper, own, obstacles, search)
            for i, opening, cost in free:
                k = part[i]
                result.append(Grasp(rotation, position[k], float(width[k]), float(score[k] - cost), opening))
        if len(result) >= ENOUGH:
            break
    return sorted(result, key=lambda grasp: -grasp.score)


def _free(
    position: np.ndarray,
    width: np.ndarray,
    rotation: np.ndarray,
    gripper: GripperShape,
    own: np.ndarray,
    obstacles: Obstacles,
    search: Search,
) -> Iterator[tuple[int, float, float]]:
    """Of (K,) candidates those the hand can reach freely: index, opening of each finger, its cost."""
    if not len(position):
        return
    if not search.narrow:
        stopped = blocked(position, rotation, gripper, own, obstacles, search.margin)
        free = np.flatnonzero(~stopped)
        free = free[can_close(position[free], width[free], rotation, gripper, obstacles.points, gripper.reach)]
        yield from ((int(i), gripper.reach, 0.0) for i in free)
        return
    palm = replace(gripper, finger=gripper.finger[:0])
    left = np.flatnonzero(~blocked(position, rotation, palm, own, obstacles, search.margin))
    for opening, cost in openings(gripper):
        fits = left[width[left] / 2 + NARROW_GAP < opening]
        if len(fits):
            free = fits[~blocked(position[fits], rotation, gripper, own, obstacles, search.margin, opening)]
            free = free[can_close(position[free], width[free], rotation, gripper, obstacles.points, opening)]
            yield from ((int(i), opening, cost) for i in free)
            left = np.setdiff1d(left, free)


def can_close(
    position: np.ndarray,
    width: np.ndarray,
    rotation: np.ndarray,
    gripper: GripperShape,
    points: np.ndarray,
    opening: float,
) -> np.ndarray:
    """(K,): do fingers that close from `opening` meet no other thing's points (N, 3) before they touch the object?"""
    result = np.ones(len(position), bool)
    for between in CLOSING * gripper.reach:
        ask = np.flatnonzero(result & (width / 2 < between) & (between < opening))
        if len(ask):
            result[ask] = ~hits(points, rotation, position[ask], gripper.closing(between, CLOSING_MARGIN))
    return result


def openings(gripper: GripperShape) -> list[tuple[float, float]]:
    """Fully open and half open fingers (m each), with what they cost."""
    return [
        (gripper.reach, 0.0),
        (0.75 * gripper.reach, 0.05),
        (0.5 * gripper.reach, 0.1),
        (0.375 * gripper.reach, 0.15),
    ]


def thinned(position: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """Indices of the best of (K,) candidates in every CELL of their position (K, 3) in the hand's axes."""
    order = np.argsort(-quality, kind="stable")
    _, first = np.unique(np.floor(position[order] / CELL).astype(int), axis=0, return_index=True)
    return np.sort(order[first])


def turn_between(hand: np.ndarray, rotation: np.ndarray) -> float:
    """Angle (rad) between two hand orientations."""
    return float(np.arccos(np.clip((np.trace(hand.T @ rotation) - 1) / 2, -1, 1)))


def contacts(
    cloud: Cloud, around: np.ndarray, rotation: np.ndarray, gripper: GripperShape
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Antipodal closings of a hand at `rotation`, near `around` (K, 3, in the hand's axes).

    Returns positions (M, 3) in the world, widths (M,), quality (M,): antipodality, less for contacts that do not face
    each other or lie across seams, plus a little for depth.
    """
    thin = slice(None, None, 1 + len(cloud) // MOST_POINTS)
    local, normal = cloud.points[thin] @ rotation, cloud.normals[thin] @ rotation[:, 0]
    pad = np.array([gripper.reach, gripper.pad_y, *gripper.pad_z])
    span, sums, seam = touched(local, normal, cloud.part[thin], around, np.array(DEPTHS), pad, TOUCH, SEAM_EDGE)
    middle, low, high = np.moveaxis(span, 2, 0)
    count = sums[..., 1].min(2)
    mean = sums / np.maximum(sums[..., 1:2], 1)
    quality = np.minimum(mean[:, :, 0, 0], -mean[:, :, 1, 0])
    skew = np.linalg.norm(mean[:, :, 0, 2:] - mean[:, :, 1, 2:], axis=2)
    width = high - low
    good = (count >= 2) & (quality >= MIN_ANTIPODALITY) & (width < MAX_WIDTH) & (width > 0)
    quality += DEPTH_GAIN * np.array(DEPTHS) - SKEW_COST * skew - SEAM_COST * seam
    at = np.c_[(high[good] + low[good]) / 2, around[np.nonzero(good)[0], 1], middle[good]]
    return at @ rotation.T, width[good], quality[good]


def blocked(
    position: np.ndarray,
    rotation: np.ndarray,
    gripper: GripperShape,
    own: np.ndarray,
    obstacles: Obstacles,
    margin: float = OTHER_MARGIN,
    opening: float | None = None,
    sweep: float = APPROACH,
) -> np.ndarray:
    """(K,): does a hand at `rotation`, position (K, 3), touch the object (points `own`), others, a table, on its
    straight way in of length `sweep`?"""
    opening = gripper.reach if opening is None else opening
    result = touches_support(position, rotation, gripper.boxes(opening, 0.0, 0.0), obstacles.supports, 0.002)
    for points, around in ((own, OWN_MARGIN), (obstacles.points, margin)):
        left = np.flatnonzero(~result)
        if len(points) and len(left):
            result[left] = hits(points, rotation, position[left], gripper.boxes(opening, sweep, around))
    return result


def touches_support(
    position: np.ndarray, rotation: np.ndarray, boxes: np.ndarray, supports: list[np.ndarray], margin: float
) -> np.ndarray:
    """(K,): is a corner of the hand's boxes within `margin` of, or inside, a table or floor?"""
    corners = np.concatenate([box[_CORNERS, np.arange(3)] for box in boxes]) @ rotation.T
    world = position[:, None, :] + corners
    result = np.zeros(len(position), bool)
    for planes in supports:
        depth = np.max(world @ planes[:, :3].T - planes[:, 3], axis=2)
        result |= (depth < margin).any(1)
    return result
