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
        self.robot = inner.robots[0]
        self.controller = self.robot.controller
        self.model = inner.sim.model._model
        self.data = inner.sim.data._data
        self.substeps = int(inner.control_timestep / inner.model_timestep)
        self.clock = SampleClock(inner.model_timestep, inner.control_freq)
        self._eef_site = inner.sim.model.site_name2id(self.controller.eef_name)
        self._eef_body = inner.sim.model.body_name2id(self.robot.robot_model.eef_name)
        self._gripper = list(self.robot._ref_gripper_joint_pos_indexes)
        self._arm = list(self.robot._ref_joint_actuator_indexes)
        self._torque_low, self._torque_high = self.robot.torque_limits
        self._jacobians = np.zeros((2, 3, self.model.nv))
        self._mass = np.zeros((self.model.nv, self.model.nv))
        self.sample = self.take_sample(self.data.qpos)

    def take_sample(self, qpos: np.ndarray) -> Sample:
        data = self.data
        return Sample(
            qpos=np.array(qpos),
            eef_pos=data.site_xpos[self.robot.eef_site_id].copy(),
            eef_quat=data.xquat[self._eef_body][[1, 2, 3, 0]],
            gripper=data.qpos[self._gripper],
            site_rgba=self.model.site_rgba.copy(),
        )

    def force_sample(self) -> None:
        """Samples the present state, as a reset does."""
        self.clock.force()
        self.sample = self.take_sample(self.data.qpos)

    def step(self, action: np.ndarray) -> None:
        """Executes one action (7,) for one control step."""
        for substep in range(self.substeps):
            samples = self.clock.tick()
            qpos = self.data.qpos.copy() if samples else None
            mujoco.mj_step1(self.model, self.data)
            self._control(action, substep == 0)
            mujoco.mj_step2(self.model, self.data)
            if qpos is not None:
                self.sample = self.take_sample(qpos)
        self.inner.timestep += 1
        self.inner.cur_time += self.inner.control_timestep

    def _control(self, action: np.ndarray, new_goal: bool) -> None:
        """`SingleArm.control` without its record of recent values, which nothing reads."""
        if self.controller.new_update:  # false in the first substep after a reset: stock steps on the reset's pose
            self._update_controller()
        if new_goal:
            self.controller.set_goal(action[:6])
        torques = self.controller.run_controller()
        self.robot.torques = np.clip(torques, self._torque_low, self._torque_high)
        self.robot.grip_action(gripper=self.robot.gripper, gripper_action=action[6:])
        self.data.ctrl[self._arm] = self.robot.torques

    def _update_controller(self) -> None:
        """`Controller.update` without its `mj_forward`; each Jacobian is computed once."""
        controller, data = self.controller, self.data
        jacp, jacr = self._jacobians
        mujoco.mj_jacSite(self.model, data, jacp, jacr, self._eef_site)
        qpos, qvel = data.qpos, data.qvel
        columns = controller.qvel_index
        controller.ee_pos = np.array(data.site_xpos[self._eef_site])
        controller.ee_ori_mat = np.array(data.site_xmat[self._eef_site].reshape([3, 3]))
        controller.ee_pos_vel = np.dot(jacp, qvel)
        controller.ee_ori_vel = np.dot(jacr, qvel)
        controller.joint_pos = np.array(qpos[controller.qpos_index])
        controller.joint_vel = np.array(qvel[columns])
        controller.J_pos = np.array(jacp[:, columns])
        controller.J_ori = np.array(jacr[:, columns])
        controller.J_full = np.array(np.vstack([controller.J_pos, controller.J_ori]))
        mujoco.mj_fullM(self.model, self._mass, data.qM)
        controller.mass_matrix = self._mass[columns, :][:, columns]
        controller.new_update = False
