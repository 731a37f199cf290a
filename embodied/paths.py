"""Where data outside the repository is found, and where runs are written."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

DATA_VARIABLE = "EMBODIED_DATA"


def data_root() -> Path | None:
    """The folder named by EMBODIED_DATA, or None when it is unset. Raises ValueError when it names no folder."""
    value = os.environ.get(DATA_VARIABLE)
    if not value:
        return None
    root = Path(value).expanduser().resolve()
    if not root.is_dir():
        raise ValueError(f"{DATA_VARIABLE} should name a folder that exists, got {value!r}: correct or unset it")
    return root


def data_folder(name: str) -> Path | None:
    """A folder under EMBODIED_DATA, or None when there is none."""
    root = data_root()
    return root / name if root is not None and (root / name).is_dir() else None


def new_run_folder(command: str, root: Path = Path("runs")) -> Path:
    """runs/COMMAND/TIME, made here; a second run in the same second gets a suffix."""
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for suffix in ("", *(f"_{i}" for i in range(2, 1000))):
        folder = root / command / (stamp + suffix)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise ValueError(f"no free run folder under {root / command}: remove some of {stamp}_*")
