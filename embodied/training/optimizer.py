"""Optimiser, learning-rate schedule and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from embodied.training.config import StageConfig


def make_optimizer(model: torch.nn.Module, stage: StageConfig) -> torch.optim.AdamW:
    """AdamW over what requires gradients; vectors and scalars (biases, norms) are not decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError(f"stage {stage.name!r} leaves nothing to train: check the model's set_stage")
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": stage.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    first, second = stage.betas
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=stage.lr, betas=(first, second))


def learning_rate(step: int, stage: StageConfig) -> float:
    """Linear warm-up to `lr` over `warmup` steps, then a cosine to `final_lr` at the last step."""
    if step < stage.warmup:
        return stage.lr * (step + 1) / stage.warmup
    done = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
    return stage.final_lr + (stage.lr - stage.final_lr) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


class Ema:
    """Exponential moving average of a model's state; decay min(decay, (1 + n) / (10 + n)) after n updates.

    decay 0: off, the average is the model itself.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema should lie in [0, 1), 0 turns it off, got {decay}")
        self.model, self.decay, self.updates = model, decay, 0
        self.average = {key: value.detach().clone() for key, value in model.state_dict().items()} if decay else {}

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        rate = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        state = self.model.state_dict()
        for key, value in self.average.items():
            if value.is_floating_point():
                value.lerp_(state[key], rate)
            else:
                value.copy_(state[key])

    def weights(self) -> dict[str, torch.Tensor]:
        """What a checkpoint stores: the average, or the model's state when averaging is off."""
        return self.average or self.model.state_dict()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Runs a block with the averaged weights in the model, in evaluation mode."""
        kept = {key: value.detach().clone() for key, value in self.model.state_dict().items()}
        training = self.model.training
        try:
            self.model.load_state_dict(self.weights())
            self.model.eval()
            yield
        finally:
            self.model.load_state_dict(kept)
            self.model.train(training)
