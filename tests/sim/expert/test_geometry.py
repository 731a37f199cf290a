"""Solids, surfaces and height maps against numbers worked out by hand."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from sim.expert.geometry import (
    GripperShape,
    box_surface,
    height_map,
    hits,
    hull_surface,
    outer_cloud,
    posed_planes,
    slab_boxes,
    solid_of_geom,
)

SCENE = """
<mujoco>
  <worldbody>
    <geom name="floor" type="plane" size="1 1 0.1"/>
    <body name="thing" pos="0 0 0.05">
      <freejoint/>
      <geom name="box" type="box" size="0.01 0.02 0.05"/>
      <geom name="lid" type="box" size="0.02 0.02 0.01" pos="0 0 0.05" quat="0.70710678 0 0 0.70710678"/>
      <geom name="ball" type="sphere" size="0.03" pos="0.1 0 0"/>
      <geom name="can" type="cylinder" size="0.03 0.05" pos="0.2 0 0"/>
    </body>
  </worldbody>
</mujoco>
"""


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(SCENE)


def test_box_surface_counts_and_normals() -> None:
    points, normals = box_surface(np.array([0.01, 0.02, 0.03]), 0.01)
    # 2 x 4 x 6 cells of one centimetre: faces of 4 * 6, 2 * 6 and 2 * 4 cells, twice each.
    assert len(points) == 2 * (24 + 12 + 8)
    assert np.allclose(np.linalg.norm(normals, axis=1), 1)
    assert np.allclose(np.einsum("ni,ni->n", points, normals), np.abs(normals) @ [0.01, 0.02, 0.03])


def test_hull_of_a_cube_has_six_planes() -> None:
    corners = np.array(np.meshgrid([-1.0, 1], [-1.0, 1], [-1.0, 1])).reshape(3, -1).T
    planes, points, normals = hull_surface(corners, 0.25)
    assert planes.shape == (6, 4)
    assert np.allclose(planes[:, 3], 1)
    assert np.allclose(np.abs(points).max(1), 1)
    assert np.allclose(np.einsum("ni,ni->n", points, normals), 1, atol=1e-6)


def test_planes_of_a_turned_box(model: mujoco.MjModel) -> None:
    solid = solid_of_geom(model, model.geom("lid").id, 0.005)
    assert np.allclose(solid.corners.min(0), [-0.02, -0.02, 0.04])
    inside, outside = np.array([0.019, 0.019, 0.055]), np.array([0.0, 0.0, 0.061])
    assert np.all(solid.planes[:, :3] @ inside < solid.planes[:, 3])
    assert np.any(solid.planes[:, :3] @ outside > solid.planes[:, 3])


def test_floor_is_big_and_below_zero(model: mujoco.MjModel) -> None:
    solid = solid_of_geom(model, model.geom("floor").id, 0.01)
    assert solid.big
    assert np.isclose(solid.corners[:, 2].max(), 0)


def test_inner_points_are_left_out(model: mujoco.MjModel) -> None:
    solids = [solid_of_geom(model, model.geom(name).id, 0.004) for name in ("box", "lid")]
    cloud = outer_cloud(solids, np.stack([np.eye(3)] * 2), np.zeros((2, 3)))
    top_of_box = (np.abs(cloud.points[:, 2] - 0.05) < 1e-6) & (np.abs(cloud.points[:, 0]) < 0.009)
    assert not top_of_box[np.abs(cloud.normals[:, 2]) > 0.9].any()  # it lies inside the lid
    assert np.isclose(cloud.points[:, 2].max(), 0.06)


def test_height_map_of_box_and_ball(model: mujoco.MjModel) -> None:
    solids = [solid_of_geom(model, model.geom(name).id, 0.01) for name in ("box", "ball", "can")]
    shift = np.array([0, 0, 0.05])
    posed = [(posed_planes(s, np.eye(3), shift), s.corners + shift) for s in solids]
    heights = height_map(posed, np.array([-0.05, -0.05]), np.array([0.25, 0.05]), 0.005)

    def at(x: float, y: float) -> tuple[float, float]:
        i, j = heights.index(np.array([x, y]))
        return heights.top[i, j], heights.bottom[i, j]

    assert at(0, 0) == pytest.approx((0.10, 0.0))
    assert at(0.1, 0) == pytest.approx((0.08, 0.02), abs=2e-3)  # a polyhedron for the ball of radius 3 cm
    assert at(0.2, 0.02) == pytest.approx((0.10, 0.0))
    assert at(0.05, 0) == (-np.inf, np.inf)


def test_hits_of_a_hand_over_one_point() -> None:
    box = np.array([[[-0.01, -0.01, -0.02], [0.01, 0.01, 0.0]]])
    point = np.array([[0.5, 0.0, 0.1]])
    hands = np.array([[0.5, 0, 0.11], [0.5, 0, 0.099], [0.52, 0, 0.11], [0.5, 0.009, 0.125]])
    assert hits(point, np.eye(3), hands, box).tolist() == [True, False, False, False]
    upside_down = np.diag([1.0, -1.0, -1.0])
    assert hits(point, upside_down, hands, box).tolist() == [False, True, False, False]


def test_gripper_boxes_are_mirrored_and_swept() -> None:
    finger = np.array([[[0.0, -0.01, -0.04], [0.015, 0.01, 0.01]]])
    palm = np.array([[[-0.1, -0.03, -0.12], [0.1, 0.03, -0.04]]])
    shape = GripperShape(finger, palm, 0.04, (-0.01, 0.005), 0.008)
    right, left, back = shape.boxes(0.03, 0.1, 0.002)
    assert np.allclose(right, [[0.028, -0.012, -0.14], [0.047, 0.012, 0.012]])
    assert np.allclose(left, [[-0.047, -0.012, -0.14], [-0.028, 0.012, 0.012]])
    assert np.allclose(back, [[-0.102, -0.032, -0.22], [0.102, 0.032, -0.038]])
    assert shape.tip == pytest.approx(0.01)


def test_slab_boxes_follow_a_taper() -> None:
    z = np.linspace(0, 1, 101)
    points = np.c_[np.concatenate([z, -z]), np.zeros(202), np.concatenate([z, z])]
    boxes = slab_boxes(points, 2)
    assert np.allclose(boxes[0], [[-0.5, 0, 0], [0.5, 0, 0.5]])
    assert np.allclose(boxes[1], [[-1, 0, 0.5], [1, 0, 1]])
