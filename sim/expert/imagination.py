"""The simulator's predicates on an imagined pose, seen on a scratch copy of its data: the simulation is not touched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mujoco
import numpy as np

from sim.expert.scene import Scene


@contextmanager
def imagined(scene: Scene, body: int, rotation: np.ndarray, position: np.ndarray) -> Iterator[None]:
    """Inside, predicates and `scene.data` see the free body `body` at rotation (3, 3), position (3,)."""
    wrapper, real = scene.robosuite.sim.data, scene.data
    scratch = mujoco.MjData(scene.model)
    scratch.qpos[:] = real.qpos
    address = scene.model.jnt_qposadr[scene.model.body_jntadr[body]]
    quaternion = np.empty(4)
    mujoco.mju_mat2Quat(quaternion, rotation.ravel())
    scratch.qpos[address : address + 7] = [*position, *quaternion]
    mujoco.mj_kinematics(scene.model, scratch)
    mujoco.mj_collision(scene.model, scratch)
    wrapper._data = scratch
    try:
        yield
    finally:
        wrapper._data = real
