"""Evaluation of world models: closed loop and teacher-forced against recorded futures, with baselines.

Every (model, mode, clip) is a line of results.jsonl, written as soon as it is known; the same command goes on after a
crash. Modes: closed (own frames fed back), forced (every interaction from true frames); the baselines copy_first and
copy_last (the frame before each interaction, true) are models of their own.

Shapes: B clips, T frames, I interactions, V cameras, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embodied.checkpoint import load_checkpoint
from embodied.data.cache import FrameCache
from embodied.evaluation.world_clips import Clip, ClipConfig, Imagining, in_batches, list_clips, read_clips, stream
from embodied.evaluation.world_metrics import FrameMetrics, moving, pixels, psnr
from embodied.io import append_line, read_lines, write_json
from embodied.paths import new_run_folder

RESULTS, PROTOCOL = "results.jsonl", "protocol.json"
BASELINES = ("copy_first", "copy_last")
CLOSED, FORCED = "closed", "forced"
MOVING = "psnr_moving"


@dataclass
class EvaluateWorldConfig:
    """models: name -> checkpoint or training run. against: the model that the others are paired with (the first).

    policies: name -> [evaluation run in the simulator, the same with env=imagined] and two optional controls (see
    `world_policies`); without: names left out of the second set of figures. videos: clips shown in the report. batch:
    clips at once. forced: also teacher-forced.
    """

    models: dict[str, str] = field(default_factory=dict)
    policies: dict[str, list[str]] = field(default_factory=dict)
    without: list[str] = field(default_factory=list)
    against: str | None = None
    clips: ClipConfig = field(default_factory=ClipConfig)
    forced: bool = True
    batch: int = 8
    seed: int = 0
    videos: int = 4
    steps: int | None = None  # of every model's sampler; null: each its own
    device: str = "cpu"
    threads: int | None = None
    run: str | None = None


@dataclass(frozen=True)
class Result:
    """scores: camera -> metric -> one number an interaction, NaN where no frame lies inside the episode."""

    model: str
    mode: str
    clip: Clip
    scores: Mapping[str, Mapping[str, Sequence[float]]]

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.model, self.mode, self.clip.key)

    def mean(self, metric: str, camera: str | None = None) -> float:
        """Over interactions, and over cameras if none is named."""
        cameras = [camera] if camera else list(self.scores)
        values = np.array([self.scores[name][metric] for name in cameras], float)
        return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def evaluate_world(config: EvaluateWorldConfig, command: str = "") -> Any:
    """Runs what is missing and returns a `world_summary.WorldSummary`. ValueError for settings that do not fit."""
    from embodied.evaluation.world_report import write_world_report
    from embodied.evaluation.world_summary import summarise

    if not config.models:
        raise ValueError("evaluate-world needs models: add 'models={base: CHECKPOINT}'")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    folder = Path(config.run) if config.run else new_run_folder("evaluate-world")
    cache, metrics = FrameCache(config.clips.path), FrameMetrics()
    worlds = {name: load_world(path, name, config.device, config.steps) for name, path in config.models.items()}
    if config.against not in (None, *worlds):
        raise ValueError(f"against should name one of the models {', '.join(worlds)}, got {config.against!r}")
    first = next(iter(worlds.values()))
    clips = list_clips(cache, config.clips, first.chunk * first.skip)
    _keep_protocol(folder, config, worlds, clips, metrics.names)
    run = _Run(folder, config, cache, metrics, clips)
    run.baselines(first)
    for name, world in worlds.items():
        run.model(name, world, CLOSED)
        if config.forced:
            run.model(name, world, FORCED)
    results = read_results(folder)
    summary = summarise(results, config.against or next(iter(worlds)), folder)
    write_json(folder / "summary.json", summary.to_json())
    write_world_report(folder, summary, worlds, cache, clips, config, command)
    return summary


def load_world(path: str | Path, name: str, device: str = "cpu", steps: int | None = None) -> Imagining:
    """The world model of a checkpoint, its sampler with so many steps. ValueError when it is something else."""
    loaded = load_checkpoint(path, device)
    make = getattr(loaded.model, "make_world_model", None)
    if make is None:
        raise ValueError(f"{path} should hold a world model, it holds {loaded.config['model']['_target_']}")
    world = make(loaded.pipeline, name, loaded.digest, device)
    world.set_steps(steps)
    return world


def read_results(folder: Path) -> list[Result]:
    lines = read_lines(folder / RESULTS)
    return [Result(line["model"], line["mode"], Clip(**line["clip"]), _numbers(line["scores"])) for line in lines]


class _Run:
    """What is measured, clip batch by clip batch."""

    def __init__(
        self, folder: Path, config: EvaluateWorldConfig, cache: FrameCache, metrics: FrameMetrics, clips: list[Clip]
    ) -> None:
        self.folder, self.config, self.cache, self.metrics, self.clips = folder, config, cache, metrics, clips
        self.done = {result.key for result in read_results(folder)}

    def model(self, name: str, world: Imagining, mode: str) -> None:
        def frames(batch: Mapping[str, Any], clips: Sequence[Clip], truth: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG001
            streams = [stream(clip, self.config.seed) for clip in clips]
            return world.rollout(batch, self.config.clips.interactions, streams, mode == FORCED)

        self._score(name, mode, world, frames)

    def baselines(self, world: Imagining) -> None:
        for name in BASELINES:
            self._score(name, CLOSED, world, _copier(name, world))

    def _score(self, name: str, mode: str, world: Imagining, frames: Callable[..., dict[str, Tensor]]) -> None:
        missing = [clip for clip in self.clips if (name, mode, clip.key) not in self.done]
        for clips in in_batches(missing, self.config.batch):
            batch = read_clips(self.cache, clips, world, self.config.clips.interactions)
            truth, start = world.truth(batch), world.start(batch)
            found = score_frames(self.metrics, frames(batch, clips, truth), truth, start, batch["valid"], world.chunk)
            for clip, scores in zip(clips, found, strict=True):
                line = {"model": name, "mode": mode, "clip": clip.to_json(), "scores": _writable(scores)}
                append_line(self.folder / RESULTS, line)
            print(f"{name} {mode}: {len(clips)} clips", flush=True)


def _copier(name: str, world: Imagining) -> Callable[..., dict[str, Tensor]]:
    def frames(batch: Mapping[str, Any], clips: Any, truth: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG001
        start = world.start(batch)
        if name == "copy_first":
            return {key: start[key].expand_as(value) for key, value in truth.items()}
        return {key: _last_known(value, start[key], world.chunk) for key, value in truth.items()}

    return frames


def _last_known(truth: Tensor, start: Tensor, chunk: int) -> Tensor:
    """(B, T, ...): each chunk is the frame before it over and over."""
    before = torch.cat([start, truth[:, chunk - 1 : -1 : chunk]], dim=1)
    return before.repeat_interleave(chunk, dim=1)


def score_frames(
    metrics: FrameMetrics,
    imagined: Mapping[str, Tensor],
    truth: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    valid: np.ndarray,
    chunk: int,
) -> list[dict[str, dict[str, list[float]]]]:
    """Images (B, T, H, W, 3) uint8 by camera -> for each clip camera -> metric -> a mean an interaction."""
    result: list[dict[str, dict[str, list[float]]]] = [{} for _ in range(len(valid))]
    inside = torch.from_numpy(np.asarray(valid))
    for camera, value in truth.items():
        shape = value.shape[:2]
        a, b, first = (pixels(x).flatten(0, 1) for x in (imagined[camera], value, start[camera].expand_as(value)))
        scores = {name: found.view(shape).cpu() for name, found in metrics(a, b).items()}
        mask = moving(b, first)
        moved = psnr(a, b, mask).view(shape).cpu()
        scores[MOVING] = torch.where(mask.flatten(1).any(1).view(shape).cpu(), moved, torch.nan)
        for name, found in scores.items():
            means = _by_interaction(found, inside, chunk)
            for row in range(len(result)):
                result[row].setdefault(camera, {})[name] = means[row].tolist()
    return result


def _by_interaction(values_BT: Tensor, valid_BT: Tensor, chunk: int) -> Tensor:
    """(B, I) means over valid frames, NaN where there is none."""
    masked = torch.where(valid_BT, values_BT.double(), torch.nan)
    return masked.unflatten(1, (-1, chunk)).nanmean(2)


def _writable(scores: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """JSON has no NaN: null."""
    return {
        camera: {name: [round(v, 6) if v == v else None for v in values] for name, values in row.items()}
        for camera, row in scores.items()
    }


def _numbers(scores: Mapping[str, Mapping[str, Sequence[float | None]]]) -> dict[str, dict[str, list[float]]]:
    return {
        camera: {name: [float("nan") if v is None else v for v in values] for name, values in row.items()}
        for camera, row in scores.items()
    }


def _keep_protocol(
    folder: Path,
    config: EvaluateWorldConfig,
    worlds: Mapping[str, Imagining],
    clips: Sequence[Clip],
    metrics: Sequence[str],
) -> None:
    """What must not change between two calls for the same run. ValueError names what did."""
    import json

    protocol = {
        "clips": [clip.to_json() for clip in clips],
        "interactions": config.clips.interactions,
        "seed": config.seed,
        "steps": config.steps,
        "data": str(config.clips.path),
        "metrics": list(metrics),
        "digests": {name: world.digest for name, world in worlds.items()},
    }
    path = folder / PROTOCOL
    if path.is_file():
        earlier = json.loads(path.read_text())
        known = earlier["digests"]
        changed = [name for name, digest in protocol["digests"].items() if known.get(name, digest) != digest]  # type: ignore[attr-defined]
        changed += [key for key, now in protocol.items() if key != "digests" and earlier.get(key, now) != now]
        if changed:
            raise ValueError(f"{folder} was made with other {changed[0]}: use another run=")
        protocol["digests"] = {**known, **protocol["digests"]}  # type: ignore[dict-item]
    write_json(path, protocol)
