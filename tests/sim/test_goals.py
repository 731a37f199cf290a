"""Other goals of a scene: read from the problem files, judged by the simulator's own predicate."""

from __future__ import annotations

import pytest

from embodied.protocols import Episode
from sim.expert.expert import Expert
from sim.goals import goal_of, other_goals
from sim.make import make_env
from sim.tasks import get_task, tasks

pytestmark = pytest.mark.libero


def test_other_objects_go_into_the_same_basket() -> None:
    soup = get_task("libero_object", 0)
    assert goal_of(soup) == [["in", "alphabet_soup_1", "basket_1_contain_region"]]
    goals = other_goals(soup)
    assert goals[2].words == "pick up the milk and place it in the basket"
    assert goals[2].predicates == [["in", "milk_1", "basket_1_contain_region"]]
    for task in tasks("libero_object"):
        assert len({goal.words for goal in other_goals(task)} | {task.language}) == 6


def test_libero_goals_tasks_are_each_others_other_goals() -> None:
    for task in tasks("libero_goal"):
        words = {goal.words for goal in other_goals(task)}
        assert words == {other.language for other in tasks("libero_goal")} - {task.language}
    with pytest.raises(ValueError, match="libero_goal and libero_spatial, got libero_10"):
        other_goals(get_task("libero_10", 0))


def test_the_second_bowl_is_named_as_the_task_names_it_whose_bowl_starts_there() -> None:
    found = {task.index: other_goals(task) for task in tasks("libero_spatial")}
    assert all(len(goals) == 1 for goals in found.values())
    assert {goals[0].predicates[0][1] for goals in found.values()} == {"akita_black_bowl_2"}
    languages = [task.language for task in tasks("libero_spatial")]
    assert [languages.index(found[i][0].words) for i in range(10)] == [1, 6, 8, 9, 9, 3, 7, 9, 1, 7]


@pytest.fixture(scope="module")
def env():
    env = make_env(suite="libero_object", task=0)
    yield env
    env.close()


@pytest.mark.parametrize(("suite", "index"), [("libero_spatial", 3), ("libero_10", 2), ("libero_90", 17)])
def test_goals_are_those_that_the_simulator_reads(suite: str, index: int) -> None:
    env = make_env(suite=suite, task=index)
    try:
        env.reset(seed=0)
        assert env.goal == goal_of(get_task(suite, index))
    finally:
        env.close()


def test_the_predicate_and_the_words_change_for_one_episode(env) -> None:
    env.reset(seed=3, options={"init_state": 20, "perturbation": "goal:other=3"})
    assert env.goal == [["in", "milk_1", "basket_1_contain_region"]]
    assert env.observe()["task"] == "pick up the milk and place it in the basket"
    expert = Expert()
    expert.reset(env, 3)
    success, steps = False, 0
    while not success and not expert.done and steps < env.task.max_steps:
        result = env.run_steps(expert.act(env))
        success, steps = result.success, steps + result.steps
    assert success
    snapshot = env.snapshot()
    env.reset(seed=3, options={"init_state": 20})
    assert env.goal == goal_of(env.task)
    assert env.observe()["task"] == env.task.language
    env.reset(options={"snapshot": snapshot})
    assert env.goal == [["in", "milk_1", "basket_1_contain_region"]]
    with pytest.raises(ValueError, match=r"has other goals 1..5, got 6"):
        env.reset(seed=3, options={"perturbation": "goal:other=6"})
    assert Episode("libero_object", 0, 3, 20, "goal:other=3").key.endswith("/i20/s3/goal:other=3")


def test_rewordings_are_of_the_other_goals_words(env) -> None:
    env.reset(seed=3, options={"init_state": 20, "perturbation": "goal:other=3+language:paraphrase=2"})
    assert "milk" in env.instruction
    assert "soup" not in env.instruction
