"""The demonstration of record: what is needed to run an episode again and to render it at any size.

    FOLDER/episodes.jsonl   one line an episode: identity, outcome, versions, name of its arrays file
    FOLDER/NAME.npz         start (`snapshot.*`), executed and intended actions, the states passed through

Replay is exact, so images are made later. Arrays are written before their line and read without pickle; a line means
a whole episode. Folders with `NNNN.npz` (init, body_pos, body_quat, executed), as LIBERO demonstrations were first
recorded, are read too; their labels and states come from the data set beside them.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from embodied.io import append_line, read_lines, write_atomic
from embodied.schema import ACTION, ACTION_DIM, STATE, STATE_DIM

INDEX = "episodes.jsonl"
SNAPSHOT = "snapshot."
FORMAT = 1


@dataclass(frozen=True)
class EpisodeLine:
    """The identity and outcome of one demonstration; equal identity (`key`), equal episode.

    `noise`: standard deviation of the execution noise (0: none). `goal`: predicates as the simulator names them.
    `success`: the simulator's predicate after the last step. `steps`: executed actions. `lead`: the first of them that
    were a learner's and are no part of the demonstration. `noise_memory`: correlation of the noise between steps;
    `noise_free`: it was left out near contact.
    """

    suite: str
    task: int
    seed: int
    noise: float
    language: str
    success: bool
    steps: int
    goal: list[list[str]] | None = None
    variant: str = ""
    file: str = ""
    task_name: str = ""
    expert: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    format: int = FORMAT
    lead: int = 0
    noise_memory: float = 0.0
    noise_free: bool = False

    @property
    def key(self) -> str:
        how = (self.noise_memory, self.noise_free)
        return episode_key(self.suite, self.task, self.seed, self.noise, self.lead, self.variant, *how)

    def to_json(self) -> dict[str, Any]:
        return {"key": self.key, **asdict(self)}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> EpisodeLine:
        """A line of either form. Keys of later versions are left out."""
        known = {f.name: line[f.name] for f in fields(cls) if f.name in line}
        if "steps" not in known:  # the first form: successes only
            known |= {"steps": line["frames"], "success": True, "file": f"{line['episode']:04d}.npz", "format": 0}
        return cls(**known)


@dataclass(frozen=True)
class EpisodeRecord:
    """A line and its arrays: T actions executed and intended (T, 7) float32 in [-1, 1]; `states` (T + 1, 8) float32.

    `states[t]` is the proprioception observed before action t. `final`: simulator state after the last action (may
    be empty). `snapshot`: what `SimEnv.reset(options={"snapshot": ...})` takes.
    """

    line: EpisodeLine
    snapshot: dict[str, np.ndarray]
    executed: np.ndarray
    intended: np.ndarray
    states: np.ndarray
    final: np.ndarray


def episode_key(
    suite: str,
    task: int,
    seed: int,
    noise: float,
    lead: int = 0,
    variant: str = "",
    noise_memory: float = 0.0,
    noise_free: bool = False,
) -> str:
    more = [f"lead{lead}"] * bool(lead) + [variant] * bool(variant)
    how = (f"m{noise_memory:g}" if noise_memory else "") + "f" * noise_free
    return "/".join([suite, str(task), f"s{seed}", f"n{noise:g}{how}", *more])


def file_name(line: EpisodeLine) -> str:
    """A file name that the key determines: readable, and with eight digits of its sha256 when it has a variant."""
    key = replace(line, variant="").key
    stem = re.sub(r"[^A-Za-z0-9_.]+", "_", key)
    digest = f"_{hashlib.sha256(line.key.encode()).hexdigest()[:8]}" if line.variant else ""
    return f"{stem}{digest}.npz"


class RecordFolder:
    """A folder of demonstrations. One process appends; reading needs nothing but the files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[EpisodeLine]:
        """All whole lines in the order they were appended; of several with one key the last. ValueError if damaged."""
        try:
            found = [EpisodeLine.from_json(line) for line in read_lines(self.path / INDEX)]
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path / INDEX} should hold demonstrations (suite, task, seed, ...), got a line without {error}"
            ) from error
        return list({line.key: line for line in found}.values())

    def append(self, record: EpisodeRecord) -> EpisodeLine:
        """Writes arrays, then the line. Raises ValueError on shapes that do not agree."""
        _check(record)
        line = replace(record.line, file=file_name(record.line), format=FORMAT)
        arrays = {SNAPSHOT + name: np.asarray(value) for name, value in record.snapshot.items()}
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            executed=record.executed,
            intended=record.intended,
            states=record.states,
            final=record.final,
            **arrays,  # type: ignore[arg-type]
        )
        write_atomic(self.path / line.file, buffer.getvalue())
        append_line(self.path / INDEX, line.to_json())
        return line

    def load(self, line: EpisodeLine) -> EpisodeRecord:
        """The whole record. ValueError when arrays are missing or do not agree."""
        path = self.path / line.file
        if not path.is_file():
            raise ValueError(f"{path} should hold the arrays of {line.key}, it is missing: collect that episode again")
        with np.load(path, allow_pickle=False) as arrays:
            held = {name: arrays[name] for name in arrays}
        record = self._first_form(line, held) if line.format == 0 else _from_arrays(line, held)
        _check(record)
        return record

    def _first_form(self, line: EpisodeLine, held: dict[str, np.ndarray]) -> EpisodeRecord:
        executed = held.pop("executed").astype(np.float32)
        beside = _columns_beside(self.path.parent, int(Path(line.file).stem))
        intended, states = beside.get(ACTION, executed), beside.get(STATE, np.zeros((0, STATE_DIM), np.float32))
        snapshot = {**held, "seed": np.array(line.seed)}  # taken after settling: it names no settle_steps
        return EpisodeRecord(line, snapshot, executed, intended, states, np.zeros(0))


def find_records(path: Path) -> RecordFolder:
    """The records at `path` or in its `records` folder. ValueError when there are none."""
    for folder in (path, path / "records"):
        if (folder / INDEX).is_file():
            return RecordFolder(folder)
    raise ValueError(f"{path} should hold demonstrations ({INDEX}), it holds none: give a collected folder")


def _from_arrays(line: EpisodeLine, held: dict[str, np.ndarray]) -> EpisodeRecord:
    snapshot = {name.removeprefix(SNAPSHOT): value for name, value in held.items() if name.startswith(SNAPSHOT)}
    missing = [name for name in ("executed", "intended", "states", "final") if name not in held]
    if missing:
        raise ValueError(f"{line.file} should hold executed, intended, states and final, it lacks {missing}")
    return EpisodeRecord(line, snapshot, held["executed"], held["intended"], held["states"], held["final"])


def _columns_beside(root: Path, episode: int) -> dict[str, np.ndarray]:
    """Actions and states (T, D) of an episode in the data set whose folder is `root`; empty where there is none."""
    found: dict[str, np.ndarray] = {}
    for path in sorted((root / "data").glob("*/*.parquet")):
        import pyarrow.parquet as pq

        filters = [("episode_index", "=", episode)]
        table = pq.read_table(path, columns=[ACTION, STATE], filters=filters, partitioning=None)
        if len(table):
            found = {key: np.array(table[key].to_pylist(), np.float32) for key in (ACTION, STATE)}
    return found


def _check(record: EpisodeRecord) -> None:
    steps = record.line.steps
    for name, values in (("executed", record.executed), ("intended", record.intended)):
        if values.shape != (steps, ACTION_DIM) or values.dtype != np.float32 or not np.isfinite(values).all():
            raise ValueError(
                f"{name} of {record.line.key} should be finite float32 ({steps}, {ACTION_DIM}), "
                f"got {values.dtype} {values.shape}"
            )
    if len(record.states) not in (0, steps, steps + 1):
        raise ValueError(f"states of {record.line.key} should be ({steps + 1}, {STATE_DIM}), got {record.states.shape}")
    if not record.snapshot:
        raise ValueError(f"{record.line.key} should have a snapshot of its start, got none")
