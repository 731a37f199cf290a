"""One control step, bit-identical to robosuite's and without its redundant work.

Stock robosuite runs, for each of the 25 physics substeps of a control step, `mj_forward` for the controller, again
inside the controller and again inside `mj_step`, and then polls every observable. `mj_step1` computes all that the
controller reads, `mj_step2` the rest: the same functions on the same numbers, once.

Stock observations are not sampled at the end of the control step. Every observable keeps a clock in floating point
that decides after which substep it samples, and positions of bodies, sites and cameras are then those of the substep's
start, finger joints those of its end. `SampleClock` is that clock, `Sample` what it catches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from sim.osc import ArmControl


@dataclass
class Sample:
    """What the stock environment would observe. `qpos`: the joint positions its cameras show (nq,)."""

    qpos: np.ndarray
    eef_pos: np.ndarray
    eef_quat: np.ndarray
    gripper: np.ndarray
    site_rgba: np.ndarray


class SampleClock:
    """The time base of robosuite's observables, in the same floating-point operations."""

    def __init__(self, timestep: float, control_hz: float) -> None:
        self.timestep = timestep
        self.period = 1.0 / control_hz
        self.reset()

    def reset(self) -> None:
        """As after an environment's reset, which samples by force."""
        self.elapsed = 0.0
        self.force()

    def force(self) -> None:
        """As after a forced sample, which counts as a substep of time."""
        self.elapsed += self.timestep
        self.sampled = True

    def tick(self) -> bool:
        """Advances one substep. True when the observables sample after it."""
        self.elapsed += self.timestep
        samples = not self.sampled and self.period >= self.elapsed
        self.sampled = self.sampled or samples
        if self.elapsed >= self.period:
            samples = samples or not self.sampled
            self.elapsed %= self.period
            self.sampled = False
        return samples


class Stepper:
    """Steps one freshly reset robosuite environment. Make a new one after every hard reset."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.model = inner.sim.model._model
        self.data = inner.sim.data._data
        self.control = ArmControl(inner)
        self.substeps = int(inner.control_timestep / inner.model_timestep)
        self.clock = SampleClock(inner.model_timestep, inner.control_freq)
        robot = inner.robots[0]
        self._eef_site = robot.eef_site_id
        self._eef_body = inner.sim.model.body_name2id(robot.robot_model.eef_name)
        self._fingers = list(robot._ref_gripper_joint_pos_indexes)
        self.sample = self.take_sample(self.data.qpos)

    def take_sample(self, qpos: np.ndarray) -> Sample:
        data = self.data
        return Sample(
            qpos=np.array(qpos),
            eef_pos=data.site_xpos[self._eef_site].copy(),
            eef_quat=data.xquat[self._eef_body][[1, 2, 3, 0]],
            gripper=data.qpos[self._fingers],
            site_rgba=self.model.site_rgba.copy(),
        )

    def force_sample(self) -> None:
        """Samples the present state, as a reset does."""
        self.clock.force()
        self.sample = self.take_sample(self.data.qpos)

    def step(self, action: np.ndarray) -> None:
        """Executes one action (7,) for one control step."""
        model, data = self.model, self.data
        for substep in range(self.substeps):
            qpos = data.qpos.copy() if self.clock.tick() else None
            mujoco.mj_step1(model, data)
            self.control.write(action, substep == 0)
            mujoco.mj_step2(model, data)
            if qpos is not None:
                self.sample = self.take_sample(qpos)
        self.inner.timestep += 1
        self.inner.cur_time += self.inner.control_timestep
