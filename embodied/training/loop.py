"""The one training loop. Every model goes through it: policies and world models, one CPU or many GPUs."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from embodied.checkpoint import list_steps, save_checkpoint, step_name
from embodied.chunk_policy import to_tensors
from embodied.data.loader import BatchLoader
from embodied.training.config import TrainConfig
from embodied.training.guard import Guard
from embodied.training.metrics import Clock, Means, MetricsLog
from embodied.training.optimizer import Ema, learning_rate, make_optimizer
from embodied.training.state import Progress, pack, restore, seed_step
from embodied.transforms import Pipeline

Hook = Callable[[int, Any], Mapping[str, float]]


@dataclass
class Job:
    """What the loop runs on. hooks: called with (step, model with averaged weights), return scalars to log."""

    model: Any
    loader: BatchLoader
    pipeline: Pipeline
    run: Path
    config: TrainConfig
    hooks: list[Hook] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)


class _Step(torch.nn.Module):
    """Makes `training_step` the forward pass, which is what distributed wrappers intercept."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.model.training_step(batch)


def train(job: Job, accelerator: Accelerator) -> Progress:
    """Trains until `stage.steps` (or `stop_after` more steps), going on from the run's newest checkpoint.

    Raises BadBatchError after `max_bad_batches` batches in a row without a finite gradient.
    """
    config, stage, model = job.config, job.config.stage, job.model
    for part in getattr(model, "compiled", ()) if config.compile else ():
        part.compile()
    module, optimizer = accelerator.prepare(_Step(model), make_optimizer(model, stage))
    ema = Ema(model, stage.ema)
    progress = _resume(job, optimizer, ema)
    first = progress.step
    last = stage.steps if config.stop_after is None else min(stage.steps, first + config.stop_after)
    log = MetricsLog(job.run, config.log, first, accelerator.is_main_process)
    guard, clock, means = Guard(config.max_bad_batches), Clock(accelerator), Means()
    bar = _bar(job, first, log.main)
    module.train()
    for step in range(first, last):
        seed_step(config.seed, step, accelerator.process_index)
        _set_rate(optimizer, learning_rate(step, stage))
        batches, loss, metrics = _backward(job, module, accelerator, clock)
        norm = accelerator.clip_grad_norm_(module.parameters(), stage.clip_norm or math.inf)
        progress.step, progress.sampler = step + 1, job.loader.state_dict()
        if torch.isfinite(norm):
            optimizer.step()
            ema.update()
            guard.good()
            means.add({"loss": loss, "grad_norm": norm, **metrics})
        else:
            progress.skipped += 1
            guard.bad(step, float(loss), float(norm), batches)
        optimizer.zero_grad(set_to_none=True)
        count = stage.batch_size * stage.accumulate * accelerator.num_processes
        clock.samples += count
        progress.samples += count
        bar.update()
        if progress.step % config.log.every == 0 or progress.step == last:
            line = {**means.report(), **clock.report(), "lr": learning_rate(step, stage), "skipped": progress.skipped}
            progress.add_time(line)
            log.write(progress.step, line)
            bar.set_postfix(loss=line.get("loss", math.nan), samples_s=line["samples_per_second"], refresh=False)
        if _due(progress.step, config.evaluate_every, last) and job.hooks:
            log.write(progress.step, _run_hooks(job, ema, progress.step) if log.main else {})
            accelerator.wait_for_everyone()
        if _due(progress.step, config.checkpoint_every, last) and log.main:
            _save(job, progress, optimizer, ema)
    bar.close()
    log.close()
    accelerator.wait_for_everyone()
    return progress


def _set_rate(optimizer: Any, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)  # absent in states older than lr_scale


def _backward(job: Job, module: Any, accelerator: Accelerator, clock: Clock) -> tuple[list[Any], torch.Tensor, Any]:
    """Gradients of one step, summed over its micro-batches: the batches, and the last one's loss and metrics."""
    batches, count = [], job.config.stage.accumulate
    for micro in range(count):
        with clock.waiting():
            batches.append(job.loader.next())
        batch = to_tensors(batches[-1], accelerator.device)
        with nullcontext() if micro + 1 == count else accelerator.no_sync(module):
            loss, metrics = module(batch)
            accelerator.backward(loss / count)
    return batches, loss.detach(), metrics


def _bar(job: Job, first: int, main: bool) -> tqdm:
    """Steps done, remaining time and samples a second; a line every 30 s when the output is no terminal."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=job.config.stage.steps,
        initial=first,
        unit="step",
        mininterval=0.2 if terminal else 30.0,
        disable=not (job.config.log.progress and main),
    )


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def _resume(job: Job, optimizer: Any, ema: Ema) -> Progress:
    steps = list_steps(job.run / "checkpoints")
    if not steps:
        return Progress()
    progress = restore(steps[-1], job.model, optimizer, ema)
    job.loader.load_state_dict(progress.sampler)
    return progress


def _run_hooks(job: Job, ema: Ema, step: int) -> dict[str, float]:
    with ema.applied(), torch.no_grad():
        return {key: float(value) for hook in job.hooks for key, value in hook(step, job.model).items()}


def _save(job: Job, progress: Progress, optimizer: Any, ema: Ema) -> None:
    """Writes checkpoints/step-N, then removes all but the newest `keep`."""
    progress.ema_updates = ema.updates
    info = {**job.info, **{key: value for key, value in asdict(progress).items() if key != "sampler"}}
    save_checkpoint(
        job.run / "checkpoints" / step_name(progress.step),
        job.model,
        job.pipeline,
        weights=ema.weights(),
        info=info,
        extra=pack(progress, job.model, optimizer, bool(ema.average)),
    )
    for old in list_steps(job.run / "checkpoints")[: -max(1, job.config.keep)]:
        shutil.rmtree(old)
