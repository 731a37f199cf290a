"""Can the arm bring the hand to a pose? Damped least squares on a scratch copy, towards the robot's resting posture."""

from __future__ import annotations

import mujoco
import numpy as np

from sim.expert.controller import rotation_vector, turned
from sim.expert.grasps import down, turn_between
from sim.expert.scene import Scene

TILTS = np.deg2rad([0, 20, 40, 60, 75, 82, 90])  # about the hand's y axis, both ways: the fingers close in the tilt
LEANS = np.deg2rad([-25, 25, -45, 45])
FAR_LEANS = np.deg2rad([-55, 55, -65, 65, -75, 75, -85, 85])  # to reach in under a roof
HALF_TURN = np.diag([-1.0, -1.0, 1.0])  # the same hand, fingers exchanged
ITERATIONS = 60
DAMPING = 0.05
REST_PULL = 0.1
LIMIT_MARGIN = 0.03  # rad
STEP_CAP = 0.3  # rad
TURN_STEP = 0.4  # rad between the poses looked at along a turn
POSTURES, SPARE = 400, 0.005  # random postures that measure the arm's length; m added to it
_LENGTHS: dict[str, float] = {}


class Reach:
    """Answers for one scene; the simulation itself is not touched."""

    def __init__(self, scene: Scene) -> None:
        self.model = scene.model
        self.site = scene.robot.eef_site_id
        self.qpos = np.asarray(scene.robot._ref_joint_pos_indexes)
        self.dofs = np.asarray(scene.robot._ref_joint_vel_indexes)
        self.rest = np.asarray(scene.robot.init_qpos)
        joints = np.asarray(scene.robot._ref_joint_indexes)
        self.low = self.model.jnt_range[joints, 0] + LIMIT_MARGIN
        self.high = self.model.jnt_range[joints, 1] - LIMIT_MARGIN
        self.data = mujoco.MjData(self.model)
        self.data.qpos[:] = scene.data.qpos
        self.now = self.data.qpos[self.qpos].copy()
        self._measure(scene, joints)

    def _measure(self, scene: Scene, joints: np.ndarray) -> None:
        """Shoulder (3,) in the world; in the hand's frame the last joint's axis (3,) and the middle (3,) and radius of
        the circle about it on which the wrist lies; the farthest the wrist gets from the shoulder."""
        shoulder, wrist, last = joints[1], joints[-2], joints[-1]
        hand, position = scene.hand()
        self.shoulder = scene.data.xanchor[shoulder].copy()
        self.axis = scene.data.xaxis[last] @ hand
        offset = (scene.data.xanchor[wrist] - position) @ hand
        on_axis = (scene.data.xanchor[last] - position) @ hand
        self.middle = on_axis + ((offset - on_axis) @ self.axis) * self.axis
        self.radius = float(np.linalg.norm(offset - self.middle))
        kind = type(scene.robot.robot_model).__name__
        if kind not in _LENGTHS:
            random, distance = np.random.default_rng(0), [0.0]
            for posture in random.uniform(self.low, self.high, (POSTURES, len(joints))):
                self.data.qpos[self.qpos] = posture
                mujoco.mj_kinematics(self.model, self.data)
                distance.append(float(np.linalg.norm(self.data.xanchor[wrist] - self.data.xanchor[shoulder])))
            _LENGTHS[kind] = max(distance) + SPARE
        self.length = _LENGTHS[kind]

    def within(self, rotation: np.ndarray, position: np.ndarray) -> np.ndarray:
        """(K,): is the arm long enough for the hand at rotation (3, 3), positions (K, 3)? Where not, `reachable` says
        no as well; it is the quick question of the two."""
        return self.stretch(rotation, position) < self.length

    def stretch(self, rotation: np.ndarray, position: np.ndarray) -> np.ndarray:
        """How far (K,) metres the wrist is from the shoulder, at least, for the hand at rotation, positions (K, 3)."""
        away = position + rotation @ self.middle - self.shoulder
        along = away @ (rotation @ self.axis)
        across = np.sqrt(np.maximum((away**2).sum(1) - along**2, 0))
        return np.hypot(along, np.maximum(across - self.radius, 0))

    def reachable(self, rotation: np.ndarray, position: np.ndarray, tolerance: float = 0.01) -> bool:
        """Is there an arm posture within its joint limits that puts the grip site at the pose (3, 3), (3,)?"""
        if not self.within(rotation, position[None])[0]:
            return False
        self.data.qpos[self.qpos] = self.rest
        return self._solve(rotation, position, tolerance)

    def follow(self, posture: np.ndarray, rotation: np.ndarray, position: np.ndarray) -> np.ndarray | None:
        """The posture (n,) at the pose (3, 3), (3,) when the hand goes there straight, turning the shortest way, from
        `posture` (n,). None when a joint limit is in the way, as it may be though both ends can be reached."""
        self.data.qpos[self.qpos] = posture
        mujoco.mj_kinematics(self.model, self.data)
        first, start = self.data.site_xmat[self.site].reshape(3, 3).copy(), self.data.site_xpos[self.site].copy()
        turn = rotation_vector(rotation @ first.T)
        angle = float(np.linalg.norm(turn))
        for share in np.linspace(0, 1, 2 + int(angle / TURN_STEP))[1:]:
            between = turned(turn / max(angle, 1e-9), share * angle) @ first
            if not self._solve(between, start + share * (position - start), 0.01):
                return None
        return self.data.qpos[self.qpos].copy()

    def _solve(self, rotation: np.ndarray, position: np.ndarray, tolerance: float) -> bool:
        """Goes from the posture in `data` to the pose; returns whether it got there."""
        jacobian = np.zeros((6, self.model.nv))
        for _ in range(ITERATIONS):
            mujoco.mj_kinematics(self.model, self.data)
            mujoco.mj_comPos(self.model, self.data)
            now = self.data.site_xmat[self.site].reshape(3, 3)
            error = np.r_[position - self.data.site_xpos[self.site], rotation_vector(rotation @ now.T)]
            if np.linalg.norm(error[:3]) < tolerance and np.linalg.norm(error[3:]) < 0.08:
                return True
            mujoco.mj_jacSite(self.model, self.data, jacobian[:3], jacobian[3:], self.site)
            arm = jacobian[:, self.dofs]
            inverse = arm.T @ np.linalg.inv(arm @ arm.T + DAMPING**2 * np.eye(6))
            rest = (np.eye(len(self.dofs)) - inverse @ arm) @ (self.rest - self.data.qpos[self.qpos])
            step = inverse @ error + REST_PULL * rest
            step *= min(1.0, STEP_CAP / max(np.abs(step).max(), 1e-9))
            self.data.qpos[self.qpos] = np.clip(self.data.qpos[self.qpos] + step, self.low, self.high)
        return False


def tilted(yaws: np.ndarray, tilt: float, hand: np.ndarray, reach: Reach, center: np.ndarray) -> list[np.ndarray]:
    """Hand rotations at the yaws, tilted both ways, that reach `center` (3,); of the two equal ones the nearer to
    `hand` (3, 3)."""
    result = []
    for yaw in yaws:
        for angle in (tilt, -tilt) if tilt else (0.0,):
            rotation = down(yaw) @ turned(np.array([0, 1.0, 0]), angle)
            both = sorted((rotation, rotation @ HALF_TURN), key=lambda r: turn_between(hand, r))
            result += next(([r] for r in both if reach.reachable(r, center)), [])
    return result


def leaning(hand: np.ndarray, reach: Reach, center: np.ndarray, leans: np.ndarray = LEANS) -> list[np.ndarray]:
    """Hand rotations that lean by `leans` from pointing down, to all sides, and reach `center` (3,)."""
    result = []
    for yaw in np.arange(6) * np.pi / 6:
        for axis in ([1.0, 0, 0], [0, 1.0, 0]):
            for lean in leans:
                rotation = down(yaw) @ turned(np.array(axis), lean)
                both = sorted((rotation, rotation @ HALF_TURN), key=lambda r: turn_between(hand, r))
                result += next(([r] for r in both if reach.reachable(r, center)), [])
    return result
