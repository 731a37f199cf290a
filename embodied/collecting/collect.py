"""`collect(config)`: the whole of a collection, for the command and the demo alike. Everything in it can be resumed.

OUT/records/     demonstrations of record (embodied.data.episode_record)
OUT/data, meta, videos   the LeRobotDataset v3 rendered from them
OUT/runs.jsonl   one line a run: command settings and versions;  OUT/errors.jsonl: what went wrong
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

from embodied.collecting.config import CollectConfig, Phase
from embodied.collecting.physics import record_all
from embodied.collecting.plan import plan_episodes
from embodied.collecting.rendering import render_all, wanted
from embodied.data.episode_record import EpisodeLine, RecordFolder, find_records
from embodied.data.lerobot_layout import simulation_layout
from embodied.data.lerobot_writer import EpisodeWriter
from embodied.data.video_writer import VideoSettings
from embodied.evaluation.versions import versions
from embodied.io import append_line
from embodied.registry import registry
from embodied.workers import WorkerPool

RECORDS = "records"


@dataclass(frozen=True)
class Collected:
    """What a collection holds now. `errors`: episodes of this run that no attempt finished."""

    out: Path
    lines: list[EpisodeLine]
    episodes: int
    frames: int
    errors: int


def collect(config: CollectConfig) -> Collected:
    """Records and renders what is still missing in `out`. Raises ValueError for settings that do not fit."""
    out = Path(config.out)
    folder = RecordFolder(out / RECORDS)
    planned = None if config.render_from else plan_episodes(config, _tasks(config))
    errors = 0
    out.mkdir(parents=True, exist_ok=True)
    append_line(out / "runs.jsonl", _run_line(config))
    with WorkerPool(config.workers, timeout=config.timeout, environment=_headless()) as pool:
        if planned is not None and config.phase is not Phase.render:
            expert = {key: value for key, value in config.expert.items() if key != "runs_in"}
            errors += record_all(planned, folder, pool, config.env, expert, config.attempts, config.learner)
        lines = copy_records(Path(config.render_from), folder, config) if config.render_from else folder.lines()
        if config.phase is Phase.physics:
            return Collected(out, lines, 0, 0, errors)
        chosen = wanted(lines, config.keep_failures)
        if not chosen:
            raise ValueError(
                f"{out} holds {len(lines)} records and none to render: collect more, or add keep_failures=true"
            )
        layout = simulation_layout(config.size, VideoSettings(codec=config.codec, crf=config.crf), config.image_every)
        with EpisodeWriter.open(out, layout) as writer:
            errors += render_all(
                chosen, folder, writer, pool, config.env, attempts=config.attempts, tolerance=config.tolerance
            )
            if writer.total_episodes:
                writer.finalize()
            return Collected(out, lines, writer.total_episodes, writer.total_frames, errors)


def copy_records(source: Path, folder: RecordFolder, config: CollectConfig) -> list[EpisodeLine]:
    """Brings the records of another collection here, those of `tasks` only when some are named."""
    origin = find_records(source)
    held = {line.key for line in folder.lines()}
    chosen = [line for line in origin.lines() if not config.tasks or line.task in config.tasks]
    if origin.path.resolve() != folder.path.resolve():
        for line in chosen:
            if line.key not in held:
                folder.append(origin.load(line))
    names = {line.key for line in chosen}
    return [line for line in folder.lines() if line.key in names]


def _tasks(config: CollectConfig) -> Sequence[Any]:
    if "_target_" not in config.env or "suite" not in config.env:
        raise ValueError("a collection needs an environment: add env=libero_object (or another suite) to the command")
    return registry().resolve(config.task_list)(config.env["suite"])


def _headless() -> dict[str, str]:
    """GL without a display, unless the user chose otherwise."""
    backend = os.environ.get("MUJOCO_GL") or ("egl" if sys.platform == "linux" else "")
    return {"MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend} if backend else {}


def _run_line(config: CollectConfig) -> dict[str, Any]:
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": _plain(asdict(config)),
        "versions": versions(),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
