"""Grasps of boxes with a hand worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sim.expert.geometry import Cloud, GripperShape, box_surface
from sim.expert.grasps import Grasp, Obstacles, blocked, candidate_yaws, down, plan_grasps, wrap, yaw_of

HAND = GripperShape(
    finger=np.array([[[0.0, -0.01, -0.045], [0.02, 0.01, 0.009]]]),
    palm=np.array([[[-0.1, -0.03, -0.12], [0.1, 0.03, -0.031]]]),
    reach=0.04,
    pad_z=(-0.0116, 0.0044),
    pad_y=0.008,
)
TABLE = [np.array([[0, 0, 1.0, 0], [0, 0, -1, 0.1], [1, 0, 0, 1], [-1, 0, 0, 1], [0, 1, 0, 1], [0, -1, 0, 1]])]
NOTHING = Obstacles(np.zeros((0, 3)), TABLE)


def box_cloud(half: tuple[float, float, float]) -> Cloud:
    """A box that stands on the table at the origin."""
    points, normals = box_surface(np.array(half), 0.004)
    return Cloud(points + np.array([0, 0, half[2]]), normals, np.zeros(len(points), int))


def grasps_of(cloud: Cloud, obstacles: Obstacles = NOTHING) -> list[Grasp]:
    return plan_grasps(cloud, cloud.points.mean(0), HAND, obstacles, down(0.0))


def test_down_closes_along_y_and_points_down() -> None:
    rotation = down(0.0)
    assert np.allclose(rotation[:, 0], [0, 1, 0])
    assert np.allclose(rotation[:, 2], [0, 0, -1])
    assert np.isclose(np.linalg.det(rotation), 1)
    assert yaw_of(down(0.7)) == pytest.approx(0.7)
    assert wrap(np.pi / 2 + 0.1) == pytest.approx(0.1 - np.pi / 2)


def test_box_is_grasped_across_its_narrow_side() -> None:
    best = grasps_of(box_cloud((0.06, 0.02, 0.04)))[0]
    assert abs(best.rotation[1, 0]) > 0.95  # the fingers close along y, the 4 cm side
    assert best.width == pytest.approx(0.04, abs=0.005)
    assert best.position[1] == pytest.approx(0, abs=0.003)
    assert abs(best.position[0]) < 0.02  # near the middle
    assert best.position[2] > 0.009  # the fingertips stay above the table


def test_too_wide_a_box_is_held_at_its_corners_only() -> None:
    found = grasps_of(box_cloud((0.06, 0.045, 0.04)))
    assert all(0.3 < abs(g.rotation[1, 0]) < 0.96 for g in found)
    assert all(g.score < 0.75 for g in found)


def test_a_wall_at_one_side_turns_the_hand() -> None:
    cloud = box_cloud((0.02, 0.02, 0.04))
    wall, _ = box_surface(np.array([0.1, 0.01, 0.1]), 0.008)
    wall += [0, 0.045, 0.1]
    free = grasps_of(cloud)
    beside = grasps_of(cloud, Obstacles(wall, TABLE))
    assert any(abs(g.rotation[1, 0]) > 0.95 for g in free)
    assert beside
    assert all(abs(g.rotation[1, 0]) < 0.8 for g in beside)


def test_rim_of_a_wide_cup_is_grasped() -> None:
    walls = [((0.06, 0.0015, 0.03), (0, s * 0.06, 0.03)) for s in (-1, 1)]
    walls += [((0.0015, 0.06, 0.03), (s * 0.06, 0, 0.03)) for s in (-1, 1)]
    parts = [(*box_surface(np.array(half), 0.004), np.array(at)) for half, at in walls]
    points = np.concatenate([p + at for p, _, at in parts])
    normals = np.concatenate([n for _, n, _ in parts])
    best = grasps_of(Cloud(points, normals, np.zeros(len(points), int)))[0]
    assert best.width < 0.01
    assert max(abs(best.position[0]), abs(best.position[1])) == pytest.approx(0.06, abs=0.006)


def test_sweep_blocks_what_the_final_pose_does_not() -> None:
    above = np.array([[0.035, 0.0, 0.2]])
    position, rotation = np.array([[0.0, 0, 0.05]]), down(np.pi / 2)
    things = Obstacles(above, [])
    assert blocked(position, rotation, HAND, np.zeros((0, 3)), things, sweep=0.12).tolist() == [True]
    assert blocked(position, rotation, HAND, np.zeros((0, 3)), things, sweep=0.0).tolist() == [False]


def test_principal_axis_is_among_the_yaws() -> None:
    points = box_cloud((0.06, 0.02, 0.04)).points @ down(0.0)[:, [1, 0, 2]].T
    turn = np.deg2rad(11)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    assert np.abs(candidate_yaws(points @ rotation.T) - turn).min() < 1e-3
