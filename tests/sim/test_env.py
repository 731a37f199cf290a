"""The contract of a simulator environment, on robosuite's Lift (no download) and one LIBERO task."""

from __future__ import annotations

from collections.abc import Iterator

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from embodied import schema
from embodied.protocols import SimEnv
from sim.base_env import BaseEnv
from sim.make import gymnasium_ids, make_env

LIFT = ("robosuite", 0)
BOWL = ("libero_spatial", 0)
AGENT = {schema.IMAGE: "agentview"}
UP = np.array([0, 0, 0.5, 0, 0, 0, -1.0])


@pytest.fixture(scope="module", params=[LIFT, pytest.param(BOWL, marks=pytest.mark.libero)], ids=["lift", "bowl"])
def env(request: pytest.FixtureRequest) -> Iterator[BaseEnv]:
    env = make_env(*request.param, image_size=32)
    yield env
    env.close()


def test_it_is_a_sim_env_with_the_schemas_observation(env: BaseEnv) -> None:
    observation, info = env.reset(seed=1)
    assert isinstance(env, SimEnv)
    assert isinstance(env, gymnasium.Env)
    assert set(observation) == {schema.STATE, schema.TASK}
    assert observation[schema.STATE].shape == (8,)
    assert observation[schema.STATE].dtype == np.float32
    assert observation[schema.TASK] == env.task.language
    assert info["success"] is False
    seen = env.observe()
    assert set(seen) == {schema.STATE, schema.TASK, schema.IMAGE, schema.WRIST_IMAGE}
    assert seen[schema.IMAGE].shape == (32, 32, 3)
    assert seen[schema.IMAGE].dtype == np.uint8


def test_images_are_fresh_and_upright(env: BaseEnv) -> None:
    """The robot's base is at the top of the external view: raising the hand changes the image above, and every
    image shows the newest state, however many steps ran unseen."""
    env.reset(seed=1)
    before = env.observe()
    np.testing.assert_array_equal(before[schema.IMAGE], env.observe()[schema.IMAGE])
    result = env.run_steps(np.tile(UP, (6, 1)))
    after = env.observe()
    assert result.steps == 6
    assert after[schema.STATE][2] > before[schema.STATE][2] + 0.03
    changed = np.abs(after[schema.IMAGE].astype(int) - before[schema.IMAGE]).sum((1, 2))
    assert changed[:16].sum() > 2 * changed[16:].sum()


def test_images_of_a_moment_are_rendered_while_it_moves_on(env: BaseEnv) -> None:
    env.reset(seed=1)
    now = env.observe()
    later = env.images_later()
    env.run_steps(np.tile(UP, (3, 1)))
    for key, image in later.result().items():
        np.testing.assert_array_equal(image, now[key])
    assert np.any(env.observe()[schema.IMAGE] != now[schema.IMAGE])


def test_step_and_run_steps_do_the_same(env: BaseEnv) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 7))
    env.reset(seed=2)
    for action in actions:
        stepped, reward, terminated, truncated, info = env.step(action)
    assert (reward, terminated, truncated, info["success"]) == (0.0, False, False, False)
    env.reset(seed=2)
    assert env.run_steps(actions).steps == 4
    np.testing.assert_array_equal(env.observe(images=False)[schema.STATE], stepped[schema.STATE])


def test_another_instruction_reaches_the_policy_and_no_further(env: BaseEnv) -> None:
    observation, _ = env.reset(seed=1, options={"instruction": "do the other thing", "settle_steps": 0})
    assert observation[schema.TASK] == "do the other thing"
    observation, _ = env.reset(seed=1, options={"settle_steps": 0})
    assert observation[schema.TASK] == env.task.language


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_sate": 0}, "should be among"),
        ({"init_state": 10**6}, "init_state|no stored initial state"),
        ({"snapshot": {"init": np.zeros(3)}, "init_state": 1}, "leave one out"),
        ({"snapshot": {"init": np.zeros(3)}}, "should have .* numbers"),
        ({"snapshot": {"qpos": np.zeros(3)}}, "should hold 'init'"),
        ({"perturbation": "camera:obit=3"}, "did you mean 'orbit'"),
    ],
)
def test_wrong_options_say_what_is_right(env: BaseEnv, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        env.reset(seed=0, options=options)


def test_wrong_actions_are_refused(env: BaseEnv) -> None:
    env.reset(seed=0, options={"settle_steps": 0})
    with pytest.raises(ValueError, match="7 finite numbers"):
        env.step(np.zeros(6))
    with pytest.raises(ValueError, match="7 finite numbers"):
        env.run_steps(np.full((1, 7), np.nan))


def test_use_before_reset_is_an_error() -> None:
    with pytest.raises(ValueError, match="reset"):
        make_env(*LIFT).observe()
    with pytest.raises(ValueError, match="'on_request' or 'always'"):
        make_env(*LIFT, images="never")


def test_images_larger_than_the_simulators_buffer() -> None:
    """Seen in 7 x 7 patches, a large image is the small one."""
    env = make_env(*LIFT, cameras=AGENT, settle_steps=0)
    env.reset(seed=0)
    patches = []
    for size in (70, 700):
        env.image_size = size
        image = env.observe()[schema.IMAGE]
        assert image.shape == (size, size, 3)
        patches.append(image.reshape(7, size // 7, 7, size // 7, 3).mean((1, 3)))
    assert np.abs(patches[0] - patches[1]).mean() < 2
    assert patches[0].std() > 20
    env.close()


def test_truncation_at_the_tasks_limit(env: BaseEnv) -> None:
    env.reset(seed=0, options={"settle_steps": 0})
    env._steps = env.task.max_steps - 2
    assert env.step(UP)[3] is False
    assert env.step(UP)[3] is True


@pytest.mark.parametrize("images", ["on_request", "always"])
def test_gymnasiums_checker_passes(images: str) -> None:
    env = make_env(*LIFT, image_size=16, images=images, cameras=AGENT, settle_steps=1, render_mode="rgb_array")
    has_images = schema.IMAGE in env.observation_space.spaces
    assert has_images == (images == "always")
    try:
        check_env(env, skip_render_check=True)
        assert env.render().shape == (16, 16, 3)
    finally:
        env.close()


@pytest.mark.libero
def test_gymnasium_ids() -> None:
    assert "embodied/libero_10-v0" in gymnasium_ids()
    env = gymnasium.make("embodied/libero_object-v0", task=3, image_size=16)
    assert env.unwrapped.task.language == "pick up the bbq sauce and place it in the basket"
    observation, _ = env.reset(seed=0, options={"init_state": 5})
    assert observation in env.observation_space
    env.close()
    assert gymnasium.make("embodied/robosuite_pickplacemilk-v0").unwrapped.task.name == "PickPlaceMilk"


@pytest.mark.libero
def test_the_stored_init_state_is_where_the_episode_starts() -> None:
    from sim.tasks import init_states

    env = make_env(*BOWL)
    env.reset(seed=0, options={"init_state": 3, "settle_steps": 0})
    stored = init_states(*BOWL)[3]
    np.testing.assert_array_equal(env.sim.get_state().flatten(), stored)
    assert env.goal == [["on", "akita_black_bowl_1", "plate_1"]]
    env.close()
