"""Flat things that fingers cannot grasp: press closed fingers on them and drag them over the table."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import numpy as np

from sim.expert.controller import CLOSE, OPEN, Tolerance
from sim.expert.goals import Predicate
from sim.expert.grasps import Obstacles, blocked, candidate_yaws, down
from sim.expert.motion import travel
from sim.expert.placing import Spot, find_spots

if TYPE_CHECKING:
    from sim.expert.expert import Expert

LEVEL = 0.015  # m the object's height may differ at its destination
AHEAD_SHARE = 0.3  # of the object's radius
LOST = 0.04  # m the hand may slide off its point on the object
PRESS = 0.008  # m below the surface that the hand aims at while it drags
ABOVE = 0.05
AHEAD = 0.03  # m the hand's aim runs ahead
MAX_STEPS = 120


class Drag:
    """One ["on", object, place] on the same level, as a generator of actions."""

    def __init__(self, expert: Expert, predicate: Predicate) -> None:
        self.expert = expert
        self.predicate = predicate
        self.scene, self.arm, self.goals = expert.scene, expert.arm, expert.goals
        self.body = self.goals.body(predicate[1])
        self.bodies = self.scene.subtree(self.body)

    def run(self) -> Generator[np.ndarray, None, bool]:
        """Returns whether the predicate holds at the end."""
        spot = self.destination()
        if spot is None:
            self.expert.note("nowhere to drag to")
            return False
        plan = self.press_point(spot.position - self.scene.pose(self.body)[1])
        if plan is None:
            self.expert.note("no free point to press on")
            return False
        rotation, contact = plan
        arm = self.arm
        arm.gripper = CLOSE
        above = contact + np.array([0, 0, ABOVE])
        yield from travel(arm, rotation, above, self.scene.gripper.tip, 0.06)
        yield from arm.move(rotation, above, Tolerance(0.015, 0.1))
        yield from arm.move(rotation, contact - np.array([0, 0, PRESS / 2]), Tolerance(0.008, 0.1), 40)
        yield from self.drag(rotation, contact, spot.position)
        arm.gripper = OPEN
        yield from arm.move(rotation, self.scene.hand()[1] + np.array([0, 0, 0.1]), Tolerance(0.03, 0.3))
        return self.goals.holds(self.predicate)

    def destination(self) -> Spot | None:
        """The cheapest spot at the object's present height and orientation."""
        height = self.scene.pose(self.body)[1][2]
        spots = find_spots(self.scene, self.body, self.goals.region(self.predicate), self.bodies)
        return next((s for s in spots if s.turn == 0 and abs(s.position[2] - height) < LEVEL), None)

    def press_point(self, move: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Hand rotation and position of the grip site with closed fingertips on the object, a little ahead of its
        middle: what is drawn from the front follows, what is pressed inside its feet does not tip."""
        scene = self.scene
        cloud = scene.cloud(self.bodies)
        top = cloud.select(cloud.normals[:, 2] > 0.9)
        forward = move[:2] / max(float(np.linalg.norm(move[:2])), 1e-9)
        side = np.array([-forward[1], forward[0]])
        offset = top.points[:, :2] - cloud.points[:, :2].mean(0)
        radius = float(np.linalg.norm(cloud.points[:, :2] - cloud.points[:, :2].mean(0), axis=1).max())
        score = -np.abs(offset @ forward - AHEAD_SHARE * radius) - np.abs(offset @ side)
        obstacles = Obstacles(scene.obstacles(self.bodies).near(cloud.points.mean(0), 0.3).points, scene.supports())
        hand, _ = scene.hand()
        yaws = sorted(candidate_yaws(cloud.points), key=lambda yaw: -np.trace(hand.T @ down(yaw)))
        order = np.argsort(-score, kind="stable")[:: max(1, len(top) // 200)]
        for i in order[: len(order) // 2 + 1]:
            position = top.points[i] + np.array([0, 0, scene.gripper.tip + 0.002])
            for yaw in yaws[:4]:
                if not blocked(position[None], down(yaw), scene.gripper, cloud.points, obstacles, 0.004, 0.0)[0]:
                    return down(yaw), position
        return None

    def drag(self, rotation: np.ndarray, contact: np.ndarray, destination: np.ndarray) -> Iterator[np.ndarray]:
        """Presses and moves until the object is where it should be, correcting for what slips."""
        first = self.scene.pose(self.body)[1] - self.scene.hand()[1]
        for _ in range(MAX_STEPS):
            if np.linalg.norm(self.scene.pose(self.body)[1] - self.scene.hand()[1] - first) > LOST:
                self.expert.note("slid off")
                return
            left = (destination - self.scene.pose(self.body)[1]) * [1, 1, 0]
            far = float(np.linalg.norm(left))
            if far < 0.008 or (far < 0.02 and self.goals.holds(self.predicate)):
                return
            step = left * min(1.0, AHEAD / far)
            position = self.scene.hand()[1] + step
            position[2] = contact[2] - PRESS
            yield self.arm.toward(rotation, position)
