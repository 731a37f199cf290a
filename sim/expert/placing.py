"""Where to put a held object: rest poses on a height map, checked with the simulator's own predicate.

An object keeps its orientation in the hand, turned about the vertical; it goes down from above and is let go at its
rest height, or higher where the hand does not fit (into containers).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from sim.expert.controller import turned
from sim.expert.geometry import GripperShape, HeightMap, height_map, hits, posed_planes
from sim.expert.goals import Region
from sim.expert.grasps import Obstacles, blocked
from sim.expert.scene import Scene

STEP = 0.004  # m, cell of the height maps
TURNS = np.deg2rad([0, 30, -30, 60, -60, 90, -90, 135, -135, 180])
TURN_COST = 0.25  # per rad
GRID = 11  # positions tried along each side of a region
MARGINS = (0.012, 0.005, 0.0)  # m the predicate should have to spare, in the order tried
ABOVE = 0.004  # m above the rest height at which an object is let go
DROPS = (0.0, 0.01, 0.02, 0.03, 0.045, 0.06, 0.075, 0.09)
CROWD_COST, CROWD_HEIGHT = 0.4, 0.01  # for things 8 mm beside the object, higher than this (m)
IMBALANCE_COST = 20.0  # per metre; a quarter in containers, whose walls hold what leans
DROP_COST, HEIGHT_COST = 12.0, 60.0  # per metre: let go above the rest height; rest above the lowest spot
MOST_TILT = -0.5  # of the hand's z axis along world z: it has to point down
INSERT_WAY = (0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.25)  # m back along a level way in
INSERT_ABOVE, INSERT_MARGIN = 0.008, 0.003
LEAST_INWARD = 0.5  # of the hand's z axis along a level way in
CONTACT = 0.004  # m: cells this close to the highest one carry the object
SLACK, SLACK_COST = (0.003, 0.006), 2.0  # m of sideways play that what a hole goes around should leave; for none


@dataclass(frozen=True)
class Spot:
    """A predicted rest pose of the object's body: rotation (3, 3), position (3,); turn from now (rad); cost;
    threads: something sticks up through a hole of the object, as a peg through a nut."""

    rotation: np.ndarray
    position: np.ndarray
    turn: float
    cost: float
    threads: bool = False


@dataclass(frozen=True)
class Place:
    """Hand pose at release: rotation (3, 3), position (3,); the spot below; drop height (m); cost;
    out: direction (3,) the hand comes from and leaves to."""

    rotation: np.ndarray
    position: np.ndarray
    spot: Spot
    drop: float
    cost: float
    out: np.ndarray = field(default_factory=lambda: np.array([0, 0, 1.0]))


def object_map(scene: Scene, bodies: frozenset[int], body: int, rotation: np.ndarray) -> HeightMap:
    """Height map of an object whose body origin is at (0, 0, 0), at `rotation` (3, 3)."""
    now_rotation, origin = scene.pose(body)
    change = rotation @ now_rotation.T
    rotations, positions = scene.frames()
    posed, corners = [], []
    for solid in scene.fine_solids(bodies):
        turned_rotation = change @ rotations[solid.body]
        shift = change @ (positions[solid.body] - origin)
        posed.append(posed_planes(solid, turned_rotation, shift))
        corners.append(solid.corners @ turned_rotation.T + shift)
    every = np.concatenate(corners)[:, :2]
    low = np.floor(every.min(0) / STEP) * STEP
    return height_map(list(zip(posed, corners, strict=True)), low, every.max(0), STEP)


def grown(item: HeightMap, cells: int = 2) -> HeightMap:
    """The item's height map with `cells` more cells on every side, for seeing what stands close."""
    wide = np.pad(item.bottom, 2 * cells, constant_values=np.inf)
    shape = np.array(item.bottom.shape) + 2 * cells
    shifts = [(i, j) for i in (0, cells, 2 * cells) for j in (0, cells, 2 * cells)]
    bottom = np.min([wide[i : i + shape[0], j : j + shape[1]] for i, j in shifts], axis=0)
    return HeightMap(
        item.origin - cells * item.step, item.step, np.pad(item.top, cells, constant_values=-np.inf), bottom
    )


def holes(item: HeightMap) -> np.ndarray:
    """Cells (K, 2) that are open from top to bottom, with some of the item before and behind them along both sides."""
    solid = np.isfinite(item.bottom)
    enclosed = ~solid
    for axis in (0, 1):
        for way in (solid, np.flip(solid, axis)):
            seen = np.logical_or.accumulate(way, axis)
            enclosed &= seen if way is solid else np.flip(seen, axis)
    return np.argwhere(enclosed)


def threaded(ground: HeightMap, item: HeightMap, xy: np.ndarray, height: np.ndarray) -> np.ndarray:
    """(K,): does the ground stick out above the item through one of its holes, with its origin at xy (K, 2), height?"""
    offset = item.origin + holes(item) * item.step
    if not len(offset):
        return np.zeros(len(xy), bool)
    index = ground.index(xy[:, None, :] + offset[None])
    limit = np.array(ground.top.shape) - 1
    inside = np.all((index >= 0) & (index <= limit), axis=2)
    index = np.clip(index, 0, limit)
    above = ground.top[index[..., 0], index[..., 1]] > (height + item.top.max())[:, None]
    return (above & inside).any(1)


def tightness(ground: HeightMap, item: HeightMap, xy: np.ndarray, height: np.ndarray) -> np.ndarray:
    """(K,): the share of small sideways shifts that an item at rest at xy (K, 2), height (K,) has no play for."""
    angle = np.arange(8) * np.pi / 4
    shifts = np.concatenate([far * np.c_[np.cos(angle), np.sin(angle)] for far in SLACK])
    shifted = rest_height(ground, item, (xy[:, None, :] + shifts[None]).reshape(-1, 2))[0]
    return (shifted.reshape(len(xy), -1) > height[:, None] + CROWD_HEIGHT).mean(1)


def rest_height(ground: HeightMap, item: HeightMap, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Height (K,) of the item's origin at rest with its origin at xy (K, 2), and imbalance (K,) in metres: how far the
    item's middle lies outside the cells that carry it (negative: inside)."""
    cells = np.argwhere(np.isfinite(item.bottom))
    offset = item.origin + cells * item.step
    index = ground.index(xy[:, None, :] + offset[None])
    limit = np.array(ground.top.shape) - 1
    inside = np.all((index >= 0) & (index <= limit), axis=2)
    index = np.clip(index, 0, limit)
    gap = ground.top[index[..., 0], index[..., 1]] - item.bottom[cells[:, 0], cells[:, 1]]
    gap = np.where(inside, gap, -np.inf)
    height = gap.max(1)
    carries = gap > height[:, None] - CONTACT
    high = np.where(carries[..., None], offset, -np.inf).max(1)
    low = np.where(carries[..., None], offset, np.inf).min(1)
    middle = offset.mean(0)
    imbalance = np.max(np.concatenate([low - middle, middle - high], axis=1), axis=1)
    return height, imbalance


def find_spots(scene: Scene, body: int, region: Region, avoid: frozenset[int], covered: bool = False) -> list[Spot]:
    """Rest poses of `body` in the region, cheapest first. avoid: bodies left out of the height map (the object's own).
    covered: what lies above the region's middle is left out as well, so that poses under a roof are found.
    """
    reach = _radius(scene, avoid, body)
    low, high = region.center[:2] - region.half - reach, region.center[:2] + region.half + reach
    ground = scene.heights(low, high, STEP, avoid, region.center[2] if covered else np.inf)
    side = np.linspace(-1, 1, GRID)
    xy = region.center[:2] + np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2) * region.half
    far = np.linalg.norm(xy - region.center[:2], axis=1) / max(float(region.half.max()), 0.03)
    leaning = IMBALANCE_COST / 4 if region.container else IMBALANCE_COST
    found = []
    for turn, rotation in _orientations(scene, body, avoid, region.yaw):
        item = object_map(scene, avoid, body, rotation)
        height, imbalance = rest_height(ground, item, xy)
        crowded = rest_height(ground, grown(item), xy)[0] > height + CROWD_HEIGHT
        cost = far + TURN_COST * abs(turn) + leaning * np.maximum(imbalance, 0) + CROWD_COST * crowded
        threads = threaded(ground, item, xy, height)
        if threads.any():
            cost[threads] += SLACK_COST * tightness(ground, item, xy[threads], height[threads])
        found.append((turn, rotation, height, cost, threads))
    for margin in MARGINS:
        spots = []
        for turn, rotation, height, cost, threads in found:
            good = np.isfinite(height)
            points = np.c_[xy, height]
            good[good] = _accepted(region.accepts, points[good], margin)
            spots += [
                Spot(rotation, points[i], float(turn), float(cost[i]), bool(threads[i])) for i in np.flatnonzero(good)
            ]
        if spots:
            floor = min(spot.position[2] for spot in spots)
            lifted = (replace(s, cost=s.cost + HEIGHT_COST * float(s.position[2] - floor)) for s in spots)
            return sorted(lifted, key=lambda spot: spot.cost)
    return []


def _orientations(scene: Scene, body: int, bodies: frozenset[int], yaw: float) -> list[tuple[float, np.ndarray]]:
    """Turns (rad) about the vertical to try for an object and its orientation (3, 3) after each."""
    rotation, _ = scene.pose(body)
    aligned = aligning_turns(scene.cloud(bodies).points, yaw)
    return [(float(turn), turned(np.array([0, 0, 1.0]), turn) @ rotation) for turn in (*TURNS, *aligned)]


def aligning_turns(points: np.ndarray, yaw: float) -> np.ndarray:
    """Turns (4,) about the vertical that bring a principal axis of the points, seen from above, parallel to `yaw`."""
    centered = points[:, :2] - points[:, :2].mean(0)
    _, axes = np.linalg.eigh(centered.T @ centered)
    own = np.arctan2(axes[1, 1], axes[0, 1])
    turns = yaw - own + np.arange(4) * np.pi / 2
    return (turns + np.pi) % (2 * np.pi) - np.pi


def _radius(scene: Scene, bodies: frozenset[int], body: int) -> float:
    """Farthest distance of the object's surface from its body origin."""
    rotations, positions = scene.frames()
    corners = [s.corners @ rotations[s.body].T + positions[s.body] for s in scene.fine_solids(bodies)]
    return float(np.linalg.norm(np.concatenate(corners) - positions[body], axis=1).max()) + STEP


def _accepted(accepts: Callable[[np.ndarray], np.ndarray], points: np.ndarray, margin: float) -> np.ndarray:
    """(K,): does the region accept the points and their four neighbours at `margin`?"""
    result = accepts(points) if len(points) else np.zeros(0, bool)
    if margin > 0:
        for shift in ((margin, 0, 0), (-margin, 0, 0), (0, margin, 0), (0, -margin, 0)):
            result[result] = accepts(points[result] + shift) if result.any() else result[result]
    return result


def find_place(
    spots: list[Spot],
    in_hand: tuple[np.ndarray, np.ndarray],
    gripper: GripperShape,
    obstacles: Obstacles,
    drops: tuple[float, ...],
) -> Place | None:
    """The cheapest release with a free hand. in_hand: the object's rotation and position in the hand's frame."""
    best: Place | None = None
    rise = np.array(drops)
    for rotation, index in by_rotation(spots):
        group = [spots[i] for i in index]
        hand = rotation @ in_hand[0].T
        if hand[2, 2] > MOST_TILT:
            continue
        at = np.array([spot.position for spot in group]) - hand @ in_hand[1] + np.array([0, 0, ABOVE])
        cost = (np.array([spot.cost for spot in group])[:, None] + DROP_COST * rise).ravel()
        useful = np.flatnonzero(cost < (best.cost if best is not None else np.inf))
        positions = (at[:, None, :] + rise[:, None] * np.array([0, 0, 1.0])).reshape(-1, 3)[useful]
        free = useful[~blocked(positions, hand, gripper, np.zeros((0, 3)), obstacles)] if len(useful) else useful
        if len(free):
            pick = int(free[np.argmin(cost[free])])
            spot, drop = group[pick // len(rise)], float(rise[pick % len(rise)])
            best = Place(hand, at[pick // len(rise)] + np.array([0, 0, drop]), spot, drop, float(cost[pick]))
    return best


def find_insert(
    spots: list[Spot],
    in_hand: tuple[np.ndarray, np.ndarray],
    carried: np.ndarray,
    gripper: GripperShape,
    obstacles: Obstacles,
) -> Place | None:
    """The cheapest release that hand and object reach on a straight level way, as into a microwave or a shelf.

    carried: boxes (B, 2, 3) around the object in its body's frame.
    """
    best: Place | None = None
    boxes = gripper.boxes(gripper.reach, 0.0, INSERT_MARGIN)
    for rotation, index in by_rotation(spots):
        group = [spots[i] for i in index]
        hand = rotation @ in_hand[0].T
        item = np.array([spot.position for spot in group]) + np.array([0, 0, INSERT_ABOVE])
        at = item - hand @ in_hand[1]
        cost = np.array([spot.cost for spot in group])
        for angle in np.arange(8) * np.pi / 4:
            inward = np.array([np.cos(angle), np.sin(angle), 0.0])
            if hand[:, 2] @ inward < LEAST_INWARD:
                continue
            left = np.flatnonzero(cost < (best.cost if best is not None else np.inf))
            for back in INSERT_WAY:
                left = left[~hits(obstacles.points, rotation, item[left] - back * inward, carried)]
                left = left[~hits(obstacles.points, hand, at[left] - back * inward, boxes)]
            if len(left):
                pick = int(left[np.argmin(cost[left])])
                best = Place(hand, at[pick], group[pick], 0.0, float(cost[pick]), -inward)
    return best


def by_rotation(spots: list[Spot]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The different rotations (3, 3) of the spots, each with the indices (K,) of its spots."""
    groups: dict[bytes, list[int]] = {}
    for i, spot in enumerate(spots):
        groups.setdefault(spot.rotation.tobytes(), []).append(i)
    return [(spots[index[0]].rotation, np.array(index)) for index in groups.values()]
