"""The simulator at the world model's detail, judged by a classifier: the controls of env=imagined."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import gymnasium
import numpy as np
import pytest

from embodied.protocols import SimEnv, StepsResult, Task
from embodied.schema import IMAGE, STATE, TASK, WRIST_IMAGE
from world_models.persist.judged_env import JudgedEnv
from world_models.persist.judging import Judge


class Brightening(gymnasium.Env):
    """Every step makes the images brighter by one; the simulator itself is content from step 4 on."""

    task, control_hz = Task("bright", 0, "bright", "wait", 12), 20
    action_space = observation_space = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        self.steps = 0
        return self.observe(False), {"success": False, "seed": seed}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self.steps += 1
        return self.observe(False), 0.0, self.steps >= 4, False, {"success": self.steps >= 4}

    def run_steps(self, actions: np.ndarray) -> StepsResult:
        for number, action in enumerate(actions, 1):
            if self.step(action)[2]:
                return StepsResult(number, True)
        return StepsResult(len(actions), False)

    def observe(self, images: bool = True) -> dict[str, Any]:
        seen = self.images_later().result() if images else {}
        return {STATE: np.zeros(8, np.float32), TASK: "wait", **seen}

    def images_later(self) -> Future[dict[str, np.ndarray]]:
        later: Future[dict[str, np.ndarray]] = Future()
        image = np.zeros((16, 16, 3), np.uint8) + np.uint8(self.steps)
        image[::2] += 100
        later.set_result({IMAGE: image, WRIST_IMAGE: image})
        return later

    def snapshot(self) -> dict[str, np.ndarray]:
        return {"init": np.zeros(1)}


def test_without_a_judge_success_is_the_simulators_and_detail_is_lost() -> None:
    env = JudgedEnv(Brightening(), size=8)
    assert isinstance(env, SimEnv)
    env.reset(seed=1)
    assert env.run_steps(np.zeros((6, 7))) == StepsResult(4, True)
    image = env.observe()[IMAGE]
    assert image.shape == (16, 16, 3)
    assert np.ptp(image) < 20  # stripes one pixel wide, 100 apart, are all but gone
    assert np.array_equal(env.images_later().result()[IMAGE], image)


def test_the_judge_sees_every_second_frame_and_the_simulator_goes_on() -> None:
    seen: list[tuple[int, str]] = []

    def probability(images: Any, words: str) -> float:
        assert images[IMAGE].shape == (8, 8, 3)
        seen.append((round(images[IMAGE].mean()), words))
        return 1.0 if seen[-1][0] >= 54 else 0.0

    env = JudgedEnv(Brightening(), size=8, judge=Judge(probability, patience=2), every=2)
    env.reset(seed=1)
    assert env.run_steps(np.zeros((5, 7))) == StepsResult(5, False)  # done at 4 says the simulator, once says the judge
    assert env.run_steps(np.zeros((5, 7))) == StepsResult(1, True)
    assert seen == [(52, "wait"), (54, "wait"), (56, "wait")]
    env.reset(seed=1)
    assert not env.run_steps(np.zeros((3, 7))).success


def test_an_episode_that_the_judge_never_likes_is_truncated() -> None:
    env = JudgedEnv(Brightening(), size=8, judge=Judge(lambda images, words: 0.2))
    env.reset(seed=1)
    env.run_steps(np.zeros((11, 7)))
    _, reward, terminated, truncated, info = env.step(np.zeros(7))
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info == {"success": True, "judged": False}


def test_frames_that_are_done_count_only_in_a_row() -> None:
    verdicts = iter([0.9, 0.4, 0.9, 0.9])
    judge = Judge(lambda images, words: next(verdicts), patience=2)
    assert [judge.see({}) for _ in range(4)] == [False, False, False, True]
    judge.begin("again")
    assert not judge.success


@pytest.mark.parametrize("wrong", [{"threshold": 1.5}, {"patience": 0}])
def test_a_judge_that_cannot_judge_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="threshold should lie in"):
        Judge(lambda images, words: 0.0, **wrong)


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="size and every should be 1 or more, got 0 and 2"):
        JudgedEnv(Brightening(), size=0)
