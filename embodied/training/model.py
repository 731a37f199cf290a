"""What the training loop asks of a model, and what it hands to it.

A batch is a dict with the keys of `embodied.schema` after the pipeline: torch tensors with a leading batch axis, lists
of strings under "task", feature columns under their names, and what `embodied.data.windows` adds (action pad mask,
steps to go, episode and frame numbers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from embodied.data.windows import Relabel, WindowConfig
from embodied.language import LanguageTower
from embodied.transforms import Transform

Batch = dict[str, Any]


class FrameFeatures(Protocol):
    """Frozen features of single frames, computed once and cached as columns."""

    digest: str
    columns: Mapping[str, tuple[int, ...]]
    cameras: Sequence[str]

    def compute(self, images: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Images (N, H, W, 3) by camera -> float16 values (N, ...) by column."""
        ...


@runtime_checkable
class TrainableModel(Protocol):
    """A torch module the loop can train. `state_dict()` holds what is trained; frozen public weights stay outside.

    Optional: `fit(windows, earlier)` learns from the training windows what no gradient learns (a tokenizer), before the
    first step; `earlier` holds the arguments of the checkpoint that the run goes on or starts from, or None.
    `compiled` lists the modules that `compile=true` compiles.
    """

    stages: tuple[str, ...]
    features: FrameFeatures | None
    language: LanguageTower | None
    frozen: tuple[str, ...]

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON values: enough to build the model again."""
        ...

    def transforms(self) -> list[Transform]:
        """What turns the item format into the model's input, unbound."""
        ...

    def windows(self, stage: str) -> WindowConfig:
        """What a sample of this stage holds: observations, history, action chunk."""
        ...

    def relabel(self, stage: str) -> list[Relabel]:
        """What changes a raw batch of this stage before the pipeline: noise, goals."""
        ...

    def set_stage(self, stage: str) -> None:
        """Chooses the losses and which parameters require gradients. ValueError for a stage it does not have."""
        ...

    def training_step(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Batch -> scalar loss and scalars to log."""
        ...
