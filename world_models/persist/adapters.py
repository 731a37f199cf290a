"""Three policies in one network: new (trained LoRA), old (the LoRA that rollouts are made with), reference (LoRA off).

The action encoder is small and trained whole, so each policy has its own copy.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

NEW, OLD, REFERENCE = "new", "old", "reference"


@dataclass
class LoraSettings:
    """targets: ends of module names, or one regular expression over whole names."""

    rank: int = 32
    alpha: int = 64
    targets: Any = field(default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0"])


class Policies:
    """Adapters of `world.network`. Holds no module itself; copies of the action encoder hang on the world."""

    def __init__(self, world: Any, settings: LoraSettings) -> None:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        for name in (NEW, OLD):
            config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=settings.targets)
            inject_adapter_in_model(config, world.network, adapter_name=name)
        self.layers = [module for module in world.network.modules() if isinstance(module, BaseTunerLayer)]
        world.other_encoders = nn.ModuleDict({name: copy.deepcopy(world.action_encoder) for name in (OLD, REFERENCE)})
        self.active = NEW
        self._pairs = self._matching(world)
        self._switch(NEW)
        if next(world.network.parameters()).device.type != "meta":
            self.move_old(0.0)

    def encoder(self, world: Any) -> nn.Module:
        return world.action_encoder if self.active == NEW else world.other_encoders[self.active]

    def set_trainable(self, world: Any) -> None:
        """Only the new policy's adapters and encoder require gradients."""
        world.requires_grad_(False)
        world.action_encoder.requires_grad_(True)
        for name, parameter in world.network.named_parameters():
            parameter.requires_grad_("lora_" in name and f".{NEW}." in name)

    @contextmanager
    def acting_as(self, policy: str) -> Iterator[None]:
        before = self.active
        self._switch(policy)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, policy: str) -> None:
        """Which adapter the layers use; leaves `requires_grad` alone, which peft's own switches do not."""
        self.active = policy
        for layer in self.layers:
            layer._disable_adapters = policy == REFERENCE
            layer._active_adapter = [OLD if policy == OLD else NEW]

    @torch.no_grad()
    def move_old(self, keep: float) -> None:
        """old <- keep * old + (1 - keep) * new."""
        for old, new in self._pairs:
            old.lerp_(new, 1 - keep)

    @torch.no_grad()
    def merged(self, world: Any) -> dict[str, torch.Tensor]:
        """State of the new policy as a world without adapters: W + (alpha / rank) B A (Hu et al. 2021, eq. 3)."""
        state: dict[str, torch.Tensor] = world.state_dict()
        for name, module in world.named_modules():
            if module in self.layers:
                state[f"{name}.base_layer.weight"] = module.get_base_layer().weight + module.get_delta_weight(NEW)
        own = ("other_encoders.", "watched")
        return {
            key.replace(".base_layer.", "."): value
            for key, value in state.items()
            if "lora_" not in key and not key.startswith(own)
        }

    @staticmethod
    def _matching(world: Any) -> list[tuple[nn.Parameter, nn.Parameter]]:
        named = dict(world.network.named_parameters())
        old = [name for name in named if f".{OLD}." in name and "lora_" in name]
        pairs = [(named[name], named[name.replace(f".{OLD}.", f".{NEW}.")]) for name in old]
        encoders = zip(world.other_encoders[OLD].parameters(), world.action_encoder.parameters(), strict=True)
        return pairs + list(encoders)
