"""How well a value function orders demonstrations: along time, and right against wrong instructions.

For each chosen episode the value of the recorded chunk is taken every few frames under the episode's own instruction
and under wrong ones. Frames whose chunk would leave the episode are left out. Figures:

- spearman_median: over episodes, rank correlation of the right value with time (expert episodes make progress);
- auc_wrong: the chance that a right value exceeds a wrong one, frames of the episodes' second halves;
- slope_median: over episodes, slope of the right value against steps to go, divided by log gamma: 1 is calibrated;
- baselines: "time" (value = frame number) and "no_language" (mean over the instructions tried): both have AUC 0.5, so
  what exceeds them is due to the instruction;
- failures, where the data has some: the median of their last values and the successes' 10th percentile; rollout.*: the
  same of the policy's own episodes, from evaluations that traced its value (`values=0`).

Shapes: F frames of an episode, W instructions tried (the right one first).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from embodied.data.cache import FrameCache
from embodied.data.source import EpisodeInfo
from embodied.data.windows import WindowConfig, Windows, split_episodes
from embodied.evaluation.records import Outcome, RunFolder
from embodied.registry import registry
from embodied.schema import ACTION, STATE, TASK

# Suites in which all tasks share one scene, so that every instruction's objects are there.
SAME_SCENE = ("libero_goal",)


@dataclass
class ValueConfig:
    """Settings of `embodied value`.

    held_out: the share of each task's episodes that training left out (its data.holdout), drawn by its seed; 0: all
    episodes. wrong: JSON file {instruction: [instructions whose objects are in its scene]}; null: the suite's other
    instructions where all its tasks share one scene (`same_scene`), what `goal_list` says of a task's scene (registered
    functions) in the suites `listed`, none elsewhere. tries: wrong instructions an episode.
    """

    out: str | None = None
    held_out: float = 0.0
    seed: int = 0
    limit_per_task: int | None = None
    suites: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)  # evaluations of this policy with values=N
    stride: int = 4
    wrong: str | None = None
    same_scene: list[str] = field(default_factory=lambda: list(SAME_SCENE))
    listed: list[str] = field(default_factory=lambda: ["libero_object", "libero_spatial"])
    task_list: str = "sim.tasks.tasks"
    goal_list: str = "sim.goals.other_goals"
    tries: int = 3
    batch: int = 32
    device: str = "cpu"


@dataclass(frozen=True)
class Curve:
    """Values (F, W) of one episode at `frames` (F,), under `instructions` (W): the right one first."""

    episode: int
    suite: str
    instructions: tuple[str, ...]
    frames: np.ndarray
    steps_to_go: np.ndarray
    values: np.ndarray
    success: int

    def to_json(self) -> dict[str, Any]:
        return {
            "episode": self.episode,
            "suite": self.suite,
            "instructions": list(self.instructions),
            "frames": self.frames.tolist(),
            "steps_to_go": self.steps_to_go.tolist(),
            "values": np.round(self.values.astype(float), 5).tolist(),
            "success": self.success,
        }


def value_curves(policy: Any, cache: FrameCache, config: ValueConfig) -> list[Curve]:
    """The curves of the chosen episodes. ValueError when the policy has no value or no episode is left."""
    if not callable(getattr(policy, "value", None)):
        raise ValueError(  # noqa: TRY004 - a wrong checkpoint, not a wrong call
            f"{policy.spec.name} should have a value (PRTS has one), it has none: use another checkpoint"
        )
    chunk = policy.spec.chunk
    observed = [*policy.spec.image_keys, STATE]
    windows = Windows(cache, WindowConfig(observations=observed, actions=[ACTION], chunk=chunk))
    wrong = wrong_instructions(cache, config)
    curves = []
    for episode in choose_episodes(cache, config):
        length = int(cache.episodes.length[episode])
        frames = np.arange(0, length - chunk + 1, -(-config.stride // windows.every) * windows.every)
        if len(frames) >= 3:
            words = _instructions(cache, episode, wrong, config)
            values = _values(policy, windows, windows.samples_at(episode, frames), words, config.batch)
            suite = cache.episodes.suites[cache.episodes.suite_id[episode]]
            success = int(cache.episodes.success[episode])
            curves.append(Curve(int(episode), suite, words, frames, length - 1 - frames, values, success))
    if not curves:
        raise ValueError(f"{cache.folder}: no episode is left: check suites, held_out and the episodes' lengths")
    return curves


def choose_episodes(cache: FrameCache, config: ValueConfig) -> np.ndarray:
    table = cache.episodes
    chosen = split_episodes(cache, config.held_out, config.seed)[1] if config.held_out else np.arange(len(table))
    if config.suites:
        chosen = chosen[np.isin([table.suites[i] for i in table.suite_id[chosen]], config.suites)]
    if config.limit_per_task is not None:
        tasks = table.task_id[chosen]
        rank = np.array([(tasks[:i] == task).sum() for i, task in enumerate(tasks)])
        chosen = chosen[rank < config.limit_per_task]
    return chosen


def wrong_instructions(cache: FrameCache, config: ValueConfig) -> list[list[str]]:
    """For each episode the other instructions that could be followed in its scene.

    Where tasks have scenes of their own, the scene is that of the episode's task index: its instruction may be another.
    """
    table, scenes = cache.episodes, dict[tuple[str, Any], list[str]]()
    if config.wrong is not None:
        content = json.loads(Path(config.wrong).read_text())
        if not isinstance(content, dict) or not all(isinstance(value, list) for value in content.values()):
            raise ValueError(f"{config.wrong} should map each instruction to a list of instructions")
        return [[other for other in content.get(info.task, ()) if other != info.task] for info in table.infos]
    for suite in config.same_scene:
        if suite in table.suites:
            inside = np.unique(table.task_id[table.suite_id == table.suites.index(suite)])
            scenes |= {(suite, word): [table.languages[i] for i in inside] for word in table.languages}
    for suite in set(config.listed) & set(table.suites):
        goals = registry().resolve(config.goal_list)
        for task in registry().resolve(config.task_list)(suite):
            listed = [task.language, *(goal.words for goal in goals(task))]
            scenes |= {(suite, task.index): listed, (suite, task.language): listed}
    return [_others(info, scenes) for info in table.infos]


def _others(info: EpisodeInfo, scenes: Mapping[tuple[str, Any], Sequence[str]]) -> list[str]:
    """An index under which the scene has no such instruction is another numbering: then the instruction decides."""
    words = scenes.get((info.suite, info.task_index), ())
    words = words if info.task in words else scenes.get((info.suite, info.task), ())
    return [word for word in words if word != info.task]


def _instructions(
    cache: FrameCache, episode: int, wrong: Sequence[Sequence[str]], config: ValueConfig
) -> tuple[str, ...]:
    table = cache.episodes
    right = table.languages[table.task_id[episode]]
    others = wrong[episode]
    rng = np.random.default_rng([config.seed, int(episode)])
    picked = rng.permutation(len(others))[: config.tries]
    return (right, *(others[i] for i in picked))


def _values(policy: Any, windows: Windows, samples: np.ndarray, words: Sequence[str], batch: int) -> np.ndarray:
    """(F, W)."""
    parts = []
    for start in range(0, len(samples), batch):
        item = windows.get_batch(samples[start : start + batch])
        observation = {key: value for key, value in item.items() if key in (*policy.spec.image_keys, STATE)}
        count = len(item[TASK])
        columns = [policy.value({**observation, TASK: [w] * count}, item[ACTION], [w] * count) for w in words]
        parts.append(np.stack(columns, axis=1))
    return np.concatenate(parts)


def value_figures(curves: Sequence[Curve], gamma: float | None = None) -> dict[str, float]:
    """The figures named at the top of this module; those that the data cannot give are left out."""
    good = [curve for curve in curves if curve.success != 0] or list(curves)
    figures = {
        "episodes": float(len(good)),
        "spearman_median": float(np.median([spearman(curve.values[:, 0], curve.frames) for curve in good])),
        "no_language.spearman_median": float(
            np.median([spearman(curve.values.mean(1), curve.frames) for curve in good])
        ),
    }
    against = [curve for curve in good if curve.values.shape[1] > 1]
    if against:
        halves = [curve.values[len(curve.frames) // 2 :] for curve in against]
        right, wrong = np.concatenate([h[:, 0] for h in halves]), np.concatenate([h[:, 1:].ravel() for h in halves])
        figures["auc_wrong"] = auc(right, wrong)
        figures["auc_wrong_within_episode"] = float(np.mean([auc(h[:, 0], h[:, 1:].ravel()) for h in halves]))
        clock = [np.repeat(c.frames[len(c.frames) // 2 :], c.values.shape[1] - 1) for c in against]
        figures["time.auc_wrong"] = auc(np.concatenate(clock), np.concatenate(clock))
    if gamma is not None:
        slopes = [np.polyfit(curve.steps_to_go, curve.values[:, 0], 1)[0] / np.log(gamma) for curve in good]
        figures["slope_median"] = float(np.median(slopes))
    failed = [curve.values[-1, 0] for curve in curves if curve.success == 0]
    if failed and len(failed) < len(curves):
        ends = [curve.values[-1, 0] for curve in good]
        figures["failures"] = float(len(failed))
        figures["failures.end_median"] = float(np.median(failed))
        figures["successes.end_p10"] = float(np.percentile(ends, 10))
    return figures


def rollout_figures(folders: Sequence[RunFolder]) -> dict[str, float]:
    """Last values of the policy's own episodes, failures against successes. ValueError for a run without traces."""
    ends: dict[bool, list[float]] = {True: [], False: []}
    for folder in folders:
        for record in folder.records().values():
            trace = None if record.outcome is Outcome.ERROR else folder.trajectory(record.episode).trace
            if trace is not None and trace.values:
                ends[record.success].append(trace.values[-1][0])
    if not ends[True]:
        raise ValueError(
            f"runs={[str(folder.path) for folder in folders]} should hold successes with the policy's value: "
            "evaluate with values=0"
        )
    figures = {
        "rollout.successes": float(len(ends[True])),
        "rollout.failures": float(len(ends[False])),
        "rollout.successes.end_median": float(np.median(ends[True])),
        "rollout.successes.end_p10": float(np.percentile(ends[True], 10)),
    }
    if ends[False]:
        figures["rollout.failures.end_median"] = float(np.median(ends[False]))
        figures["rollout.auc_success"] = auc(np.array(ends[True]), np.array(ends[False]))
    return figures


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; ties share their mean rank; 0 when either is constant."""
    x, y = _ranks(np.asarray(a)), _ranks(np.asarray(b))
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / scale) if scale > 0 else 0.0


def auc(right: np.ndarray, wrong: np.ndarray) -> float:
    """The chance that a right value exceeds a wrong one, ties counted half (Mann and Whitney 1947)."""
    ranks = _ranks(np.concatenate([right, wrong]))[: len(right)]
    return float((ranks.sum() - len(right) * (len(right) + 1) / 2) / (len(right) * len(wrong)))


def _ranks(values: np.ndarray) -> np.ndarray:
    """1-based ranks, ties at their mean."""
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    last = count.cumsum()
    return (last - (count - 1) / 2)[inverse]
