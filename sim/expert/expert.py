"""The scripted expert: reads the goal, orders it, and solves one predicate after another with the skills."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from embodied.protocols import PolicySpec
from sim.expert.articulated import Articulated
from sim.expert.controller import OPEN, Arm
from sim.expert.dragging import Drag
from sim.expert.goals import Predicate, Region, goals_of
from sim.expert.picking import PickAndPlace
from sim.expert.scene import Scene

VERSION = "4"
MAX_SETTLE = 20  # steps waited for things to come to rest before planning
ARTICULATED = ("open", "close", "turnon", "turnoff")
REST_SPEED = 0.02  # m/s or rad/s
SHARE, LEAST_SHARED = 0.6, 0.05  # of a region's half size; m
ROUNDS = 3  # times the goal is gone through


class Expert:
    """A demonstrator for any goal that names predicates of the scene; see `embodied.protocols.Expert`.

    goal: predicates such as [["on", "akita_black_bowl_1", "plate_1"]] instead of the task's own. pace: share of full
    speed in (0, 1]; contact: of that, in the last move to a grasp or a placement.
    """

    def __init__(self, goal: list[Predicate] | None = None, pace: float = 1.0, contact: float = 1.0) -> None:
        for name, share in (("pace", pace), ("contact", contact)):
            if not 0 < share <= 1:
                raise ValueError(f"{name} should lie in (0, 1], got {share}")
        self.explicit_goal = [list(predicate) for predicate in goal] if goal is not None else None
        self.pace, self.contact = pace, contact
        how = f" at {pace:g}" if pace < 1 else ""
        how += f" contact {contact:g}" if contact < 1 else ""
        digest = hashlib.sha256(f"scripted expert {VERSION} {self.explicit_goal}{how}".encode()).hexdigest()
        self.spec = PolicySpec(name="expert", digest=digest, chunk=1, replan=1)
        self._done = True
        self.log: list[str] = []

    def reset(self, env: Any, seed: int) -> None:  # noqa: ARG002 - nothing here is random
        """Reads the scene and the goal. ValueError for a goal that names what the scene does not hold."""
        self.scene = Scene(env)
        self.goals = goals_of(self.scene)
        self.goal = self.explicit_goal if self.explicit_goal is not None else self.goals.goal()
        for predicate in self.goal:
            self.goals.holds(predicate)
        self.arm = Arm(self.scene, self.pace, self.contact)
        self.log = []
        self._actions = self._solve()
        self._done = False

    def act(self, env: Any) -> np.ndarray:  # noqa: ARG002 - bound to the environment of `reset`
        """The next intended action, (1, 7); rest once it is done."""
        action = next(self._actions, None)
        if action is None:
            self._done = True
            return np.array([[0, 0, 0, 0, 0, 0, self.arm.gripper]], np.float32)
        return action[None].astype(np.float32)

    @property
    def done(self) -> bool:
        return self._done

    @property
    def touching(self) -> bool:
        return self.arm.touching

    def success(self) -> bool:
        """Does the goal (explicit or the task's) hold now?"""
        return all(self.goals.holds(predicate) for predicate in self.goal)

    def note(self, message: str) -> None:
        self.log.append(message)

    def _solve(self) -> Iterator[np.ndarray]:
        yield from self._settle()
        for _ in range(ROUNDS):
            before = self.scene.data.time
            for predicate in ordered(self.goal):
                if predicate[0] == "close" and any(len(p) == 3 and not self.goals.holds(p) for p in self.goal):
                    continue  # something still has to go in
                if not self.goals.holds(predicate):
                    self.note(f"solve {predicate}")
                    yield from self._skill(predicate)
            if self.success() or self.scene.data.time == before:
                return

    def _skill(self, predicate: Predicate) -> Iterator[np.ndarray]:
        if predicate[0] in ARTICULATED:
            yield from Articulated(self, predicate).run()
            return
        entrance = self.goals.entrance(predicate)
        if entrance is not None and not self.goals.holds(entrance) and not PickAndPlace(self, predicate).has_spot():
            self.note(f"first {entrance}")
            yield from Articulated(self, entrance).run()
        if not (yield from PickAndPlace(self, predicate).run()) and predicate[0] == "on":
            yield from Drag(self, predicate).run()

    def aside(self, predicate: Predicate, region: Region) -> np.ndarray:
        """Shift (3,) from the middle of a region that several things have to share: along this one's narrow side, away
        from the next one."""
        waiting = [p for p in self.goal if len(p) == 3 and p[2] == predicate[2] and p != predicate]
        waiting = [p for p in waiting if not self.goals.holds(p)]
        if not waiting or region.half.min() < LEAST_SHARED:
            return np.zeros(3)
        body = self.goals.body(predicate[1])
        points = self.scene.cloud(self.scene.subtree(body)).points[:, :2]
        _, axes = np.linalg.eigh(np.cov(points.T))
        narrow = axes[:, 0]
        away = region.center - self.scene.pose(self.goals.body(waiting[0][1]))[1]
        side = SHARE * float(region.half.min()) * (1.0 if narrow @ away[:2] >= 0 else -1.0)
        return np.r_[side * narrow, 0.0]

    def _settle(self) -> Iterator[np.ndarray]:
        """Waits until free bodies are slow."""
        moving = self.scene.moving_parts()
        for _ in range(MAX_SETTLE):
            if not len(moving) or np.abs(self.scene.data.qvel[moving]).max() < REST_SPEED:
                return
            yield np.array([0, 0, 0, 0, 0, 0, OPEN])


def ordered(goal: list[Predicate]) -> list[Predicate]:
    """Open and switch first, close last; between them, what others are put on or into goes before these."""
    rank = {"open": 0, "turnon": 1, "turnoff": 1, "close": 3}
    placed = {predicate[1]: predicate for predicate in goal if len(predicate) == 3}

    def depth(predicate: Predicate) -> int:
        below, count = predicate, 0
        while len(below) == 3 and below[2] in placed and count < len(goal):
            below, count = placed[below[2]], count + 1
        return count

    return sorted(goal, key=lambda predicate: (rank.get(predicate[0], 2), depth(predicate)))
