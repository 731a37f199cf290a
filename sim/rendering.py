"""Images of a sampled state, rendered when asked for and equal to the stock environment's, pixel for pixel.

One thread of the process holds the one GL context and does everything that needs it, so that any thread may ask for
images, and physics may go on meanwhile (rendering releases the interpreter's lock). A `Renderer` holds one model's
share of the context and is made on the first image after a hard reset. The state is put into a second `MjData`, so
that physics never sees rendering.
"""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

import mujoco
import numpy as np

from sim.stepping import Sample

Result = TypeVar("Result")


class GLThread:
    """The thread with the GL context; both are made when first used."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._context: Any = None

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """The future result of a call on the thread, after those submitted before it."""
        future: Future[Result] = Future()

        def call() -> None:
            try:
                self._make_context()
                future.set_result(function(*arguments))
            except Exception as error:  # noqa: BLE001  whoever waits for the result gets it
                future.set_exception(error)

        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="gl", daemon=True)
                self._thread.start()
        self._work.put(call)
        return future

    def _run(self) -> None:
        while True:
            self._work.get()()

    def _make_context(self) -> None:
        if self._context is None:
            from robosuite.utils import binding_utils

            self._context = binding_utils.GLContext(max_width=640, max_height=480, device_id=-1)
            self._context.make_current()
            # before the display ends, which robosuite registered earlier
            atexit.register(lambda: self.submit(self._context.free).result())


GL = GLThread()


class Renderer:
    """Renders the cameras of one model. `close` frees what it holds of the GL context."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self.model = model
        self.data = mujoco.MjData(model)
        self.scene = mujoco.MjvScene(model, maxgeom=1000)
        self.options = mujoco.MjvOption()
        self.options.geomgroup[0] = 0
        self.options.geomgroup[1] = 1
        self.perturb = mujoco.MjvPerturb()
        self.camera = mujoco.MjvCamera()
        self.camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self.context: Any = None

    def images(
        self,
        sample: Sample,
        cameras: Mapping[str, str],
        size: int,
        change: Callable[[np.ndarray, int], np.ndarray] = lambda image, _: image,
    ) -> Future[dict[str, np.ndarray]]:
        """Key -> upright image (size, size, 3) uint8 of each camera, when they are rendered.

        change: is given each image and its camera's number. ValueError for a camera that the model does not have.
        """
        return GL.submit(self._images, sample, dict(cameras), size, change)

    def close(self) -> None:
        GL.submit(self._close).result()

    # On the GL thread ---------------------------------------------------------------------------------------------

    def _images(
        self, sample: Sample, cameras: dict[str, str], size: int, change: Callable[[np.ndarray, int], np.ndarray]
    ) -> dict[str, np.ndarray]:
        if self.context is None:
            self.context = mujoco.MjrContext(self.model, mujoco.mjtFontScale.mjFONTSCALE_150)
        self._pose(sample)
        self._fit(size)
        images = [self._image(sample, camera, size) for camera in cameras.values()]
        return {key: change(image, number) for number, (key, image) in enumerate(zip(cameras, images, strict=True))}

    def _pose(self, sample: Sample) -> None:
        self.data.qpos[:] = sample.qpos
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
        if self.model.ntendon:
            mujoco.mj_tendon(self.model, self.data)

    def _fit(self, size: int) -> None:
        if size > self.context.offHeight or size > self.context.offWidth:
            mujoco.mjr_resizeOffscreen(
                max(size, self.context.offWidth), max(size, self.context.offHeight), self.context
            )
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.context)

    def _image(self, sample: Sample, camera: str, size: int) -> np.ndarray:
        self.camera.fixedcamid = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        if self.camera.fixedcamid < 0:
            raise ValueError(f"camera should be one of {camera_names(self.model)}, got {camera!r}")
        viewport = mujoco.MjrRect(0, 0, size, size)
        pixels = np.empty((size, size, 3), dtype=np.uint8)
        newest = self.model.site_rgba.copy()
        changed = not np.array_equal(newest, sample.site_rgba)
        if changed:
            self.model.site_rgba[:] = sample.site_rgba
        mujoco.mjv_updateScene(
            self.model, self.data, self.options, self.perturb, self.camera, mujoco.mjtCatBit.mjCAT_ALL, self.scene
        )
        if changed:
            self.model.site_rgba[:] = newest
        mujoco.mjr_render(viewport, self.scene, self.context)
        mujoco.mjr_readPixels(pixels, None, viewport, self.context)
        return np.ascontiguousarray(pixels[::-1])

    def _close(self) -> None:
        if self.context is not None:
            self.context.free()
        self.context = self.scene = self.data = self.model = None


def camera_names(model: mujoco.MjModel) -> list[str]:
    return [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_CAMERA, i) for i in range(model.ncam)]
