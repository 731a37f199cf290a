"""Trains a policy or a world model: `embodied train policy=bc stage=bc data=libero_demos`.

The same command for every model: policy=NAME or world_model=NAME, one of its stages, a mixture of frame caches.
`run=FOLDER` names the run; given again, it goes on from the newest checkpoint there, bit for bit on CPU.
On several GPUs: `accelerate launch -m embodied.cli train ...`. On several cores, where that starts one process only:
`torchrun --nproc_per_node 2 -m embodied.cli train ... threads=1 cpu=true`. The first line says how many there are.

  embodied train policy=bc stage=bc data=libero_demos run=runs/train/first
  embodied train policy=bc stage=bc data=libero_demos stage.steps=2000 policy.width=128 precision=bf16
  embodied train policy=bc stage=bc data=libero_demos data.extra=[data/mine]   (one data set more)

  embodied train world_model=CHECKPOINT stage=posttrain_world data=libero_demos   (goes on from that folder)
  embodied train policy=CHECKPOINT stage=value data=libero_demos +policy.change.method.crl.gamma=0.97   (likewise)

The run folder holds config.json, metrics.jsonl, report.html (loss curves) and checkpoints/step-N, each of which runs
itself: `policy=checkpoint policy.path=FOLDER`.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

from embodied.config import compose_config, to_dataclass
from embodied.io import sole_writer, write_json
from embodied.paths import new_run_folder
from embodied.registry import Registry, build
from embodied.training.config import DataConfig, StageConfig, TrainConfig

# What may change between two calls for the same run.
FREE = ("run", "cpu", "threads", "stop_after", "checkpoint_every", "keep", "evaluate_every", "hooks", "ahead", "log")


def register(registry: Registry) -> None:
    registry.schema(None, "train_schema", TrainConfig)
    registry.schema("stage", "stage_schema", StageConfig)
    registry.schema("data", "training_data_schema", DataConfig)


def run(arguments: list[str]) -> int:
    """Trains; exit status 0 when the stage is done or `stop_after` was reached."""
    config: TrainConfig = to_dataclass(compose_config("train", [_named_checkpoint(word) for word in arguments]))
    from accelerate import Accelerator

    _threads(config.threads)
    accelerator = Accelerator(mixed_precision=config.precision.value, cpu=config.cpu)
    folder = Path(config.run) if config.run else new_run_folder("train")
    with sole_writer(folder) if accelerator.is_main_process else nullcontext():
        _train(config, folder, accelerator)
    return 0


def _train(config: TrainConfig, folder: Path, accelerator: Any) -> None:
    from embodied.training.loop import train
    from embodied.training.report import write_report
    from embodied.training.setup import make_job

    if accelerator.is_main_process:
        keep_config(folder, _plain(asdict(config)))
    with accelerator.main_process_first():
        job = make_job(
            config, folder, accelerator.process_index, accelerator.num_processes, hooks(config), _show_progress()
        )
    if accelerator.is_main_process:
        count, size = accelerator.num_processes, config.stage.batch_size * config.stage.accumulate
        print(f"{folder}: {count} process{'es' * (count > 1)}, {count * size} samples a step", flush=True)
    with job.loader:
        progress = train(job, accelerator)
    if accelerator.is_main_process:
        write_report(folder)
        print(f"{folder}: step {progress.step} of {config.stage.steps}, {progress.skipped} batches skipped")


def _named_checkpoint(argument: str) -> str:
    """`policy=FOLDER` and `world_model=FOLDER` are short for a model that starts from the checkpoint in FOLDER."""
    key, _, value = argument.partition("=")
    if key not in ("policy", "world_model") or not Path(value).is_dir():
        return argument
    return f"{key}={{checkpoint:'{value}',change:{{}}}}"


def hooks(config: TrainConfig) -> list[Any]:
    """The configured evaluation hooks: registered callables (step, model) -> scalars."""
    return [build(entry) for entry in config.hooks]


def keep_config(folder: Path, config: dict[str, Any]) -> None:
    """Writes config.json; where a checkpoint would be gone on from, ValueError names the first setting that changed."""
    from embodied.checkpoint import list_steps

    path = folder / "config.json"
    if path.is_file() and list_steps(folder / "checkpoints"):
        old, new = (
            _flat({k: v for k, v in c.items() if k not in FREE}) for c in (json.loads(path.read_text()), config)
        )
        changed = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
        if changed:
            key = changed[0]
            raise ValueError(f"{folder} was trained with {key}={old.get(key)}, got {new.get(key)}: use another run=")
    write_json(path, config)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}" if prefix else key).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.name if isinstance(value, Enum) else value


def _threads(count: int | None) -> None:
    if count is not None:
        import torch

        torch.set_num_threads(count)


def _interval() -> float:
    """Seconds between two updates of a bar: often on a terminal, seldom in a log file."""
    return 0.1 if sys.stderr.isatty() else 30.0


def _show_progress() -> Any:
    """A bar per slow preparation step."""
    from tqdm import tqdm

    bars: dict[str, Any] = {}

    def show(name: str, done: int, total: int) -> None:
        if name not in bars:
            bars[name] = tqdm(total=total, desc=name, leave=False, mininterval=_interval())
        bar = bars[name]
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return show
