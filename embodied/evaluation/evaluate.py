"""`evaluate(config)`: the whole of an evaluation, for the command, the demo and training hooks alike."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from embodied.evaluation.config import EvaluateConfig, list_episodes, suite_tasks
from embodied.evaluation.records import Outcome, Record, RunFolder, differences, protocol_of
from embodied.evaluation.runner import Runner, RunSettings, effective_replan
from embodied.evaluation.summary import Summary, summarise
from embodied.evaluation.versions import SIMULATOR, versions
from embodied.io import sole_writer, write_json
from embodied.paths import new_run_folder
from embodied.protocols import Episode, Policy, PolicySpec, Task
from embodied.registry import build
from embodied.workers import WorkerError, WorkerPool

if TYPE_CHECKING:
    from embodied.evaluation.report import ReportRun

SIMULATOR_SIDE = "simulator"
PROBE_TARGET = "embodied.evaluation.rollout.Probe"


def evaluate(
    config: EvaluateConfig,
    policy: Policy | None = None,
    command: str | None = None,
    pool: WorkerPool | None = None,
) -> Summary:
    """Runs the episodes that are still missing in the run folder, then writes summary.json, videos and report.html.

    `policy` takes the place of the config's (a training loop's own, in memory); `pool` that of workers made for this
    run (several evaluations in a row save the simulators' imports). Raises ValueError for settings that do not fit,
    also to the folder being resumed.
    """
    if pool is None:
        with WorkerPool(config.workers, timeout=config.call_timeout) as own:
            return _evaluate(config, policy, command, own)
    try:
        return _evaluate(config, policy, command, pool)
    finally:
        pool.clear()


def _evaluate(config: EvaluateConfig, policy: Policy | None, command: str | None, pool: WorkerPool) -> Summary:
    suite_tasks(config)  # what is wrong there should not leave an empty folder behind
    folder = RunFolder(Path(config.run) if config.run else new_run_folder("evaluate"))
    with sole_writer(folder.path):
        return _run(folder, config, policy, command, pool)


def _run(
    folder: RunFolder, config: EvaluateConfig, policy: Policy | None, command: str | None, pool: WorkerPool
) -> Summary:
    tasks = suite_tasks(config)
    policy, expert, spec = _policy(config, policy, pool)
    episodes = _episodes(config, policy, tasks)
    _agree(folder, config, spec, tasks)
    _note_invocation(folder, config, command)
    settings = RunSettings(
        _environment(config, spec),
        tasks,
        config.replan,
        config.max_attempts,
        config.batching,
        config.call_timeout,
        values=_values(config, policy),
    )
    done = _done(folder, episodes, config.retry_errors)
    missing = [episode for episode in episodes if episode.key not in done]
    with _Progress(len(episodes), list(done.values())) as progress:
        Runner(pool, folder, settings, spec, policy, expert, progress.add).run(missing)
    return _finish(folder, config, episodes, pool)


def _policy(
    config: EvaluateConfig, policy: Policy | None, pool: WorkerPool
) -> tuple[Policy | None, dict[str, Any] | None, PolicySpec]:
    """The policy here, or the config of an expert in the workers, and what it says of itself."""
    if policy is not None:
        return policy, None, policy.spec
    settings = {key: value for key, value in config.policy.items() if key != "runs_in"}
    if "_target_" not in settings:
        raise ValueError("an evaluation needs a policy: add policy=... to the command")
    if config.policy.get("runs_in") == SIMULATOR_SIDE:
        return None, settings, _expert_spec(settings, pool)
    built = build(settings)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(config.torch_threads)
    return built, None, built.spec


def _values(config: EvaluateConfig, policy: Policy | None) -> int | None:
    """How many other instructions' values are traced. ValueError for a policy without a value."""
    if config.values is not None and (config.values < 0 or not callable(getattr(policy, "value", None))):
        raise ValueError(
            f"values={config.values} traces a policy's value under so many other instructions (0 or more): this policy "
            "should have one (PRTS has), leave values out"
        )
    return config.values


def _expert_spec(settings: dict[str, Any], pool: WorkerPool) -> PolicySpec:
    """What an expert says of itself, asked in a worker. ValueError when it cannot be made there."""
    try:
        pool.build(0, "probe", {"_target_": PROBE_TARGET, "expert": settings})
        spec = pool.call(0, "probe", "spec")
        pool.drop(0, "probe")
    except WorkerError as error:
        raise ValueError(
            f"policy {settings['_target_']} should start in a simulator's process: {error.summary}"
        ) from error
    return spec


def _episodes(config: EvaluateConfig, policy: Policy | None, tasks: Mapping[int, Task]) -> list[Episode]:
    """The settings' episodes, or those that a replay has recordings of."""
    recorded: list[Episode] | None = getattr(policy, "episodes", None)
    if recorded is None:
        return list_episodes(config, tasks)
    chosen: list[Episode] = []
    for index, task in tasks.items():
        matching = [e for e in recorded if (e.suite, e.task) == (task.suite, index)]
        chosen += matching[config.first : config.first + config.episodes]
    if not chosen:
        raise ValueError(
            f"the recordings should hold episodes of {config.env['suite']} {list(tasks)}, got none of them"
        )
    return chosen


def _agree(folder: RunFolder, config: EvaluateConfig, spec: PolicySpec, tasks: Mapping[int, Task]) -> None:
    """Writes what the run's episodes have in common, or checks it against the run being resumed."""
    env = {key: value for key, value in _environment(config, spec).items() if key != "task"}
    simulator = {name: versions()[name] for name in SIMULATOR if name in versions()}
    settings = {"env": env, "executed": effective_replan(spec, config.replan), "simulator": simulator}
    protocol = protocol_of(spec, tasks, settings)
    if folder.exists:
        old = folder.protocol()
        changed = differences(old, protocol)
        if changed:
            raise ValueError(
                f"{folder.path} holds a run with other settings: {'; '.join(changed)}. "
                "Resume it with its own settings or choose another run=..."
            )
        protocol["max_steps"] = {**old["max_steps"], **protocol["max_steps"]}
    folder.write_protocol(protocol)


def _environment(config: EvaluateConfig, spec: PolicySpec) -> dict[str, Any]:
    """The environment's settings, with images of the size that the policy looks at."""
    sized = bool(spec.image_keys) and "image_size" in config.env
    return {**config.env, "image_size": spec.image_size} if sized else dict(config.env)


def _note_invocation(folder: RunFolder, config: EvaluateConfig, command: str | None) -> None:
    """Adds this start to run.json: the exact command, resolved config, versions and machine."""
    text = command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    entry = {"command": text, "config": plain(asdict(config)), "versions": versions(), "cpus": os.cpu_count()}
    write_json(folder.path / "run.json", {"invocations": [*folder.invocations(), entry]})


def plain(value: Any) -> Any:
    """A config as JSON can hold it: enums by name."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.name if isinstance(value, Enum) else value


def _done(folder: RunFolder, episodes: list[Episode], retry_errors: bool) -> dict[str, Record]:
    """Records of this run's episodes that need not be run again."""
    wanted = {episode.key for episode in episodes}
    return {
        key: record
        for key, record in folder.records().items()
        if key in wanted and not (retry_errors and record.outcome is Outcome.ERROR)
    }


def _finish(folder: RunFolder, config: EvaluateConfig, episodes: list[Episode], pool: WorkerPool) -> Summary:
    """Summary of the episodes asked for (a folder may hold more), its JSON, videos and page."""
    wanted = {episode.key for episode in episodes}
    summary = summarise(folder.path, [r for key, r in folder.records().items() if key in wanted])
    write_json(folder.path / "summary.json", summary.to_json())
    if config.report:
        from embodied.evaluation.report import write_report

        title = f"{summary.records[0].policy} on {config.env['suite']}"
        summary.report = write_report(folder.path, title, [report_run(summary, config, pool)])
    return summary


def report_run(summary: Summary, config: EvaluateConfig, pool: WorkerPool | None = None, label: str = "") -> ReportRun:
    """A run as `write_report` takes it: with `config.videos` rollouts, rendered unless they are there already."""
    from embodied.evaluation.report import ReportRun
    from embodied.evaluation.videos import render_videos

    folder = RunFolder(summary.folder)
    looks = (config.videos, config.video_size, config.video_stride)
    return ReportRun(folder, summary, render_videos(folder, config.env, summary.records, *looks, pool=pool), label)


class _Progress:
    """A progress bar: rate, time left, running success rate, errors apart."""

    def __init__(self, total: int, done: list[Record]) -> None:
        self.counts = dict.fromkeys(Outcome, 0)
        slow = {} if sys.stderr.isatty() else {"mininterval": 10.0}
        self.bar = tqdm(total=total, initial=len(done), unit="episode", smoothing=0.05, **slow)
        for record in done:
            self.counts[record.outcome] += 1
        self._show()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def add(self, record: Record) -> None:
        self.counts[record.outcome] += 1
        self._show()
        self.bar.update()
        if record.outcome is Outcome.ERROR:
            self.bar.write(f"error: {record.key}: {record.error} ({record.attempts} attempts)", file=sys.stderr)

    def _show(self) -> None:
        good, bad, errors = (self.counts[o] for o in (Outcome.SUCCESS, Outcome.FAILURE, Outcome.ERROR))
        rate = f" ({100 * good / (good + bad):.0f}%)" if good + bad else ""
        self.bar.set_postfix_str(f"success {good}/{good + bad}{rate}" + (f", error {errors}" if errors else ""), False)
