"""Goals as predicates, and where in space they hold: LIBERO's own predicates, and the same words for robosuite.

A predicate is a list such as ["on", "akita_black_bowl_1", "plate_1"] or ["open", "wooden_cabinet_1_top_region"].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.expert.scene import Scene

Predicate = list[str]
CUBE_RADIUS = 0.012  # m: how well a cube is put on another
ON_RADIUS = 0.03  # m: LIBERO's `on` for two objects asks for body centres within this, seen from above


@dataclass(frozen=True)
class Region:
    """Where an object's body origin has to be. accepts: points (K, 3) -> (K,) bool; center (3,); half (2,) of the
    rectangle to search; target: bodies it rests on or in; container: it may be dropped in from above;
    yaw: of the region's sides (rad)."""

    center: np.ndarray
    half: np.ndarray
    accepts: Callable[[np.ndarray], np.ndarray]
    target: frozenset[int]
    container: bool
    yaw: float = 0.0


@dataclass(frozen=True)
class JointGoal:
    """A joint to bring past `threshold` in direction `sign` (+1: above, -1: below); `limit`: its range (2,)."""

    joint: int
    threshold: float
    sign: int


class LiberoGoals:
    """The goal language of a LIBERO scene."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.env = scene.robosuite

    def goal(self) -> list[Predicate]:
        return [list(state) for state in self.scene.env.goal]

    def holds(self, predicate: Predicate) -> bool:
        self._check(predicate)
        return bool(self.env._eval_predicate(predicate))

    def body(self, name: str) -> int:
        """The body whose origin LIBERO's predicates read."""
        return int(self.env.obj_body_id[name])

    def movable(self, name: str) -> bool:
        return name in self.env.objects_dict

    def region(self, predicate: Predicate) -> Region:
        """The region of ["on" | "in", object, place]."""
        place = predicate[2]
        self._check(predicate)
        if place not in self.env.object_sites_dict:
            return self._on_object(place)
        site, scene = self.env.object_sites_dict[place], self.scene
        index = scene.model.site(place).id
        position, rotation = scene.data.site_xpos[index].copy(), scene.data.site_xmat[index].reshape(3, 3).copy()
        half = np.abs(rotation) @ np.asarray(site.size)
        inside = predicate[0] == "in"
        test = in_box if inside else on_top
        parent = self.env.object_states_dict[place].parent_name
        known = parent in self.env.obj_body_id
        return Region(
            center=position,
            half=half[:2],
            accepts=lambda points: test(points, position, rotation, np.asarray(site.size)),
            target=scene.subtree(self.body(parent)) if known else frozenset(),
            container=inside,
            yaw=level_yaw(rotation),
        )

    def _on_object(self, place: str) -> Region:
        position = self.scene.data.xpos[self.body(place)].copy()

        def accepts(points: np.ndarray) -> np.ndarray:
            return (np.linalg.norm(points[:, :2] - position[:2], axis=1) < ON_RADIUS) & (points[:, 2] >= position[2])

        yaw = level_yaw(self.scene.pose(self.body(place))[0])
        return Region(position, np.full(2, ON_RADIUS), accepts, self.scene.subtree(self.body(place)), False, yaw)

    def entrance(self, predicate: Predicate) -> Predicate | None:
        """The ["open", thing] without which the place of ["in" | "on", object, place] may be out of reach."""
        site = self.env.object_sites_dict.get(predicate[2])
        parent = self.env.get_object(site.parent_name) if site is not None and site.parent_name else None
        if parent is None or not hasattr(parent, "is_open"):
            return None
        if site.joints:
            return ["open", predicate[2]]
        return ["open", site.parent_name] if predicate[0] == "in" else None

    def joints(self, predicate: Predicate) -> list[JointGoal]:
        """What ["open" | "close" | "turnon" | "turnoff", thing] asks of the thing's joints."""
        self._check(predicate)
        verb, name = predicate
        part = self.env.object_sites_dict.get(name) or self.env.get_object(name)
        owner = self.env.get_object(part.parent_name) if name in self.env.object_sites_dict else part
        test = {"open": "is_open", "close": "is_close", "turnon": "turn_on", "turnoff": "turn_off"}[verb]
        result = []
        for joint_name in part.joints:
            joint = self.scene.model.joint(joint_name).id
            low, high = self.scene.model.jnt_range[joint]
            samples = np.linspace(low, high, 2001)
            good = samples[[bool(getattr(owner, test)(q)) for q in samples]]
            if not len(good):
                raise ValueError(f"{predicate} should hold somewhere in the range of {joint_name}, it holds nowhere")
            sign = 1 if good.mean() > (low + high) / 2 else -1
            result.append(JointGoal(joint, float(good.min() if sign > 0 else good.max()), sign))
        return result

    def _check(self, predicate: Predicate) -> None:
        for name in predicate[1:]:
            if name not in self.env.object_states_dict:
                known = ", ".join(sorted(self.env.object_states_dict))
                raise ValueError(f"goal {predicate} should name things of this scene, got {name!r}: use one of {known}")


class RobosuiteGoals:
    """The same language for robosuite's own tasks, on the simulator's own success conditions.

    Predicates: ["lifted", cube], ["on", cube, cube], ["in_bin", object], ["on_peg", nut, peg], ["open", door].
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.env = scene.robosuite

    def goal(self) -> list[Predicate]:
        return [list(predicate) for predicate in self.scene.env.goal]

    def holds(self, predicate: Predicate) -> bool:
        index = self._index(predicate[1])
        if predicate[0] not in ("in_bin", "on_peg"):
            return bool(self.env._check_success())
        position = self.scene.data.xpos[self.body(predicate[1])]
        inside = (
            self.env.on_peg(position, index) if predicate[0] == "on_peg" else not self.env.not_in_bin(position, index)
        )
        return bool(inside) and float(np.linalg.norm(self.scene.hand()[1] - position)) > 0.045

    def body(self, name: str) -> int:
        return self.scene.model.body(self._things()[self._index(name)].root_body).id

    def movable(self, name: str) -> bool:
        return not hasattr(self.env, "door") and self._index(name) >= 0

    def region(self, predicate: Predicate) -> Region:
        env, scene = self.env, self.scene
        index = self._index(predicate[1])
        if predicate[0] == "on":
            body = self.body(predicate[2])
            center = scene.data.xpos[body].copy()
            near = lambda points: np.linalg.norm(points[:, :2] - center[:2], axis=1) < CUBE_RADIUS  # noqa: E731
            return Region(center, np.full(2, CUBE_RADIUS), near, scene.subtree(body), False)
        if predicate[0] == "on_peg":
            body = (env.peg1_body_id, env.peg2_body_id)[index]
            center = scene.data.xpos[body].copy()
            on = lambda points: np.array([bool(env.on_peg(p, index)) for p in points], bool)  # noqa: E731
            return Region(center, np.full(2, 0.03), on, scene.subtree(body), False)
        size, center = np.asarray(env.bin_size[:2]), np.array(env.bin2_pos, float)
        center[:2] += np.array([-0.25 if index in (0, 2) else 0.25, -0.25 if index < 2 else 0.25]) * size
        inside = lambda points: np.array([not env.not_in_bin(p, index) for p in points], bool)  # noqa: E731
        return Region(center, size / 4, inside, frozenset(), True)

    def entrance(self, predicate: Predicate) -> Predicate | None:  # noqa: ARG002 - nothing is closed there
        return None

    def joints(self, predicate: Predicate) -> list[JointGoal]:
        door = self._things()[self._index(predicate[1])]
        return [JointGoal(self.scene.model.joint(door.joints[0]).id, 0.3, 1)]

    def _things(self) -> list[Any]:
        """The models of the task's objects, in the order its success condition counts them."""
        for attributes in (("objects",), ("nuts",)):
            if hasattr(self.env, attributes[0]):
                return list(getattr(self.env, attributes[0]))
        return [getattr(self.env, name) for name in ("cube", "cubeA", "cubeB", "door") if hasattr(self.env, name)]

    def _index(self, name: str) -> int:
        names = [thing.name for thing in self._things()]
        if name not in names:
            raise ValueError(f"the goal should name things of this scene, got {name!r}: use one of {', '.join(names)}")
        return names.index(name)


def in_box(points: np.ndarray, position: np.ndarray, rotation: np.ndarray, size: np.ndarray) -> np.ndarray:
    """(K,): LIBERO's `SiteObject.in_box` for points (K, 3)."""
    half = np.abs(rotation @ size)
    below = np.array([0, 0, 0.01])
    return np.all((points > position - half - below) & (points < position + half), axis=1)


def on_top(points: np.ndarray, position: np.ndarray, rotation: np.ndarray, size: np.ndarray) -> np.ndarray:
    """(K,): LIBERO's `SiteObject.under` for points (K, 3)."""
    local = (points - position) @ rotation.T
    level = (local[:, 2] > size[2] - 0.005) & (local[:, 2] < size[2] + 0.10)
    return level & np.all(np.abs(local[:, :2]) < size[:2], axis=1)


def level_yaw(rotation: np.ndarray) -> float:
    """Yaw (rad) of the axis of a frame (3, 3) that lies most level."""
    axis = rotation[:, int(np.argmin(np.abs(rotation[2])))]
    return float(np.arctan2(axis[1], axis[0]))


def goals_of(scene: Scene) -> LiberoGoals | RobosuiteGoals:
    return LiberoGoals(scene) if hasattr(scene.robosuite, "parsed_problem") else RobosuiteGoals(scene)
