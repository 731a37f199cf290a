"""The world model as an environment: the item format and interface of the simulators, so that policies run unchanged.

An episode begins in the simulator, which gives the first observation and nothing more. From there the images are
imagined, the arm's state is integrated from the actions, and success is the judge's. Images are made as soon as the
actions of a whole frame are known; a frame's chunk is predicted with the arm held still after the last known action,
shown as far as it is known, and predicted again once more of its actions are: what the rollout goes on from are whole
chunks, the same whenever the policy looks.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from embodied import schema
from embodied.checkpoint import load_checkpoint
from embodied.protocols import Observation, StepsResult
from embodied.registry import registry
from world_models.persist.imagination import Imagination
from world_models.persist.judging import Judge, load_judge, resized
from world_models.persist.rollout import RolloutState, imagine

HOLD = np.array([0, 0, 0, 0, 0, 0, 0], np.float32)


class ImaginedEnv(gymnasium.Env):
    """SimEnv. `simulator`: what episodes begin in."""

    control_hz = schema.CONTROL_HZ

    def __init__(self, simulator: Any, world: Imagination, judge: Judge, image_size: int = 128) -> None:
        self.simulator, self.world, self.judge = simulator, world, judge
        self.task, self.image_size = simulator.task, image_size
        self.action_space = spaces.Box(-1.0, 1.0, (schema.ACTION_DIM,), np.float32)
        entries: dict[str, spaces.Space] = {schema.STATE: spaces.Box(-np.inf, np.inf, (schema.STATE_DIM,), np.float32)}
        entries |= {key: spaces.Box(0, 255, (image_size, image_size, 3), np.uint8) for key in world.keys}
        self.observation_space = spaces.Dict(entries)
        self._steps = self.imagined = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        """As the simulator's reset. The same seed and actions give the same episode."""
        super().reset(seed=seed)
        self.simulator.reset(seed=seed, options=options)
        first = self.simulator.observe(images=True)
        self.instruction, self._seed = first[schema.TASK], int(seed or 0)
        self._start = {key: first[key][None, None] for key in self.world.keys}
        self._states: np.ndarray = first[schema.STATE][None, None].astype(np.float32)
        self._actions: np.ndarray = np.zeros((1, 0, schema.ACTION_DIM), np.float32)
        self._frames: Any = None  # latents of whole chunks imagined so far, after the start
        self.imagined = 0  # frames shown so far, also of the chunk that is not whole yet
        self._shown = {key: first[key] for key in self.world.keys}
        self._steps = 0
        self.judge.begin(self.instruction)
        return self.observe(), {"success": False, "seed": self._seed}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict]:
        result = self.run_steps(np.asarray(action)[None])
        truncated = self._steps >= self.task.max_steps and not result.success
        return self.observe(), float(result.success), result.success, truncated, {"success": result.success}

    def run_steps(self, actions: np.ndarray) -> StepsResult:
        """Executes actions (n, 7): states at once, frames as far as the actions make whole ones."""
        given = np.clip(np.atleast_2d(actions), -1, 1).astype(np.float32)[None]
        self._states = np.concatenate([self._states, self.world.arm.integrate(self._states, given)], axis=1)
        self._actions = np.concatenate([self._actions, given], axis=1)
        self._steps += given.shape[1]
        self._imagine()
        return StepsResult(given.shape[1], self.judge.success)

    def observe(self, images: bool = True) -> Observation:
        """The newest imagined moment; images as large as asked for, whatever the world model's size."""
        observation: Observation = {schema.STATE: self._states[0, -1], schema.TASK: self.instruction}
        if images:
            observation |= self.images_later().result()
        return observation

    def images_later(self) -> Future[dict[str, np.ndarray]]:
        """The images of the newest moment, which are there already."""
        images: Future[dict[str, np.ndarray]] = Future()
        images.set_result({key: resized(value, self.image_size) for key, value in self._shown.items()})
        return images

    def snapshot(self) -> dict[str, np.ndarray]:
        return self.simulator.snapshot()

    def close(self) -> None:
        self.simulator.close()

    def _imagine(self) -> None:
        chunk, stream = self.world.chunk, (self._seed, self.task.index)
        wanted = self._actions.shape[1] // self.world.skip
        while self.imagined < wanted:
            number = self.imagined // chunk
            start, end = number * chunk, (number + 1) * chunk
            done = imagine(self.world.world, self._state(end), 1, [stream], first=number)
            until = min(wanted, end)
            self._show(done.buffer[:, -chunk:][:, self.imagined - start : until - start])
            if until == end:
                self._frames = done.buffer[:, -end:]
            self.imagined = until

    def _show(self, frames: torch.Tensor) -> None:
        """To the policy, the last one, and to the judge, each."""
        images = {key: value[0].cpu().numpy() for key, value in self.world.world.space.decode(frames).items()}
        for i in range(frames.shape[1]):
            self._shown = {key: value[i] for key, value in images.items()}
            self.judge.see(self._shown)

    def _state(self, frames: int) -> RolloutState:
        """The rollout's state now, with actions for `frames` frames after the start; unknown ones hold the arm."""
        steps = frames * self.world.skip
        known = self._actions[:, :steps]
        hold = np.repeat(HOLD[None, None], steps - known.shape[1], axis=1)
        if known.shape[1]:
            hold = hold.copy()
            hold[..., 6] = known[:, -1:, 6]
        history = {**self._start, schema.STATE: self._states[:, :1]}
        begun = self.world.begin(history, np.concatenate([known, hold], axis=1))
        if self._frames is None:
            return begun
        return RolloutState(torch.cat([begun.buffer, self._frames], dim=1), begun.actions)


def make_imagined_env(
    suite: str,
    task: int,
    checkpoint: str,
    classifier: str,
    simulator: str = "sim.make.make_env",
    image_size: int = 128,
    threshold: float = 0.5,
    patience: int = 3,
    device: str = "cpu",
) -> ImaginedEnv:
    """`env=imagined`: episodes of a suite's task inside the world model of a checkpoint."""
    loaded = load_checkpoint(checkpoint, device)
    world = loaded.model.make_world_model(loaded.pipeline, "imagined", loaded.digest, device)
    inner = registry().resolve(simulator)(suite, task, image_size=image_size)
    return ImaginedEnv(inner, world, load_judge(classifier, threshold, patience, device), image_size)
