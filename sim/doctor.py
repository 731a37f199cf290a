"""What `embodied doctor` says about the simulators."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from embodied.cli.doctor import Check, Status
from embodied.paths import DATA_VARIABLE
from sim.libero_setup import ASSET_FOLDERS, find_assets

STANDINS = "STANDINS.txt"


def checks() -> Iterator[Check]:
    """hf-libero and its assets."""
    if importlib.util.find_spec("libero") is None:
        advice = "pip install 'embodied-stack[sim]' when you need LIBERO"
        yield Check("hf-libero", Status.NOTE, "not installed", advice)
        return
    from importlib.metadata import version

    yield Check("hf-libero", Status.OK, version("hf-libero"))
    folder = find_assets()
    if folder is None:
        advice = (
            f"LIBERO suites need them: put libero_assets ({', '.join(ASSET_FOLDERS)}) under {DATA_VARIABLE}, or let "
            "hf-libero fetch its own once (~/.cache/libero/assets); robosuite's tasks need nothing"
        )
        yield Check("LIBERO assets", Status.NOTE, "not found", advice)
        return
    reduced = folder / STANDINS
    note = "a reduced copy: some visual meshes are stand-ins (STANDINS.txt)" if reduced.exists() else ""
    yield Check("LIBERO assets", Status.OK, str(folder), note)
