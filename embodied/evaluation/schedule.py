"""Which episode a free worker takes next: one of the task whose environment it has, as long as there is any."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from embodied.evaluation.records import Attempt
from embodied.protocols import Episode


@dataclass
class Job:
    """An episode still to be run, and the errors it has met so far."""

    episode: Episode
    errors: list[Attempt] = field(default_factory=list)


class Schedule:
    """Episodes by task. The order of results depends on timing; the results do not."""

    def __init__(self, episodes: Iterable[Episode]) -> None:
        self._queues: dict[tuple[str, int], deque[Job]] = {}
        for episode in episodes:
            self.put(Job(episode))

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def put(self, job: Job, first: bool = False) -> None:
        queue = self._queues.setdefault((job.episode.suite, job.episode.task), deque())
        (queue.appendleft if first else queue.append)(job)

    def take(self, here: tuple[str, int] | None, elsewhere: Iterable[tuple[str, int]]) -> Job | None:
        """The next job for a worker at task `here`, while others are at `elsewhere`; None when all are taken.

        A worker stays with its task. Without one it opens a task where nobody is, else helps where most is left.
        """
        left = {task: queue for task, queue in self._queues.items() if queue}
        if not left:
            return None
        busy = list(elsewhere)
        task = here if here in left else min(left, key=lambda t: (busy.count(t), -len(left[t]), t))
        return left[task].popleft()
