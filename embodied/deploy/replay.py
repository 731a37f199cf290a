"""Replay: a recording's messages, clock and inference times through the same code, to byte-equal actions.

The policy is asked again, with the observations of the recording, and each answer is taken at the tick at which the
recording took it. Equal policy, equal actions; a difference names the first tick that differs.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from embodied.deploy.align import Aligner
from embodied.deploy.clock import ManualClock
from embodied.deploy.contract import Contract, contract_from
from embodied.deploy.convert import decode
from embodied.deploy.inference import Request, Result, infer
from embodied.deploy.loop import ControlLoop, Tick
from embodied.deploy.record import FORMAT
from embodied.deploy.schedule import ScheduleMode, ScheduleSettings
from embodied.protocols import Policy


@dataclass
class Replayed:
    """ticks: how many were replayed; differences: the first few, in words; lost: what the recording had to drop."""

    ticks: int = 0
    actions: int = 0
    lost: int = 0
    differences: list[str] = field(default_factory=list)


class RecordedInference:
    """Answers when the recording says so."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.spec = policy, policy.spec
        self.allowed: dict[str, Any] = {}
        self._request: Request | None = None

    @property
    def busy(self) -> bool:
        return self._request is not None

    def submit(self, request: Request) -> None:
        self._request = request

    def poll(self) -> Result | None:
        if self._request is None or self.allowed.get("answered") != self._request.number:
            return None
        request, self._request = self._request, None
        if self.allowed["error"] is not None:
            return Result(request, error=self.allowed["error"])
        chunk, _, seconds = infer(self.policy, None, request)
        return Result(request, chunk, self.allowed["value"], None, seconds)

    def finish(self) -> None:
        self._request = None

    def close(self) -> None:
        pass


def replay(entries: Iterable[tuple[str, str, int, bytes]], policy: Policy) -> Replayed:
    """Runs a recording (topic, type, nanoseconds, CDR bytes). ValueError when it is none, or is another policy's."""
    from embodied.deploy.transports import ros_types

    about: dict[str, Any] | None = None
    records: list[dict[str, Any]] = []
    held: dict[str, deque[Any]] = {}
    for topic, type_name, _, data in entries:
        if topic.endswith(("/recording", "/tick")) and type_name == "std_msgs/msg/String":
            record = json.loads(ros_types.decode(type_name, data).data)
            if topic.endswith("/recording"):
                about = record
            else:
                records.append(record)
        elif ros_types.known(type_name):
            held.setdefault(topic, deque()).append((type_name, data))
    if about is None or about.get("format") != FORMAT:
        raise ValueError("the bag should hold a recording of `embodied node record=...`: it has no NODE/recording")
    if about["policy_digest"] != policy.spec.digest:
        raise ValueError(f"the recording is of policy {about['policy']} ({about['policy_digest']}), got {policy.spec}")
    contract, schedule = contract_from(about["contract"]), schedule_from(about["schedule"])
    run = _Replay(contract, schedule, policy, about["warmup_timeout_s"], held)
    run.loop.answers_at_once = bool(about.get("answers_at_once", False))
    return run.run(records)


class _Replay:
    def __init__(
        self, contract: Contract, schedule: ScheduleSettings, policy: Policy, warmup_s: float, held: dict[str, deque]
    ) -> None:
        self.contract, self.held = contract, held
        self.clock = ManualClock()
        self.inference = RecordedInference(policy)
        self.aligner = Aligner(contract)
        self.loop = ControlLoop(contract, schedule, self.inference, self.clock, lambda *_: None, self.aligner, warmup_s)

    def run(self, records: list[dict[str, Any]]) -> Replayed:
        result = Replayed()
        for record in sorted(records, key=lambda record: record["step"]):
            self._feed(record["puts"])
            self.clock.mono, self.clock.now = record["mono_ns"], record["now_ns"]
            self.inference.allowed = record
            self.loop.task = record["task"]
            self.loop._overrun_ns = record["overrun_ns"]
            for kind, reason in record["commands"]:
                self.loop.command(kind, reason)
            tick = self.loop.tick(record["due_ns"])
            result.ticks += 1
            result.actions += tick.action is not None
            result.lost = record["lost"]
            if len(result.differences) < 10:
                result.differences += _differences(tick, record)
        return result

    def _feed(self, puts: list[list[int]]) -> None:
        from embodied.deploy.transports import ros_types

        for index, stamp_ns, received_ns in puts:
            stream = self.contract.streams[index]
            if not self.held.get(stream.topic):
                raise ValueError(f"the recording lacks a message of {stream.topic}: it was cut short")
            type_name, data = self.held[stream.topic].popleft()
            value = decode(stream, ros_types.decode(type_name, data))
            self.aligner.put(index, value, stamp_ns, received_ns, stamp_ns)


def schedule_from(values: dict[str, Any]) -> ScheduleSettings:
    """The settings of a recording."""
    from omegaconf import OmegaConf

    settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ScheduleSettings), OmegaConf.create(values)))
    assert isinstance(settings, ScheduleSettings)
    assert isinstance(settings.mode, ScheduleMode)
    return settings


def replay_bag(folder: Path, policy: Policy) -> Replayed:
    """`replay` of a bag folder."""
    from embodied.deploy.transports.mcap import read_bag

    return replay(read_bag(folder), policy)


def _differences(tick: Tick, record: dict[str, Any]) -> list[str]:
    found = []
    if tick.state.value != record["state"]:
        found.append(f"tick {tick.step}: state {tick.state.value}, recorded {record['state']}")
    sent = None if tick.action is None else tick.action.tobytes().hex()
    if sent != record["action"]:
        was = None if record["action"] is None else np.frombuffer(bytes.fromhex(record["action"]), np.float32).tolist()
        found.append(
            f"tick {tick.step}: action {None if tick.action is None else tick.action.tolist()}, recorded {was}"
        )
    return found
