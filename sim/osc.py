"""robosuite's OSC_POSE arm and gripper control for one substep: the same numbers without the detours.

The operations and the memory layout of every matrix are robosuite's (`controllers/osc.py`, `base_controller.py`,
`single_arm.py` of 1.4.0), so the torques are equal to the last bit; looked-up names, repeated Jacobians and the
controller's own `mj_forward` are gone.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np


class ArmControl:
    """Writes the controls of one arm with gripper into `data.ctrl`. Bound to one model and data: make it after a reset.

    Needs what the field uses: OSC_POSE, fixed impedance, uncoupled position and orientation, no interpolation.
    """

    def __init__(self, inner: Any) -> None:
        from robosuite.utils import control_utils

        self._osc = control_utils
        robot = inner.robots[0]
        self.controller = controller = robot.controller
        if controller.name != "OSC_POSE" or not controller.uncoupling or controller.impedance_mode != "fixed":
            raise ValueError(f"controller should be OSC_POSE, uncoupled, fixed impedance, got {controller.name}")
        if controller.interpolator_pos is not None or controller.interpolator_ori is not None:
            raise ValueError("controller should have no interpolation: load OSC_POSE's default configuration")
        self.robot = robot
        self.model = inner.sim.model._model
        self.data = inner.sim.data._data
        self._bind_views(inner)
        self._bind_gripper(inner)

    def _bind_views(self, inner: Any) -> None:
        """Views into mujoco's memory, which stays where it is while the model lives."""
        data, controller = self.data, self.controller
        self._site = inner.sim.model.site_name2id(controller.eef_name)
        self._eef_pos = data.site_xpos[self._site]
        self._eef_mat = data.site_xmat[self._site].reshape([3, 3])
        self._qpos, self._qvel, self._ctrl = data.qpos, data.qvel, data.ctrl
        self._bias, self._inertia = data.qfrc_bias, data.qM
        self._qpos_arm = _as_slice(controller.qpos_index)
        self._columns = _as_slice(controller.qvel_index)
        self._jacp, self._jacr = np.zeros((2, 3, self.model.nv))
        self._mass = np.zeros((self.model.nv, self.model.nv))
        self._arm = _as_slice(self.robot._ref_joint_actuator_indexes)
        self._low, self._high = self.robot.torque_limits

    def _bind_gripper(self, inner: Any) -> None:
        gripper = self.gripper = self.robot.gripper
        actuators = [inner.sim.model.actuator_name2id(name) for name in gripper.actuators]
        bounds = self.model.actuator_ctrlrange[actuators]
        self._grip = _as_slice(actuators)
        self._grip_bias = 0.5 * (bounds[:, 1] + bounds[:, 0])
        self._grip_weight = 0.5 * (bounds[:, 1] - bounds[:, 0])

    def write(self, action: np.ndarray, new_goal: bool) -> None:
        """Controls for one substep. `new_goal` in the first substep of a control step. Action (7,)."""
        controller = self.controller
        if controller.new_update:  # false in the first substep after a reset: stock steps on the reset's pose
            self._update()
        if new_goal:
            controller.set_goal(action[:6])
            self._grip_step = self._grip_increment(action[6:])
        torques = np.minimum(np.maximum(self._torques(), self._low), self._high)
        gripper = self.gripper
        gripper.current_action = np.minimum(np.maximum(gripper.current_action + self._grip_step, -1.0), 1.0)
        self._ctrl[self._grip] = self._grip_bias + self._grip_weight * gripper.current_action
        self._ctrl[self._arm] = torques

    def _grip_increment(self, action: np.ndarray) -> np.ndarray:
        """`PandaGripper.format_action`: the fingers move at constant speed in the direction of the action's sign."""
        return np.array([-1.0, 1.0]) * self.gripper.speed * np.sign(action)

    def _update(self) -> None:
        """`Controller.update`: pose, velocity, Jacobians and mass matrix of the arm."""
        controller, columns, qvel = self.controller, self._columns, self._qvel
        mujoco.mj_jacSite(self.model, self.data, self._jacp, self._jacr, self._site)
        mujoco.mj_fullM(self.model, self._mass, self._inertia)
        controller.ee_pos = self._eef_pos.copy()
        controller.ee_ori_mat = self._eef_mat.copy()
        controller.ee_pos_vel = np.dot(self._jacp, qvel)
        controller.ee_ori_vel = np.dot(self._jacr, qvel)
        controller.joint_pos = self._qpos[self._qpos_arm].copy()
        controller.joint_vel = qvel[columns].copy()
        controller.J_pos = self._jacp[:, columns].copy("F")
        controller.J_ori = self._jacr[:, columns].copy("F")
        controller.J_full = full = np.empty((6, controller.J_pos.shape[1]), order="F")
        full[:3], full[3:] = controller.J_pos, controller.J_ori
        controller.mass_matrix = self._mass[columns][:, columns].copy("F")
        controller.new_update = False

    def _torques(self) -> np.ndarray:
        """`OperationalSpaceController.run_controller`."""
        c, osc = self.controller, self._osc
        ori_error = osc.orientation_error(c.goal_ori, c.ee_ori_mat)
        kp, kd = c.kp, c.kd
        force = (c.goal_pos - c.ee_pos) * kp[:3] + -c.ee_pos_vel * kd[:3]
        torque = ori_error * kp[3:] + -c.ee_ori_vel * kd[3:]
        _, lambda_pos, lambda_ori, nullspace = osc.opspace_matrices(c.mass_matrix, c.J_full, c.J_pos, c.J_ori)
        wrench = np.empty(6)
        wrench[:3], wrench[3:] = np.dot(lambda_pos, force), np.dot(lambda_ori, torque)
        c.torques = np.dot(c.J_full.T, wrench) + self._bias[self._columns]
        c.torques += osc.nullspace_torques(c.mass_matrix, nullspace, c.initial_joint, c.joint_pos, c.joint_vel)
        c.new_update = True
        return c.torques


def _as_slice(indexes: Any) -> slice | np.ndarray:
    """A slice when the indexes are consecutive, else the indexes."""
    listed = [int(index) for index in indexes]
    if listed == list(range(listed[0], listed[0] + len(listed))):
        return slice(listed[0], listed[0] + len(listed))
    return np.array(listed)
