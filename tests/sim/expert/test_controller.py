"""The pose controller: its law by hand, and its motion in a real robosuite scene."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from sim.base_env import BaseEnv
from sim.expert.controller import (
    CLOSE,
    FINE,
    LOOK_AHEAD,
    OPEN,
    TRAVEL,
    Arm,
    Line,
    Tolerance,
    pose_action,
    rotation_vector,
    turned,
)
from sim.expert.grasps import Grasp
from sim.expert.kinematics import Reach
from sim.expert.motion import reach_in
from sim.expert.scene import Scene
from sim.make import make_env

OUTPUT_MAX = np.array([0.05, 0.05, 0.05, 0.5, 0.5, 0.5])


@pytest.fixture(scope="module")
def env() -> Iterator[BaseEnv]:
    lift = make_env("robosuite", 0)
    lift.reset(seed=3)
    yield lift
    lift.close()


def run(env: BaseEnv, motion: Iterator[np.ndarray]) -> tuple[int, object]:
    """Executes a motion; its steps and what it returned."""
    steps = 0
    while True:
        try:
            action = next(motion)
        except StopIteration as end:
            return steps, end.value
        env.run_steps(action, stop_at_success=False)
        steps += 1


@pytest.mark.parametrize("angle", [1e-8, 0.3, 2.0, np.pi - 1e-6])
def test_rotation_vector_undoes_turned(angle: float) -> None:
    axis = np.array([1.0, 2.0, -2.0]) / 3
    vector = rotation_vector(turned(axis, angle))
    assert np.allclose(vector, angle * axis, atol=1e-5) or np.allclose(vector, -angle * axis, atol=1e-5)


def test_small_error_gives_twice_the_error_in_units_of_full_action() -> None:
    action = pose_action(
        np.eye(3), np.zeros(3), turned(np.array([0, 0, 1.0]), 0.05), np.array([0.01, 0, -0.02]), OUTPUT_MAX
    )
    assert action == pytest.approx([0.4, 0, -0.8, 0, 0, 0.2])


def test_large_error_keeps_its_direction_and_its_cap() -> None:
    action = pose_action(
        np.eye(3), np.zeros(3), turned(np.array([1.0, 0, 0]), 1.5), np.array([0.4, 0.1, 0]), OUTPUT_MAX
    )
    assert action == pytest.approx([1, 0.25, 0, 0.5, 0, 0])


def test_slow_only_where_it_touches(env: BaseEnv) -> None:
    scene = Scene(env)
    rotation, position = scene.hand()
    arm, far = Arm(scene, pace=0.8, contact=0.5), position + np.array([0.1, 0, 0])
    for tolerance, speed in ((FINE, 0.4), (TRAVEL, 0.8)):
        assert next(arm.move(rotation, far, tolerance))[0] == pytest.approx(speed)


def test_arrives_within_tolerance(env: BaseEnv) -> None:
    arm = Arm(Scene(env))
    rotation, position = arm.scene.hand()
    goal = position + np.array([0.05, 0.08, -0.02])
    steps, arrived = run(env, arm.move(turned(np.array([0, 0, 1.0]), 0.4) @ rotation, goal, Tolerance(0.005, 0.05)))
    assert arrived is True
    assert steps < 40
    assert np.linalg.norm(arm.scene.hand()[1] - goal) < 0.005


def test_a_slow_pace_arrives_too_and_later(env: BaseEnv) -> None:
    quick, slow = Arm(Scene(env)), Arm(Scene(env), pace=0.4)
    rotation, start = quick.scene.hand()
    goal = start + np.array([0.1, 0.0, 0.05])
    assert slow.toward(rotation, goal)[:6] == pytest.approx(0.4 * quick.toward(rotation, goal)[:6])
    few, arrived = run(env, quick.move(rotation, goal))
    assert arrived is True
    run(env, quick.move(rotation, start))
    many, arrived = run(env, slow.move(rotation, goal))
    assert arrived is True
    assert many > 1.5 * few
    assert np.linalg.norm(slow.scene.hand()[1] - goal) < 0.006
    run(env, quick.move(rotation, start))


def test_stalls_at_the_table_instead_of_going_on(env: BaseEnv) -> None:
    arm = Arm(Scene(env))
    rotation, position = arm.scene.hand()
    steps, arrived = run(env, arm.move(rotation, np.array([*position[:2], 0.5])))
    assert arrived is False
    assert steps < 60
    run(env, arm.move(rotation, position))


def test_only_the_end_of_an_exact_move_touches(env: BaseEnv) -> None:
    arm = Arm(Scene(env))
    rotation, position = arm.scene.hand()
    for tolerance, far, touching in ((FINE, 0.1, False), (FINE, 0.02, True), (Tolerance(0.02, 0.1), 0.025, False)):
        next(arm.move(rotation, position + np.array([0, 0, far]), tolerance))
        assert arm.touching is touching
    next(arm.fingers(CLOSE))
    assert arm.touching


@pytest.mark.parametrize(
    ("at", "aim"),
    [
        ((0.1, 0.02, 0.0), (0.13, 0.0, 0.0)),  # ahead of the nearest point of the line
        ((-0.1, 0.05, 0.02), (-0.07, 0.0, 0.0)),
        ((0.28, 0.01, 0.0), (0.3, 0.0, 0.0)),  # its end, not beyond it
        ((0.4, 0.01, 0.0), (0.3, 0.0, 0.0)),
    ],
)
def test_aims_ahead_on_the_line(at: tuple[float, ...], aim: tuple[float, ...]) -> None:
    line = Line(np.zeros(3), np.array([0.3, 0.0, 0.0]))
    assert line.ahead(np.array(at)) == pytest.approx(aim)


def test_on_a_diagonal_the_axis_with_most_to_go_decides_how_far_ahead() -> None:
    line = Line(np.zeros(3), np.array([0.3, -0.3, 0.15]))
    assert line.ahead(np.zeros(3)) == pytest.approx([LOOK_AHEAD, -LOOK_AHEAD, LOOK_AHEAD / 2])
    assert Line(np.ones(3), np.ones(3)).ahead(np.zeros(3)) == pytest.approx(np.ones(3))  # no way at all


def pushed(env: BaseEnv, arm: Arm, motion: Iterator[np.ndarray], push: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Executes a motion with `push` (3,) added to each action that may not touch; where the hand was (N, 3) before each
    action, and which of them might touch (N,)."""
    way, touching = [], []

    def watched() -> Iterator[np.ndarray]:
        for action in motion:
            way.append(arm.scene.hand()[1])
            touching.append(arm.touching)
            yield np.clip(action + (0.0 if arm.touching else 1.0) * np.r_[push, np.zeros(4)], -1, 1)

    run(env, watched())
    return np.array(way), np.array(touching)


def test_comes_back_to_its_line_long_before_the_end(env: BaseEnv) -> None:
    arm = Arm(Scene(env))
    rotation, start = arm.scene.hand()
    way, _ = pushed(env, arm, arm.move(rotation, start + np.array([0, 0.3, 0]), TRAVEL), np.array([0.0, 0.0, 0.4]))
    assert 0.005 < (way[:, 2] - start[2]).max() < 0.02  # 4.7 cm when it aims at the end
    run(env, arm.move(rotation, start))


def test_comes_onto_the_axis_of_a_grasp_before_it_goes_in_and_may_touch_from_there(env: BaseEnv) -> None:
    arm = Arm(Scene(env))
    rotation, start = arm.scene.hand()
    grasp = Grasp(rotation, start - np.array([0.05, -0.03, 0.06]), 0.02, 1.0, arm.scene.gripper.reach)
    way, touching = pushed(env, arm, reach_in(arm, grasp, 0.06, 0.02), np.array([0.8, 0.8, 0.0]))
    assert np.linalg.norm(arm.scene.hand()[1] - grasp.position) < 0.006
    low = way[:, 2] < grasp.position[2] + 0.055  # the way in
    assert low.any()
    assert touching[low].all()
    assert np.linalg.norm((way - grasp.position)[low, :2], axis=1).max() < 0.012  # 2.2 cm with a coarser start
    assert not touching[:5].any()
    run(env, arm.move(rotation, start))


def test_fingers_close_and_open(env: BaseEnv) -> None:
    arm = Arm(Scene(env))
    run(env, arm.fingers(CLOSE))
    assert arm.scene.fingers().max() < 0.005
    run(env, arm.fingers(OPEN))
    assert arm.scene.fingers().min() > 0.005
    run(env, arm.hold(8))
    run(env, arm.half_open(0.02))
    run(env, arm.hold(3))
    assert arm.scene.fingers() == pytest.approx([0.02, 0.02], abs=0.005)


def test_reach_knows_near_from_far(env: BaseEnv) -> None:
    scene = Scene(env)
    before = scene.data.qpos.copy()
    rotation, position = scene.hand()
    reach = Reach(scene)
    assert reach.reachable(rotation, position + np.array([0.1, -0.1, -0.1]))
    assert not reach.reachable(rotation, position + np.array([1.0, 0, 0]))
    assert np.array_equal(before, scene.data.qpos)


def test_reach_follows_a_turn_until_the_wrist_ends(env: BaseEnv) -> None:
    """The last joint starts nearer to one of its limits: of turns by 2.8 rad to both sides only one can be followed."""
    scene = Scene(env)
    rotation, position = scene.hand()
    reach = Reach(scene)
    before = scene.data.qpos.copy()
    up = np.array([0, 0, 1.0])
    small = reach.follow(reach.now, turned(up, 1.2) @ rotation, position)
    assert small is not None
    assert abs(abs(small[-1] - reach.now[-1]) - 1.2) < 0.4
    results = [reach.follow(reach.now, turned(up, angle) @ rotation, position) for angle in (2.8, -2.8)]
    assert sum(result is None for result in results) == 1
    assert np.array_equal(before, scene.data.qpos)


def test_stretch_grows_away_from_the_shoulder(env: BaseEnv) -> None:
    scene = Scene(env)
    rotation, position = scene.hand()
    reach = Reach(scene)
    away = np.array([[0, 0, 0], [0.1, 0, 0], [0.2, 0, 0]])
    assert (np.diff(reach.stretch(rotation, position + away)) > 0.05).all()
