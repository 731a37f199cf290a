from __future__ import annotations

import numpy as np
import pytest

from embodied.data.still import RAMP, still_frames, waits


def episode(*parts: tuple[int, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Parts of (frames, metres a frame along x, gripper's command): states and actions."""
    states, actions, x = [], [], 0.0
    for frames, step, command in parts:
        for _ in range(frames):
            states.append([x, 0, 1, np.pi, 0, 0, 0.04, -0.04])
            actions.append([1, 0, 0, 0, 0, 0, command])
            x += step
    return np.array(states, np.float32), np.array(actions, np.float32)


def test_a_push_that_moves_nothing_is_a_wait() -> None:
    states, actions = episode((5, 0.01, -1), (9, 0.0, -1), (5, 0.01, -1))
    assert np.flatnonzero(waits(states, actions)).tolist() == list(range(5, 14))


def test_trembling_in_place_is_a_wait_and_creeping_is_none() -> None:
    states, actions = episode((10, 0.0, -1), (3, 0.01, -1))
    states[:10:2, 1] += 0.002
    assert waits(states, actions)[:9].all()
    assert not waits(*episode((10, 0.002, -1), (3, 0.01, -1))).any()


def test_what_moves_otherwise_is_none() -> None:
    turning, actions = episode((10, 0.0, -1))
    turning[:, 5] = np.arange(10) * 0.08  # at half a turn, half of it turns the hand
    closing, _ = episode((10, 0.0, -1))
    closing[:, 6] -= np.arange(10) * 0.001
    assert not waits(turning, actions).any()
    assert not waits(closing, actions).any()


def test_an_orientation_that_jumps_at_half_a_turn_is_the_same_one() -> None:
    states, actions = episode((10, 0.0, -1))
    states[::2, 3] *= -1
    assert waits(states, actions)[:-1].all()


def test_a_gripper_that_follows_its_command_is_none() -> None:
    states, actions = episode((5, 0.01, -1), (RAMP + 6, 0.0, 1), (3, 0.01, 1))
    assert np.flatnonzero(waits(states, actions)).tolist() == list(range(5 + RAMP, 5 + RAMP + 6))


def test_short_waits_and_last_frames_are_none() -> None:
    assert not waits(*episode((5, 0.01, -1), (3, 0.0, -1), (5, 0.01, -1))).any()
    assert np.flatnonzero(waits(*episode((5, 0.01, -1), (9, 0.0, -1)))).tolist() == list(range(5, 13))
    assert not waits(*episode((1, 0.0, -1))).any()


def test_other_states_are_refused(make_cache) -> None:
    with pytest.raises(ValueError, match=r"skip_still needs 8 numbers of observation.state, got \(2,\)"):
        still_frames(make_cache([3]))
