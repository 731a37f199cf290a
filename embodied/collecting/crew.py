"""Hands jobs to workers in order, each worker with the objects that its job needs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from embodied.workers import WorkerError, WorkerPool

GIVE_UP = 3  # jobs


@dataclass(eq=False)
class Job:
    """A call `target.method(*args)` in a worker. `needs`: object name -> registry config, in the order of building.

    A worker keeps its objects from job to job and rebuilds one when its config is another.
    """

    needs: dict[str, dict[str, Any]]
    target: str
    method: str
    args: tuple[Any, ...]
    label: Any
    failures: list[WorkerError] = field(default_factory=list)


class Crew:
    """Runs jobs on a pool; a job whose worker raised, crashed or hung is tried `attempts` times in all."""

    def __init__(self, pool: WorkerPool, attempts: int) -> None:
        self.pool, self.attempts = pool, attempts
        self._built: dict[int, dict[str, dict[str, Any]]] = {}  # worker -> object -> its config
        self._running: dict[int, tuple[Job, str | None]] = {}  # worker -> job, and the object being built for it

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Any]]:
        """(job, result) as they finish; the result is a WorkerError when every attempt ended in one.

        Raises ValueError when the first jobs all end in errors: then the settings are wrong, not the jobs.
        """
        waiting, lost = deque(jobs), 0
        while waiting or self._running:
            for worker in self.pool.idle():
                if worker not in self._running and waiting:
                    self._go_on(worker, waiting.popleft())
            for reply in self.pool.wait():
                job, building = self._running.pop(reply.worker)
                if reply.error is not None:
                    self._built.pop(reply.worker, None)
                    job.failures.append(reply.error)
                    if len(job.failures) < self.attempts:
                        waiting.appendleft(job)
                        continue
                    lost += lost >= 0
                    if lost >= GIVE_UP:
                        raise ValueError(f"the first {lost} jobs all failed: {reply.error.summary}") from reply.error
                    yield job, reply.error
                elif building is not None:
                    self._built[reply.worker][building] = job.needs[building]
                    self._go_on(reply.worker, job)
                else:
                    lost = -1
                    yield job, reply.result

    def _go_on(self, worker: int, job: Job) -> None:
        """Builds the first object that the job still needs, or makes its call."""
        built = self._built.setdefault(worker, {})
        for name, config in job.needs.items():
            if built.get(name) != config:
                built.pop(name, None)
                self._running[worker] = job, name
                self.pool.submit_build(worker, name, config)
                return
        self._running[worker] = job, None
        self.pool.submit(worker, job.target, job.method, *job.args)
