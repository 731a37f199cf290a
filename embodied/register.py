"""embodied's own entries in the registry: the commands' configs."""

from __future__ import annotations

import importlib

from embodied.cli import COMMANDS
from embodied.registry import Registry


def register(registry: Registry) -> None:
    for module in COMMANDS.values():
        add = getattr(importlib.import_module(module), "register", None)
        if add is not None:
            add(registry)
