"""Makes a checkpoint to publish of a training run: no training state, parameters in bfloat16.

    embodied export path=runs/train/first out=policies/prts/checkpoints/first [dtype=fp32]
    embodied export path=runs/train/world out=world_models/persist/checkpoints/nano 'change={edm: {steps: 4}}'

path    checkpoint folder or training run (its newest checkpoint)
out     folder to write, which must not exist
dtype   bf16 (half the size) or fp32
change  settings of the model with another value, which its weights do not depend on
merge   true: adapters (LoRA of a post-trained world model) become part of the weights they adapt

Loading converts back to float32; what rounding does to a policy is for an evaluation to say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from embodied.registry import Registry


class StoredAs(Enum):
    """Of the parameters."""

    bf16 = "bfloat16"
    fp32 = "float32"


@dataclass
class ExportConfig:
    """Settings of `embodied export`."""

    path: str = MISSING
    out: str = MISSING
    dtype: StoredAs = StoredAs.bf16
    change: dict[str, Any] = field(default_factory=dict)
    merge: bool = False


def register(registry: Registry) -> None:
    registry.schema(None, "export", ExportConfig)


def run(arguments: list[str]) -> int:
    import torch

    from embodied.checkpoint import MODEL_FILE, export_checkpoint
    from embodied.config import adding, compose_config, to_dataclass

    config = to_dataclass(compose_config("export", adding(arguments, "change")))
    out = Path(config.out)
    source = export_checkpoint(config.path, out, getattr(torch, config.dtype.value), config.change, config.merge)
    print(f"{source} -> {out}, {(out / MODEL_FILE).stat().st_size / 1e6:.1f} MB")
    return 0
