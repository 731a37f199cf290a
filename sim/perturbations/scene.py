"""Camera, light, background and colours: edits of a freshly reset model, before its first image."""

from __future__ import annotations

import colorsys
from typing import Any

import mujoco
import numpy as np

from sim.perturbations.names import Perturbation

CENTRE = np.array([0.0, 0.0, 0.8])
MATERIALS = {"floor": "floor", "wall": "walls", "table": "table"}


def camera(model: mujoco.MjModel, change: Perturbation, name: str) -> None:
    """Moves one camera that is fixed to the world."""
    index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name)
    values = change.values
    turn = _rotation([0, 0, 1], values.get("orbit", 0.0))
    offset, frame = turn @ (model.cam_pos[index] - CENTRE), turn @ _matrix(model.cam_quat[index])
    lift = _rotation(frame[:, 0], -values.get("elevation", 0.0))
    offset, frame = lift @ offset * values.get("distance", 1.0), lift @ frame
    for axis, key in ((1, "yaw"), (0, "pitch"), (2, "roll")):
        frame = frame @ _rotation(np.eye(3)[axis], values.get(key, 0.0))
    model.cam_pos[index] = CENTRE + offset
    mujoco.mju_mat2Quat(model.cam_quat[index], frame.flatten())


def light(model: mujoco.MjModel, change: Perturbation, seed: int) -> None:
    """All lamps and the headlight; directions and colours from the seed."""
    rng, values = change.rng(seed), change.values
    azimuth, hue = rng.uniform(0, 2 * np.pi), rng.uniform()
    colour = np.array(colorsys.hsv_to_rgb(hue, 1.0, 1.0))
    tint = 1 - values.get("tint", 0.0) * (1 - colour)
    for part in (model.light_diffuse, model.light_specular, model.vis.headlight.diffuse, model.vis.headlight.specular):
        part[:] = part * values.get("intensity", 1.0) * tint
    tilt = _rotation([np.cos(azimuth), np.sin(azimuth), 0], values.get("tilt", 0.0))
    model.light_pos[:] = CENTRE + (model.light_pos - CENTRE) @ tilt.T
    model.light_dir[:] = model.light_dir @ tilt.T
    if "shadow" in values:
        model.light_castshadow[:] = values["shadow"] >= 0.5


def background(model: mujoco.MjModel, change: Perturbation) -> None:
    """Colours floor, walls or table. ValueError when the scene has no such part."""
    for part, variant in change.values.items():
        found = [index for index in _used_materials(model) if MATERIALS[part] in _material_name(model, index)]
        found = [index for index in found if "legs" not in _material_name(model, index)]
        if not found:
            raise ValueError(f"background:{part} should name a part of this scene, which has none: leave it out")
        for index in found:
            model.mat_rgba[index, :3] = _colour(part, variant)


def recolour(inner: Any, change: Perturbation, body: str) -> None:
    """Colours the visible geometry of an object, its materials included."""
    model = inner.sim.model._model
    root = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, body)
    colour = _colour("object", change.values["recolour"])
    for geom in np.flatnonzero(model.geom_group == 1):
        if model.body_weldid[model.geom_bodyid[geom]] == model.body_weldid[root]:
            model.geom_rgba[geom, :3] = colour
            if model.geom_matid[geom] >= 0:
                model.mat_rgba[model.geom_matid[geom], :3] = colour


def _used_materials(model: mujoco.MjModel) -> list[int]:
    return sorted({int(material) for material in model.geom_matid[model.geom_group == 1] if material >= 0})


def _material_name(model: mujoco.MjModel, index: int) -> str:
    return mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_MATERIAL, index) or ""


def _colour(part: str, variant: float) -> np.ndarray:
    """The variant-th colour of a part: the same in every episode."""
    rng = np.random.default_rng([int(variant), *part.encode()])
    return np.array(colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.5, 1.0), rng.uniform(0.5, 1.0)))


def _rotation(axis: Any, degrees: float) -> np.ndarray:
    quaternion = np.zeros(4)
    mujoco.mju_axisAngle2Quat(quaternion, np.asarray(axis, dtype=np.float64), np.deg2rad(degrees))
    return _matrix(quaternion)


def _matrix(quaternion: np.ndarray) -> np.ndarray:
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)
