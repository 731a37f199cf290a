"""A checkpoint is a folder that is enough to run itself, and is only data.

    config.json        format, the model's registered `_target_` and arguments, frozen public weights, provenance
    model.safetensors  what was trained
    pipeline.json      the transforms between the item format and the model
    statistics.json    the statistics those transforms were bound to
    training/          state to go on from (optimiser, averages, position in the data); absent in a published one

Nothing is unpickled. A `_target_` outside the registry, a file that is a link out of the folder, a header that
disagrees with the model or the file's size, and frozen weights with another sha256 are refused with a ValueError.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from embodied.chunk_policy import ChunkPolicy
from embodied.frozen import check_named, frozen_weights
from embodied.io import write_json
from embodied.protocols import Policy
from embodied.registry import registry
from embodied.transforms import Pipeline

FORMAT, VERSION = "embodied-checkpoint", 1
MODEL_FILE, CONFIG, PIPELINE, STATISTICS = "model.safetensors", "config.json", "pipeline.json", "statistics.json"
MAX_JSON_BYTES = 16 * 2**20
STEP_PREFIX = "step-"
SHIPPED = Path(__file__).parents[1]  # where the packages lie that bring checkpoints


@dataclass
class Checkpoint:
    """A loaded checkpoint. `digest` identifies weights, configuration, pipeline and statistics (sha256 hex)."""

    model: Any
    pipeline: Pipeline
    config: dict[str, Any]
    digest: str


def save_checkpoint(
    folder: Path,
    model: Any,
    pipeline: Pipeline,
    *,
    weights: Mapping[str, torch.Tensor] | None = None,
    info: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes the folder whole or not at all; an older folder of that name is replaced.

    weights: what to store instead of the model's own state (an average).
    info: provenance for config.json. extra: {relative path: bytes or dict of tensors} for training state.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    state = {key: _stored(value, None) for key, value in (weights or model.state_dict()).items()}
    save_file(state, temporary / MODEL_FILE)
    kind = type(model)
    config = {
        "format": FORMAT,
        "version": VERSION,
        "model": {"_target_": f"{kind.__module__}.{kind.__qualname__}", **model.config()},
        "frozen": [frozen_weights(name).to_json() for name in model.frozen],
        "info": dict(info or {}),
    }
    write_json(temporary / CONFIG, config)
    write_json(temporary / PIPELINE, pipeline.to_json())
    write_json(temporary / STATISTICS, pipeline.statistics)
    for name, content in (extra or {}).items():
        _write_extra(temporary / name, content)
    _replace_folder(temporary, folder)


def load_checkpoint(path: str | Path, device: str = "cpu") -> Checkpoint:
    """Model, pipeline and configuration of a checkpoint folder, or of a run folder's newest checkpoint."""
    folder = resolve_checkpoint(Path(path))
    config = _read_config(folder)
    pipeline = Pipeline.from_json(read_json(folder, PIPELINE), read_json(folder, STATISTICS))
    model = build_model(config["model"], folder)
    check_named(config["frozen"], model.frozen)
    load_weights(model, inside(folder, MODEL_FILE))
    model.to(device).eval()
    return Checkpoint(model, pipeline, config, digest(folder))


def export_checkpoint(
    path: str | Path,
    out: Path,
    dtype: torch.dtype,
    change: Mapping[str, Any] | None = None,
    merge: bool = False,
) -> Path:
    """A checkpoint to publish: no training state, its parameters (buffers stay) in `dtype`. Returns the source folder.

    change: settings of the model that take another value, as of its sampler. merge: adapters are folded into the
    weights that they adapt. ValueError when `out` exists already, `path` is no checkpoint, or nothing can be merged.
    """
    if out.exists():
        raise ValueError(f"out={out} exists already: choose another folder or remove it")
    source = resolve_checkpoint(Path(path))
    loaded = load_checkpoint(source)
    model = _merge(loaded.model) if merge else loaded.model
    parameters = {name for name, _ in model.named_parameters()}
    weights = {key: _stored(value, dtype if key in parameters else None) for key, value in model.state_dict().items()}
    if change:
        settings = {"_target_": loaded.config["model"]["_target_"], **model.config()}
        model = build_model(changed_settings(settings, change))
    out.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(out, model, loaded.pipeline, weights=weights, info=loaded.config["info"])
    return source


def _merge(model: Any) -> Any:
    if not hasattr(model, "merged"):
        raise ValueError(f"{type(model).__name__} has no adapters to merge: leave merge out")
    return model.merged()


def changed_settings(settings: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's `model` entry with some settings replaced, level by level; ValueError for a key it does not have.

    Settings that are newer than the checkpoint have their defaults.
    """
    if not change:
        return dict(settings)
    with torch.device("meta"):
        every = build_model(settings).config()
    return _merged({"_target_": settings["_target_"], **every}, change)


def _merged(settings: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    unknown = [key for key in change if key not in settings]
    if unknown:
        raise ValueError(
            f"change should name settings of the checkpoint, got {unknown[0]!r}: one of {sorted(settings)}"
        )
    return {
        key: _merged(value, change[key])
        if isinstance(value, Mapping) and isinstance(change.get(key), Mapping)
        else change.get(key, value)
        for key, value in settings.items()
    }


def load_policy(path: str | Path, replan: int = 5, device: str = "cpu", name: str | None = None) -> Policy:
    """The policy of a checkpoint. replan: actions executed before the next observation is asked for."""
    loaded = load_checkpoint(path, device)
    label = name or loaded.config["model"]["_target_"].rpartition(".")[2]
    arguments = (loaded.pipeline, label, loaded.digest, replan, device)
    make = getattr(loaded.model, "make_policy", None)
    return make(*arguments) if make is not None else ChunkPolicy(loaded.model, *arguments)


def digest(folder: Path) -> str:
    """sha256 over the four files that decide what the checkpoint does."""
    total = hashlib.sha256()
    for name in (CONFIG, PIPELINE, STATISTICS, MODEL_FILE):
        with inside(folder, name).open("rb") as file:
            total.update(name.encode() + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def resolve_checkpoint(path: Path) -> Path:
    """The folder itself when it holds a checkpoint, else the newest step under its `checkpoints/` (or itself).

    A relative path that does not exist here is one of a shipped checkpoint, as policies/bc/checkpoints/libero.
    """
    if not path.exists() and not path.is_absolute():
        path = SHIPPED / path if (SHIPPED / path).exists() else path
    if (path / MODEL_FILE).is_file():
        return path
    for parent in (path / "checkpoints", path):
        steps = list_steps(parent)
        if steps:
            return steps[-1]
    raise ValueError(
        f"{path} should be a checkpoint folder (with {MODEL_FILE}) or a training run that has one: check the path"
    )


def list_steps(folder: Path) -> list[Path]:
    """The checkpoints step-N of a folder, oldest first. Unfinished ones have other names."""
    found = [path for path in folder.glob(f"{STEP_PREFIX}*") if path.name.removeprefix(STEP_PREFIX).isdigit()]
    return sorted(
        (path for path in found if (path / CONFIG).is_file()), key=lambda path: int(path.name[len(STEP_PREFIX) :])
    )


def step_name(step: int) -> str:
    return f"{STEP_PREFIX}{step:07d}"


def build_model(config: Mapping[str, Any], folder: Path | None = None) -> Any:
    """The model of a config's `model` entry; with a folder, only after its weights are seen to fit (on no memory)."""
    target = config.get("_target_")
    kind = registry().resolve(str(target))
    if not (isinstance(kind, type) and issubclass(kind, torch.nn.Module)):
        raise ValueError(  # noqa: TRY004 - a wrong file, not a wrong call
            f"a checkpoint's model should be a torch module, got {target!r}: refused"
        )
    arguments = {key: value for key, value in config.items() if key != "_target_"}
    try:
        if folder is not None:
            with torch.device("meta"):
                check_weights(kind(**arguments), inside(folder, MODEL_FILE))
        return kind(**arguments)
    except TypeError as error:
        raise ValueError(f"wrong arguments for {target} in {CONFIG}: {error}") from error


def check_weights(model: torch.nn.Module, path: Path, fresh: Sequence[str] = ()) -> None:
    """Compares names and shapes in the file's header with the model. ValueError when they differ outside `fresh`."""
    state = model.state_dict()
    _check_modules("fresh", fresh, state)
    wanted, found = {key: tuple(value.shape) for key, value in state.items()}, _shapes(path)
    differing = [key for key in _differing(wanted, found) if not _within(key, fresh)]
    if differing:
        key = differing[0]
        raise ValueError(
            f"{path}: {len(differing)} weights differ from the model of {CONFIG}, first {key}: "
            f"expected {wanted.get(key, 'none')}, got {found.get(key, 'none')}: the files do not belong together"
        )


def load_weights(model: torch.nn.Module, path: Path, fresh: Sequence[str] = ()) -> None:
    """Copies the file's tensors into the model, in the model's dtype; names and shapes must match.

    fresh: modules that are left as they are; the file may lack them or have them in other shapes.
    """
    check_weights(model, path, fresh)
    with safe_open(path, framework="pt") as file, torch.no_grad():
        for key, value in model.state_dict().items():
            if not _within(key, fresh):
                value.copy_(file.get_tensor(key))


def load_parts(model: torch.nn.Module, path: Path, modules: Mapping[str, str]) -> None:
    """Copies modules of another model's file (its name -> the model's name). ValueError when they do not fit."""
    state, found = model.state_dict(), _shapes(path)
    _check_modules("parts", list(modules.values()), state)
    _check_modules(f"parts of {path}", list(modules), found)
    with safe_open(path, framework="pt") as file, torch.no_grad():
        for theirs, ours in modules.items():
            weights = {key.removeprefix(ours): value for key, value in state.items() if _within(key, [ours])}
            wanted = {key: tuple(value.shape) for key, value in weights.items()}
            given = {key.removeprefix(theirs): shape for key, shape in found.items() if _within(key, [theirs])}
            if differing := _differing(wanted, given):
                key = differing[0]
                raise ValueError(
                    f"{theirs!r} of {path} differs from {ours!r} of the model in {len(differing)} weights, first "
                    f"{key!r}: expected {wanted.get(key, 'none')}, got {given.get(key, 'none')}: make their sizes equal"
                )
            for key, value in weights.items():
                value.copy_(file.get_tensor(theirs + key))


def _differing(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Names that only one of them has, or with another shape."""
    return [key for key in sorted({*wanted, *found}) if wanted.get(key) != found.get(key)]


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """What the file's header says. ValueError when it is none."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} should be a whole safetensors file: {error}") from error


def _check_modules(what: str, names: Sequence[str], weights: Iterable[str]) -> None:
    """ValueError unless each name is that of a module with weights."""
    keys = list(weights)
    unknown = [name for name in names if not any(_within(key, [name]) for key in keys)]
    if unknown:
        modules = ", ".join(dict.fromkeys(key.split(".")[0] for key in keys))
        raise ValueError(f"{what} should name modules of the model with weights ({modules}, ...), got {unknown[0]!r}")


def _within(key: str, modules: Sequence[str]) -> bool:
    """Whether a weight belongs to one of the modules."""
    return any(key == name or key.startswith(f"{name}.") for name in modules)


def inside(folder: Path, name: str) -> Path:
    """A file of the folder. ValueError when it is missing or a link that leads out of it."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{folder / name} should lie in the checkpoint, it leads to {path}: refused")
    if not path.is_file():
        raise ValueError(f"{folder} lacks {name}: copy the whole checkpoint folder")
    return path


def read_json(folder: Path, name: str) -> Any:
    """A JSON file of the folder. ValueError when it is too large or malformed."""
    path = inside(folder, name)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path} should be at most {MAX_JSON_BYTES} bytes, got {path.stat().st_size}: refused")
    try:
        return json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} should be JSON: {error}") from error


def _read_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder, CONFIG)
    found = (config.get("format"), config.get("version")) if isinstance(config, dict) else (None, None)
    if found != (FORMAT, VERSION):
        raise ValueError(f"{folder / CONFIG} should be {FORMAT} version {VERSION}, got {found}: check the path")
    if not isinstance(config.get("model"), dict) or not isinstance(config.get("frozen"), list):
        raise ValueError(  # noqa: TRY004
            f"{folder / CONFIG} should hold an object `model` and a list `frozen`: refused"
        )
    return config


def _stored(value: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    value = value.detach().to("cpu", copy=True).contiguous()
    return value.to(dtype) if dtype is not None and value.is_floating_point() else value


def _write_extra(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save_file({key: _stored(value, None) for key, value in content.items()}, path)


def _replace_folder(temporary: Path, folder: Path) -> None:
    """Syncs and renames; an older folder is moved aside first, so that a crash leaves one whole folder."""
    for path in temporary.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
