"""A simulated robot's episodes as an evaluation run: `embodied compare` pairs them with episodes of a direct one."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace as Ns
from typing import Any

from embodied.deploy.bus import Bus
from embodied.deploy.contract import Contract
from embodied.deploy.robot_sim import Played
from embodied.evaluation.records import Outcome, Record, RunFolder, Trajectory, differences, protocol_of
from embodied.evaluation.versions import SIMULATOR, versions
from embodied.protocols import PolicySpec

PARAMETERS = ["policy", "policy_digest", "chunk", "replan"]


def policy_of(bus: Bus, node: str, timeout_s: float = 30.0) -> PolicySpec:
    """What the node says of its policy. ValueError when it says nothing in time."""
    try:
        answer = bus.call(
            f"{node}/get_parameters", "rcl_interfaces/srv/GetParameters", Ns(names=list(PARAMETERS)), timeout_s
        )
    except TimeoutError as error:
        raise ValueError(f"{node} should say which policy it runs, it does not answer: {error}") from error
    name, digest, chunk, replan = answer.values
    return PolicySpec(str(name.string_value), str(digest.string_value), chunk.integer_value, replan.integer_value)


class RobotRun:
    """A run folder (`embodied.evaluation.records`) that a simulated robot's episodes go into."""

    def __init__(self, path: Path, env: Mapping[str, Any], contract: Contract) -> None:
        self.folder = RunFolder(path)
        self.env = {key: value for key, value in env.items() if key != "task"}
        self.contract = contract

    def done(self, key: str) -> bool:
        """Whether the folder has that episode already."""
        return key in self.folder.records()

    def append(self, played: Played, spec: PolicySpec) -> None:
        """ValueError when the folder holds episodes of something else."""
        self._agree(played, spec)
        record = Record(
            episode=played.episode,
            task_name=played.task.name,
            language=played.task.language,
            outcome=Outcome.SUCCESS if played.success else Outcome.FAILURE,
            steps=len(played.actions),
            max_steps=played.task.max_steps,
            policy=spec.name,
            policy_digest=spec.digest,
            replan=spec.replan,
            wall_s=round(played.wall_s, 4),
            control_hz=round(self.contract.rate_hz),
            end=played.end,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=versions(),
        )
        self.folder.append(record, Trajectory(played.actions, played.snapshot))

    def _agree(self, played: Played, spec: PolicySpec) -> None:
        simulator = {name: versions()[name] for name in SIMULATOR if name in versions()}
        settings = {"env": self.env, "executed": spec.replan, "simulator": simulator}
        protocol = protocol_of(spec, {played.task.index: played.task}, settings)
        if not self.folder.exists:
            self.folder.path.mkdir(parents=True, exist_ok=True)
            self.folder.write_protocol(protocol)
            return
        old = self.folder.protocol()
        changed = differences(old, protocol)
        if changed:
            raise ValueError(f"{self.folder.path} holds a run with other settings: {'; '.join(changed)}")
        old["max_steps"].update(protocol["max_steps"])
        self.folder.write_protocol(old)
