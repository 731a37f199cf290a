"""Images of a sampled state, rendered when asked for and equal to the stock environment's, pixel for pixel.

One GL context serves the whole process; a `Renderer` holds one model's share of it and is made on the first image after
a hard reset. The state is put into a second `MjData`, so that physics never sees rendering.
"""

from __future__ import annotations

import atexit
import threading
from typing import Any

import mujoco
import numpy as np

from sim.stepping import Sample

_LOCK = threading.Lock()
_CONTEXT: list[Any] = []


def _make_current() -> None:
    if not _CONTEXT:
        from robosuite.utils import binding_utils

        _CONTEXT.append(binding_utils.GLContext(max_width=640, max_height=480, device_id=-1))
        atexit.register(_free_context)  # before the display is terminated, which was registered earlier
    _CONTEXT[0].make_current()


def _free_context() -> None:
    while _CONTEXT:
        _CONTEXT.pop().free()


class Renderer:
    """Renders the cameras of one model. `close` frees what it holds of the GL context."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self.model = model
        self.data = mujoco.MjData(model)
        with _LOCK:
            _make_current()
            self.scene = mujoco.MjvScene(model, maxgeom=1000)
            self.options = mujoco.MjvOption()
            self.options.geomgroup[0] = 0
            self.options.geomgroup[1] = 1
            self.perturb = mujoco.MjvPerturb()
            self.camera = mujoco.MjvCamera()
            self.camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
            self.context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.context)

    def pose(self, sample: Sample) -> None:
        """Puts the sampled state where `image` looks."""
        self.data.qpos[:] = sample.qpos
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
        if self.model.ntendon:
            mujoco.mj_tendon(self.model, self.data)

    def image(self, sample: Sample, camera: str, height: int, width: int) -> np.ndarray:
        """One upright image (height, width, 3) uint8. Call `pose` first."""
        self.camera.fixedcamid = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        if self.camera.fixedcamid < 0:
            raise ValueError(f"camera should be one of {camera_names(self.model)}, got {camera!r}")
        viewport = mujoco.MjrRect(0, 0, width, height)
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        newest = self.model.site_rgba.copy()
        with _LOCK:
            _make_current()
            self._fit(height, width)
            self.model.site_rgba[:] = sample.site_rgba
            mujoco.mjv_updateScene(
                self.model, self.data, self.options, self.perturb, self.camera, mujoco.mjtCatBit.mjCAT_ALL, self.scene
            )
            self.model.site_rgba[:] = newest
            mujoco.mjr_render(viewport, self.scene, self.context)
            mujoco.mjr_readPixels(pixels, None, viewport, self.context)
        return np.ascontiguousarray(pixels[::-1])

    def _fit(self, height: int, width: int) -> None:
        if height > self.context.offHeight or width > self.context.offWidth:
            mujoco.mjr_resizeOffscreen(
                max(width, self.context.offWidth), max(height, self.context.offHeight), self.context
            )
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.context)

    def close(self) -> None:
        with _LOCK:
            if self.context is not None:
                _make_current()
                self.context.free()
        self.context = self.scene = self.data = self.model = None


def camera_names(model: mujoco.MjModel) -> list[str]:
    return [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_CAMERA, i) for i in range(model.ncam)]
