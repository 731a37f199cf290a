"""Hydra configs composed in one place, with errors that name the nearest right key; read-only afterwards."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from embodied.registry import registry

CONFIG_MODULE = "configs"


class ConfigError(ValueError):
    """A wrong override: what was expected, what came, what to do."""


def compose_config(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The resolved, read-only config of primary config `name` under Hydra overrides."""
    registry()
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module=CONFIG_MODULE, version_base="1.3"):
        try:
            config = compose(config_name=name, overrides=list(overrides))
            OmegaConf.resolve(config)
        except (HydraException, ConfigCompositionException, MissingConfigException, OmegaConfBaseException) as error:
            raise ConfigError(_explain(name, overrides, error)) from error
    OmegaConf.set_readonly(config, True)
    return config


def adding(overrides: Sequence[str], *keys: str) -> list[str]:
    """Overrides in which `keys`, mappings without fixed names, take new ones: Hydra wants that said."""
    starts = tuple(key + end for key in keys for end in ("=", "."))
    return [f"++{word}" if word.startswith(starts) else word for word in overrides]


def to_container(config: DictConfig) -> dict[str, Any]:
    """A plain dict. ConfigError names the first key that still needs a value."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(f"{missing[0]} needs a value: add {missing[0]}=... to the command")
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def to_dataclass(config: DictConfig) -> Any:
    """The config dataclass behind a structured config. ConfigError names the first key that needs a value."""
    to_container(config)
    return OmegaConf.to_object(config)


def _explain(name: str, overrides: Sequence[str], error: Exception) -> str:
    message = _first_line(error)
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override!r} cannot be read ({message}): put values that hold = or : in double quotes "
            """and the whole in single ones, as in 'perturbations=["goal:other=1"]'"""
        )
    keys = sorted(set(_known_keys(name, overrides)))
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0].partition("@")[0]
        if key in keys or (key.rpartition(".")[0] in keys and _is_open(name, key)):
            continue
        near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(keys[:30])}"
        return f"unknown key {key!r} for `embodied {name}`: {hint}"
    choice = re.search(r"Could not find '([^']+)'", message)
    if choice:
        group, _, option = choice[1].rpartition("/")
        options = _options(group)
        near = difflib.get_close_matches(option, options, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{group}={option} names no config: {hint}choose one of {', '.join(options)}"
    return message


def _first_line(error: BaseException) -> str:
    """The innermost cause in words: Hydra wraps OmegaConf's message, which says what was expected."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    where = next((line for line in lines if line.startswith("full_key:")), "")
    return " ".join(filter(None, [lines[0] if lines else type(error).__name__, where.replace("full_key:", "at")]))


def _known_keys(name: str, overrides: Sequence[str]) -> Iterator[str]:
    """The keys of the config, with the chosen options of its groups where those can be composed."""
    choices = [override for override in overrides if "." not in override.partition("=")[0]]
    with initialize_or_reuse():
        try:
            known = compose(config_name=name, overrides=choices)
        except (HydraException, OmegaConfBaseException):
            known = compose(config_name=name)
    yield from _walk(known, "")


def _walk(node: Any, prefix: str) -> Iterator[str]:
    for key in node:
        path = f"{prefix}{key}"
        yield path
        if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            yield from _walk(node[key], path + ".")


def _is_open(name: str, key: str) -> bool:
    """Whether the key's parent is a free-form dict, which takes any key."""
    with initialize_or_reuse():
        parent = OmegaConf.select(compose(config_name=name), key.rpartition(".")[0])
    return parent is not None and not OmegaConf.is_struct(parent)


def _options(group: str) -> list[str]:
    from hydra.core.object_type import ObjectType

    with initialize_or_reuse():
        loader = GlobalHydra.instance().config_loader()
        return sorted(loader.get_group_options(group, ObjectType.CONFIG))


def initialize_or_reuse() -> Any:
    GlobalHydra.instance().clear()
    return initialize_config_module(config_module=CONFIG_MODULE, version_base="1.3")
