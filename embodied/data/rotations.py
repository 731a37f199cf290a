"""Rotations as arrays: Euler angles, matrices, quaternions (x, y, z, w), axis-angle; and axis-angle without jumps.

Angles in radians, matrices (..., 3, 3). Euler angles are scipy's lower-case "xyz": about the fixed x, then y, then z
axis, R = Rz Ry Rx, which is what DROID records.
"""

from __future__ import annotations

import numpy as np

DOWN = np.array([np.pi, 0.0, 0.0])  # a gripper that points down, in both DROID's and robosuite's base frame


def euler_to_matrix(angles: np.ndarray) -> np.ndarray:
    """Euler angles (..., 3) about fixed x, y, z -> (..., 3, 3)."""
    x, y, z = np.moveaxis(np.asarray(angles, np.float64), -1, 0)
    (cx, cy, cz), (sx, sy, sz) = np.cos([x, y, z]), np.sin([x, y, z])
    rows = [
        [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
        [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
        [-sy, cy * sx, cy * cx],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def matrix_to_quaternion(matrix: np.ndarray) -> np.ndarray:
    """(..., 3, 3) -> unit quaternion (..., 4) as x, y, z, w with w >= 0.

    The largest of the four squared components is taken from the diagonal, the rest from sums (Shepperd 1978).
    """
    m = np.asarray(matrix, np.float64)
    trace = np.trace(m, axis1=-2, axis2=-1)
    squares = np.stack([1 + 2 * m[..., i, i] - trace for i in range(3)] + [1 + trace], -1)
    a, b, c = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    d, e, f = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    sx, sy, sz, sw = np.moveaxis(squares, -1, 0)
    candidates = np.stack([[sx, d, e, a], [d, sy, f, b], [e, f, sz, c], [a, b, c, sw]])
    candidates = np.moveaxis(candidates, (0, 1), (-2, -1))
    best = np.take_along_axis(candidates, squares.argmax(-1)[..., None, None], axis=-2)[..., 0, :]
    best = best / np.linalg.norm(best, axis=-1, keepdims=True)
    return np.where(best[..., 3:] < 0, -best, best)


def quaternion_to_axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """Unit quaternion (..., 4) as x, y, z, w -> rotation vector (..., 3), angle in [0, pi] when w >= 0."""
    vector, scalar = quaternion[..., :3], quaternion[..., 3:]
    norm = np.linalg.norm(vector, axis=-1, keepdims=True)
    angle = 2 * np.arctan2(norm, scalar)
    return vector * np.where(norm > 1e-12, angle / np.maximum(norm, 1e-12), 2.0)


def matrix_to_axis_angle(matrix: np.ndarray) -> np.ndarray:
    """(..., 3, 3) -> rotation vector (..., 3), angle in [0, pi]."""
    return quaternion_to_axis_angle(matrix_to_quaternion(matrix))


def axis_angle_to_matrix(vector: np.ndarray) -> np.ndarray:
    """Rotation vector (..., 3) -> (..., 3, 3) (Rodrigues)."""
    vector = np.asarray(vector, np.float64)
    angle = np.linalg.norm(vector, axis=-1)[..., None, None]
    axis = vector / np.maximum(angle[..., 0], 1e-12)
    x, y, z = np.moveaxis(axis, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([np.stack(row, -1) for row in ([zero, -z, y], [z, zero, -x], [-y, x, zero])], -2)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)


def continuous_axis_angle(matrices: np.ndarray, reference: np.ndarray = DOWN) -> np.ndarray:
    """Rotations of one episode (T, 3, 3) -> rotation vectors (T, 3) without sign flips.

    A rotation by angle a about u is also one by a - 2 pi about u: near a half turn, where a downward gripper lives, the
    usual choice flips between the two. Here each frame takes the one nearest to the frame before, the first the one
    nearest to `reference`, so that all episodes start on the same branch.
    """
    vectors = matrix_to_axis_angle(matrices)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    turns = 2 * np.pi * vectors / np.maximum(norms, 1e-12)
    choices = np.stack([vectors, vectors - turns, vectors + turns], 1)
    result, last = np.empty_like(vectors), np.asarray(reference, np.float64)
    for t, candidates in enumerate(choices):
        last = candidates[((candidates - last) ** 2).sum(-1).argmin()]
        result[t] = last
    return result
