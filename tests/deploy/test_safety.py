"""Safety: by hand, and properties that hold for every action, state and set of limits (hypothesis)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_parts import contract

from embodied.deploy.contract import ActionMode, ActionOutput, Limits
from embodied.deploy.safety import SafetyFilter, UnsafeActionError

BASE = contract()


def make(mode: str = "position", gripper: list[str] | None = None, **limits: Any) -> SafetyFilter:
    action = ActionOutput("array", "/c", "", ["a", "b"], ActionMode(mode), gripper or [])
    return SafetyFilter(replace(BASE, action=action, limits=Limits(**limits)))


def test_step_limit_starts_at_the_measured_position() -> None:
    safety = make(max_step=[0.1, 0.2])
    state = np.array([1.0, 1.0])
    assert safety.apply(np.array([5.0, 1.1]), state, 0.1).action.tolist() == pytest.approx([1.1, 1.1])
    assert safety.apply(np.array([5.0, 1.1]), state, 0.1).action.tolist() == pytest.approx([1.2, 1.1])
    assert safety.counts == {"step": 2}


def test_velocity_limit_uses_the_time_since_the_last_command_but_at_most_a_period() -> None:
    safety = make(max_velocity=[1.0, 1.0])
    state = np.zeros(2)
    assert safety.apply(np.ones(2), state, 0.05).action[0] == pytest.approx(0.05)
    assert safety.apply(np.ones(2), state, 9.0).action[0] == pytest.approx(0.15), "a pause is no licence to jump"


def test_relative_target_is_lerobots_clamp() -> None:
    safety = make(max_relative_target=[0.5, 0.5])
    got = safety.apply(np.array([3.0, -3.0]), np.array([1.0, 1.0]), 0.1)
    assert got.action.tolist() == [1.5, 0.5]
    assert got.changed == ("relative",)


def test_workspace_of_delta_actions() -> None:
    """An action of 1 moves joint a by 0.05; at 0.98 of a box that ends at 1, 0.4 is left of it."""
    safety = make("delta", workspace={"a": [-1.0, 1.0]}, delta_scale={"a": 0.05}, low=[-1, -1], high=[1, 1])
    assert safety.apply(np.array([1.0, 1.0]), np.array([0.98, 0.0]), 0.1).action.tolist() == pytest.approx([0.4, 1.0])
    outside = safety.apply(np.array([1.0, 0.0]), np.array([1.2, 0.0]), 0.1).action
    assert outside[0] == -1, "outside the box only the way back is left, as fast as the bounds allow"


def test_hold_keeps_the_gripper() -> None:
    safety = make("delta", ["b"])
    safety.apply(np.array([0.5, -1.0]), None, 0.1)
    held = safety.hold(None)
    assert held is not None
    assert held.tolist() == [0.0, -1.0]
    position = make("position")
    assert position.hold(None) is None
    measured = position.hold(np.array([0.25, 0.5]))
    assert measured is not None
    assert measured.tolist() == [0.25, 0.5]


@pytest.mark.parametrize("bad", [[np.nan, 0.0], [np.inf, 0.0], [0.0], [0.0, 0.0, 0.0]])
def test_what_no_clamp_makes_safe_is_refused(bad: list[float]) -> None:
    safety = make(low=[-1, -1], high=[1, 1])
    with pytest.raises(UnsafeActionError, match="finite"):
        safety.apply(np.array(bad), np.zeros(2), 0.1)
    assert safety.counts["refused"] == 1
    with pytest.raises(UnsafeActionError, match="nothing was measured"):
        make(workspace={"a": [-1.0, 1.0]}).apply(np.zeros(2), None, 0.1)


NUMBER = st.floats(-1e6, 1e6, width=32)
PAIR = st.tuples(NUMBER, NUMBER).map(sorted).map(lambda p: [p[0], p[1] + 0.5])
POSITIVE = st.floats(1e-3, 1e3)


@settings(max_examples=300, deadline=None)
@given(
    mode=st.sampled_from(["position", "velocity", "delta"]),
    bounds=st.tuples(PAIR, PAIR),
    box=PAIR,
    step=st.tuples(POSITIVE, POSITIVE),
    state=st.tuples(NUMBER, NUMBER),
    actions=st.lists(st.tuples(NUMBER, NUMBER), min_size=1, max_size=4),
    elapsed=st.floats(0, 10),
)
def test_everything_that_leaves_is_inside(
    mode: str, bounds: Any, box: Any, step: Any, state: Any, actions: Any, elapsed: float
) -> None:
    low, high = [list(values) for values in zip(*bounds, strict=True)]
    boxed = make(mode, low=low, high=high, workspace={"a": box}, max_step=list(step))
    free = make(mode, low=low, high=high, max_step=list(step), max_velocity=list(step))
    measured = np.array(state, np.float32)
    for action in actions:
        before = free.last
        for safety in (boxed, free):
            got = safety.apply(np.array(action), measured, elapsed).action
            assert np.isfinite(got).all()
            assert (got >= low).all()
            assert (got <= high).all()
        got = free.last
        assert got is not None
        if before is not None:
            assert (np.abs(got - before) <= np.array(step) * (1 + 1e-9) + 1e-9).all()
        if mode == "position" and box[0] <= high[0] and box[1] >= low[0]:
            assert boxed.last is not None
            assert box[0] <= boxed.last[0] <= box[1], (
                "the box holds wherever it meets the bounds, the step limit yields"
            )


@settings(max_examples=100, deadline=None)
@given(action=st.tuples(st.floats(-1, 1, width=32), st.floats(-1, 1, width=32)))
def test_what_is_inside_is_not_touched(action: tuple[float, float]) -> None:
    safety = make(low=[-1, -1], high=[1, 1], max_step=[2, 2], max_velocity=[100, 100], workspace={"a": [-1, 1]})
    got = safety.apply(np.array(action, np.float32), np.zeros(2), 0.1)
    assert got.action.tolist() == list(action)
    assert got.changed == ()
