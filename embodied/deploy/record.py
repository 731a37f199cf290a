"""Recording: everything a node took and did, as an MCAP bag that replays to byte-equal actions.

The bag holds the streams' messages and the commands as any ROS 2 tool reads them, and on `NODE/tick` (std_msgs/String,
JSON) one record a tick: the clock's two times, which samples had come, which inference was answered, what was sent. The
first message, on `NODE/recording`, holds contract, schedule and the policy's digest. Writing is a thread's work; when
it falls behind, what is lost is counted and the recording says it is incomplete.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import deque
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embodied.deploy import messages
from embodied.deploy.align import Sample
from embodied.deploy.bus import Bus, Receive
from embodied.deploy.contract import Contract
from embodied.deploy.loop import Tick
from embodied.deploy.schedule import ScheduleSettings

if TYPE_CHECKING:
    from embodied.deploy.node import Node

TEXT = "std_msgs/msg/String"
FORMAT = 1
QUEUE = 4096


class _Writing:
    """A bag and the thread that writes it."""

    def __init__(self, folder: Path) -> None:
        from embodied.deploy.transports.mcap import BagWriter

        self.lost = self.count = 0
        self._bag = BagWriter(folder)
        self._queue: queue.Queue[tuple[str, str, Any, int] | None] = queue.Queue(QUEUE)
        self._thread = threading.Thread(target=self._write, name="record", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Writes what is left."""
        self._queue.put(None)
        self._thread.join()
        self._bag.close()

    def _put(self, topic: str, type_name: str, message: Any, stamp_ns: int) -> None:
        try:
            self._queue.put_nowait((topic, type_name, message, stamp_ns))
        except queue.Full:
            self.lost += 1

    def _write(self) -> None:
        while (entry := self._queue.get()) is not None:
            self._bag.write(*entry)
            self.count += 1


class TopicRecorder(_Writing):
    """The topics of a contract, its commands included, as they come."""

    def __init__(self, contract: Contract, bus: Bus, folder: Path) -> None:
        super().__init__(folder)
        kinds = {stream.topic: (stream.type, stream.qos) for stream in contract.streams}
        kinds[contract.action.topic] = (contract.action.type, contract.action.qos)
        self.topics = sorted(kinds)
        for topic, (type_name, qos) in kinds.items():
            bus.subscribe(topic, type_name, qos, self._receiver(topic, type_name))

    def _receiver(self, topic: str, type_name: str) -> Receive:
        return lambda message: self._put(topic, type_name, message, time.time_ns())


class Recorder(_Writing):
    """Hooks into a node before it starts; `close` after it has shut down."""

    def __init__(self, node: Node, folder: Path, schedule: ScheduleSettings) -> None:
        super().__init__(folder)
        self.node = node
        self._puts: deque[list[int]] = deque()
        self._last_ns = 0
        self._done = 0
        about = {
            "format": FORMAT,
            "contract": plain(asdict(node.contract)),
            "schedule": plain(asdict(schedule)),
            "policy": node.inference.spec.name,
            "policy_digest": node.inference.spec.digest,
            "warmup_timeout_s": node.loop.watchdog.warmup_timeout_s,
            "answers_at_once": node.loop.answers_at_once,
        }
        self._put(f"{node.name}/recording", TEXT, messages.text_message(json.dumps(about)), node.clock.now_ns())
        node.aligner.on_put = self._sample
        node.on_action.append(self._action)
        node.loop.on_tick = self._tick

    def _sample(self, index: int, sample: Sample, message: Any) -> None:
        """Called under the aligner's lock, so the order of puts is the aligner's own."""
        stream = self.node.contract.streams[index]
        self._puts.append([index, sample.stamp_ns, sample.received_ns])
        self._last_ns = max(self.node.clock.now_ns(), self._last_ns + 1)  # a bag is read in order of time
        self._put(stream.topic, stream.type, message, self._last_ns)

    def _action(self, message: Any, stamp_ns: int) -> None:
        output = self.node.contract.action
        self._put(output.topic, output.type, message, stamp_ns)

    def _tick(self, tick: Tick) -> None:
        count = tick.aligned.puts - self._done
        puts = [self._puts.popleft() for _ in range(count)]  # the bus goes on appending
        self._done += count
        record = tick_record(tick, puts) | {"task": self.node.loop.task, "lost": self.lost}
        self._put(f"{self.node.name}/tick", TEXT, messages.text_message(json.dumps(record)), tick.now_ns)


def tick_record(tick: Tick, puts: list[list[int]]) -> dict[str, Any]:
    """What one tick depended on and did, as JSON."""
    result = tick.result
    return {
        "step": tick.step,
        "mono_ns": tick.mono_ns,
        "now_ns": tick.now_ns,
        "due_ns": tick.due_ns,
        "overrun_ns": tick.overrun_ns,
        "puts": puts,
        "commands": tick.commands,
        "answered": tick.answered,
        "error": None if result is None else result.error,
        "value": None if result is None else result.value,
        "asked": tick.asked,
        "state": tick.state.value,
        "troubles": [f"{trouble.kind}: {trouble.detail}" for trouble in tick.troubles],
        "action": None if tick.action is None else tick.action.tobytes().hex(),
    }


def plain(value: Any) -> Any:
    """Enums as their names, everything else as JSON has it."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value
