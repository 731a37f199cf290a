"""Training state as safetensors and JSON: exact resume without unpickling anything.

Random numbers need no state: each step seeds torch with a pure function of (seed, step, rank).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from embodied.checkpoint import MODEL_FILE, inside, load_weights, read_json
from embodied.training.optimizer import Ema

STATE_JSON, STATE_TENSORS = "training/state.json", "training/state.safetensors"


@dataclass
class Progress:
    """Where a run stands. step: batches consumed; skipped: batches whose gradient was not finite.

    seconds, cpu_seconds: wall time and the CPU time of all processes spent training, over all calls."""

    step: int = 0
    samples: int = 0
    skipped: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    sampler: dict[str, Any] = field(default_factory=dict)
    ema_updates: int = 0

    def add_time(self, metrics: Mapping[str, float]) -> None:
        self.seconds += metrics["seconds"]
        self.cpu_seconds += metrics["cpu_seconds"]


def pack(progress: Progress, model: torch.nn.Module, optimizer: Any, averaged: bool) -> dict[str, Any]:
    """Files of the training state for `save_checkpoint(extra=...)`.

    The model's own weights are among them only when the checkpoint's weights are an average.
    """
    state = optimizer.state_dict()
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()} if averaged else {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                numbers.setdefault(str(index), {})[name] = value
    content = {"progress": asdict(progress), "optimizer": {"groups": state["param_groups"], "numbers": numbers}}
    return {STATE_TENSORS: tensors, STATE_JSON: json.dumps(content, indent=1).encode()}


def restore(folder: Path, model: torch.nn.Module, optimizer: Any, ema: Ema) -> Progress:
    """Puts model, optimiser and average back. ValueError when the checkpoint holds no training state of this model."""
    content = read_json(folder, STATE_JSON)
    tensors = load_file(inside(folder, STATE_TENSORS))
    load_weights(model, inside(folder, MODEL_FILE))
    if ema.average:
        for key, value in model.state_dict().items():
            ema.average[key].copy_(value)
            value.copy_(tensors[f"model.{key}"])
    moments: dict[int, dict[str, Any]] = {
        int(index): dict(values) for index, values in content["optimizer"]["numbers"].items()
    }
    for key, value in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            index, _, name = rest.partition(".")
            moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": moments, "param_groups": content["optimizer"]["groups"]})
    progress = Progress(**content["progress"])
    ema.updates = progress.ema_updates
    return progress


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds torch's generators for one step, differently on every rank."""
    value = int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])
    torch.manual_seed(value % 2**63)
