"""Bags to episodes through the node's own code: what a policy is trained on is what it will see.

The recording is walked at the contract's rate with the contract's alignment: a row of the data set is what the node
would have given the policy at that moment, with the command that followed within the period. Moments without an
observation or a command are left out; a gap of more than a second ends the episode, so the rest is another one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from embodied.deploy.align import Aligner
from embodied.deploy.contract import IMAGE_TYPES, Contract
from embodied.deploy.convert import decode, decode_action, stamp_of
from embodied.schema import ACTION, TASK

GAP_S = 1.0
MIN_FRAMES = 2
Entry = tuple[str, str, int, bytes]  # topic, type, nanoseconds, CDR bytes


@dataclass
class Episode:
    """Rows of one episode: images (T, H, W, 3) uint8, columns (T, D) float32."""

    images: dict[str, list[np.ndarray]] = field(default_factory=dict)
    columns: dict[str, list[np.ndarray]] = field(default_factory=dict)
    task: str = ""
    last_ns: int = 0

    def __len__(self) -> int:
        return len(self.columns.get(ACTION, []))


def bag_episodes(entries: Iterable[Entry], contract: Contract, task: str | None = None) -> list[Episode]:
    """The episodes in a bag, aligned tick by tick."""
    walk = _Walk(contract, task)
    for topic, type_name, received_ns, data in entries:
        walk.take(topic, type_name, received_ns, data)
    walk.finish()
    return [episode for episode in walk.episodes if len(episode) >= MIN_FRAMES]


class _Walk:
    """Follows a bag in order of time: commands make rows of the observation at their moment."""

    def __init__(self, contract: Contract, task: str | None) -> None:
        self.contract, self.task = contract, task
        self.aligner = Aligner(contract)
        self.episodes: list[Episode] = []
        self._tick_ns: int | None = None
        self._command: np.ndarray | None = None
        self._now = 0

    def take(self, topic: str, type_name: str, received_ns: int, data: bytes) -> None:
        """One message of the bag; what does not decode is counted by the aligner, as in the node."""
        from embodied.deploy.transports import ros_types

        self._pass_until(received_ns)
        self._now = received_ns
        for index, stream in enumerate(self.contract.streams):
            if (stream.topic, stream.type) != (topic, type_name):
                continue
            try:
                message = ros_types.decode(type_name, data)
                value, stamp_ns = decode(stream, message), stamp_of(stream, message, received_ns)
            except ValueError as error:
                self.aligner.refuse(index, str(error))
                continue
            self.aligner.put(index, value, stamp_ns, received_ns, received_ns)
        action = self.contract.action
        if (action.topic, action.type) == (topic, type_name):
            self._command = decode_action(action, ros_types.decode(type_name, data))
            if self._tick_ns is None:
                self._tick_ns = received_ns

    def finish(self) -> None:
        self._pass_until(self._now + round(self.contract.period_s * 1e9) + 1)

    def _pass_until(self, now_ns: int) -> None:
        """Ends the ticks before `now_ns`: each takes the newest command of its period."""
        period = round(self.contract.period_s * 1e9)
        while self._tick_ns is not None and self._tick_ns + period <= now_ns:
            if self._command is None:
                self._tick_ns = None
                return
            self._row(self._tick_ns, self._command)
            self._command = None
            self._tick_ns += period

    def _row(self, tick_ns: int, command: np.ndarray) -> None:
        aligned = self.aligner.sample(tick_ns)
        if aligned.missing:
            return
        if not self.episodes or tick_ns - self.episodes[-1].last_ns > GAP_S * 1e9:
            words = self.task or str(aligned.features.get(TASK, self.contract.task))
            self.episodes.append(Episode(task=words))
        episode = self.episodes[-1]
        episode.last_ns = tick_ns
        images = {stream.feature for stream in self.contract.streams if stream.type in IMAGE_TYPES}
        for key, value in aligned.features.items():
            if key != TASK and isinstance(value, np.ndarray):
                (episode.images if key in images else episode.columns).setdefault(key, []).append(value)
        episode.columns.setdefault(ACTION, []).append(command)
