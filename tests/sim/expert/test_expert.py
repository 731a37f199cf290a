"""The expert in real scenes: it succeeds, repeats itself exactly, takes other goals and refuses impossible ones."""

from __future__ import annotations

import numpy as np
import pytest

from embodied.protocols import Expert as ExpertProtocol
from sim.base_env import BaseEnv
from sim.expert.check import numbers, run_episode, table
from sim.expert.controller import turned
from sim.expert.expert import Expert, ordered
from sim.expert.goals import in_box, on_top
from sim.expert.imagination import imagined
from sim.make import make_env


def actions_of(env: BaseEnv, expert: Expert, seed: int, limit: int, **options: object) -> np.ndarray:
    env.reset(seed=seed, options=options)
    expert.reset(env, seed)
    actions = []
    while len(actions) < limit:
        chunk = expert.act(env)
        if expert.done:
            break
        assert chunk.shape == (1, 7)
        assert np.abs(chunk).max() <= 1
        env.run_steps(chunk, stop_at_success=False)
        actions.extend(chunk)
    return np.array(actions)


def test_lifts_and_repeats_itself() -> None:
    env = make_env("robosuite", 0)
    first = actions_of(env, Expert(), 5, 80)
    assert env.success()
    again = actions_of(env, Expert(), 5, 80)
    other = actions_of(env, Expert(), 6, 80)
    env.close()
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)


def test_planning_leaves_the_simulation_alone() -> None:
    env = make_env("robosuite", 1)
    env.reset(seed=1)
    data = env.sim.data._data
    before = [np.array(getattr(data, name)) for name in ("qpos", "qvel", "qacc_warmstart", "ctrl", "xpos", "time")]
    expert = Expert()
    expert.reset(env, 1)
    assert isinstance(expert, ExpertProtocol)
    expert.act(env)
    body = expert.goals.body("cubeA")
    target = expert.scene.pose(expert.goals.body("cubeB"))
    with imagined(expert.scene, body, target[0], target[1] + [0, 0, 0.3]):
        assert np.allclose(expert.scene.pose(body)[1], target[1] + [0, 0, 0.3])
    after = [np.array(getattr(data, name)) for name in ("qpos", "qvel", "qacc_warmstart", "ctrl", "xpos", "time")]
    env.close()
    assert env_unchanged(before, after)


def env_unchanged(before: list[np.ndarray], after: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_unknown_goal_is_refused() -> None:
    env = make_env("robosuite", 0)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="use one of cube"):
        Expert(goal=[["lifted", "teapot"]]).reset(env, 0)
    env.close()


@pytest.mark.parametrize("share", ["pace", "contact"])
def test_its_speed_is_part_of_what_it_is(share: str) -> None:
    slow = Expert(**{share: 0.5})
    assert slow.spec.digest != Expert().spec.digest == Expert(**{share: 1.0}).spec.digest
    with pytest.raises(ValueError, match=rf"{share} should lie in \(0, 1\], got 0"):
        Expert(**{share: 0})


def test_order_of_goals() -> None:
    bowl, tray = ["on", "bowl", "tray_bowl"], ["in", "tray_bowl", "tray"]
    close, turn = ["close", "drawer"], ["turnon", "stove"]
    assert ordered([close, bowl, tray, turn]) == [turn, tray, bowl, close]


def test_digest_tells_goals_apart() -> None:
    assert Expert().spec.digest == Expert().spec.digest
    assert Expert().spec.digest != Expert(goal=[["lifted", "cube"]]).spec.digest


def test_check_reads_ranges_and_counts() -> None:
    assert numbers("0,2,5-7") == [0, 2, 5, 6, 7]
    record = {"task": 3, "success": True, "first": 60, "steps": 80, "planning_s": 1.0, "stepping_s": 2.0}
    failed = {**record, "success": False, "first": None}
    assert table([record, failed]).splitlines()[1].split() == ["3", "1", "2", "60", "80", "0.50"]


def test_nut_goes_over_its_peg_and_is_let_go() -> None:
    env = make_env("robosuite", 7)
    result = run_episode(env, Expert(), 1003, None, stop=False)
    fingers = env.robosuite_env.sim.data._data.qpos[7:9]
    env.close()
    assert result["success"]
    assert result["steps"] < 200
    assert np.abs(fingers).min() > 0.03


@pytest.mark.libero
def test_puts_the_soup_into_the_basket_and_lets_go() -> None:
    env = make_env("libero_object", 0)
    result = run_episode(env, Expert(), 7, 0, stop=False)
    fingers = env.robosuite_env.sim.data._data.qpos[7:9]
    env.close()
    assert result["success"]
    assert result["steps"] < 160
    assert np.abs(fingers).min() > 0.03


@pytest.mark.libero
def test_the_arm_is_not_stretched_where_another_grasp_will_do() -> None:
    """The bowl next to the cookie box: past -0.47 rad the elbow runs into its limit and the hand stands still."""
    env = make_env("libero_spatial", 6)
    env.reset(seed=0)
    expert, elbow = Expert(), []
    expert.reset(env, 0)
    while not expert.done and len(elbow) < env.task.max_steps:
        env.run_steps(expert.act(env), stop_at_success=False)
        elbow.append(env.sim.data.get_joint_qpos("robot0_joint4"))
    assert env.success()
    env.close()
    assert max(elbow) < -0.7


@pytest.mark.libero
def test_another_goal_in_the_same_scene() -> None:
    env = make_env("libero_object", 0)
    expert = Expert(goal=[["in", "milk_1", "basket_1_contain_region"]])
    actions_of(env, expert, 7, 200, init_state=0)
    succeeded, own = expert.success(), env.success()
    env.close()
    assert succeeded
    assert not own


@pytest.mark.libero
def test_regions_are_liberos_own() -> None:
    from sim.libero_setup import import_libero

    import_libero()
    from libero.libero.envs.objects.site_object import SiteObject

    random = np.random.default_rng(0)
    for _ in range(20):
        turn = random.uniform(-np.pi, np.pi)
        rotation = turned(np.array([0, 0, 1.0]), turn) @ turned(np.array([0, 1.0, 0]), np.pi / 2)
        position, size = random.normal(size=3), random.uniform(0.02, 0.1, 3)
        site = SiteObject("site", size=size)
        points = position + random.uniform(-0.2, 0.2, (200, 3))
        inside = [bool(site.in_box(position, rotation, p)) for p in points]
        above = [bool(site.under(position, rotation, p)) for p in points]
        assert in_box(points, position, rotation, size).tolist() == inside
        assert on_top(points, position, rotation, size).tolist() == above
