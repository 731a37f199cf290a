"""Recorded actions, open loop: what an evaluation or a demonstration did, done again.

With exact simulators it ends exactly as recorded, which tests the simulator, the records and the runner at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from embodied.data.episode_record import EpisodeLine, RecordFolder, find_records
from embodied.evaluation.records import Outcome, RunFolder, Trajectory
from embodied.protocols import Episode, Observation
from policies.reference.base import blind_spec


class ReplayPolicy:
    """Replays a run folder of `embodied evaluate`, or a folder of collected demonstrations.

    `episodes` are the recorded ones: an evaluation runs these, each from its recorded start (`snapshot`). After the
    last recorded action the robot holds still with the gripper as it was.
    """

    def __init__(self, source: str, chunk: int = 10, from_snapshot: bool = True) -> None:
        path = Path(source)
        if not path.is_dir():
            raise ValueError(f"source should be a folder of recorded episodes, got {source!r}: give policy.source=...")
        self._source = _RunSource(path) if RunFolder(path).exists else _DemonstrationSource(path)
        self.from_snapshot = from_snapshot
        self.spec = blind_spec("replay", chunk, {"episodes": self._source.identities, "from_snapshot": from_snapshot})
        self._trajectories: dict[int, Trajectory] = {}
        self._done: dict[int, int] = {}

    @property
    def episodes(self) -> list[Episode]:
        return list(self._source.episodes)

    def snapshot(self, episode: Episode) -> dict[str, np.ndarray] | None:
        """The recorded start of an episode, or None where its seed and initial state are to make it."""
        return self._source.trajectory(episode).snapshot if self.from_snapshot else None

    def reset(self, slots: Sequence[int], episodes: Sequence[Episode]) -> None:
        for slot, episode in zip(slots, episodes, strict=True):
            self._trajectories[slot] = self._source.trajectory(episode)
            self._done[slot] = 0

    def act(self, observation: Observation, slots: Sequence[int]) -> np.ndarray:  # noqa: ARG002
        """The next `chunk` recorded actions of every slot (B, chunk, 7). ValueError for a slot that was not reset."""
        return np.stack([self._chunk(slot) for slot in slots])

    def _chunk(self, slot: int) -> np.ndarray:
        if slot not in self._trajectories:
            raise ValueError(f"slot {slot} should be reset before it acts: call reset([{slot}], [episode])")
        actions, begin = self._trajectories[slot].actions, self._done[slot]
        self._done[slot] = begin + self.spec.chunk
        chunk = np.zeros((self.spec.chunk, self.spec.action_dim), np.float32)
        chunk[:, -1] = actions[-1, -1] if len(actions) else 0.0
        taken = actions[begin : begin + self.spec.chunk]
        chunk[: len(taken)] = taken
        return chunk


class _RunSource:
    """Episodes of an evaluation run that did not end in an error."""

    def __init__(self, path: Path) -> None:
        self.folder = RunFolder(path)
        records = [r for r in self.folder.records().values() if r.outcome is not Outcome.ERROR]
        records.sort(key=lambda r: (r.episode.suite, r.episode.task, r.episode.seed, r.key))
        self.episodes = [record.episode for record in records]
        self.identities = [[record.key, record.steps, record.end] for record in records]

    def trajectory(self, episode: Episode) -> Trajectory:
        return self.folder.trajectory(episode)


class _DemonstrationSource:
    """Collected demonstrations: scenes drawn from seeds, the actions that were executed, noise included."""

    def __init__(self, path: Path) -> None:
        self.folder: RecordFolder = find_records(path)
        self.lines: dict[Episode, EpisodeLine] = {}
        for line in self.folder.lines():
            self.lines.setdefault(Episode(line.suite, line.task, line.seed), line)
        self.episodes = sorted(self.lines, key=lambda e: (e.suite, e.task, e.seed))
        self.identities = [[line.key, line.steps] for line in self.lines.values()]

    def trajectory(self, episode: Episode) -> Trajectory:
        if episode not in self.lines:
            raise ValueError(f"{self.folder.path} holds no demonstration of {episode.key}: collect it first")
        record = self.folder.load(self.lines[episode])
        return Trajectory(record.executed, record.snapshot)
