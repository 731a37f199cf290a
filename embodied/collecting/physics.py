"""Phase 1: the expert's episodes, physics only, appended durably as they finish."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from embodied.collecting.crew import Crew, Job
from embodied.collecting.plan import PlannedEpisode
from embodied.data.episode_record import EpisodeLine, EpisodeRecord, RecordFolder
from embodied.io import append_line
from embodied.workers import Ref, WorkerError, WorkerPool

DEMONSTRATOR = {"_target_": "embodied.collecting.demonstrate.Demonstrator"}
ERRORS = "errors.jsonl"


def record_all(
    planned: Sequence[PlannedEpisode],
    folder: RecordFolder,
    pool: WorkerPool,
    env: Mapping[str, Any],
    expert: Mapping[str, Any],
    attempts: int,
    learner: Mapping[str, Any] | None = None,
) -> int:
    """Records what is planned and not yet recorded; returns how many episodes ended in errors of the simulator."""
    lines = {line.key: line for line in folder.lines()}
    held = [lines[episode.key] for episode in planned if episode.key in lines]
    jobs = [_job(episode, env, expert, learner) for episode in planned if episode.key not in lines]
    errors = 0
    with tqdm(total=len(planned), initial=len(held), desc="physics", unit="ep", disable=not jobs) as bar:
        tally = Counter(line.success for line in held)
        _show(bar, tally, errors)
        for job, result in Crew(pool, attempts).run(jobs):
            if isinstance(result, EpisodeRecord):
                line = folder.append(result)
                tally[line.success] += 1
            else:
                errors += 1
                note_error(folder.path.parent, job.label, result)
            _show(bar, tally, errors)
            bar.update()
    return errors


def _job(
    episode: PlannedEpisode, env: Mapping[str, Any], expert: Mapping[str, Any], learner: Mapping[str, Any] | None
) -> Job:
    goal = {} if episode.goal is None else {"goal": episode.goal}
    needs = {
        "demonstrator": DEMONSTRATOR,
        "env": {**env, "suite": episode.suite, "task": episode.task},
        "expert": {**expert, **goal},
    }
    objects = [Ref("env"), Ref("expert")]
    if learner is not None:
        needs["learner"] = dict(learner)
        objects.append(Ref("learner"))
    return Job(needs, "demonstrator", "record", (episode, *objects), episode.key)


def _show(bar: tqdm, tally: Counter, errors: int) -> None:
    bar.set_postfix_str(f"success {tally[True]}, failure {tally[False]}, error {errors}")


def note_error(root: Path, key: str, error: WorkerError | str) -> None:
    """One line in errors.jsonl: what was tried, how it ended, and the end of the worker's log."""
    if isinstance(error, WorkerError):
        words = {"kind": error.kind.value, "summary": error.summary, "detail": error.detail}
    else:
        words = {"kind": "replay", "summary": error, "detail": ""}
    append_line(root / ERRORS, {"key": key, **words})
    tqdm.write(f"{key}: {words['kind']}: {words['summary']}")


def by_task(lines: Sequence[EpisodeLine]) -> Iterator[str]:
    """A table: episodes, successes and mean steps of each task and goal."""
    for suite, task, variant in sorted({(line.suite, line.task, line.variant) for line in lines}):
        mine = [line for line in lines if (line.suite, line.task, line.variant) == (suite, task, variant)]
        good = sum(line.success for line in mine)
        steps = sum(line.steps for line in mine) / len(mine)
        yield f"{suite:<16} {task:>3}  {good:>4} of {len(mine):<4} {steps:6.0f} steps  {mine[0].language}"
