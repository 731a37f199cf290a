"""`embodied bench world`: speed of imagination, cost of post-training against teacher forcing, memory.

A world model of the given config with random weights on random frames: speed does not depend on either. The CPU is
always measured, a GPU when there is one.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embodied.bench.figures import Figure
from embodied.chunk_policy import to_tensors
from embodied.config import compose_config, to_dataclass
from embodied.evaluation.world_clips import Clip, read_clips, stream
from embodied.training.bench import random_cache


class WorldBench:
    """See configs/bench/world.yaml. rows: rollouts at once. repeats: of each timing, the middle one counts."""

    def __init__(
        self,
        world_model: str = "persist_nano",
        rows: Sequence[int] = (1, 8),
        interactions: int = 2,
        batch_size: int = 8,
        repeats: int = 3,
        threads: int | None = None,
        size: int = 128,
        overrides: Sequence[str] = (),
    ) -> None:
        self.world_model, self.rows, self.interactions = world_model, list(rows), interactions
        self.batch_size, self.repeats, self.threads = batch_size, repeats, threads
        self.size, self.overrides = size, list(overrides)

    def run(self, say: Any) -> list[Figure]:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        found: list[Figure] = []
        with tempfile.TemporaryDirectory() as name:
            job = self._job(Path(name))
            with job.loader:
                for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
                    say(f"{self.world_model} on {device}")
                    found += self._measure(deepcopy(job.model), job, device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return [*found, Figure("memory_mb.cpu", peak, "MB", None, "largest resident size of the benchmark's process")]

    def _job(self, folder: Path) -> Any:
        from embodied.training.setup import make_job

        cache = random_cache(folder / "cache", _Plain(), 3, 160, self.size).folder
        words = [f"world_model={self.world_model}", "stage=base", "data=libero_demos", "data.holdout=0"]
        words += [f"data.sets.libero_demos.path={cache}", "data.sets.libero_demos.source=null", *self.overrides]
        words += [f"stage.batch_size={self.batch_size}", "++world_model.world.action_key=action"]
        self.cache = cache
        return make_job(to_dataclass(compose_config("train", words)), folder / "run")

    def _measure(self, model: Any, job: Any, device: str) -> list[Figure]:
        """Of a model without adapters: post-training, which comes last, adds them for good."""
        model = model.to(device)
        note = f"{self.world_model}, {torch.get_num_threads()} threads" if device == "cpu" else self.world_model
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        found = [self._imagination(model, job, device, rows, note) for rows in self.rows]
        forced = self._training(model, job, device, "base", 1)
        every = model.posttrain.round
        post = self._training(model, job, device, "posttrain", every)
        chunks = model.posttrain.batch
        text = f"{note}; a step of {chunks} chunks, rounds of {every} steps included; baseline: teacher forcing"
        found.append(Figure(f"teacher_forcing_s.{device}", forced, "s/step", None, f"{note}, batch {self.batch_size}"))
        found.append(Figure(f"posttraining_s.{device}", post, "s/step", forced, text))
        if device == "cuda":
            found.append(Figure("memory_mb.cuda", torch.cuda.max_memory_allocated() / 2**20, "MB"))
        return found

    def _imagination(self, model: Any, job: Any, device: str, rows: int, note: str) -> Figure:
        from embodied.data.cache import FrameCache

        model.set_stage("base")
        world = model.make_world_model(job.pipeline, "bench", "", device)
        clips = [Clip(0, start, 100) for start in range(rows)]
        batch = read_clips(FrameCache(self.cache), clips, world, self.interactions)
        streams = [stream(clip, 0) for clip in clips]
        seconds = self._time(lambda: world.rollout(batch, self.interactions, streams), device)
        frames = rows * self.interactions * world.chunk
        unit = f"{note}, {rows} at once, {model.edm.steps} sampler steps, every camera of a moment is one frame"
        return Figure(f"imagined_frames_per_second.{device}.rows{rows}", frames / seconds, "1/s", None, unit)

    def _training(self, model: Any, job: Any, device: str, stage: str, steps: int) -> float:
        """Seconds a training step, forward and backward, over whole rounds."""
        model.set_stage(stage)
        model.to(device).train()
        batch = to_tensors(job.loader.next(), device)

        def run() -> None:
            for _ in range(steps):
                loss, _metrics = model.training_step(batch)
                loss.backward()
                model.zero_grad(set_to_none=True)

        return self._time(run, device) / steps

    def _time(self, function: Callable[[], Any], device: str) -> float:
        """Middle of `repeats` timings after one that warms up."""
        seconds = []
        for _ in range(self.repeats + 1):
            if device == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            function()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        return float(np.median(seconds[1:]))


class _Plain:
    """A model that reads frames and columns only."""

    features = None
    language = None
