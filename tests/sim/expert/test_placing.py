"""Rest heights on height maps worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sim.expert.geometry import GripperShape, HeightMap
from sim.expert.grasps import Obstacles, down
from sim.expert.placing import Spot, find_place, holes, rest_height, threaded, tightness

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


def ring() -> HeightMap:
    """7 x 7 cells, 2 cm high, with a hole of 5 x 5 cells in the middle."""
    bottom = np.full((7, 7), -0.01)
    bottom[1:6, 1:6] = np.inf
    top = np.where(np.isfinite(bottom), 0.01, -np.inf)
    return HeightMap(np.full(2, -3 * STEP), STEP, top, bottom)


def peg() -> HeightMap:
    """A table at height 0, on it a peg of 3 x 3 cells and 10 cm height in the middle."""
    top = np.zeros((21, 21))
    top[9:12, 9:12] = 0.1
    return HeightMap(np.zeros(2), STEP, top, np.full_like(top, -0.1))


def test_holes_are_closed_on_all_four_sides() -> None:
    assert len(holes(ring())) == 25
    assert len(holes(cube())) == 0
    hook = ring()
    hook.bottom[0, :] = np.inf  # open to one side
    assert len(holes(hook)) == 0


def test_a_peg_sticks_out_through_the_ring_only_where_it_stands() -> None:
    xy = np.array([[0.04, 0.04], [0.068, 0.04], [0.052, 0.04]])  # over the peg, beside it, bar on the peg
    height, _ = rest_height(peg(), ring(), xy)
    assert height == pytest.approx([0.01, 0.01, 0.11])
    assert threaded(peg(), ring(), xy, height).tolist() == [True, False, False]
    assert threaded(peg(), cube(), xy, rest_height(peg(), cube(), xy)[0]).tolist() == [False, False, False]


def test_play_is_tighter_off_the_axis() -> None:
    """One cell of play on each side of a peg in the middle, none on one side a cell off; plenty in a wide ring."""
    middle, off = np.array([[0.04, 0.04]]), np.array([[0.044, 0.04]])
    low = np.array([0.01])
    assert tightness(peg(), ring(), middle, low)[0] < tightness(peg(), ring(), off, low)[0]
    wide = HeightMap(np.full(2, -8 * STEP), STEP, np.full((17, 17), 0.01), np.full((17, 17), -0.01))
    wide.bottom[1:16, 1:16] = np.inf
    assert tightness(peg(), wide, middle, low)[0] == 0
