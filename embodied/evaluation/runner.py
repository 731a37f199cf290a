"""Runs episodes on worker processes with the policy in one place, and appends one record an episode.

The policy sees all slots that wait at once; a simulator executes `replan` actions and only then looks again. An
exception, crash or hang of a worker costs that episode's attempt, never the run: after `max_attempts` it is recorded
as an error. What the policy itself raises ends the run, and so does a simulator that fails in episode after episode;
the run can then be resumed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import numpy as np

from embodied.evaluation.records import Attempt, Outcome, Record, RunFolder, Trajectory
from embodied.evaluation.rollout import View
from embodied.evaluation.schedule import Job, Schedule
from embodied.evaluation.value_trace import ValueTrace, instructions, values_of
from embodied.evaluation.versions import versions
from embodied.protocols import Episode, Observation, Policy, PolicySpec, Task
from embodied.workers import Reply, WorkerError, WorkerPool

ROLLOUT = "rollout"
ROLLOUT_TARGET = "embodied.evaluation.rollout.Rollout"


class Batching(Enum):
    """`together`: one call for all waiting slots. `single`: one call a slot, so that no float depends on company."""

    together = "together"
    single = "single"


@dataclass
class RunSettings:
    """How the episodes of one run are executed. `replan` None: the policy's own."""

    env: Mapping[str, Any]
    tasks: Mapping[int, Task]
    replan: int | None = None
    max_attempts: int = 3
    batching: Batching = Batching.together
    call_timeout: float = 300.0
    give_up_after: int = 5
    control_hz: int = 20
    values: int | None = None  # other instructions whose values are traced beside the episode's own


@dataclass
class _Slot:
    """One episode under way on one worker."""

    job: Job
    task: Task
    phase: str = "build"  # build, start, run
    steps: int = 0
    actions: list[np.ndarray] = field(default_factory=list)
    snapshot: dict[str, np.ndarray] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)
    sim_s: float = 0.0
    policy_s: float = 0.0
    rss_mb: float = 0.0
    end: str = ""
    words: str = ""  # as the environment said them
    trace: ValueTrace | None = None

    @property
    def episode(self) -> Episode:
        return self.job.episode


class Runner:
    """One pass over a list of episodes. `policy` is an object for batched inference here, or an expert's config."""

    def __init__(
        self,
        pool: WorkerPool,
        folder: RunFolder,
        settings: RunSettings,
        spec: PolicySpec,
        policy: Policy | None,
        expert: Mapping[str, Any] | None = None,
        on_record: Callable[[Record], None] = lambda _: None,
    ) -> None:
        if (policy is None) == (expert is None):
            raise ValueError("a run needs a policy here or an expert in the workers, one of the two")
        self.pool, self.folder, self.settings = pool, folder, settings
        self.spec, self.policy, self.expert = spec, policy, expert
        self.on_record = on_record
        self.replan = effective_replan(spec, settings.replan)
        self.slots: dict[int, _Slot] = {}
        self.errors_in_a_row = 0
        self.places: dict[int, tuple[str, int]] = {}  # worker -> the task whose environment it has

    def run(self, episodes: Sequence[Episode]) -> None:
        """Runs all of them; every one is in the folder's records afterwards."""
        schedule = Schedule(episodes)
        while schedule or self.slots:
            self._fill(schedule)
            waiting = [self._handle(reply, schedule) for reply in self.pool.wait()]
            self._act(dict(filter(None, waiting)))

    def _fill(self, schedule: Schedule) -> None:
        """Gives every idle worker an episode; the environment of another task is freed first."""
        for worker in range(self.pool.count):
            if worker in self.slots:
                continue
            here = self.places.get(worker)
            job = schedule.take(here, [place for w, place in self.places.items() if w != worker])
            if job is None:
                return
            slot = self.slots[worker] = _Slot(job, self.settings.tasks[job.episode.task])
            place = (job.episode.suite, job.episode.task)
            if place == here:
                self._start(worker, slot)
            else:
                self.places[worker] = place
                self.pool.submit_build(worker, ROLLOUT, self._rollout(slot), timeout=self.settings.call_timeout)

    def _rollout(self, slot: _Slot) -> dict[str, Any]:
        env = {**self.settings.env, "task": slot.episode.task}
        config: dict[str, Any] = {"_target_": ROLLOUT_TARGET, "env": env}
        return config if self.expert is None else {**config, "expert": dict(self.expert)}

    def _start(self, worker: int, slot: _Slot) -> None:
        slot.phase = "start"
        snapshot = None
        if self.policy is not None:
            self.policy.reset([worker], [slot.episode])
            snapshot = getattr(self.policy, "snapshot", lambda _: None)(slot.episode)
        self._submit(worker, "start", slot.episode, bool(self.spec.image_keys), snapshot, self.policy is not None)

    def _submit(self, worker: int, method: str, *arguments: Any) -> None:
        self.pool.submit(worker, ROLLOUT, method, *arguments, timeout=self.settings.call_timeout)

    def _handle(self, reply: Reply, schedule: Schedule) -> tuple[int, Observation] | None:
        """Takes in one reply. Returns the worker and what it sees when the policy has to act next."""
        worker, slot = reply.worker, self.slots[reply.worker]
        if reply.error is not None:
            self._failed(worker, slot, reply.error, schedule)
            return None
        slot.rss_mb = reply.rss_mb
        if slot.phase == "build":
            self._start(worker, slot)
            return None
        view = reply.result
        self._take_in(slot, view)
        if view.success or view.finished or slot.steps >= slot.task.max_steps:
            self._finish(worker, slot, Outcome.SUCCESS if view.success else Outcome.FAILURE)
        elif self.expert is not None:
            self._submit(worker, "demonstrate", slot.task.max_steps - slot.steps)
        else:
            assert view.observation is not None
            return worker, view.observation
        return None

    def _take_in(self, slot: _Slot, view: View) -> None:
        if slot.phase == "start":
            slot.snapshot, slot.words = view.snapshot or {}, view.words
            slot.phase = "run"
        elif view.actions is not None:
            slot.actions.append(view.actions)
        else:
            slot.actions[-1] = slot.actions[-1][: view.steps]
        slot.steps += view.steps
        slot.sim_s += view.sim_s
        slot.policy_s += view.policy_s
        slot.end = view.end

    def _act(self, observations: Mapping[int, Observation]) -> None:
        """The policy's next actions for all workers that wait, sent to them."""
        workers = sorted(observations)
        single = self.settings.batching is Batching.single
        for group in [[w] for w in workers] if single else [workers] if workers else []:
            began = time.perf_counter()
            seen = [observations[w] for w in group]
            chunks = self._chunks(group, seen)
            seconds = (time.perf_counter() - began) / len(group)
            if self.settings.values is not None:
                self._trace(group, seen, chunks)
            for worker, chunk in zip(group, chunks, strict=True):
                slot = self.slots[worker]
                slot.policy_s += seconds
                actions = chunk[: min(self.replan, slot.task.max_steps - slot.steps)]
                slot.actions.append(actions)
                last = slot.steps + len(actions) >= slot.task.max_steps
                self._submit(worker, "advance", actions, bool(self.spec.image_keys), last)

    def _trace(self, workers: list[int], observations: list[dict[str, Any]], chunks: np.ndarray) -> None:
        """Notes each slot's value of the chunk it is about to execute."""
        assert self.settings.values is not None
        for worker, seen, chunk in zip(workers, observations, chunks, strict=True):
            slot = self.slots[worker]
            if slot.trace is None:
                tasks = list(self.settings.tasks.values())
                slot.trace = ValueTrace(instructions(seen["task"], tasks, self.settings.values))
            batch = {key: np.asarray(value)[None] for key, value in seen.items() if key != "task"}
            slot.trace.steps.append(slot.steps)
            slot.trace.values.append(values_of(self.policy, batch, chunk[None], slot.trace.words))

    def _chunks(self, workers: list[int], observations: list[dict[str, Any]]) -> np.ndarray:
        """Batched actions (B, chunk, dim), float32, clipped to [-1, 1] as the simulator would."""
        assert self.policy is not None
        batch = {key: [o[key] for o in observations] for key in observations[0]}
        arrays = {key: value if key == "task" else np.stack(value) for key, value in batch.items()}
        actions = np.asarray(self.policy.act(arrays, workers))
        expected = (len(workers), self.spec.chunk, self.spec.action_dim)
        if actions.shape != expected or not np.isfinite(actions).all():
            bad = "numbers that are not finite" if actions.shape == expected else f"shape {actions.shape}"
            raise ValueError(f"policy {self.spec.name} should return finite actions of shape {expected}, got {bad}")
        return np.clip(actions, -1, 1).astype(np.float32)

    def _failed(self, worker: int, slot: _Slot, error: WorkerError, schedule: Schedule) -> None:
        """One attempt is lost, and with the process its environment."""
        self.places.pop(worker, None)
        slot.job.errors.append(Attempt(error.kind.value, error.summary, error.detail))
        if len(slot.job.errors) < self.settings.max_attempts:
            del self.slots[worker]
            schedule.put(slot.job, first=True)
        else:
            self._finish(worker, slot, Outcome.ERROR)

    def _finish(self, worker: int, slot: _Slot, outcome: Outcome) -> None:
        errors = slot.job.errors
        failed = outcome is Outcome.ERROR
        record = Record(
            episode=slot.episode,
            task_name=slot.task.name,
            language=slot.words or slot.task.language,
            outcome=outcome,
            steps=slot.steps,
            max_steps=slot.task.max_steps,
            policy=self.spec.name,
            policy_digest=self.spec.digest,
            replan=self.replan,
            attempts=len(errors) + (not failed),
            error=errors[-1].summary if failed else None,
            errors=errors,
            wall_s=round(time.perf_counter() - slot.began, 4),
            sim_s=round(slot.sim_s, 4),
            policy_s=round(slot.policy_s, 4),
            worker_rss_mb=round(slot.rss_mb, 1),
            control_hz=self.settings.control_hz,
            end=slot.end,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=versions(),
        )
        actions = np.concatenate(slot.actions) if slot.actions else np.zeros((0, self.spec.action_dim), np.float32)
        self.folder.append(record, None if failed else Trajectory(actions, slot.snapshot, slot.trace))
        del self.slots[worker]
        self.on_record(record)
        self._give_up(record)

    def _give_up(self, record: Record) -> None:
        """A simulator that does not work at all should not fail its way through every episode."""
        self.errors_in_a_row = self.errors_in_a_row + 1 if record.outcome is Outcome.ERROR else 0
        if self.errors_in_a_row >= self.settings.give_up_after:
            raise ValueError(
                f"{self.errors_in_a_row} episodes in a row ended in simulator errors, the last: {record.error}. Mend "
                f"it (details in {self.folder.path}/records.jsonl), then resume with run=... retry_errors=true"
            )


def effective_replan(spec: PolicySpec, override: int | None) -> int:
    """Actions executed between two looks. ValueError when the policy's chunks are shorter."""
    replan = spec.replan if override is None else override
    if not 1 <= replan <= spec.chunk:
        raise ValueError(f"replan should be 1 to the policy's chunk of {spec.chunk}, got {replan}")
    return replan
