"""From settings to a job for the loop: data sets, features, windows, sampler, model, pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embodied.checkpoint import (
    CONFIG,
    MODEL_FILE,
    STATISTICS,
    build_model,
    changed_settings,
    inside,
    list_steps,
    load_parts,
    load_weights,
    read_json,
    resolve_checkpoint,
)
from embodied.chunk_policy import to_tensors
from embodied.data.cache import FrameCache, is_cache
from embodied.data.loader import BatchLoader
from embodied.data.sampler import MixtureSampler, Sampler, WeightedSampler, sequential_batches
from embodied.data.windows import Batch, Mixture, Relabel, WindowConfig, Windows, split_episodes
from embodied.evaluation.versions import versions
from embodied.paths import data_folder
from embodied.training.config import Balance, DataConfig, DataSet, StatisticsOf, TrainConfig
from embodied.training.features import bound_pipeline, prepare_cache
from embodied.training.loop import Hook, Job
from embodied.transforms import Pipeline, Transform

Progress = Callable[[str, int, int], None]


class PipelineWindows(Mixture):
    """A mixture whose batches went through the pipeline, in the loader's thread."""

    def __init__(self, members: Sequence[Windows], pipeline: Pipeline) -> None:
        super().__init__(members)
        self.pipeline = pipeline

    def get_batch(self, samples: np.ndarray, rng: np.random.Generator | None = None) -> Batch:
        return self.pipeline.forward(super().get_batch(samples, rng))


def make_job(
    config: TrainConfig,
    run: Path,
    rank: int = 0,
    world_size: int = 1,
    hooks: Sequence[Hook] = (),
    progress: Progress | None = None,
) -> Job:
    """Everything `train` needs. Raises ValueError for settings that do not fit the data or the model."""
    torch.manual_seed(config.seed)
    settings, start = _model_settings(config)
    model, stage = build_model(settings), config.stage
    start = stage.init or start
    if stage.name not in model.stages:
        raise ValueError(f"this model has the stages {', '.join(model.stages)}, got stage {stage.name!r}: use another")
    if stage.fresh and start is None:
        raise ValueError(f"stage.fresh={stage.fresh} needs a checkpoint to start from: give stage.init=CHECKPOINT")
    if start is not None:
        taken = [module for part in stage.parts for module in part.modules.values()]
        load_weights(model, inside(resolve_checkpoint(Path(start)), MODEL_FILE), [*stage.fresh, *taken])
    for part in stage.parts:
        load_parts(model, inside(resolve_checkpoint(Path(part.checkpoint)), MODEL_FILE), part.modules)
    model.set_stage(stage.name)
    sets = data_sets(config.data)
    caches = {name: open_cache(name, data, progress) for name, data in sets.items()}
    if not caches:
        raise ValueError("training needs a data set, data.sets is empty: add data=NAME")
    for name, cache in caches.items():
        prepare_cache(cache, model.features, model.language, _named(progress, f"features of {name}"))
    pipeline = _pipeline(model.transforms(), list(caches.values()), start, stage.statistics)
    training, held = _split(config, sets, caches)
    relabel, windows = model.relabel(stage.name), model.windows(stage.name)
    windows = replace(windows, skip_still=config.data.skip_still)
    mixture = PipelineWindows(_members(caches, training, windows, relabel), pipeline)
    if hasattr(model, "fit"):
        model.fit(mixture, _earlier_arguments(run, start))
    sampler = make_sampler(config, list(sets.values()), mixture, rank, world_size)
    hooks = list(hooks)
    if any(len(episodes) for episodes in held.values()):
        validation = PipelineWindows(_members(caches, held, windows, ()), pipeline)
        hooks.insert(0, ValidationLoss(validation, stage.batch_size, config.validation_batches))
    info = {
        "versions": versions(),
        "stage": stage.name,
        "data": {name: _provenance(cache, training[name]) for name, cache in caches.items()},
    }
    return Job(model, BatchLoader(mixture, sampler, config.ahead), pipeline, run, config, hooks, info)


def _pipeline(
    transforms: list[Transform], caches: list[FrameCache], start: str | None, source: StatisticsOf
) -> Pipeline:
    """Bound to the statistics of the checkpoint that the stage starts from, as far as it has them, else of the data."""
    pipeline = bound_pipeline(transforms, caches)
    if start is None or source is StatisticsOf.data:
        return pipeline
    earlier = read_json(resolve_checkpoint(Path(start)), STATISTICS)
    return Pipeline(transforms, {key: earlier.get(key, value) for key, value in pipeline.statistics.items()})


def _earlier_arguments(run: Path, init: str | None) -> dict[str, Any] | None:
    """The model's arguments in the run's newest checkpoint, or else in the one that the stage starts from."""
    steps = list_steps(run / "checkpoints")
    if not steps and init is None:
        return None
    folder = steps[-1] if steps else resolve_checkpoint(Path(str(init)))
    return dict(read_json(folder, CONFIG)["model"])


def open_cache(name: str, data: DataSet, progress: Progress | None = None) -> FrameCache:
    """The data set's cache, built from `source` first when it is missing. ValueError when `source` has grown since."""
    path = Path(data.path)
    if data.source is None:
        return FrameCache(path)
    source = Path(data.source) if Path(data.source).is_dir() else data_folder(data.source)
    if (path / "meta.json").is_file():
        return _check_whole(name, FrameCache(path), path, source)
    from embodied.data.cache_build import CacheConfig, build_cache
    from embodied.data.lerobot_reader import LeRobotSource

    if source is None:
        raise ValueError(
            f"data set {name!r}: {data.path} is no cache, and its source {data.source!r} is neither a folder nor under "
            "EMBODIED_DATA: set EMBODIED_DATA, or make the cache with `embodied data cache`"
        )
    return build_cache(LeRobotSource(source), path, CacheConfig(), _named(progress, f"cache of {name}"))


def _check_whole(name: str, cache: FrameCache, path: Path, source: Path | None) -> FrameCache:
    info = source / "meta" / "info.json" if source is not None else None
    if info is None or not info.is_file():
        return cache
    count = json.loads(info.read_text())["total_episodes"]
    if count != len(cache.episodes):
        raise ValueError(
            f"data set {name!r}: {source} has {count} episodes and its cache {path} was made of {len(cache.episodes)}: "
            f"delete {path} to have it made again, or train on it as it is by naming the cache itself"
        )
    return cache


def data_sets(config: DataConfig) -> dict[str, DataSet]:
    """All data sets by name, those of `extra` named by their folders."""
    result = dict(config.sets)
    for given in config.extra:
        entry = _extra(given)
        path = Path(entry.path)
        if path.name in result:
            raise ValueError(f"data.extra: a data set is already named {path.name!r}: rename the folder {path}")
        result[path.name] = entry if is_cache(path) else replace(entry, path=f"{path}.cache", source=str(path))
    return result


def _extra(given: str | Mapping[str, Any]) -> DataSet:
    """An entry of `data.extra`: a path, or the settings of a DataSet."""
    settings = {"path": given} if isinstance(given, str) else dict(given)
    known = [field.name for field in fields(DataSet) if field.name != "source"]
    if "path" not in settings or not set(settings) <= set(known):
        raise ValueError(
            f"data.extra should be paths or {{path: FOLDER, ...}} with {', '.join(known[1:])}, got {given}"
        )
    return DataSet(**settings)


def make_sampler(config: TrainConfig, sets: Sequence[DataSet], mixture: Mixture, rank: int, world_size: int) -> Sampler:
    """Frames alike within each set and sets by their weights, or every instruction alike (times its set's weight)."""
    size = config.stage.batch_size
    weights = [entry.weight for entry in sets]
    if config.data.balance is Balance.frames:
        given = [length if weight is None else weight for weight, length in zip(weights, mixture.lengths, strict=True)]
        if any(weight is not None for weight in weights) and any(weight is None for weight in weights):
            raise ValueError(f"data: give every set a weight or none, got {weights}")
        return MixtureSampler(mixture.lengths, given, size, config.seed, rank, world_size)
    parts = [_instructions(member) for member in mixture.members]
    count: dict[str, int] = {}
    for names in parts:
        for name, frames in zip(*np.unique(names, return_counts=True), strict=True):
            count[str(name)] = count.get(str(name), 0) + int(frames)
    values = [
        np.array([1 / count[str(name)] for name in names]) * (1.0 if weight is None else weight)
        for names, weight in zip(parts, weights, strict=True)
    ]
    return WeightedSampler(np.concatenate(values), size, config.seed, rank, world_size)


class ValidationLoss:
    """The loss over episodes kept from training, on up to `batches` batches of their frames."""

    def __init__(self, windows: Mixture, batch_size: int, batches: int) -> None:
        self.windows = windows
        order = np.random.default_rng(0).permutation(len(windows))  # as mixed as training's, which some losses need
        self.batches = [order[samples] for samples in sequential_batches(len(windows), batch_size)][:batches]

    def __call__(self, step: int, model: Any) -> Mapping[str, float]:  # noqa: ARG002
        device = next(model.parameters()).device
        rows = []
        for samples in self.batches:
            loss, metrics = model.training_step(to_tensors(self.windows.get_batch(samples), device))
            rows.append({"loss": float(loss), **{key: float(value) for key, value in metrics.items()}})
        return {f"validation/{key}": float(np.mean([row[key] for row in rows])) for key in rows[0]}


def _model_settings(config: TrainConfig) -> tuple[dict[str, Any], str | None]:
    """The model's `_target_` and arguments, and the checkpoint to start from when the model is named by one."""
    given = [entry for entry in (config.policy, config.world_model) if entry is not None]
    if len(given) != 1:
        raise ValueError("give either policy=NAME or world_model=NAME, one of the two")
    if "checkpoint" not in given[0]:
        return dict(given[0]), None
    start = str(given[0]["checkpoint"])
    earlier = dict(read_json(resolve_checkpoint(Path(start)), CONFIG)["model"])
    return changed_settings(earlier, given[0].get("change") or {}), start


def _split(
    config: TrainConfig, sets: Mapping[str, DataSet], caches: Mapping[str, FrameCache]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Episode positions for training and validation, by data set."""
    training, held = {}, {}
    for name, cache in caches.items():
        chosen = select_episodes(cache, sets[name])
        seed = config.seed if config.data.split_seed is None else config.data.split_seed
        first, second = split_episodes(cache, config.data.holdout, seed)
        training[name], held[name] = np.intersect1d(first, chosen), np.intersect1d(second, chosen)
        if not len(training[name]):
            raise ValueError(
                f"data set {name!r}: no episode is left to train on: check suites, without and success_only"
            )
    return training, held


def select_episodes(cache: FrameCache, data: DataSet) -> np.ndarray:
    """Positions of the episodes that the settings keep, at most `limit_per_task` of each instruction."""
    table = cache.episodes
    unknown = sorted(set(data.without) - set(table.languages))
    if unknown:
        raise ValueError(
            f"without should name instructions of {cache.folder}, got {unknown[0]!r}: one of {table.languages}"
        )
    kept = np.ones(len(table), bool)
    if data.suites:
        kept &= np.isin([table.suites[i] for i in table.suite_id], data.suites)
    if data.without:
        kept &= ~np.isin([table.languages[i] for i in table.task_id], data.without)
    if data.success_only:
        kept &= table.success == 1
    if data.limit_per_task is not None:
        for task in range(len(table.languages)):
            kept[np.flatnonzero(kept & (table.task_id == task))[data.limit_per_task :]] = False
    return np.flatnonzero(kept)


def _members(
    caches: Mapping[str, FrameCache],
    episodes: Mapping[str, np.ndarray],
    windows: WindowConfig,
    relabel: Sequence[Relabel],
) -> list[Windows]:
    return [
        Windows(cache, windows, episodes[name], relabel=relabel)
        for name, cache in caches.items()
        if len(episodes[name])
    ]


def _instructions(windows: Windows) -> np.ndarray:
    table = windows.cache.episodes
    names = np.array([table.languages[i] for i in table.task_id[windows.episodes]])
    return np.repeat(names, windows.counts)


def _provenance(cache: FrameCache, episodes: np.ndarray) -> dict[str, Any]:
    return {"name": cache.name, "episodes": len(episodes), "frames": int(cache.episodes.length[episodes].sum())}


def _named(progress: Progress | None, name: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(name, done, total)
