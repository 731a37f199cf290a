"""Phase 2: exact replay with cameras, in parallel; episodes are committed to the data set in the records' order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from embodied.collecting.crew import Crew, Job
from embodied.collecting.demonstrate import Divergence
from embodied.collecting.physics import DEMONSTRATOR, note_error
from embodied.data.episode_record import EpisodeLine, RecordFolder, file_name
from embodied.data.lerobot_writer import EncodedEpisode, EpisodeWriter
from embodied.workers import Ref, WorkerPool


def render_all(
    lines: Sequence[EpisodeLine],
    folder: RecordFolder,
    writer: EpisodeWriter,
    pool: WorkerPool,
    env: Mapping[str, Any],
    *,
    attempts: int,
    tolerance: float,
) -> int:
    """Renders and commits the records that the data set does not hold yet; returns how many could not be."""
    held = {row["record"] for row in writer.episodes()}
    missing = [line for line in lines if line.key not in held]
    errors = 0
    frames = sum(line.steps for line in missing)
    with tqdm(total=frames, desc="render", unit="frame", disable=not missing) as bar:
        jobs = _jobs(missing, folder, writer, env, tolerance)
        for line, result in in_order(missing, Crew(pool, attempts).run(jobs)):
            if isinstance(result, EncodedEpisode):
                writer.append(result)
            else:
                errors += 1
                reason = f"replay diverged: {result.reason}" if isinstance(result, Divergence) else result
                note_error(writer.root, line.key, reason)
            bar.update(line.steps)
            bar.set_postfix_str(f"episodes {writer.total_episodes}, error {errors}")
    return errors


def in_order(lines: Sequence[EpisodeLine], results: Iterator[tuple[Job, Any]]) -> Iterator[tuple[EpisodeLine, Any]]:
    """Results of parallel work in the order of `lines`: the data set does not depend on who was faster."""
    early: dict[str, Any] = {}
    waited = iter(lines)
    line = next(waited, None)
    for job, result in results:
        early[job.label] = result
        while line is not None and line.key in early:
            yield line, early.pop(line.key)
            line = next(waited, None)


def _jobs(
    lines: Sequence[EpisodeLine],
    folder: RecordFolder,
    writer: EpisodeWriter,
    env: Mapping[str, Any],
    tolerance: float,
) -> list[Job]:
    size = next(iter(writer.layout.images.values()))[0]
    return [
        Job(
            {
                "demonstrator": DEMONSTRATOR,
                "env": {**env, "suite": line.suite, "task": line.task, "image_size": size, "images": "on_request"},
            },
            "demonstrator",
            "render",
            (Ref("env"), folder, line, writer.layout, writer.staging / file_name(line), tolerance),
            line.key,
        )
        for line in lines
    ]


def wanted(lines: Sequence[EpisodeLine], keep_failures: bool) -> list[EpisodeLine]:
    """What becomes part of the data set: successes (or all) with a step of the expert's, by suite, task and seed."""
    chosen = [line for line in lines if line.steps > line.lead and (line.success or keep_failures)]
    return sorted(chosen, key=lambda line: (line.suite, line.task, line.seed, line.variant, line.noise, line.lead))
