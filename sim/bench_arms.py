"""The loops that `embodied bench sim` compares: each executes given actions from a stored init state."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from sim.make import make_env
from sim.stock import make_stock, start_stock
from sim.tasks import ROBOSUITE

SEED = 7


class Arm(Protocol):
    def start(self) -> None: ...

    def run(self, actions: np.ndarray) -> None: ...

    def close(self) -> None: ...


class Ours:
    """`images_every` 0: state observations of every step, no image; n: both cameras every n steps."""

    def __init__(self, suite: str, size: int, images_every: int) -> None:
        self.env = make_env(suite, 0, image_size=size)
        self.init_state = None if suite == ROBOSUITE else 0
        self.every = images_every

    def start(self) -> None:
        self.env.reset(seed=SEED, options={"init_state": self.init_state, "settle_steps": 0})
        if self.every:
            self.env.observe(images=True)  # textures and meshes go to the renderer here, as in stock's reset

    def run(self, actions: np.ndarray) -> None:
        if not self.every:
            for action in actions:
                self.env.step(action)
            return
        for first in range(0, len(actions), self.every):
            self.env.observe(images=True)
            self.env.run_steps(actions[first : first + self.every], stop_at_success=False)

    def close(self) -> None:
        self.env.close()


class Stock:
    """The stock environment's own `step`, with or without its two cameras."""

    def __init__(self, suite: str, size: int, images: bool) -> None:
        self.suite = suite
        self.env = make_stock(suite, 0, size, images)
        self.init_state = None if suite == ROBOSUITE else 0

    def start(self) -> None:
        start_stock(self.env, self.suite, 0, SEED, self.init_state)

    def run(self, actions: np.ndarray) -> None:
        context = self.env.sim._render_context_offscreen
        if context is not None:
            context.gl_ctx.make_current()  # several environments share this process
        for action in actions:
            self.env.step(action)

    def close(self) -> None:
        self.env.close()


class LeRobot:
    """lerobot's LIBERO environment in the vector environment that `lerobot-eval` steps."""

    def __init__(self, suite: str, size: int) -> None:
        import gymnasium
        from lerobot.envs.libero import create_libero_envs

        from sim.libero_setup import import_libero, silence

        import_libero()
        settings = {"task_ids": [0], "observation_width": size, "observation_height": size, "num_steps_wait": 0}
        settings["obs_type"] = "pixels_agent_pos"
        with silence():
            made = create_libero_envs(suite, 1, gym_kwargs=settings, env_cls=gymnasium.vector.SyncVectorEnv)
        self.env = made[suite][0]

    def start(self) -> None:
        self.env.envs[0].init_state_id = 0
        self.env.reset(seed=[SEED])

    def run(self, actions: np.ndarray) -> None:
        self.env.envs[0]._env.env.sim._render_context_offscreen.gl_ctx.make_current()
        for action in actions:
            self.env.step(action[None])

    def close(self) -> None:
        self.env.close()


def make_arms(suite: str, size: int, chunk: int, lerobot: bool) -> dict[str, Any]:
    """The arms of one suite by name."""
    arms: dict[str, Any] = {
        "stock_physics": Stock(suite, size, images=False),
        "physics": Ours(suite, size, 0),
        "stock_images": Stock(suite, size, images=True),
        "lazy": Ours(suite, size, chunk),
    }
    if lerobot and suite != ROBOSUITE:
        arms["lerobot"] = LeRobot(suite, size)
    return arms
