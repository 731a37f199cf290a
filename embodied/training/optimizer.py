"""Optimiser, learning-rate schedule and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from embodied.training.config import OptimizerName, StageConfig

MOMENTUM = 0.95  # of Muon


def make_optimizer(model: torch.nn.Module, stage: StageConfig) -> torch.optim.Optimizer:
    """AdamW or Muon over what requires gradients; vectors and scalars (biases, norms) are not decayed.

    Muon (Jordan 2024) moves matrices, and convolutions as matrices, along the nearest orthogonal one to their averaged
    gradient, scaled to the size of AdamW's steps (Liu et al. 2025, "Muon is scalable for LLM training"), so that a
    learning rate means about the same; tables of embeddings, vectors and scalars go by AdamW with Nesterov momentum.

    Each group's "scale" is what the learning rate of its modules is multiplied with (`stage.lr_scale`).
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError(f"stage {stage.name!r} leaves nothing to train: check the model's set_stage")
    factors = _factors(stage.lr_scale, list(trained))
    muon, tables = stage.optimizer is OptimizerName.muon, _tables(model)
    groups: dict[tuple[float, bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in trained.items():
        scale = next((value for key, value in factors.items() if _inside(name, key)), 1.0)
        matrix = parameter.ndim >= 2
        fallback = muon and (not matrix or id(parameter) in tables)
        groups.setdefault((scale, matrix, fallback), []).append(parameter)
    order = sorted(groups, key=lambda key: (key[0] != 1.0, key[0], not key[1], key[2]))
    settings = [
        {"params": groups[scale, matrix, fallback], "weight_decay": stage.weight_decay * matrix, "scale": scale}
        | ({"use_fallback": True} if fallback else {})
        for scale, matrix, fallback in order
    ]
    first, second = stage.betas
    if not muon:
        return torch.optim.AdamW(settings, lr=stage.lr, betas=(first, second), fused=True)
    return _muon()(settings, lr=stage.lr, betas=(first, second), momentum=MOMENTUM, nesterov=True)


def _muon() -> Any:
    """timm's optimiser, imported on use: training with AdamW needs no timm."""
    try:
        from embodied.training.muon import Muon
    except ImportError as error:
        raise ValueError(f"stage.optimizer=muon needs timm: pip install 'embodied-stack[models]' ({error})") from error
    return Muon


def _tables(model: torch.nn.Module) -> set[int]:
    """Parameters of embeddings: rows that are looked up one by one, no linear map."""
    return {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}


def _factors(given: Any, trained: list[str]) -> dict[str, float]:
    """`stage.lr_scale`, checked: modules that are trained -> positive numbers."""
    factors = {} if given is None else given
    if not isinstance(factors, dict) or not all(isinstance(v, (int, float)) and v > 0 for v in factors.values()):
        raise ValueError(f"stage.lr_scale should map modules to positive numbers, got {given!r}: use {{MODULE: 0.3}}")
    unused = [key for key in factors if not any(_inside(name, str(key)) for name in trained)]
    if unused:
        modules = ", ".join(dict.fromkeys(name.split(".")[0] for name in trained))
        raise ValueError(f"stage.lr_scale should name modules that are trained ({modules}, ...), got {unused[0]!r}")
    return {str(key): float(value) for key, value in factors.items()}


def _inside(parameter: str, module: str) -> bool:
    return parameter == module or parameter.startswith(f"{module}.")


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
