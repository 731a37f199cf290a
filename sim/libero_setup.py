"""Imports robosuite and hf-libero quietly: no prompt, no download, no output, no file outside a private folder.

hf-libero asks a question on import when its config file is missing, ignores the `assets` key of that file and fetches
its assets from the hub when it finds none. Here the config file is written first, the assets are looked for in
`EMBODIED_DATA/libero_assets`, then in hf-libero's own places, and a clear error comes at use when there are none.
Call `import_robosuite()` or `import_libero()` in every process before anything else imports those packages.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import logging
import os
import sys
import tempfile
import types
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from embodied.io import write_atomic
from embodied.paths import DATA_VARIABLE, data_folder

ASSET_FOLDERS = ("articulated_objects", "stable_scanned_objects", "turbosquid_objects", "stable_hope_objects", "scenes")


def package_root() -> Path:
    """site-packages/libero/libero, found without importing it. ValueError when hf-libero is not installed."""
    spec = importlib.util.find_spec("libero")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("hf-libero should be installed for LIBERO suites: pip install 'embodied-stack[sim]'")
    return Path(next(iter(spec.submodule_search_locations))) / "libero"


def find_assets() -> Path | None:
    """The folder of LIBERO's assets: EMBODIED_DATA/libero_assets, else hf-libero's own places, else None."""
    candidates = [data_folder("libero_assets"), package_root() / "assets", Path.home() / ".cache/libero/assets"]
    for folder in candidates:
        if folder is not None and all((folder / name).is_dir() for name in ASSET_FOLDERS):
            return folder
    return None


def assets_folder() -> str:
    """As `find_assets`, but a ValueError that says what to do when there is none. Never downloads."""
    folder = find_assets()
    if folder is None:
        raise ValueError(
            f"LIBERO's assets should be in {DATA_VARIABLE}/libero_assets, {package_root() / 'assets'} or "
            "~/.cache/libero/assets, found none: run `embodied doctor`, or fetch them once with "
            "`hf download lerobot/libero-assets --repo-type dataset --local-dir ~/.cache/libero/assets`"
        )
    return str(folder)


def prepare_rendering() -> None:
    """Headless Linux renders through EGL unless the user chose otherwise. Must run before mujoco is imported."""
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    if os.environ.get("MUJOCO_GL") == "egl":
        os.environ.setdefault("PYOPENGL_PLATFORM", "egl")


@cache
def import_robosuite() -> types.ModuleType:
    """robosuite, imported without its warnings, its log file in /tmp and its hint about private macros."""
    prepare_rendering()
    if "robosuite" not in sys.modules:
        spec = importlib.util.find_spec("robosuite")
        if spec is None or spec.origin is None:
            raise ValueError("robosuite should be installed for simulation: pip install 'embodied-stack[sim]'")
        _preload_macros(Path(spec.origin).parent)
    with silence():
        import robosuite
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    return robosuite


def _preload_macros(root: Path) -> None:
    """robosuite's settings, loaded first so that its logger is made without a file and without warnings."""
    spec = importlib.util.spec_from_file_location("robosuite.macros", root / "macros.py")
    if spec is None or spec.loader is None:
        raise ValueError(f"{root / 'macros.py'} should be readable: reinstall robosuite")
    macros = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(macros)
    macros.CONSOLE_LOGGING_LEVEL = "ERROR"  # type: ignore[attr-defined]
    macros.FILE_LOGGING_LEVEL = None  # type: ignore[attr-defined]
    sys.modules["robosuite.macros"] = macros
    sys.modules["robosuite.macros_private"] = types.ModuleType("robosuite.macros_private")


@cache
def import_libero() -> types.ModuleType:
    """`libero.libero.envs`, imported without prompt, download or output; its assets come from `assets_folder`."""
    import_robosuite()
    os.environ["LIBERO_CONFIG_PATH"] = str(_write_config())
    with silence():
        import libero.libero as libero

        found = find_assets()
        libero._assets_path_cache = None if found is None else str(found)
        libero.get_assets_path = assets_folder
        import libero.libero.envs as envs
    return envs


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Swallows what third-party code prints and warns."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def _write_config() -> Path:
    """The folder of a config.yaml that names the installed package's own files; one folder per installation."""
    root = package_root()
    name = f"libero-{hashlib.sha256(str(root).encode()).hexdigest()[:12]}"
    lines = {
        "benchmark_root": root,
        "bddl_files": root / "bddl_files",
        "init_states": root / "init_files",
        "datasets": root.parent / "datasets",
        "assets": root / "assets",
    }
    content = "".join(f"{key}: {str(value)!r}\n" for key, value in lines.items()).encode()
    for base in (Path.home() / ".cache/embodied", Path(tempfile.gettempdir()) / f"embodied-{os.getuid()}"):
        path = base / name / "config.yaml"
        try:
            if not path.exists() or path.read_bytes() != content:
                write_atomic(path, content)
        except OSError:
            continue
        return path.parent
    raise ValueError("a folder for LIBERO's config file should be writable: ~/.cache or the temporary folder")
