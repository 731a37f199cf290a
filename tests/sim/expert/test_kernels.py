"""The compiled loops against the plain formula, on few points."""

from __future__ import annotations

import numpy as np

from sim.expert.kernels import inside_boxes, touched


def test_points_in_boxes_as_counted_one_by_one() -> None:
    random = np.random.default_rng(0)
    points, offset = random.uniform(-0.1, 0.1, (200, 3)), random.uniform(-0.1, 0.1, (40, 3))
    boxes = np.array([[[-0.01, -0.02, -0.03], [0.01, 0.02, 0.0]], [[0.03, 0.0, 0.0], [0.05, 0.03, 0.04]]])
    rotation = np.linalg.qr(random.normal(size=(3, 3)))[0]
    local = (points @ rotation)[None, :, None] - offset[:, None, None]  # (K, N, 1, 3)
    expected = np.all((local > boxes[:, 0]) & (local < boxes[:, 1]), axis=3).any((1, 2))
    assert 0 < expected.sum() < len(offset)
    assert np.array_equal(inside_boxes(points, rotation, offset, boxes), expected)


def test_no_point_near_is_no_hit() -> None:
    box = np.array([[[-0.01] * 3, [0.01] * 3]])
    assert not inside_boxes(np.full((1, 3), 0.5), np.eye(3), np.zeros((2, 3)), box).any()


def test_contacts_of_a_block_between_two_fingers() -> None:
    """Sides at x = -0.01 (one part) and x = 0.02 (two parts), their points 1 and 3 cm below the top at z = 0."""
    side = [[0.0, 0.01], [0.0, 0.03]]
    local = np.array([[x, y, z] for x in (-0.01, 0.02) for y, z in side] + [[0.0, 0.0, 0.0]])
    normal = np.array([-1.0, -1.0, 0.8, 0.8, 0.0])
    part = np.array([0, 0, 1, 2, 0])
    pad = np.array([0.04, 0.008, -0.012, 0.012])
    depths = np.array([0.01, 0.02])
    span, sums, seam = touched(local, normal, part, np.zeros((1, 3)), depths, pad, 0.004, 0.003)
    assert np.allclose(span[0], [[0.01, -0.01, 0.02], [0.02, -0.01, 0.02]])
    assert np.allclose(sums[0, 0], [[0.8, 1, 0, 0.01], [-1, 1, 0, 0.01]])
    assert np.allclose(sums[0, 1], [[1.6, 2, 0, 0.04], [-2, 2, 0, 0.04]])
    assert seam.tolist() == [[False, True]]
