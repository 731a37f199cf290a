"""LIBERO's five suites (hf-libero on robosuite 1.4) as gymnasium environments."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.base_env import BaseEnv
from sim.libero_setup import import_libero, import_robosuite, silence
from sim.tasks import bddl_file, init_states


class LiberoEnv(BaseEnv):
    """One LIBERO task. `goal`: the parsed goal state of its problem file."""

    def _make_inner(self) -> Any:
        envs = import_libero()
        path = bddl_file(self.task.suite, self.task.index)
        with silence():
            from libero.libero.envs.bddl_utils import get_problem_info

            problem = get_problem_info(str(path))["problem_name"]
            inner = envs.TASK_MAPPING[problem](
                str(path),
                robots=["Panda"],
                controller_configs=import_robosuite().load_controller_config(default_controller="OSC_POSE"),
                gripper_types="default",
                initialization_noise=None,
                use_camera_obs=False,
                has_renderer=False,
                has_offscreen_renderer=False,
                control_freq=self.control_hz,
                horizon=1000,
                ignore_done=True,
                hard_reset=True,
            )
        self._initializers = list(inner.object_property_initializers)
        self._own_goal = inner.parsed_problem["goal_state"]
        return inner

    def _inner_reset(self) -> None:
        """LIBERO appends its open/close samplers at every reset and each draws from the random stream: start from the
        list a newly constructed environment has, so that every episode is its first."""
        self._inner.object_property_initializers = list(self._initializers)
        self._inner.parsed_problem["goal_state"] = self._perturbed.goal(self.task) or self._own_goal
        self._inner.reset()

    def _after_reset(self) -> None:
        self._inner._check_success()
        self._inner._post_process()

    def _after_step(self) -> None:
        self._inner._post_process()

    def _stored_init_state(self, index: int) -> np.ndarray:
        states = init_states(self.task.suite, self.task.index)
        if not 0 <= index < len(states):
            raise ValueError(f"init_state of {self.task.name} should be 0..{len(states) - 1}, got {index}")
        return states[index]

    @property
    def goal(self) -> list[list[str]]:
        return [list(predicate) for predicate in self.robosuite_env.parsed_problem["goal_state"]]
