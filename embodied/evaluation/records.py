"""One record per episode, appended durably, and the executed actions beside it.

    RUN/protocol.json      what all episodes of the run have in common; a resumed run must agree with it
    RUN/records.jsonl      one line an episode; a later line for the same episode replaces an earlier one
    RUN/episodes/ID.npz    `actions` (n, 7) float32 as executed, and the snapshot of the start: enough to replay it;
                           with `values=N` also the policy's value at every look

The npz is written before the line, so a line in records.jsonl means a whole episode. A torn last line is cut off.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from embodied.evaluation.value_trace import ValueTrace
from embodied.io import append_line, read_lines, write_atomic, write_json
from embodied.protocols import Episode, PolicySpec, Task

RECORDS = "records.jsonl"
PROTOCOL = "protocol.json"
EPISODES = "episodes"
SNAPSHOT = "snapshot."
TRACE = "trace."
NOTHING = object()


class Outcome(Enum):
    SUCCESS = "success"
    FAILURE = "failure"
    ERROR = "error"


@dataclass(frozen=True)
class Attempt:
    """One try that ended in an error: of the simulator or its process, never of the policy."""

    kind: str
    summary: str
    detail: str


@dataclass
class Record:
    """What is known of one episode. Times are seconds; `steps` are control steps, settling not counted.

    `language`: the words that the environment gave the policy, perturbed or replaced as the episode says.
    `end` is a digest of the simulator state after the last step: equal runs have equal ends.
    """

    episode: Episode
    task_name: str
    language: str
    outcome: Outcome
    steps: int
    max_steps: int
    policy: str
    policy_digest: str
    replan: int
    attempts: int = 1
    error: str | None = None
    errors: list[Attempt] = field(default_factory=list)
    wall_s: float = 0.0
    sim_s: float = 0.0
    policy_s: float = 0.0
    worker_rss_mb: float = 0.0
    control_hz: int = 20
    end: str = ""
    finished: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return self.episode.key

    @property
    def id(self) -> str:
        return episode_id(self.episode)

    @property
    def success(self) -> bool:
        return self.outcome is Outcome.SUCCESS

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "outcome": self.outcome.value, "key": self.key, "id": self.id}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Record:
        """The record behind a line. Keys of later versions are left out."""
        known = {f.name: value[f.name] for f in fields(cls) if f.name in value}
        known["episode"] = Episode(**known["episode"])
        known["outcome"] = Outcome(known["outcome"])
        known["errors"] = [Attempt(**attempt) for attempt in known.get("errors", [])]
        return cls(**known)


def episode_id(episode: Episode) -> str:
    """A short name for files: suite, task, init state and eight digits of the key's sha256."""
    init = "random" if episode.init_state is None else f"init{episode.init_state:02d}"
    digest = hashlib.sha256(episode.key.encode()).hexdigest()[:8]
    return f"{episode.suite}_{episode.task:02d}_{init}_{digest}"


@dataclass(frozen=True)
class Trajectory:
    """Enough to run an episode again: what was executed (n, 7) float32, and the snapshot of its start.

    `trace`: the policy's value along it, where the evaluation was asked for it.
    """

    actions: np.ndarray
    snapshot: dict[str, np.ndarray]
    trace: ValueTrace | None = None


class RunFolder:
    """The durable part of an evaluation run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def exists(self) -> bool:
        return (self.path / PROTOCOL).exists()

    def protocol(self) -> dict[str, Any]:
        """What the run's episodes have in common. ValueError when the folder holds no run."""
        if not self.exists:
            raise ValueError(f"{self.path} should be the folder of an evaluation run, but has no {PROTOCOL}")
        return json.loads((self.path / PROTOCOL).read_text())

    def write_protocol(self, protocol: Mapping[str, Any]) -> None:
        write_json(self.path / PROTOCOL, protocol)

    def invocations(self) -> list[dict[str, Any]]:
        """Every start of this run, oldest first: command, config, versions."""
        path = self.path / "run.json"
        return json.loads(path.read_text())["invocations"] if path.exists() else []

    def records(self) -> dict[str, Record]:
        """Records by episode key."""
        lines = (Record.from_json(line) for line in read_lines(self.path / RECORDS))
        return {record.key: record for record in lines}

    def append(self, record: Record, trajectory: Trajectory | None) -> None:
        if trajectory is not None:
            self.write_trajectory(record.episode, trajectory)
        append_line(self.path / RECORDS, record.to_json())

    def write_trajectory(self, episode: Episode, trajectory: Trajectory) -> None:
        buffer = io.BytesIO()
        arrays = {SNAPSHOT + name: value for name, value in trajectory.snapshot.items()}
        if trajectory.trace is not None:
            arrays |= {TRACE + name: value for name, value in trajectory.trace.to_arrays().items()}
        np.savez_compressed(buffer, actions=trajectory.actions.astype(np.float32), **arrays)  # type: ignore[arg-type]
        write_atomic(self.trajectory_path(episode), buffer.getvalue())

    def trajectory_path(self, episode: Episode) -> Path:
        return self.path / EPISODES / f"{episode_id(episode)}.npz"

    def trajectory(self, episode: Episode) -> Trajectory:
        """ValueError when the episode has none (it ended in an error, or is not of this run)."""
        path = self.trajectory_path(episode)
        if not path.exists():
            raise ValueError(f"{self.path} holds no recorded actions of {episode.key}: evaluate that episode first")
        with np.load(path, allow_pickle=False) as arrays:
            parts = {
                prefix: {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}
                for prefix in (SNAPSHOT, TRACE)
            }
            trace = ValueTrace.from_arrays(parts[TRACE]) if parts[TRACE] else None
            return Trajectory(arrays["actions"], parts[SNAPSHOT], trace)


def state_digest(snapshot: Mapping[str, np.ndarray]) -> str:
    """sha256 (16 digits) of a simulator state's arrays, names and dtypes included."""
    digest = hashlib.sha256()
    for name in sorted(snapshot):
        array = np.ascontiguousarray(snapshot[name])
        digest.update(f"{name}:{array.dtype.str}:{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def protocol_of(spec: PolicySpec, tasks: Mapping[int, Task], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal between a run and its continuation, and is compared between two runs."""
    limits = {str(index): task.max_steps for index, task in sorted(tasks.items())}
    policy = {"name": spec.name, "digest": spec.digest, "chunk": spec.chunk, "replan": spec.replan}
    return {"policy": policy, "max_steps": limits, **settings}


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two protocols differ, as "key: old -> new". A task that only one of them has is no difference."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return [] if old == new else [f"{path}: {_shown(old)} -> {_shown(new)}"]
    keys = sorted(old.keys() & new.keys() if path == "max_steps" else old.keys() | new.keys())
    return [
        line
        for key in keys
        for line in differences(old.get(key, NOTHING), new.get(key, NOTHING), f"{path}.{key}".lstrip("."))
    ]


def _shown(value: Any) -> str:
    return "nothing" if value is NOTHING else repr(value)
