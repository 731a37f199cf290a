"""Settings of `embodied evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from embodied.evaluation.runner import Batching
from embodied.protocols import Episode, Task
from embodied.registry import registry


class Starts(Enum):
    """Where episodes start: the suite's stored initial states, or scenes drawn from the seed."""

    auto = "auto"  # stored where the suite has them
    stored = "stored"
    random = "random"


@dataclass
class Catalogue:
    """Registered functions that list a suite without building a simulator."""

    tasks: str = "sim.tasks.tasks"  # suite -> list[Task]
    stored: str = "sim.tasks.count_init_states"  # suite, task -> how many stored initial states


@dataclass
class EvaluateConfig:
    """`episodes` of every task and perturbation: trial i starts from initial state `first` + i with seed `seed` + i."""

    env: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    catalogue: Catalogue = field(default_factory=Catalogue)
    tasks: list[int] | None = None  # all
    episodes: int = 10
    first: int = 0
    starts: Starts = Starts.auto
    seed: int = 7
    workers: int = 2
    torch_threads: int = 1  # of the policy; the simulators need the cores
    replan: int | None = None  # actions executed between two looks; the policy's own
    max_steps: int | None = None  # the protocol's own; anything else is no published number
    max_attempts: int = 3
    batching: Batching = Batching.together
    instruction: str | None = None  # said to the policy in place of the task's words
    perturbations: list[str] = field(default_factory=lambda: ["none"])
    values: int | None = None  # trace the policy's value: its own instruction and so many of the run's other tasks
    videos: int = 6
    video_size: int = 256  # pixels, of each camera
    video_stride: int = 1  # every n-th state, at the true speed: 2 renders half as much, at 10 frames a second
    report: bool = True
    retry_errors: bool = False  # when resuming: run episodes again that ended in errors
    call_timeout: float = 300.0  # seconds until a worker that does not answer counts as hung
    run: str | None = None  # run folder; an existing one is resumed


def suite_tasks(config: EvaluateConfig) -> dict[int, Task]:
    """The chosen tasks by index, with their limits. ValueError for an index that the suite does not have."""
    if "suite" not in config.env or "_target_" not in config.env:
        raise ValueError("an evaluation needs an environment: add env=... to the command")
    if config.env["_target_"] not in registry().targets:
        registry().resolve(config.env["_target_"])  # refuses it here, before any worker does
    listed = {task.index: task for task in registry().resolve(config.catalogue.tasks)(config.env["suite"])}
    chosen = sorted(set(listed if config.tasks is None else config.tasks))
    unknown = [index for index in chosen if index not in listed]
    if unknown or not chosen:
        raise ValueError(f"tasks of {config.env['suite']} should be among 0..{max(listed)}, got {config.tasks}")
    if config.max_steps is None:
        return {index: listed[index] for index in chosen}
    return {index: _limited(listed[index], config.max_steps) for index in chosen}


def _limited(task: Task, max_steps: int) -> Task:
    if max_steps < 1:
        raise ValueError(f"max_steps should be at least 1, got {max_steps}")
    return Task(task.suite, task.index, task.name, task.language, max_steps)


def list_episodes(config: EvaluateConfig, tasks: Mapping[int, Task]) -> list[Episode]:
    """All episodes that the settings ask for. ValueError when a task has fewer stored initial states."""
    if config.episodes < 1 or config.first < 0:
        raise ValueError(f"episodes should be at least 1 and first at least 0, got {config.episodes}, {config.first}")
    if not config.perturbations:
        raise ValueError("perturbations should name at least one, 'none' for the plain scene")
    return [
        Episode(task.suite, index, config.seed + trial, trial if stored else None, perturbation, config.instruction)
        for index, task in tasks.items()
        for stored in [_from_stored(config, task)]
        for perturbation in config.perturbations
        for trial in range(config.first, config.first + config.episodes)
    ]


def _from_stored(config: EvaluateConfig, task: Task) -> bool:
    if config.starts is Starts.random:
        return False
    count = registry().resolve(config.catalogue.stored)(task.suite, task.index)
    last = config.first + config.episodes
    if config.starts is Starts.auto and count == 0:
        return False
    if last > count:
        raise ValueError(
            f"{task.suite} task {task.index} has {count} stored initial states, first + episodes asks for {last}: "
            "ask for fewer or use starts=random"
        )
    return True
