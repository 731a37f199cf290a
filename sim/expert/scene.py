"""What the expert may see: MuJoCo's model and data of one environment, as named things, solids and poses."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import mujoco
import numpy as np

from sim.expert.geometry import (
    Cloud,
    GripperShape,
    HeightMap,
    Solid,
    geom_vertices,
    height_map,
    hull_surface,
    mesh_vertices,
    outer_cloud,
    posed_planes,
    slab_boxes,
    solid_of_geom,
)

FINE, COARSE = 0.004, 0.008  # m between surface points: of what is grasped, of obstacles
SLAB_STEP = 0.004
WRIST_HALF, WRIST_LONG, WRIST_GAP = 0.05, 0.14, 0.028  # m: a box for the wrist, a gap behind the palm, any joint angle

MOST_KEPT = 3000
_GRIPPERS: dict[str, GripperShape] = {}
_SOLIDS: dict[tuple, Solid] = {}


class Scene:
    """Geometry and kinematics of `env` (a sim environment with `sim` and `robosuite_env`), read live."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.robosuite = env.robosuite_env
        self.model: mujoco.MjModel = self.robosuite.sim.model._model
        self.robot = self.robosuite.robots[0]
        self._fine: dict[tuple[int, ...], list[Solid]] = {}
        self._last_cloud: tuple[tuple, Cloud] | None = None
        self._last_obstacles: tuple[tuple, Cloud] | None = None

    @property
    def data(self) -> mujoco.MjData:
        return self.robosuite.sim.data._data

    # The hand

    def hand(self) -> tuple[np.ndarray, np.ndarray]:
        """Rotation (3, 3) and position (3,) of the grip site in the world: x closes, z points out of the hand."""
        site = self.robot.eef_site_id
        return self.data.site_xmat[site].reshape(3, 3).copy(), self.data.site_xpos[site].copy()

    def fingers(self) -> np.ndarray:
        """Travel of both fingers from the middle, (2,) metres, 0 closed."""
        return np.abs(self.data.qpos[self.robot._ref_gripper_joint_pos_indexes])

    @property
    def output_max(self) -> np.ndarray:
        """What an action of 1 asks for: (6,), metres and radians."""
        return np.asarray(self.robot.controller.output_max)

    @cached_property
    def robot_bodies(self) -> frozenset[int]:
        root = self.model.body(self.robot.robot_model.root_body).id
        robot_root = self.model.body_rootid[root]
        prefixes = tuple(
            part.naming_prefix for part in (self.robot.robot_model, self.robot.robot_model.mount) if part is not None
        )
        named = (b for b in range(self.model.nbody) if self.model.body(b).name.startswith(prefixes))
        return frozenset(np.flatnonzero(self.model.body_rootid == robot_root).tolist()) | frozenset(named)

    @property
    def gripper(self) -> GripperShape:
        """The hand's volume, measured from its collision geoms once for each kind of hand."""
        kind = f"{type(self.robot.robot_model).__name__} {type(self.robot.gripper).__name__}"
        if kind not in _GRIPPERS:
            _GRIPPERS[kind] = self._measure_gripper()
        return _GRIPPERS[kind]

    def _measure_gripper(self) -> GripperShape:
        gripper = self.robot.gripper
        rotation, position = self.hand()
        names = gripper.important_geoms
        joints = np.abs(self.data.qpos[self.robot._ref_gripper_joint_pos_indexes])

        def surface(geoms: Iterable[str]) -> np.ndarray:
            """Surface points (N, 3) of some geoms in the frame of the grip site."""
            parts = []
            for name in geoms:
                geom = self.model.geom(name).id
                vertices = geom_vertices(self.model, geom)
                dense = np.concatenate([hull_surface(vertices, SLAB_STEP)[1], vertices])
                world = dense @ self.data.geom_xmat[geom].reshape(3, 3).T + self.data.geom_xpos[geom]
                parts.append((world - position) @ rotation)
            return np.concatenate(parts)

        fingers = [surface(names[f"{side}_finger"]) for side in ("left", "right")]
        right = int(np.argmax([finger[:, 0].mean() for finger in fingers]))
        pad = surface(names[f"{('left', 'right')[right]}_fingerpad"])
        of_fingers = {name for side in ("left", "right") for name in names[f"{side}_finger"]}
        palm = slab_boxes(surface([name for name in gripper.contact_geoms if name not in of_fingers]), 3)
        wrist_top = palm[0, 0, 2] - WRIST_GAP
        wrist = np.array([[-WRIST_HALF, -WRIST_HALF, wrist_top - WRIST_LONG], [WRIST_HALF, WRIST_HALF, wrist_top]])
        return GripperShape(
            finger=slab_boxes(fingers[right] - [joints[right], 0, 0], 4),
            palm=np.concatenate([palm, wrist[None]]),
            reach=float(np.abs(self.model.jnt_range[self.model.joint(gripper.joints[0]).id]).max()),
            pad_z=(float(pad[:, 2].min()), float(pad[:, 2].max())),
            pad_y=float(pad[:, 1].max()),
        )

    # Things

    def subtree(self, body: int) -> frozenset[int]:
        """The body and everything that hangs on it."""
        members = {body}
        for other in range(body + 1, self.model.nbody):
            if int(self.model.body_parentid[other]) in members:
                members.add(other)
        return frozenset(members)

    def moving_parts(self) -> np.ndarray:
        """Degrees of freedom (indices) of everything but the robot."""
        robot = self.robot_bodies
        return np.array([i for i in range(self.model.nv) if int(self.model.dof_bodyid[i]) not in robot], dtype=int)

    def inside(self, points: np.ndarray) -> frozenset[int]:
        """Free bodies whose centre of mass is within the bounding box of points (N, 3)."""
        low, high = points.min(0), points.max(0)
        free = self.model.jnt_bodyid[self.model.jnt_type == int(mujoco.mjtJoint.mjJNT_FREE)]
        found = [int(b) for b in free if np.all((self.center_of_mass(b) > low) & (self.center_of_mass(b) < high))]
        return frozenset().union(*(self.subtree(body) for body in found))

    @cached_property
    def solids(self) -> list[Solid]:
        """All collision geoms but the robot's, sampled coarsely."""
        return self._sampled(np.flatnonzero(~np.isin(self.model.geom_bodyid, list(self.robot_bodies))), COARSE)

    def _sampled(self, geoms: np.ndarray, spacing: float) -> list[Solid]:
        """Those of the geoms that collide, as solids; kept from the last episode when they are the same."""
        model = self.model
        collides = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
        solids = []
        for geom in geoms[collides[geoms]]:
            parts = (model.geom_size[geom], model.geom_pos[geom], model.geom_quat[geom], mesh_vertices(model, geom))
            key = (int(model.geom_bodyid[geom]), model.geom(geom).name, spacing, *(part.tobytes() for part in parts))
            if key not in _SOLIDS:
                if len(_SOLIDS) > MOST_KEPT:
                    _SOLIDS.clear()
                _SOLIDS[key] = solid_of_geom(model, geom, spacing)
            solids.append(_SOLIDS[key])
        return solids

    def fine_solids(self, bodies: frozenset[int]) -> list[Solid]:
        """The collision geoms of some bodies, sampled finely."""
        key = tuple(sorted(bodies))
        if key not in self._fine:
            self._fine[key] = self._sampled(np.flatnonzero(np.isin(self.model.geom_bodyid, key)), FINE)
        return self._fine[key]

    def frames(self) -> tuple[np.ndarray, np.ndarray]:
        """Rotation (B, 3, 3) and position (B, 3) of every body."""
        return self.data.xmat.reshape(-1, 3, 3).copy(), self.data.xpos.copy()

    def pose(self, body: int) -> tuple[np.ndarray, np.ndarray]:
        """Rotation (3, 3) and position (3,) of one body."""
        return self.data.xmat[body].reshape(3, 3).copy(), self.data.xpos[body].copy()

    def center_of_mass(self, body: int) -> np.ndarray:
        return self.data.subtree_com[body].copy()

    def cloud(self, bodies: frozenset[int]) -> Cloud:
        """Fine surface points of some bodies in the world, without those inside a neighbouring solid."""
        now = (bodies, self.data.time, self.data.xpos[list(bodies)].tobytes())
        if self._last_cloud is None or self._last_cloud[0] != now:
            self._last_cloud = (now, outer_cloud(self.fine_solids(bodies), *self.frames()))
        return self._last_cloud[1]

    def obstacles(self, without: frozenset[int] = frozenset()) -> Cloud:
        """Coarse surface points in the world of everything but the robot, supports and the bodies left out."""
        now = (without, self.data.time, self.data.xpos.tobytes())
        if self._last_obstacles is None or self._last_obstacles[0] != now:
            rotation, position = self.frames()
            points, normals, body = self._coarse
            keep = ~np.isin(body, list(without))
            turn = rotation[body[keep]]
            world = np.einsum("nij,nj->ni", turn, points[keep]) + position[body[keep]]
            self._last_obstacles = (now, Cloud(world, np.einsum("nij,nj->ni", turn, normals[keep]), body[keep]))
        return self._last_obstacles[1]

    @cached_property
    def _coarse(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        small = [s for s in self.solids if not s.big]
        body = np.repeat([s.body for s in small], [len(s.points) for s in small])
        return np.concatenate([s.points for s in small]), np.concatenate([s.normals for s in small]), body

    def supports(self) -> list[np.ndarray]:
        """World planes (F, 4) of tables and floors."""
        rotation, position = self.frames()
        return [posed_planes(s, rotation[s.body], position[s.body]) for s in self.solids if s.big]

    def heights(
        self,
        low: np.ndarray,
        high: np.ndarray,
        step: float,
        without: frozenset[int] = frozenset(),
        below: float = np.inf,
    ) -> HeightMap:
        """Height map of the scene over the rectangle low..high (2,) in the world: robot and `without` left out, and
        what begins above the height `below`."""
        rotation, position = self.frames()
        posed = [
            (posed_planes(s, rotation[s.body], position[s.body]), s.corners @ rotation[s.body].T + position[s.body])
            for s in self.solids
            if s.body not in without
        ]
        return height_map([part for part in posed if part[1][:, 2].min() < below], low, high, step)
