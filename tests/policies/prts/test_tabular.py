from __future__ import annotations

import numpy as np
import pytest

from policies.prts.figures import draw_mask
from policies.prts.tabular import GridWorld, learn_occupancy


def test_occupancy_by_hand_on_two_cells():
    world = GridWorld(size=2, goals=(0, 1, 3), slip=0.0)  # cell 2 (lower left): up -> 0, right -> 3, else stays
    stay = (0.9 * 0.25) / (1 - 0.9 * 0.5)  # V(2) of goals 0 and 3: 1/4 of the moves arrive, half stay
    expected = [[0.9, 0, 0], [0.9 * stay, 0, 0.9 * stay], [0.9 * stay, 0, 0.9 * stay], [0, 0, 0.9]]
    np.testing.assert_allclose(world.occupancy(0.9)[2], expected, atol=1e-12)


def test_exact_occupancy_equals_the_mean_over_sampled_walks():
    world = GridWorld()
    pair, goal, weight = world.walks(6000, 0.9, seed=1)
    total = np.zeros((100, 3))
    np.add.at(total, (pair, goal), weight)
    sampled = total / np.bincount(pair, minlength=100)[:, None].clip(min=1)
    visited = np.bincount(pair, minlength=100) > 1000
    assert visited.sum() > 40
    np.testing.assert_allclose(sampled[visited], world.occupancy(0.9).reshape(100, 3)[visited], atol=0.03)


def test_learned_inner_product_is_the_log_discounted_occupancy():
    result = learn_occupancy(GridWorld(), steps=500)
    assert result.correlation > 0.98
    assert result.error < 0.25  # nats; the exact values spread by 1.28
    assert result.slope == pytest.approx(1.0, abs=0.12)
    assert learn_occupancy(GridWorld(), walks=50, steps=1).correlation < 0.9  # the check can fail


def test_picture_of_the_mask(tmp_path):
    draw_mask(tmp_path / "mask.png")
    assert (tmp_path / "mask.png").stat().st_size > 5000
