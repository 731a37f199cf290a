"""A deterministic point-mass environment with LIBERO's interface, which can crash, hang or raise on demand.

The point starts at a position drawn from the seed (or chosen by the initial state) and succeeds within 0.02 of the
task's goal. `trouble`: a folder; a file CRASH_<task>_<seed>, HANG_... or RAISE_... in it, holding a number, makes
that many first attempts at the episode end that way in its third step.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

import numpy as np

from embodied.evaluation.records import Outcome, RunFolder
from embodied.protocols import PolicySpec, StepsResult, Task
from embodied.schema import IMAGE, STATE, TASK

GOALS = np.array([[0.0, 0.0, 0.0], [0.3, -0.2, 0.1], [-0.2, 0.4, 0.0]])
STORED = 5


def tasks(suite: str) -> list[Task]:
    return [Task(suite, i, f"reach_{i}", f"move to goal {i}", 40) for i in range(len(GOALS))]


def count_states(suite: str, task: int) -> int:
    return 0 if suite == "points_seeded" else STORED


class PointMassEnv:
    control_hz = 20

    def __init__(self, suite: str, task: int, image_size: int = 16, trouble: str = "", pause: float = 0.0) -> None:
        self.task = tasks(suite)[task]
        self.goal, self.size, self.pause = GOALS[task], image_size, pause
        self.trouble = Path(trouble) if trouble else None
        self.rendered = 0

    def reset(self, *, seed=None, options=None):
        options = options or {}
        if "snapshot" in options:
            self.start = np.array(options["snapshot"]["position"])
        else:
            index = options.get("init_state")
            self.start = np.random.default_rng([seed, 0 if index is None else 1 + index]).uniform(-0.6, 0.6, 3)
        self.seed, self.position, self.steps = seed, self.start.copy(), 0
        other = options.get("perturbation", "none").partition("goal:other=")[2]  # the number of the goal itself
        self.goal = GOALS[int(other or self.task.index)]
        self.words = options.get("instruction") or (f"move to goal {other}" if other else self.task.language)
        self.kinds = self._armed()
        return self.observe(False), {}

    def _armed(self) -> list[str]:
        """The troubles of this attempt; each file's number counts down."""
        found = []
        for kind in ("CRASH", "HANG", "RAISE", "KILL"):
            path = self.trouble / f"{kind}_{self.task.index}_{self.seed}" if self.trouble else None
            if path is not None and path.exists() and int(path.read_text()) > 0:
                path.write_text(str(int(path.read_text()) - 1))
                found.append(kind)
        return found

    def step(self, action):
        if self.steps == 2:
            self._fail()
        if self.pause:
            time.sleep(self.pause)
        self.position = self.position + 0.05 * np.clip(action[:3], -1, 1).astype(np.float64)
        self.steps += 1
        return self.observe(False), 0.0, self._reached(), False, {}

    def _fail(self) -> None:
        if "CRASH" in self.kinds:
            ctypes.string_at(0)
        if "KILL" in self.kinds:
            os.kill(os.getpid(), signal.SIGKILL)
        if "HANG" in self.kinds:
            time.sleep(1000)
        if "RAISE" in self.kinds:
            raise RuntimeError("the simulation is unstable")

    def run_steps(self, actions) -> StepsResult:
        for done, action in enumerate(actions, 1):
            self.step(action)
            if self._reached():
                return StepsResult(done, True)
        return StepsResult(len(actions), False)

    def observe(self, images=True):
        state = np.zeros(8, np.float32)
        state[:3] = self.position
        observation = {STATE: state, TASK: self.words}
        if images:
            self.rendered += 1
            shade = np.clip(128 + 120 * self.position, 0, 255).astype(np.uint8)
            observation[IMAGE] = np.broadcast_to(shade, (self.size, self.size, 3)).copy()
        return observation

    def snapshot(self):
        return {"position": self.start.copy()}

    def close(self) -> None:
        pass

    def _reached(self) -> bool:
        return bool(np.linalg.norm(self.position - self.goal) < 0.05)


class Pointing:
    """Moves towards the goal at full speed; runs beside the environment, whose goal it reads."""

    def __init__(self, quits_after: int = 1000) -> None:
        self.quits_after = quits_after
        self.spec = PolicySpec("pointing", "e" * 64, 1, 1)

    def reset(self, env, seed: int) -> None:
        self.steps = 0

    def act(self, env) -> np.ndarray:
        self.steps += 3
        action = np.zeros((3, 7), np.float32)
        action[:, :3] = np.clip((env.goal - env.position) / 0.15, -1, 1)
        return action

    @property
    def done(self) -> bool:
        return self.steps >= self.quits_after


class Seeing:
    """Reads its position off the image and the goal off the words; notes its batches."""

    def __init__(self, chunk: int = 6, replan: int = 4) -> None:
        self.spec = PolicySpec("seeing", f"{chunk:064d}", chunk, replan, image_keys=(IMAGE,), image_size=16)
        self.batches: list[int] = []
        self.words: set[str] = set()

    def reset(self, slots, episodes) -> None:
        pass

    def act(self, observation, slots) -> np.ndarray:
        assert observation[IMAGE].shape == (len(slots), 16, 16, 3)
        assert observation[IMAGE].dtype == np.uint8
        self.batches.append(len(slots))
        self.words |= set(observation[TASK])
        position = (observation[IMAGE][:, 0, 0].astype(np.float64) - 128) / 120
        goals = np.stack([GOALS[int(words[-1])] for words in observation[TASK]])
        actions = np.zeros((len(slots), self.spec.chunk, 7), np.float32)
        actions[:, :, :3] = ((goals - position) / 0.05 / self.spec.replan)[:, None]
        return actions


def outcomes(folder: Path) -> dict[str, tuple]:
    """What must be the same however the run went: everything but times, memory and attempts."""
    return {
        key: (r.outcome, r.steps, r.end, r.replan, RunFolder(folder).trajectory(r.episode).actions.tobytes())
        for key, r in RunFolder(folder).records().items()
        if r.outcome is not Outcome.ERROR
    }
