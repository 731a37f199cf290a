"""The worker's side of an evaluation: one environment, stepped by chunks, observed only when the policy looks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from embodied.evaluation.records import state_digest
from embodied.protocols import Episode, Expert, Observation, PolicySpec, SimEnv
from embodied.schema import ACTION_DIM, STATE, TASK

TURN = 20  # steps of an expert between two messages


@dataclass(frozen=True)
class View:
    """What came of one message: the steps it took, and what the policy needs for the next."""

    steps: int
    success: bool
    observation: Observation | None
    sim_s: float
    policy_s: float = 0.0
    actions: np.ndarray | None = None  # (n, 7) as executed; only where the worker chose them
    snapshot: dict[str, np.ndarray] | None = None  # of the episode's start
    end: str = ""
    words: str = ""  # what the environment asks for; of the episode's start
    finished: bool = False  # the expert has no more to do


class Rollout:
    """Runs episodes of one task. Built in a worker process: `env` (and an expert) come from the registry."""

    def __init__(self, env: SimEnv, expert: Expert | None = None) -> None:
        self.env = env
        self.expert = expert

    def start(
        self, episode: Episode, images: bool, snapshot: Mapping[str, np.ndarray] | None = None, wanted: bool = True
    ) -> View:
        """Resets to an episode's start, settled. With `wanted`, observes it, with images or without."""
        began = time.perf_counter()
        reset(self.env, episode, snapshot)
        seen = self.env.observe(images=images and wanted)
        seconds, snapshot = time.perf_counter() - began, self.env.snapshot()
        view = View(0, False, seen if wanted else None, seconds, snapshot=snapshot, words=seen[TASK])
        if self.expert is None:
            return view
        began = time.perf_counter()
        self.expert.reset(self.env, episode.seed)
        return replace(view, policy_s=time.perf_counter() - began)

    def advance(self, actions: np.ndarray, images: bool, last: bool) -> View:
        """Executes actions (n, 7) up to success, then observes. `last`: the episode ends after these, nobody looks."""
        began = time.perf_counter()
        result = self.env.run_steps(actions)
        over = last or result.success
        observation = self.env.observe(images=images and not over)
        seconds = time.perf_counter() - began
        return View(result.steps, result.success, None if over else observation, seconds, end=_end(observation))

    def demonstrate(self, limit: int) -> View:
        """The expert's next decisions, executed: about `TURN` steps, at most `limit`, up to success."""
        assert self.expert is not None
        executed: list[np.ndarray] = []
        steps, success, sim_s, policy_s = 0, False, 0.0, 0.0
        while not success and not self.expert.done and steps < min(limit, TURN):
            began = time.perf_counter()
            actions = np.asarray(self.expert.act(self.env), np.float32)[: limit - steps]
            decided = time.perf_counter()
            result = self.env.run_steps(actions)
            sim_s, policy_s = sim_s + time.perf_counter() - decided, policy_s + decided - began
            executed.append(actions[: result.steps])
            steps, success = steps + result.steps, result.success
        done = np.concatenate(executed) if executed else np.zeros((0, ACTION_DIM), np.float32)
        end = _end(self.env.observe(images=False))
        return View(steps, success, None, sim_s, policy_s, done, end=end, finished=bool(self.expert.done))

    def close(self) -> None:
        self.env.close()


class Probe:
    """Tells the parent what an expert is, so that only workers import it."""

    def __init__(self, expert: Expert) -> None:
        self.expert = expert

    def spec(self) -> PolicySpec:
        return self.expert.spec


def reset(env: SimEnv, episode: Episode, snapshot: Mapping[str, np.ndarray] | None = None) -> None:
    """Starts an episode: from a snapshot where there is one, else from its stored state, else from its seed."""
    options: dict[str, Any] = {}
    if snapshot:
        options["snapshot"] = dict(snapshot)
    elif episode.init_state is not None:
        options["init_state"] = episode.init_state
    if episode.perturbation != "none":
        options["perturbation"] = episode.perturbation
    if episode.instruction is not None:
        options["instruction"] = episode.instruction
    env.reset(seed=episode.seed, options=options)


def _end(observation: Observation) -> str:
    return state_digest({STATE: observation[STATE]})
