"""`embodied bench train`: samples a second through the loop, and the share of time it waits for data.

The model, loop, loader and cache are those of `embodied train`; the cache holds random numbers unless `cache` names a
real one. The baseline is the same loop given one batch over and over, which waits for nothing.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embodied.bench.figures import Figure
from embodied.config import compose_config, to_dataclass
from embodied.data.cache import FrameCache
from embodied.data.cache_build import CacheConfig, build_cache
from embodied.data.source import ColumnSpec, EpisodeInfo
from embodied.io import read_lines
from embodied.language import WIDTH
from embodied.schema import ACTION, ACTION_DIM, IMAGE_KEYS, STATE, STATE_DIM

TEXTS = ("put the bowl on the stove", "open the middle drawer of the cabinet")


class RandomSource:
    """Episodes of random frames and numbers, in memory."""

    def __init__(self, episodes: int, length: int, size: int) -> None:
        self.name, self.fps, self.length, self.size = "random", 20.0, length, size
        self.cameras = dict.fromkeys(IMAGE_KEYS, (size, size))
        self.columns = {STATE: ColumnSpec("float32", (STATE_DIM,)), ACTION: ColumnSpec("float32", (ACTION_DIM,))}
        self.episodes = [EpisodeInfo(i, length, TEXTS[i % len(TEXTS)]) for i in range(episodes)]

    def read_columns(self, episode: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(episode)
        specs = self.columns.items()
        return {key: rng.uniform(-1, 1, (self.length, *spec.shape)).astype(np.float32) for key, spec in specs}

    def read_frames(self, episode: int, camera: str) -> np.ndarray:
        rng = np.random.default_rng([episode, len(camera)])
        return rng.integers(0, 256, (self.length, self.size, self.size, 3), dtype=np.uint8)


def random_cache(folder: Path, model: Any, episodes: int = 6, length: int = 12, size: int = 32) -> FrameCache:
    """A cache of random numbers with the feature columns and word features that the model reads: needs no weights."""
    cache = build_cache(RandomSource(episodes, length, size), folder, CacheConfig(size=[size], image_statistics=False))
    rng = np.random.default_rng(0)
    for name, shape in model.features.columns.items() if model.features is not None else ():
        with cache.add_column(name, shape, "float16", model.features.digest) as writer:
            for start in range(0, cache.frames, 256):
                count = min(256, cache.frames - start)
                writer.write(start, rng.standard_normal((count, *shape), np.float32).astype(np.float16))
    if model.language is not None:
        generator = torch.Generator().manual_seed(0)
        words = {text: torch.randn(5 + i, WIDTH, generator=generator).half() for i, text in enumerate(TEXTS)}
        model.language.table = words
        model.language.save(folder / f"language.{model.language.name}.safetensors")
    return cache


class TrainBench:
    """policy, stage: config names. cache: a frame cache; null makes a random one of `frames` frames."""

    def __init__(
        self,
        policy: str = "bc",
        stage: str = "bc",
        cache: str | None = None,
        frames: int = 2000,
        steps: int = 60,
        batch_size: int = 64,
        threads: int | None = None,
    ) -> None:
        self.policy, self.stage, self.cache, self.frames = policy, stage, cache, frames
        self.steps, self.batch_size, self.threads = steps, batch_size, threads

    def run(self, say: Any) -> list[Figure]:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        with tempfile.TemporaryDirectory() as name:
            cache = Path(self.cache) if self.cache is not None else self._random_cache(Path(name) / "cache")
            say(f"the loop on {cache}")
            loop = self._measure(cache, Path(name) / "loop")
            say("the loop on one batch")
            alone = self._measure(cache, Path(name) / "alone", one_batch=True)
        note = f"{self.policy}, batch {self.batch_size}, {torch.get_num_threads()} threads"
        return [
            Figure(
                "train_samples_per_second",
                loop["samples_per_second"],
                "samples/s",
                alone["samples_per_second"],
                f"{note}; baseline: the same loop on one batch",
            ),
            Figure("data_wait_share", loop["data_wait_share"], "", None, "part of the time spent waiting for a batch"),
        ]

    def _config(self, cache: Path, run: Path) -> Any:
        settings = [f"policy={self.policy}", f"stage={self.stage}", "data=libero_demos"]
        data = [f"data.sets.libero_demos.path={cache}", "data.sets.libero_demos.source=null", "data.holdout=0"]
        length = [f"stage.steps={self.steps}", f"stage.batch_size={self.batch_size}", f"log.every={self.steps // 2}"]
        quiet = ["log.progress=false", "checkpoint_every=0", "evaluate_every=0", f"run={run}"]
        return to_dataclass(compose_config("train", [*settings, *data, *length, *quiet]))

    def _random_cache(self, folder: Path) -> Path:
        from embodied.checkpoint import build_model

        model = build_model(self._config(folder, folder).policy)
        return random_cache(folder, model, max(1, self.frames // 100), 100, model.image_size).folder

    def _measure(self, cache: Path, run: Path, one_batch: bool = False) -> dict[str, float]:
        """The second half's metrics: the first warms up caches and threads."""
        from accelerate import Accelerator

        from embodied.training.loop import train
        from embodied.training.setup import make_job

        job = make_job(self._config(cache, run), run)
        if one_batch:
            first, state = job.loader.next(), job.loader.state_dict()
            job.loader.close()
            job.loader.next, job.loader.state_dict = lambda: first, lambda: state  # type: ignore[method-assign]
        with job.loader:
            train(job, Accelerator())
        return next(line for line in reversed(read_lines(run / "metrics.jsonl")) if "data_wait_share" in line)
