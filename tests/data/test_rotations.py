from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from embodied.data.rotations import (
    axis_angle_to_matrix,
    continuous_axis_angle,
    euler_to_matrix,
    matrix_to_axis_angle,
    matrix_to_quaternion,
)


def test_equal_to_scipy() -> None:
    rng = np.random.default_rng(0)
    angles = rng.uniform(-3, 3, (200, 3))
    vectors = rng.normal(size=(200, 3)) * 2
    random = Rotation.random(500, random_state=0)
    assert np.allclose(euler_to_matrix(angles), Rotation.from_euler("xyz", angles).as_matrix(), atol=1e-12)
    assert np.allclose(axis_angle_to_matrix(vectors), Rotation.from_rotvec(vectors).as_matrix(), atol=1e-12)
    assert np.allclose(matrix_to_quaternion(random.as_matrix()), random.as_quat(canonical=True), atol=1e-9)
    assert np.allclose(matrix_to_axis_angle(random.as_matrix()), random.as_rotvec(), atol=1e-9)


def test_half_turns_and_none() -> None:
    for vector in ([np.pi, 0, 0], [0, np.pi, 0], [0, 0, np.pi], [0, 0, 0], [1e-9, 0, 0]):
        back = axis_angle_to_matrix(matrix_to_axis_angle(axis_angle_to_matrix(np.array(vector))))
        assert np.allclose(back, axis_angle_to_matrix(np.array(vector)), atol=1e-8)


def test_no_flip_when_roll_passes_a_half_turn() -> None:
    """Roll 3.0 .. 3.3 rad: Euler angles jump to -3.13 on the way, the rotation vector must not."""
    roll = np.linspace(3.0, 3.3, 31)
    angles = np.stack([(roll + np.pi) % (2 * np.pi) - np.pi, np.full(31, 0.05), np.zeros(31)], 1)
    assert np.abs(np.diff(angles[:, 0])).max() > 6
    vectors = continuous_axis_angle(euler_to_matrix(angles))
    assert np.abs(np.diff(vectors, axis=0)).max() < 0.02
    assert np.allclose(vectors[:, 0], roll, atol=0.01)
    assert np.allclose(axis_angle_to_matrix(vectors), euler_to_matrix(angles), atol=1e-9)


def test_every_episode_starts_on_the_same_branch() -> None:
    for roll in (3.1, -3.1):
        first = continuous_axis_angle(euler_to_matrix(np.array([[roll, 0, 0]])))[0]
        assert abs(first[0] - np.pi) < 0.05
