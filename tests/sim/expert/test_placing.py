"""Rest heights on height maps worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sim.expert.geometry import GripperShape, HeightMap
from sim.expert.grasps import Obstacles, down
from sim.expert.placing import Spot, find_place, rest_height

STEP = 0.004
HAND = GripperShape(
    finger=np.array([[[0.0, -0.01, -0.045], [0.02, 0.01, 0.009]]]),
    palm=np.array([[[-0.1, -0.03, -0.12], [0.1, 0.03, -0.031]]]),
    reach=0.04,
    pad_z=(-0.0116, 0.0044),
    pad_y=0.008,
)


def plate() -> HeightMap:
    """20 x 20 cells of table at height 0, a block of 8 x 8 cells and 5 cm height in the middle."""
    top = np.zeros((21, 21))
    top[7:14, 7:14] = 0.05
    return HeightMap(np.zeros(2), STEP, top, np.full_like(top, -0.1))


def cube(cells: int = 5, half: float = 0.02) -> HeightMap:
    shape = (cells, cells)
    origin = np.full(2, -(cells // 2) * STEP)
    return HeightMap(origin, STEP, np.full(shape, half), np.full(shape, -half))


def test_rests_on_table_on_block_and_on_its_edge() -> None:
    centre, corner, edge = [0.04, 0.04], [0.008, 0.008], [0.056, 0.04]
    height, imbalance = rest_height(plate(), cube(), np.array([centre, corner, edge]))
    assert height == pytest.approx([0.07, 0.02, 0.07])
    assert imbalance[0] < 0
    assert imbalance[1] < 0
    assert imbalance[2] > 0  # only two of its five rows are carried, its middle hangs over


def test_outside_the_map_is_ignored() -> None:
    height, _ = rest_height(plate(), cube(), np.array([[0.0, 0.0], [-1.0, -1.0]]))
    assert height[0] == pytest.approx(0.02)
    assert height[1] == -np.inf


def spots() -> list[Spot]:
    return [Spot(np.eye(3), np.array([x, 0, 0.02]), 0.0, cost) for x, cost in ((0.0, 0.0), (0.3, 0.5))]


def test_release_is_above_the_spot() -> None:
    in_hand = (down(0.0).T, np.array([0, 0, 0.01]))  # the object's origin a centimetre below the grip site
    place = find_place(spots(), in_hand, HAND, Obstacles(np.zeros((0, 3)), []), (0.0,))
    assert place is not None
    assert place.position == pytest.approx([0, 0, 0.02 + 0.01 + 0.004])
    assert np.allclose(place.rotation, down(0.0))


def test_blocked_spot_is_dropped_into_or_left_for_another() -> None:
    in_hand = (down(0.0).T, np.array([0, 0, 0.01]))
    rim = np.array([[0.0, 0.05, 0.05], [0.0, -0.05, 0.05]])  # in the way of open fingers and palm
    around = Obstacles(rim, [])
    level = find_place(spots(), in_hand, HAND, around, (0.0,))
    dropped = find_place(spots(), in_hand, HAND, around, (0.0, 0.03))
    assert level is not None
    assert dropped is not None
    assert level.spot.position[0] == pytest.approx(0.3)
    assert dropped.spot.position[0] == pytest.approx(0.0)
    assert dropped.drop == pytest.approx(0.03)
