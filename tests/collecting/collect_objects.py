"""A small exact environment and its expert, for what collecting must do with any: a point that goes to its target."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embodied.protocols import Episode, PolicySpec, StepsResult, Task
from embodied.schema import IMAGE, STATE, TASK, WRIST_IMAGE

STEP = 0.05  # m per control step at full action
NEAR = 0.02  # m


def tasks(suite: str) -> list[Task]:
    return [Task(suite, index, f"task_{index}", f"go to the target {index}", 60) for index in range(3)]


@dataclass(frozen=True)
class OtherGoal:
    words: str
    predicates: list[list[str]]


def others(task: Task) -> list[OtherGoal]:
    return [OtherGoal("other", [["on", "a", "b"]]), OtherGoal("swap", [["on", "c", "d"]])]


class PointEnv:
    """`trouble`: a folder; an episode whose seed names a file there does what the file says, once. `hold`: a file that
    says "steps N" or "images N"; while it is there the environment gives no more of them than that."""

    control_hz = 20

    def __init__(self, suite: str, task: int, image_size: int = 64, trouble: str = "", hold: str = "", **_: Any):
        self.task = tasks(suite)[task]
        self.size, self.trouble, self.hold = image_size, trouble, Path(hold)
        self.count = {"steps": 0, "images": 0}
        self.closed = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        snapshot = (options or {}).get("snapshot")
        rng = np.random.default_rng([seed or 0, self.task.index])
        self.position = rng.uniform(-0.5, 0.5, 3) if snapshot is None else snapshot["position"].copy()
        self.target = rng.uniform(-0.5, 0.5, 3) if snapshot is None else snapshot["target"].copy()
        self.start = {"position": self.position.copy(), "target": self.target.copy()}
        self._make_trouble(seed)
        return self.observe(images=False), {"success": self.success}

    def _make_trouble(self, seed: int | None) -> None:
        sign = Path(self.trouble) / str(seed)
        if not self.trouble or not sign.exists():
            return
        kind = sign.read_text()
        if kind != "drift":
            sign.unlink()
        if kind == "crash":
            os.abort()
        if kind == "hang":
            time.sleep(1000)
        if kind == "drift":
            self.position += 1e-3

    def _count(self, kind: str, number: int) -> None:
        self.count[kind] += number
        while self.hold.is_file():
            held, most = self.hold.read_text().split()
            if self.count[held] <= int(most):
                return
            time.sleep(0.02)

    @property
    def success(self) -> bool:
        return bool(np.linalg.norm(self.position - self.target) < NEAR)

    def run_steps(self, actions: np.ndarray) -> StepsResult:
        for action in actions:
            self.position = self.position + STEP * np.asarray(action[:3], float)
        self._count("steps", len(actions))
        return StepsResult(len(actions), self.success)

    def observe(self, images: bool = True) -> dict[str, Any]:
        state = np.concatenate([self.position, self.target, [0, 0]]).astype(np.float32)
        observation = {STATE: state, TASK: self.task.language}
        if images:
            self._count("images", 1)
            ramp = np.linspace(0, 120, self.size)[None, :, None] + np.zeros((self.size, 1, 3))
            observation[IMAGE] = np.clip(ramp + 100 * (self.position + 0.5), 0, 255).astype(np.uint8)
            observation[WRIST_IMAGE] = observation[IMAGE][:, ::-1].copy()
        return observation

    def snapshot(self) -> dict[str, np.ndarray]:
        return {name: value.copy() for name, value in self.start.items()}

    def close(self) -> None:
        self.closed = True


class PointExpert:
    """Goes to the target, then rests for three steps. `weak` episodes (seeds ending in 3) never get there."""

    def __init__(self, goal: list[list[str]] | None = None) -> None:
        self.goal = goal
        self.spec = PolicySpec("point", hashlib.sha256(b"point expert").hexdigest(), 1, 1)

    def reset(self, env: PointEnv, seed: int) -> None:
        self.rest = 3
        self.weak = seed % 10 == 3
        self.steps = 0
        self.env = env

    def act(self, env: PointEnv) -> np.ndarray:
        self.steps += 1
        if env.success:
            self.rest -= 1
        away = (env.target - env.position) / STEP * (0.0 if self.weak else 1.0)
        return np.concatenate([np.clip(away, -1, 1), [0, 0, 0, 1]])[None].astype(np.float32)

    @property
    def done(self) -> bool:
        return self.rest == 0 or self.steps >= 40

    @property
    def touching(self) -> bool:
        return self.env.success

    def success(self) -> bool:
        return self.env.success


class PointLearner:
    """Drifts along x, by what the images show too; in episodes whose seeds end in 1 it goes to the target."""

    def __init__(self) -> None:
        self.spec = PolicySpec("learner", "0", 6, 4, image_keys=(IMAGE,), image_size=64)

    def reset(self, slots: Sequence[int], episodes: Sequence[Episode]) -> None:
        self.good = episodes[0].seed % 10 == 1

    def act(self, observation: dict[str, Any], slots: Sequence[int]) -> np.ndarray:
        assert observation[IMAGE].shape == (1, 64, 64, 3)
        assert observation[TASK] == ["go to the target 0"]
        state = observation[STATE][0]
        action = np.zeros((1, 6, 7), np.float32)
        action[..., 0] = 0.2
        if self.good:
            action[..., :3] = np.clip((state[3:6] - state[:3]) / STEP / self.spec.replan, -1, 1)
        return action
