"""Which episodes a collection consists of: decided before anything runs, so that it can be resumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embodied.collecting.config import CollectConfig, Noisy
from embodied.data.episode_record import episode_key
from embodied.protocols import Task
from embodied.registry import registry

SEEDS_PER_TASK = 1000
LEAD_STREAM = 21  # keeps the lead apart from what else is drawn from the episode's seed


@dataclass(frozen=True)
class PlannedEpisode:
    """One episode to record. `goal` None: the task's own. `variant` tells goals of one scene apart. `lead`: steps that
    the learner drives first."""

    suite: str
    task: int
    seed: int
    noise: float
    max_steps: int
    goal: list[list[str]] | None = None
    instruction: str | None = None
    lead: int = 0
    noise_memory: float = 0.0
    noise_free: bool = False

    @property
    def variant(self) -> str:
        return self.instruction or ""

    @property
    def key(self) -> str:
        how = (self.noise_memory, self.noise_free)
        return episode_key(self.suite, self.task, self.seed, self.noise, self.lead, self.variant, *how)


def plan_episodes(config: CollectConfig, tasks: Sequence[Task]) -> list[PlannedEpisode]:
    """All episodes, task by task. The goals of one scene share its seeds. ValueError for tasks that do not exist."""
    if not 1 <= config.episodes <= SEEDS_PER_TASK:
        raise ValueError(
            f"episodes should be 1 to {SEEDS_PER_TASK} per task (each has its seeds), got {config.episodes}"
        )
    if not 0 <= config.noise_memory < 1:
        raise ValueError(f"noise_memory should lie in [0, 1), got {config.noise_memory}")
    known = {task.index: task for task in tasks}
    wanted = list(config.tasks) or sorted(known)
    missing = [index for index in [*wanted, *(goal.task for goal in config.goals)] if index not in known]
    if missing:
        raise ValueError(f"tasks should be among 0 to {max(known)} of {tasks[0].suite}, got {missing[0]}")
    return [episode for index in wanted for episode in _of_task(config, known[index])]


def _of_task(config: CollectConfig, task: Task) -> list[PlannedEpisode]:
    goals: list[tuple[list[list[str]] | None, str | None]] = [(None, None)] if config.own_goals else []
    goals += [(goal.goal, goal.instruction) for goal in config.goals if goal.task == task.index]
    goals += _other_goals(config, task)
    limit = config.max_steps or task.max_steps
    first = config.seed + SEEDS_PER_TASK * task.index
    return [
        PlannedEpisode(
            task.suite,
            task.index,
            first + number,
            _noise(config, number),
            limit,
            goal,
            words,
            _lead(config, first + number),
            config.noise_memory if _noise(config, number) else 0.0,
            config.noise_free and _noise(config, number) > 0,
        )
        for goal, words in goals
        for number in range(config.episodes)
    ]


def _other_goals(config: CollectConfig, task: Task) -> list[tuple[list[list[str]] | None, str | None]]:
    if not config.other_goals:
        return []
    listed = registry().resolve(config.goal_list)(task)
    wrong = [number for number in config.other_goals if not 1 <= number <= len(listed)]
    if wrong:
        raise ValueError(f"other_goals of {task.name} should be among 1 to {len(listed)}, got {wrong[0]}")
    return [(listed[number - 1].predicates, listed[number - 1].words) for number in config.other_goals]


def _lead(config: CollectConfig, seed: int) -> int:
    if config.learner is None:
        return 0
    if len(config.lead) != 2 or not 1 <= config.lead[0] <= config.lead[1]:
        raise ValueError(f"lead should be the least and the most steps of the learner, from 1 on, got {config.lead}")
    return int(np.random.default_rng([LEAD_STREAM, seed]).integers(config.lead[0], config.lead[1] + 1))


def _noise(config: CollectConfig, number: int) -> float:
    noisy = config.noisy is Noisy.every or (config.noisy is Noisy.odd and number % 2 == 1)
    return config.noise if noisy else 0.0
