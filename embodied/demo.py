"""The main job in minutes: collect demonstrations, write and check a data set, evaluate policies, one report.

Every part is the same function that the command of that name calls, under the same settings.
"""

from __future__ import annotations

import html
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embodied.collecting.collect import Collected, collect
from embodied.config import compose_config, to_dataclass
from embodied.data.validation.report import Report
from embodied.data.validation.validate import validate
from embodied.evaluation.evaluate import evaluate, report_run
from embodied.evaluation.report import ReportRun, Section, write_report
from embodied.evaluation.summary import Summary
from embodied.paths import new_run_folder
from embodied.registry import registry
from embodied.workers import WorkerPool


@dataclass
class DemoSuite:
    """What the demo does on one suite. world: a world model of its scenes; null leaves the imagination out."""

    env: str = "robosuite"
    tasks: list[int] = field(default_factory=lambda: [0])
    world: str | None = None


@dataclass
class DemoConfig:
    """`assets`: registered function that finds the assets of `preferred`, or None; without them `fallback` is run."""

    preferred: DemoSuite = field(default_factory=DemoSuite)
    fallback: DemoSuite = field(default_factory=DemoSuite)
    assets: str = "sim.libero_setup.find_assets"
    suite: str | None = None  # takes the place of the choice
    demonstrations: int = 2  # of each task
    episodes: int = 3  # of each task and policy
    policies: list[str] = field(default_factory=lambda: ["prts", "expert", "replay", "random"])
    shipped: dict[str, str] = field(default_factory=dict)  # policies that are checkpoints, and where they lie
    imagined: int = 3  # episodes of the first policy that the suite's world model imagines again; 0 leaves it out
    videos: int = 3  # of each policy
    values: int = 2  # other tasks whose value is drawn beside a shipped policy's own
    workers: int = 2
    run: str | None = None


def demo(config: DemoConfig, command: str) -> Path:
    """Runs the demo and returns the report's path. An existing run folder is resumed."""
    folder = Path(config.run) if config.run else new_run_folder("demo")
    suite = choose_suite(config)
    words = {task.index: task.language for task in registry().resolve("sim.tasks.tasks")(suite.env)}
    print(f"Suite {suite.env}: " + "; ".join(words[index] for index in suite.tasks), flush=True)
    imagining = suite.world is not None and config.imagined > 0
    steps = 2 + len(config.policies) + imagining
    with _step(1, steps, f"collecting {config.demonstrations} demonstrations of each task with the scripted expert"):
        collected = _collect(config, suite, folder)
        print(f"{collected.episodes} episodes, {collected.frames} frames in {collected.out}")
    with _step(2, steps, "validating the data set"):
        checked = validate(collected.out)
        print("\n".join(problem.line() for problem in checked.problems) or "no problems found")
    runs = []
    with WorkerPool(config.workers) as pool:
        for number, policy in enumerate(config.policies, start=3):
            with _step(number, steps, f"evaluating {policy}"):
                runs.append(_evaluate(config, suite, folder, policy, collected.out, pool))
        sections = [_data_section(collected, checked)]
        if imagining:
            with _step(steps, steps, f"imagining {config.imagined} of its episodes"):
                sections.insert(0, _imagine(config, suite, runs[0], pool))
    title = f"Demo on {suite.env}"
    subtitle = f"{len(suite.tasks)} tasks, {config.episodes} episodes of each; replay repeats the demonstrations."
    return write_report(folder, title, runs, sections, subtitle, command)


def choose_suite(config: DemoConfig) -> DemoSuite:
    """The preferred suite where its assets are, else the one that needs none. ValueError for an unknown `suite`."""
    choices = {choice.env: choice for choice in (config.preferred, config.fallback)}
    if config.suite is not None:
        if config.suite not in choices:
            raise ValueError(f"suite should be one of {', '.join(choices)}, got {config.suite!r}")
        return choices[config.suite]
    return config.fallback if registry().resolve(config.assets)() is None else config.preferred


@contextmanager
def _step(number: int, total: int, words: str) -> Iterator[None]:
    began = time.monotonic()
    print(f"\n[{number}/{total}] {words}", flush=True)
    yield
    print(f"[{number}/{total}] done in {time.monotonic() - began:.0f} s", flush=True)


def _settings(command: str, overrides: Sequence[str]) -> Any:
    return to_dataclass(compose_config(command, overrides))


def _collect(config: DemoConfig, suite: DemoSuite, folder: Path) -> Collected:
    tasks = ",".join(map(str, suite.tasks))
    overrides = [
        f"env={suite.env}",
        f"tasks=[{tasks}]",
        f"episodes={config.demonstrations}",
        f"workers={config.workers}",
    ]
    return collect(_settings("collect", [*overrides, f"out='{folder / 'dataset'}'"]))


def _evaluate(
    config: DemoConfig, suite: DemoSuite, folder: Path, policy: str, dataset: Path, pool: WorkerPool
) -> ReportRun:
    tasks = ",".join(map(str, suite.tasks))
    overrides = [f"env={suite.env}", f"tasks=[{tasks}]", f"episodes={config.episodes}"]
    overrides += ["report=false", f"videos={config.videos}", "video_size=192", "video_stride=2"]
    overrides += [f"workers={config.workers}", f"run='{folder / policy}'"]
    if policy in config.shipped:
        overrides += ["policy=checkpoint", f"policy.path='{config.shipped[policy]}'", f"values={config.values}"]
    else:
        overrides.append(f"policy={policy}")
    if policy == "replay":
        overrides.append(f"policy.source='{dataset}'")
    settings = _settings("evaluate", overrides)
    summary = evaluate(settings, command=f"embodied evaluate {' '.join(overrides)}", pool=pool)
    print(_line(policy, summary))
    return report_run(summary, settings, pool, policy)


def _imagine(config: DemoConfig, suite: DemoSuite, run: ReportRun, pool: WorkerPool) -> Section:
    """Episodes of the first policy, imagined by the world model beside the simulator."""
    from embodied.evaluation.imagined_rollouts import imagine_episodes, section
    from embodied.evaluation.world import load_world

    world = load_world(str(suite.world), "persist_nano")
    env = _settings("evaluate", [f"env={suite.env}"]).env
    clips = imagine_episodes(run.folder, env, run.summary.records, world, config.imagined, pool)
    pool.clear()
    for clip in clips:
        print(f"{clip.record.key}: PSNR {clip.psnr:.1f} dB, first frame held still {clip.still:.1f} dB")
    return section(clips, world.name)


def _line(policy: str, summary: Summary) -> str:
    tally, interval = summary.all, summary.all.interval
    errors = f", {tally.error} simulator errors" if tally.error else ""
    return (
        f"{policy}: {tally.success} of {tally.counted} episodes succeed "
        f"(95% interval {100 * interval.low:.0f} to {100 * interval.high:.0f}%){errors}"
    )


def _data_section(collected: Collected, checked: Report) -> Section:
    """The collected data set in numbers, and what validation found."""
    facts = {
        "Folder": str(collected.out),
        "Episodes": f"{collected.episodes} written of {len(collected.lines)} recorded",
        "Frames": f"{collected.frames}, from two cameras",
        "Validation": f"{len(checked.problems)} problems" if checked.problems else "no problems found",
        **{problem.kind.value: problem.message for problem in checked.problems[:20]},
    }
    rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts.items())
    return Section(
        "Data set",
        f'<dl class="facts panel">{rows}</dl>',
        "Demonstrations of the scripted expert, as a LeRobotDataset v3 beside the records that it was rendered from.",
        {"folder": str(collected.out), "validation": checked.to_json()},
    )
