"""Shared by all tests: headless rendering, one thread, and what is skipped where data or assets are missing."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("house", deadline=None)  # a busy machine takes its time
settings.load_profile("house")
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("PYOPENGL_PLATFORM", "egl")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _libero_reason() -> str | None:
    """Why LIBERO cannot run here, or None when it can."""
    if importlib.util.find_spec("libero") is None:
        return "hf-libero is not installed"
    from sim.libero_setup import find_assets

    return None if find_assets() is not None else "LIBERO's assets are not here: set EMBODIED_DATA or fetch them"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from embodied.paths import data_root

    reasons: dict[str, str | None] = {}
    if any(item.get_closest_marker("libero") for item in items):
        reasons["libero"] = _libero_reason()
    reasons["data"] = None if data_root() is not None else "EMBODIED_DATA is not set"
    for item in items:
        for marker, reason in reasons.items():
            if reason is not None and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def outside_data() -> Path:
    """The folder named by EMBODIED_DATA."""
    from embodied.paths import data_root

    root = data_root()
    if root is None:
        pytest.skip("EMBODIED_DATA is not set")
    return root
