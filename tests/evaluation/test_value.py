from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, spearmanr

from embodied.data.cache import FrameCache
from embodied.data.cache_build import CacheConfig, build_cache
from embodied.data.source import ColumnSpec, EpisodeInfo
from embodied.evaluation.value import (
    Curve,
    ValueConfig,
    auc,
    choose_episodes,
    spearman,
    value_curves,
    value_figures,
    wrong_instructions,
)
from embodied.evaluation.value_plot import draw_curves
from embodied.protocols import PolicySpec, Task
from embodied.registry import registry
from embodied.schema import ACTION, IMAGE, STATE, TASK
from sim.goals import SceneGoal

TEXTS = ("open the drawer", "push the plate", "turn on the stove")


class Memory:
    """Six episodes of 20 frames; the state's first number is the frame, the second the task."""

    def __init__(self) -> None:
        self.name, self.fps = "small", 20.0
        self.cameras = {IMAGE: (8, 8)}
        self.columns = {STATE: ColumnSpec("float32", (8,)), ACTION: ColumnSpec("float32", (7,))}
        suites = ["libero_goal"] * 5 + ["elsewhere"]
        self.episodes = [EpisodeInfo(i, 20, TEXTS[i % 3], suite=suites[i], success=i != 4) for i in range(6)]

    def read_columns(self, episode):
        state = np.zeros((20, 8), np.float32)
        state[:, 0], state[:, 1], state[:, 2] = np.arange(20), episode % 3, episode == 4
        return {STATE: state, ACTION: np.zeros((20, 7), np.float32)}

    def read_frames(self, episode, camera):
        return np.zeros((20, 8, 8, 3), np.uint8)


class Oracle:
    """gamma^(steps to go) in the log under the right words, far below under others; failed episodes stay low."""

    spec = PolicySpec("oracle", "0", chunk=5, replan=1, image_keys=(IMAGE,))

    def value(self, observation, actions, instructions):
        assert actions.shape == (len(instructions), 5, 7)
        right = np.array([TEXTS.index(word) for word in instructions]) == observation[STATE][:, 1]
        low = np.where(right, 0.0, -50.0) - 20 * observation[STATE][:, 2]
        return (19 - observation[STATE][:, 0]) * np.log(0.9) + low


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> FrameCache:
    return build_cache(
        Memory(), tmp_path_factory.mktemp("value") / "cache", CacheConfig(size=[8], image_statistics=False)
    )


def test_wrong_instructions_come_from_the_scene_where_tasks_do_not_share_one(cache, monkeypatch):
    tasks = [Task("elsewhere", 0, "plate", TEXTS[2], 10)]
    targets = {f"{__name__}.listed_tasks", f"{__name__}.listed_goals"}
    monkeypatch.setattr(registry(), "targets", registry().targets | targets)
    monkeypatch.setitem(globals(), "listed_tasks", lambda suite: tasks)
    monkeypatch.setitem(globals(), "listed_goals", lambda task: [SceneGoal("wave", [["on", "a"]])])
    config = ValueConfig(
        listed=["elsewhere"], task_list=f"{__name__}.listed_tasks", goal_list=f"{__name__}.listed_goals"
    )
    found = wrong_instructions(cache, config)
    assert found[5] == ["wave"]
    assert found[0] == [TEXTS[1], TEXTS[2]]
    other_goal = replace(cache.episodes.infos[5], task="wave", task_index=0)  # another goal in the scene of task 0
    monkeypatch.setattr(cache.episodes, "infos", [*cache.episodes.infos[:5], other_goal])
    assert wrong_instructions(cache, config)[5] == [TEXTS[2]]


def test_statistics_against_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 40), rng.integers(0, 6, 30)
    assert spearman(a[:30], b) == pytest.approx(spearmanr(a[:30], b).statistic)
    assert auc(a, b) == pytest.approx(mannwhitneyu(a, b).statistic / (40 * 30))
    assert spearman(np.ones(5), np.arange(5)) == 0


def test_curves_and_figures_of_an_oracle(cache):
    curves = value_curves(Oracle(), cache, ValueConfig(stride=3, tries=5))
    assert [len(curve.instructions) for curve in curves] == [3, 3, 3, 3, 3, 1]  # the last suite shares no scene
    assert all(curve.instructions[0] == TEXTS[curve.episode % 3] for curve in curves)
    assert curves[0].frames.tolist() == [0, 3, 6, 9, 12, 15]  # the chunk at 18 would leave the episode
    assert curves[0].steps_to_go.tolist() == [19, 16, 13, 10, 7, 4]
    figures = value_figures(curves, gamma=0.9)
    assert figures["spearman_median"] == pytest.approx(1.0)
    assert figures["auc_wrong"] == 1.0
    assert figures["time.auc_wrong"] == 0.5
    assert figures["slope_median"] == pytest.approx(1.0, abs=1e-5)
    assert figures["failures"] == 1
    assert figures["failures.end_median"] < figures["successes.end_p10"]


def test_a_value_without_language_has_no_auc():
    values = np.repeat(np.arange(10.0)[:, None], 3, axis=1)
    curve = Curve(0, "s", TEXTS, np.arange(10), np.arange(10)[::-1], values, 1)
    figures = value_figures([curve])
    assert figures["auc_wrong"] == 0.5
    assert figures["spearman_median"] == pytest.approx(1.0)
    assert "slope_median" not in figures


def test_episodes_are_chosen_as_training_left_them_out(cache):
    from embodied.data.windows import split_episodes

    held = split_episodes(cache, 0.5, 3)[1]
    assert choose_episodes(cache, ValueConfig(held_out=0.5, seed=3)).tolist() == held.tolist()
    assert choose_episodes(cache, ValueConfig(limit_per_task=1)).tolist() == [0, 1, 2]
    assert choose_episodes(cache, ValueConfig(suites=["elsewhere"])).tolist() == [5]


def test_wrong_instructions_from_a_file(cache, tmp_path: Path):
    (tmp_path / "wrong.json").write_text(json.dumps({TEXTS[0]: [TEXTS[2]]}))
    curves = value_curves(Oracle(), cache, ValueConfig(wrong=str(tmp_path / "wrong.json"), limit_per_task=1))
    assert [curve.instructions for curve in curves] == [(TEXTS[0], TEXTS[2]), (TEXTS[1],), (TEXTS[2],)]
    draw_curves(curves, tmp_path / "value.png")
    assert (tmp_path / "value.png").stat().st_size > 5000


def test_errors_say_what_to_do(cache):
    class Plain:
        spec = Oracle.spec

    with pytest.raises(ValueError, match="should have a value"):
        value_curves(Plain(), cache, ValueConfig())
    with pytest.raises(ValueError, match="no episode is left"):
        value_curves(Oracle(), cache, ValueConfig(suites=["none"]))


def test_task_key_is_the_tried_instruction(cache):
    seen = set()

    class Spy(Oracle):
        def value(self, observation, actions, instructions):
            assert observation[TASK] == instructions
            seen.update(instructions)
            return super().value(observation, actions, instructions)

    value_curves(Spy(), cache, ValueConfig(limit_per_task=1))
    assert seen == set(TEXTS)
