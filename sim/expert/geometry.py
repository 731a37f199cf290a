"""Collision geometry as convex solids: surface points with normals, height maps, the gripper's volume.

MuJoCo collides convex shapes (meshes by their convex hull), so every collision geom becomes a `Solid`: half-spaces
n.x <= d and a sampled surface, both in the frame of its body. Units are metres; frames are named at each function.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import mujoco
import numpy as np

from sim.expert.kernels import inside_boxes

BIG = 0.25  # a box with two half sizes above this is a support (table, floor): sampled coarsely
PLANE_HALF = 2.0  # an infinite plane is taken as a slab of this half size
_CYLINDER_SIDES = 24


@dataclass(frozen=True)
class Solid:
    """A convex collision geom in the frame of body `body`.

    planes: (F, 4), rows (n, d) with n.x <= d inside. points, normals: (N, 3) on the surface, normals outwards.
    lower, upper: (3,) its bounding box. `big` marks tables and floors.
    """

    body: int
    planes: np.ndarray
    points: np.ndarray
    normals: np.ndarray
    corners: np.ndarray
    big: bool = False


@dataclass(frozen=True)
class Cloud:
    """Surface points (N, 3) with outward normals (N, 3), and the solid (N,) each belongs to, as a number."""

    points: np.ndarray
    normals: np.ndarray
    part: np.ndarray

    def __len__(self) -> int:
        return len(self.points)

    def select(self, mask: np.ndarray) -> Cloud:
        return Cloud(self.points[mask], self.normals[mask], self.part[mask])

    def near(self, center: np.ndarray, radius: float) -> Cloud:
        """The points within `radius` of `center` (3,) or of any of several centers (K, 3), by bounding box."""
        centers = np.atleast_2d(center)
        low, high = centers.min(0) - radius, centers.max(0) + radius
        return self.select(np.all((self.points > low) & (self.points < high), axis=1))


def box_surface(half: np.ndarray, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Points and normals (N, 3) on a box with half sizes `half`, about `spacing` apart, at cell centres."""
    points, normals = [], []
    for axis in range(3):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        counts = [max(1, int(np.ceil(2 * half[i] / spacing - 1e-9))) for i in (a, b)]
        u = (np.arange(counts[0]) + 0.5) / counts[0] * 2 - 1
        v = (np.arange(counts[1]) + 0.5) / counts[1] * 2 - 1
        grid_u, grid_v = np.meshgrid(u * half[a], v * half[b], indexing="ij")
        for sign in (-1.0, 1.0):
            face = np.empty((grid_u.size, 3))
            face[:, axis], face[:, a], face[:, b] = sign * half[axis], grid_u.ravel(), grid_v.ravel()
            normal = np.zeros_like(face)
            normal[:, axis] = sign
            points.append(face)
            normals.append(normal)
    return np.concatenate(points), np.concatenate(normals)


def hull_surface(vertices: np.ndarray, spacing: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Convex hull of vertices (V, 3): planes (F, 4), points and normals (N, 3) about `spacing` apart."""
    from scipy.spatial import ConvexHull

    hull = ConvexHull(vertices)
    planes = np.unique(np.round(np.c_[hull.equations[:, :3], -hull.equations[:, 3]], 6), axis=0)
    points, normals = [], []
    for simplex, equation in zip(hull.simplices, hull.equations, strict=True):
        corner = vertices[simplex]
        longest = max(np.linalg.norm(corner[i] - corner[i - 1]) for i in range(3))
        n = max(1, int(np.ceil(longest / spacing)))
        i, j = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
        keep = i + j < n
        u, v = (i[keep] + 1 / 3) / n, (j[keep] + 1 / 3) / n
        face = corner[0] + u[:, None] * (corner[1] - corner[0]) + v[:, None] * (corner[2] - corner[0])
        points.append(face)
        normals.append(np.repeat(equation[None, :3], len(face), axis=0))
    return planes, np.concatenate(points), np.concatenate(normals)


def mesh_vertices(model: mujoco.MjModel, geom: int) -> np.ndarray:
    """Vertices (V, 3) of a mesh geom in its frame, (0, 3) for other geoms."""
    if mujoco.mjtGeom(model.geom_type[geom]) != mujoco.mjtGeom.mjGEOM_MESH:
        return np.zeros((0, 3))
    mesh = model.geom_dataid[geom]
    start = model.mesh_vertadr[mesh]
    return np.array(model.mesh_vert[start : start + model.mesh_vertnum[mesh]], dtype=float)


def geom_vertices(model: mujoco.MjModel, geom: int) -> np.ndarray:
    """Vertices (V, 3) whose convex hull is the geom, in the geom's frame. Round shapes are polyhedra."""
    kind, size = mujoco.mjtGeom(model.geom_type[geom]), model.geom_size[geom]
    if kind == mujoco.mjtGeom.mjGEOM_MESH:
        return mesh_vertices(model, geom)
    if kind == mujoco.mjtGeom.mjGEOM_CYLINDER:
        angle = np.arange(_CYLINDER_SIDES) * 2 * np.pi / _CYLINDER_SIDES
        ring = np.c_[np.cos(angle), np.sin(angle)] * size[0]
        return np.concatenate([np.c_[ring, np.full(len(ring), z)] for z in (-size[1], size[1])])
    if kind == mujoco.mjtGeom.mjGEOM_BOX:
        return np.array(np.meshgrid(*[(-h, h) for h in size], indexing="ij")).reshape(3, -1).T
    golden = np.arange(96) * np.pi * (3 - np.sqrt(5))
    z = (np.arange(96) + 0.5) / 48 - 1
    ball = np.c_[np.sqrt(1 - z**2) * np.cos(golden), np.sqrt(1 - z**2) * np.sin(golden), z]
    if kind == mujoco.mjtGeom.mjGEOM_ELLIPSOID:
        return ball * size
    if kind == mujoco.mjtGeom.mjGEOM_CAPSULE:
        return np.concatenate([ball * size[0] + [0, 0, s * size[1]] for s in (-1, 1)])
    if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
        return ball * size[0]
    raise ValueError(f"geom type should be box, plane, mesh, cylinder, capsule, sphere or ellipsoid, got {kind.name}")


def solid_of_geom(model: mujoco.MjModel, geom: int, spacing: float) -> Solid:
    """The geom as a convex solid in its body's frame, surface sampled every `spacing` metres."""
    kind = mujoco.mjtGeom(model.geom_type[geom])
    offset: np.ndarray = np.zeros(3)
    if kind in (mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_PLANE):
        half = np.array(model.geom_size[geom])
        if kind == mujoco.mjtGeom.mjGEOM_PLANE:
            half = np.array([PLANE_HALF, PLANE_HALF, 0.05])
            offset = np.array([0, 0, -0.05])
        big = bool(np.sum(half > BIG) >= 2)
        points, normals = box_surface(half, max(spacing, 0.03) if big else spacing)
        planes = np.c_[np.concatenate([np.eye(3), -np.eye(3)]), np.concatenate([half, half])]
        corners = np.array(np.meshgrid(*[(-h, h) for h in half], indexing="ij")).reshape(3, -1).T
    else:
        big, corners = False, geom_vertices(model, geom)
        planes, points, normals = hull_surface(corners, spacing)
    flat = np.empty(9)
    mujoco.mju_quat2Mat(flat, model.geom_quat[geom])
    rotation = flat.reshape(3, 3)
    shift = model.geom_pos[geom] + rotation @ offset
    normal = planes[:, :3] @ rotation.T
    return Solid(
        body=int(model.geom_bodyid[geom]),
        planes=np.c_[normal, planes[:, 3] + normal @ shift],
        points=points @ rotation.T + shift,
        normals=normals @ rotation.T,
        corners=corners @ rotation.T + shift,
        big=big,
    )


def outer_cloud(solids: list[Solid], rotation: np.ndarray, position: np.ndarray) -> Cloud:
    """Surface of the union of solids posed by rotation (B, 3, 3) and position (B, 3) of the bodies: no inner points."""
    points = np.concatenate([s.points @ rotation[s.body].T + position[s.body] for s in solids])
    normals = np.concatenate([s.normals @ rotation[s.body].T for s in solids])
    owner = np.repeat(np.arange(len(solids)), [len(s.points) for s in solids])
    outside = np.ones(len(points), bool)
    for i, solid in enumerate(solids):
        planes = posed_planes(solid, rotation[solid.body], position[solid.body])
        corners = solid.corners @ rotation[solid.body].T + position[solid.body]
        near = np.flatnonzero(np.all((points > corners.min(0)) & (points < corners.max(0)), axis=1) & (owner != i))
        inside = np.all(points[near] @ planes[:, :3].T < planes[:, 3] - 1e-4, axis=1)
        outside[near[inside]] = False
    return Cloud(points[outside], normals[outside], owner[outside])


def posed_planes(solid: Solid, rotation: np.ndarray, position: np.ndarray) -> np.ndarray:
    """The solid's planes (F, 4) in the world, for a body at rotation (3, 3) and position (3,)."""
    normal = solid.planes[:, :3] @ rotation.T
    return np.c_[normal, solid.planes[:, 3] + normal @ position]


@dataclass
class HeightMap:
    """top and bottom (nx, ny): highest and lowest solid height over each cell, -inf and +inf where there is none.

    Cell (i, j) is centred at origin + (i, j) * step, in world x and y.
    """

    origin: np.ndarray
    step: float
    top: np.ndarray
    bottom: np.ndarray

    def index(self, xy: np.ndarray) -> np.ndarray:
        """The cells (..., 2), as integers, of world points xy (..., 2)."""
        return np.rint((np.asarray(xy) - self.origin) / self.step).astype(int)


def height_map(
    solids: list[tuple[np.ndarray, np.ndarray]], low: np.ndarray, high: np.ndarray, step: float
) -> HeightMap:
    """Height map over the rectangle low..high (2,) of solids given as (world planes (F, 4), world corners (V, 3))."""
    shape = np.maximum(np.ceil((np.asarray(high) - low) / step).astype(int) + 1, 1)
    result = HeightMap(np.asarray(low, float), step, np.full(shape, -np.inf), np.full(shape, np.inf))
    for planes, corners in solids:
        first = np.maximum(np.ceil((corners[:, :2].min(0) - low) / step).astype(int), 0)
        last = np.minimum(np.floor((corners[:, :2].max(0) - low) / step).astype(int), shape - 1)
        if np.any(last < first):
            continue
        x = low[0] + np.arange(first[0], last[0] + 1) * step
        y = low[1] + np.arange(first[1], last[1] + 1) * step
        bottom, top = vertical_span(planes, x[:, None], y[None, :])
        hit = top > bottom
        cells = np.s_[first[0] : last[0] + 1, first[1] : last[1] + 1]
        result.top[cells] = np.where(hit, np.maximum(result.top[cells], top), result.top[cells])
        result.bottom[cells] = np.where(hit, np.minimum(result.bottom[cells], bottom), result.bottom[cells])
    return result


def vertical_span(planes: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the vertical lines at x, y (broadcast) enter and leave a convex solid; bottom > top where they miss."""
    room = (
        planes[:, 3, None, None]
        - planes[:, 0, None, None] * np.atleast_2d(x)
        - planes[:, 1, None, None] * np.atleast_2d(y)
    )
    upward, downward = planes[:, 2] > 1e-6, planes[:, 2] < -1e-6
    slope = planes[:, 2, None, None]
    top = np.min(room[upward] / slope[upward], axis=0, initial=np.inf)
    bottom = np.max(room[downward] / slope[downward], axis=0, initial=-np.inf)
    top = np.where((room[~(upward | downward)] < 0).any(0), -np.inf, top)
    shape = np.broadcast(x, y).shape
    bottom, top = bottom.reshape(shape), top.reshape(shape)
    return bottom, top


@dataclass(frozen=True)
class GripperShape:
    """The hand as boxes in the frame of the grip site: x closes, z points out of the hand towards the object.

    finger: boxes (F, 2, 3) of the finger on +x, its inner face at x = 0 when the joints are closed. palm: boxes (P, 2,
    3) of hand and wrist. reach: largest finger travel (m); pad_z: z range of the gripping surface; pad_y: its half
    width; tip: z of the fingertips.
    """

    finger: np.ndarray
    palm: np.ndarray
    reach: float
    pad_z: tuple[float, float]
    pad_y: float

    @property
    def tip(self) -> float:
        return float(self.finger[:, 1, 2].max())

    def tip_corners(self) -> np.ndarray:
        """Corners (16, 3) of both fingertips when closed."""
        corner = self.finger[-1][np.indices((2, 2, 2)).reshape(3, -1).T, np.arange(3)]
        return np.concatenate([corner, corner * [-1, 1, 1]])

    def boxes(self, opening: float, sweep: float, margin: float) -> np.ndarray:
        """(B, 2, 3): two fingers each `opening` from the middle, then palm and wrist; grown by `margin`, extended back
        by `sweep` along -z (the way the hand came)."""
        right = self.finger + np.array([opening, 0, 0])
        left = right.copy()
        left[:, :, 0] = -right[:, ::-1, 0]
        boxes = np.concatenate([right, left, self.palm])
        boxes[:, 0] -= [margin, margin, sweep]
        boxes[:, 1] += [margin, margin, margin]
        return boxes

    def closing(self, opening: float, margin: float) -> np.ndarray:
        """(2 F, 2, 3): the fingers alone, each `opening` from the middle, grown by `margin`."""
        return self.boxes(opening, 0.0, margin)[: 2 * len(self.finger)]


def slab_boxes(points: np.ndarray, slabs: int) -> np.ndarray:
    """Bounding boxes (slabs, 2, 3) of points (N, 3) in equal slices along z, from low z to high."""
    edges = np.linspace(points[:, 2].min(), points[:, 2].max(), slabs + 1)
    boxes = []
    for low, high in pairwise(edges):
        inside = points[(points[:, 2] >= low - 1e-6) & (points[:, 2] <= high + 1e-6)]
        boxes.append([[*inside[:, :2].min(0), low], [*inside[:, :2].max(0), high]])
    return np.array(boxes)


def hits(points: np.ndarray, rotation: np.ndarray, position: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """For hands at rotation (3, 3) and positions (K, 3): does any of points (N, 3) lie in boxes (B, 2, 3)? (K,)"""
    offset = np.asarray(position, float).reshape(-1, 3) @ rotation
    if not len(offset) or not len(points) or not len(boxes):
        return np.zeros(len(offset), bool)
    return inside_boxes(points, np.ascontiguousarray(rotation), offset, boxes)
