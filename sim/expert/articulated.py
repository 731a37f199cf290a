"""Drawers, doors and knobs: grasp the moving part and go with its joint, or push it with closed fingers."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mujoco
import numpy as np

from sim.expert.controller import CLOSE, OPEN, Tolerance, turned
from sim.expert.geometry import Cloud
from sim.expert.goals import JointGoal, Predicate
from sim.expert.grasps import Grasp, Obstacles, Search, blocked, down, plan_grasps, principal_yaws
from sim.expert.kinematics import TILTS, Reach, tilted
from sim.expert.motion import hand_below, reach_in, travel
from sim.expert.picking import spread

if TYPE_CHECKING:
    from sim.expert.expert import Expert

LEADING = 0.03  # m: the part that sticks out this far in the direction of motion is where handles are
KNOB = 0.08  # m: turning parts within this radius are held about the axis
AHEAD = 0.04  # m (at the hand) the target runs ahead of the joint
BEYOND = 0.03  # m (at the hand) past the threshold that is aimed at
TRIED = 40
RETRIES = 4
STALLED = 15  # steps without progress after which a motion is given up
SECURED = 1  # steps without progress past the threshold after which the joint is at its end
SHORT = 0.1  # of the way from the threshold to the joint's end that is left out
BACK = 0.07
CLOSE_MARGIN = 0.003
GAP = 0.015  # m between fingers and surface before a push


@dataclass(frozen=True)
class Screw:
    """A joint's motion: slide along, or turn about, `axis` (3,) through `anchor` (3,) in the world."""

    slides: bool
    anchor: np.ndarray
    axis: np.ndarray

    def pose(self, rotation: np.ndarray, position: np.ndarray, by: float) -> tuple[np.ndarray, np.ndarray]:
        """Where a pose fixed to the moving part goes when the joint moves `by` (m or rad)."""
        if self.slides:
            return rotation, position + by * self.axis
        turn = turned(self.axis, by)
        return turn @ rotation, self.anchor + turn @ (position - self.anchor)

    def velocity(self, points: np.ndarray) -> np.ndarray:
        """Velocity (N, 3) of points (N, 3) of the moving part for unit joint speed."""
        if self.slides:
            return np.broadcast_to(self.axis, points.shape)
        return np.cross(self.axis, points - self.anchor)

    def lead(self, points: np.ndarray, sign: int) -> np.ndarray:
        """How far (N,) points lie ahead in the direction of motion, up to a constant."""
        if self.slides:
            return sign * points @ self.axis
        arm = points - self.anchor
        arm = arm - np.outer(arm @ self.axis, self.axis)
        radius = np.linalg.norm(arm, axis=1)
        middle = arm.mean(0) / max(np.linalg.norm(arm.mean(0)), 1e-9)
        side = np.cross(self.axis, middle)
        return sign * np.arctan2(arm @ side, arm @ middle) * radius

    def front(self, cloud: Cloud, sign: int) -> Cloud:
        """Where to hold the part: all of a knob, of larger parts what leads in the direction of motion."""
        if not self.slides:
            arm = cloud.points - self.anchor
            if np.linalg.norm(arm - np.outer(arm @ self.axis, self.axis), axis=1).max() < KNOB:
                return cloud
        lead = self.lead(cloud.points, sign)
        return cloud.select(lead > lead.max() - LEADING)


class Articulated:
    """One ["open" | "close" | "turnon" | "turnoff", thing], as a generator of actions."""

    def __init__(self, expert: Expert, predicate: Predicate) -> None:
        self.expert = expert
        self.predicate = predicate
        self.scene, self.arm, self.goals = expert.scene, expert.arm, expert.goals
        self.failed: list[np.ndarray] = []

    def run(self) -> Iterator[np.ndarray]:
        """Tries one way after another until the predicate holds."""
        joints = self.goals.joints(self.predicate)
        ways = (self.push, self.pull) if self.predicate[0] == "close" else (self.pull, self.push)
        for _ in range(RETRIES):
            before = self.scene.data.time
            for way in ways:
                for goal in joints:
                    if self.goals.holds(self.predicate):
                        return
                    if (yield from way(goal)):
                        break
            if self.scene.data.time == before:
                break
        if not self.goals.holds(self.predicate):
            self.expert.note(f"{self.predicate} given up")

    def screw(self, goal: JointGoal) -> Screw:
        data, model = self.scene.data, self.scene.model
        slides = int(model.jnt_type[goal.joint]) == int(mujoco.mjtJoint.mjJNT_SLIDE)
        return Screw(slides, data.xanchor[goal.joint].copy(), data.xaxis[goal.joint].copy())

    def parts(self, goal: JointGoal) -> frozenset[int]:
        return self.scene.subtree(int(self.scene.model.jnt_bodyid[goal.joint]))

    def value(self, goal: JointGoal) -> float:
        return float(self.scene.data.qpos[self.scene.model.jnt_qposadr[goal.joint]])

    def obstacles(self, center: np.ndarray, bodies: frozenset[int]) -> Obstacles:
        """What else is near: not the moving part, nor what lies in it."""
        carried = self.scene.inside(self.scene.cloud(bodies).points)
        return Obstacles(self.scene.obstacles(bodies | carried).near(center, 0.3).points, self.scene.supports())

    # Grasp and go along

    def pull(self, goal: JointGoal) -> Generator[np.ndarray, None, bool]:
        """Grasps the moving part and moves rigidly with the joint. Returns whether the predicate holds."""
        grasp = self.choose_grasp(goal)
        if grasp is None:
            self.expert.note("no feasible grasp of the moving part")
            return False
        arm, scene = self.arm, self.scene
        arm.gripper = OPEN
        arrived = yield from reach_in(arm, grasp, BACK, 0.08)
        yield from arm.fingers(CLOSE)
        self.expert.note(f"handle grasp {grasp.score:.2f} opening {grasp.opening:.3f} arrived {arrived}")
        yield from self.follow(goal, *scene.hand())
        rotation, position = scene.hand()
        yield from arm.fingers(OPEN)
        yield from arm.move(rotation, position - BACK * rotation[:, 2], Tolerance(0.03, 0.3))
        if self.goals.holds(self.predicate):
            return True
        self.failed.append(grasp.position)
        return False

    def choose_grasp(self, goal: JointGoal) -> Grasp | None:
        """The best reachable grasp whose hand stays free while the joint moves."""
        screw, bodies = self.screw(goal), self.parts(goal)
        cloud = self.scene.cloud(bodies)
        front = screw.front(cloud, goal.sign)
        center = front.points.mean(0)
        hand, _ = self.scene.hand()
        obstacles = self.obstacles(center, bodies)
        reach, yaws = Reach(self.scene), principal_yaws(front.points)
        by = goal.threshold - self.value(goal)
        for tilt in TILTS:
            rotations = tilted(yaws, tilt, hand, reach, center)
            search = Search(rotations, CLOSE_MARGIN, cloud.points, narrow=True)
            grasps = plan_grasps(front, center, self.scene.gripper, obstacles, hand, search) if rotations else []
            fresh = [g for g in grasps if all(np.linalg.norm(g.position - f) > 0.012 for f in self.failed)]
            for grasp in spread(fresh, TRIED):
                rotation, position = screw.pose(grasp.rotation, grasp.position, by)
                nothing = np.zeros((0, 3))
                if blocked(position[None], rotation, self.scene.gripper, nothing, obstacles, 0.0, 0.02, 0.0)[0]:
                    continue
                ends = ((grasp.rotation, grasp.position), (rotation, position))
                if all(reach.reachable(*end) for end in ends):
                    self.expert.note(f"{len(grasps)} handle grasps at tilt {np.rad2deg(tilt):.0f}")
                    return grasp
        return None

    def follow(self, goal: JointGoal, rotation: np.ndarray, position: np.ndarray) -> Iterator[np.ndarray]:
        """Moves a hand that holds or pushes the part along the joint, BEYOND its threshold, or until it stalls.

        A demonstration that let go right at the threshold would teach a policy to stop a little before it, one that
        stood still at the joint's end to stand still there.
        """
        screw, first = self.screw(goal), self.value(goal)
        speed = float(np.linalg.norm(screw.velocity(position[None])[0]))
        ahead = AHEAD / max(speed, 0.05)
        last = self.last(goal, min(BEYOND / max(speed, 0.05), 0.3))
        best, stalled = -np.inf, 0
        for _ in range(200):
            now = self.value(goal)
            progress = goal.sign * now
            stalled = 0 if progress > best + 1e-3 else stalled + 1
            best = max(best, progress)
            reached = self.goals.holds(self.predicate)
            if stalled > (SECURED if reached else STALLED) or (reached and progress >= goal.sign * last):
                return
            aim = now + goal.sign * min(ahead, 0.4)
            aim = min(aim, last) if goal.sign > 0 else max(aim, last)
            yield self.arm.toward(*screw.pose(rotation, position, aim - first))

    def last(self, goal: JointGoal, beyond: float) -> float:
        """The joint's value (m or rad) `beyond` its threshold, or SHORT of its end where that comes first."""
        model = self.scene.model
        if not model.jnt_limited[goal.joint]:
            return goal.threshold + goal.sign * beyond
        end = model.jnt_range[goal.joint][int(goal.sign > 0)]
        room = (1 - SHORT) * goal.sign * (float(end) - goal.threshold)
        return goal.threshold + goal.sign * min(beyond, room)

    # Push

    def push(self, goal: JointGoal) -> Generator[np.ndarray, None, bool]:
        """Pushes the moving part with closed fingers. Returns whether the predicate holds."""
        plan = self.choose_push(goal)
        if plan is None:
            self.expert.note("no feasible push")
            return False
        arm, scene = self.arm, self.scene
        rotation, contact, before = plan
        arm.gripper = CLOSE
        yield from travel(arm, rotation, before, hand_below(scene.gripper, rotation), 0.06)
        yield from arm.move(rotation, before, Tolerance(0.01, 0.08))
        yield from self.follow(goal, rotation, contact)
        yield from arm.move(rotation, scene.hand()[1] + (before - contact), Tolerance(0.02, 0.3))
        arm.gripper = OPEN
        yield from arm.move(rotation, scene.hand()[1] + np.array([0, 0, 0.08]), Tolerance(0.03, 0.3))
        if self.goals.holds(self.predicate):
            return True
        self.failed.append(contact)
        return False

    def choose_push(self, goal: JointGoal) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Hand rotation, position in touch and position before it, of the best free push."""
        screw, bodies = self.screw(goal), self.parts(goal)
        cloud = self.scene.cloud(bodies)
        velocity = goal.sign * screw.velocity(cloud.points)
        speed = np.linalg.norm(velocity, axis=1)
        facing = np.einsum("ni,ni->n", cloud.normals, velocity) / np.maximum(speed, 1e-9)
        behind = cloud.select(facing < -0.9)
        if not len(behind):
            return None
        velocity, speed = velocity[facing < -0.9], speed[facing < -0.9]
        obstacles = self.obstacles(behind.points.mean(0), bodies)
        return self._best_push(goal, screw, behind, velocity / speed[:, None], speed, cloud.points, obstacles)

    def _best_push(
        self,
        goal: JointGoal,
        screw: Screw,
        behind: Cloud,
        direction: np.ndarray,
        speed: np.ndarray,
        own: np.ndarray,
        obstacles: Obstacles,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        gripper, reach = self.scene.gripper, Reach(self.scene)
        middle = behind.points.mean(0)
        off = np.linalg.norm(behind.points - middle, axis=1)
        score = -off if screw.slides else 2.0 * speed - np.abs((behind.points - middle) @ screw.axis)
        outmost = -np.einsum("ni,ni->n", behind.points, direction) if screw.slides else np.zeros(len(behind))
        order = np.argsort(-(score + 2.0 * outmost), kind="stable")[:: max(1, len(behind) // 300)]
        by = goal.threshold - self.value(goal)
        for i in order:
            if any(np.linalg.norm(behind.points[i] - f) < 0.03 for f in self.failed):
                continue
            yaw = np.arctan2(direction[i, 1], direction[i, 0])
            for tilt in np.deg2rad([0, 25, 45]):
                rotation = turned(np.cross([0, 0, 1.0], direction[i]), -tilt) @ down(yaw)
                half = float((gripper.tip_corners() @ rotation.T @ direction[i]).max())
                contact = behind.points[i] - direction[i] * half
                before = contact - direction[i] * GAP
                end_rotation, end = screw.pose(rotation, contact, by)
                if blocked(before[None], rotation, gripper, own, obstacles, 0.003, 0.0)[0]:
                    continue
                if blocked(end[None], end_rotation, gripper, np.zeros((0, 3)), obstacles, 0.0, 0.0, 0.0)[0]:
                    continue
                if reach.reachable(rotation, before) and reach.reachable(end_rotation, end):
                    return rotation, contact, before
        return None
