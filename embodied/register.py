"""embodied's own entries in the registry: the commands' configs."""

from __future__ import annotations

import importlib

from embodied.cli import COMMANDS
from embodied.registry import Registry

TARGETS = (
    "embodied.transforms.GripperConvention",
    "embodied.transforms.GripperLevels",
    "embodied.transforms.ImageConvention",
    "embodied.transforms.Normalize",
    "embodied.transforms.RotationTo6D",
    "embodied.checkpoint.load_policy",
    "embodied.bench.data.DataBench",
    "embodied.training.bench.TrainBench",
    "embodied.bench.world.WorldBench",
    "embodied.bench.world_state.WorldStateBench",
    "embodied.bench.ablation.PolicyAblation",
)

OWN = ("embodied", "sim", "policies", "world_models")


def register(registry: Registry) -> None:
    registry.target(*TARGETS)
    for module in COMMANDS.values():
        try:
            add = getattr(importlib.import_module(module), "register", None)
            if add is not None:
                add(registry)
        except ModuleNotFoundError as error:  # an optional package: the command itself says so when it is run
            if (error.name or "").partition(".")[0] in OWN:
                raise
