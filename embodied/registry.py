"""The explicit list of classes and functions a config or a checkpoint may name.

A checkpoint's or data set's files are data, never code: `_target_` strings are looked up here and nowhere else.
Sibling packages add theirs through the entry-point group `embodied.configs`: a function `register(registry)` that
names dotted paths (strings, so nothing heavy is imported) and config dataclasses.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from hydra.core.config_store import ConfigStore

GROUP = "embodied.configs"


class Registry:
    """Allowed `_target_` paths, the structured configs that go with them, and the doctor's checks."""

    def __init__(self) -> None:
        self.targets: set[str] = set()
        self.checks: list[str] = []

    def target(self, *paths: str) -> None:
        """Allows dotted paths such as "sim.make.make_env" as `_target_`."""
        self.targets.update(paths)

    def check(self, *paths: str) -> None:
        """Adds functions that yield `embodied doctor` checks."""
        self.targets.update(paths)
        self.checks.extend(paths)

    def schema(self, group: str | None, name: str, node: type) -> None:
        """Stores a config dataclass that YAML files of the group can name in their defaults list."""
        ConfigStore.instance().store(name=name, node=node, group=group)

    def resolve(self, path: str) -> Callable[..., Any]:
        """The class or function behind an allowed path. ValueError for every other path, before any import."""
        if path not in self.targets:
            raise ValueError(
                f"_target_ should be one of the {len(self.targets)} registered classes, got {path!r}: refused. "
                "Add it in the package's register.py if it is yours."
            )
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)


@cache
def registry() -> Registry:
    """The filled registry: embodied's own entries and those of every installed sibling."""
    from embodied.register import register

    filled = Registry()
    register(filled)
    for entry in entry_points(group=GROUP):
        entry.load()(filled)
    return filled


def build(config: Mapping[str, Any], **overrides: Any) -> Any:
    """Calls the registered `_target_` of a config with its other keys, building nested `_target_` configs first."""
    settings = {key: _build_value(value) for key, value in config.items() if key not in ("_target_", "_convert_")}
    return registry().resolve(config["_target_"])(**{**settings, **overrides})


def _build_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return build(value) if "_target_" in value else {key: _build_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_build_value(item) for item in value]
    return value
