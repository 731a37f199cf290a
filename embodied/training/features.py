"""Frozen features of a frame cache: computed once, written beside it, read as memory-mapped columns ever after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from embodied.data.cache import FrameCache
from embodied.language import LanguageTower
from embodied.training.model import FrameFeatures
from embodied.transforms import Pipeline

BATCH = 32
Progress = Callable[[int, int], None]


def prepare_cache(
    cache: FrameCache, features: FrameFeatures | None, language: LanguageTower | None, progress: Progress | None = None
) -> None:
    """Adds what a model reads beside frames and columns, where it is missing; goes on after a crash where it was."""
    if features is not None:
        attach_features(cache, features, progress)
    if language is not None:
        attach_language(cache, language)


def attach_features(cache: FrameCache, features: FrameFeatures, progress: Progress | None = None) -> None:
    """Writes the columns of `features` that the cache lacks. ValueError when other weights or settings made them."""
    writers = [cache.add_column(name, shape, "float16", features.digest) for name, shape in features.columns.items()]
    written = [writer.done for writer in writers]  # a crash between two syncs leaves them at different places
    try:
        for first in range(min(written, default=cache.frames), cache.frames, BATCH * cache.image_every):
            last = min(first + BATCH * cache.image_every, cache.frames)
            taken, repeat = np.unique(when_taken(cache, np.arange(first, last)), return_inverse=True)
            values = features.compute({camera: cache.rows(camera).take(taken) for camera in features.cameras})
            for i, (writer, name) in enumerate(zip(writers, features.columns, strict=True)):
                if written[i] < last:
                    writer.write(written[i], values[name][repeat[written[i] - first :]])
                    written[i] = last
            if progress is not None:
                progress(last, cache.frames)
    finally:
        for writer in writers:
            writer.close()


def when_taken(cache: FrameCache, frames: np.ndarray) -> np.ndarray:
    """The frames (N,) at which the pictures that stand at `frames` (N,) were rendered."""
    age = (frames - cache.episodes.start[cache.episodes.of_frame(frames)]) % cache.image_every
    return np.asarray(frames - age)


def attach_language(cache: FrameCache, language: LanguageTower) -> Path:
    """Loads the cache's table of word features, and writes it again when it lacked an instruction."""
    path = cache.folder / f"language.{language.name}.safetensors"
    if path.is_file():
        language.load(path)
    missing = [text for text in cache.episodes.languages if text not in language.table]
    known: dict[str, Any] = {text: language.table[text] for text in cache.episodes.languages if text not in missing}
    if missing or not path.is_file():
        language.learn(missing)
        own = LanguageTower(language.name)
        own.table = known | {text: language.table[text] for text in missing}
        own.save(path)
    return path


def pipeline_statistics(caches: list[FrameCache], pipeline_keys: list[str]) -> dict[str, Any]:
    """Exact statistics of the named columns over all frames of all caches, as JSON values."""
    from embodied.data.statistics import column_statistics

    return {key: column_statistics([cache.column(key) for cache in caches]).to_json() for key in pipeline_keys}


def bound_pipeline(transforms: list[Any], caches: list[FrameCache]) -> Pipeline:
    """The pipeline with the statistics of the keys that its transforms name."""
    keys = [getattr(transform, "key", None) for transform in transforms]
    wanted = [key for key in dict.fromkeys(keys) if key is not None and all(key in cache.columns for cache in caches)]
    return Pipeline(transforms, pipeline_statistics(caches, wanted))
