"""A simulator with the world model's detail and the world model's judge: the controls of what policies do inside one.

Without a judge, success there says what a policy loses by the images' detail alone; beside it, with a judge, how often
that is right.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import gymnasium
import numpy as np

from embodied import schema
from embodied.protocols import Observation, StepsResult
from embodied.registry import registry
from world_models.persist.judging import Judge, load_judge, resized


class JudgedEnv(gymnasium.Env):
    """SimEnv: a simulator whose images have been `size` pixels wide, and whose success, with a judge, is the judge's.

    It looks at every `every`-th step, goes on after the simulator's own success, and keeps that in `info`.
    """

    def __init__(self, simulator: Any, size: int, judge: Judge | None = None, every: int = 2) -> None:
        if size < 1 or every < 1:
            raise ValueError(f"size and every should be 1 or more, got {size} and {every}")
        self.simulator, self.size, self.judge, self.every = simulator, size, judge, every
        self.task, self.control_hz = simulator.task, simulator.control_hz
        self.action_space, self.observation_space = simulator.action_space, simulator.observation_space
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        """As the simulator's reset."""
        super().reset(seed=seed)
        _, info = self.simulator.reset(seed=seed, options=options)
        observation = self.observe(images=False)
        if self.judge is not None:
            self.judge.begin(observation[schema.TASK])
        self._steps = 0
        return observation, info

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict]:
        _, _, success, truncated, info = self.simulator.step(action)
        self._steps += 1
        if self.judge is not None:
            if self._steps % self.every == 0:
                self.judge.see(self._small(self.simulator.observe(images=True)))
            success, truncated = self.judge.success, self._steps >= self.task.max_steps and not self.judge.success
        return self.observe(images=False), float(success), success, truncated, {**info, "judged": success}

    def run_steps(self, actions: np.ndarray) -> StepsResult:
        """Executes actions (n, 7) up to success: the judge's, or without one the simulator's."""
        if self.judge is None:
            return self.simulator.run_steps(actions)
        actions = np.atleast_2d(actions)
        for number, action in enumerate(actions, 1):
            if self.step(action)[2]:
                return StepsResult(number, True)
        return StepsResult(len(actions), False)

    def observe(self, images: bool = True) -> Observation:
        """The simulator's newest moment."""
        observation = self.simulator.observe(images=images)
        return {**observation, **self._seen(observation)} if images else observation

    def images_later(self) -> Future[dict[str, np.ndarray]]:
        later: Future[dict[str, np.ndarray]] = Future()
        later.set_result(self._seen(self.simulator.images_later().result()))
        return later

    def snapshot(self) -> dict[str, np.ndarray]:
        return self.simulator.snapshot()

    def close(self) -> None:
        self.simulator.close()

    def _small(self, observation: Observation) -> dict[str, np.ndarray]:
        cameras = [key for key in schema.IMAGE_KEYS if key in observation]
        return {key: resized(observation[key], self.size) for key in cameras}

    def _seen(self, observation: Observation) -> dict[str, np.ndarray]:
        """Images as large as before, of `size` pixels' detail."""
        return {key: resized(small, len(observation[key])) for key, small in self._small(observation).items()}


def make_judged_env(
    suite: str,
    task: int,
    size: int = 64,
    classifier: str | None = None,
    simulator: str = "sim.make.make_env",
    image_size: int = 128,
    threshold: float = 0.5,
    patience: int = 3,
    every: int = 2,
) -> JudgedEnv:
    """`env=judged`: the controls of `env=imagined`. See configs/env/judged.yaml."""
    judge = None if classifier is None else load_judge(classifier, threshold, patience)
    return JudgedEnv(registry().resolve(simulator)(suite, task, image_size=image_size), size, judge, every)
