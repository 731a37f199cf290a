"""Importing the simulators asks nothing, prints nothing, downloads nothing and leaves the home folder alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("libero")

IMPORT = """
import socket, sys
def refuse(*a, **k): raise AssertionError("network")
socket.socket.connect = refuse
from sim.libero_setup import import_libero, find_assets
envs = import_libero()
assert envs.TASK_MAPPING
import os
assert os.environ["MUJOCO_GL"] == "egl", os.environ["MUJOCO_GL"]
"""


def _run(code: str, home: Path, **environment: str) -> subprocess.CompletedProcess:
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "EMBODIED_DATA", "LD_LIBRARY_PATH", "PYTHONPATH")}
    environment = {**kept, "HOME": str(home), "OMP_NUM_THREADS": "1", **environment}
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, cwd=root, check=False
    )


def test_import_is_silent_and_asks_nothing(tmp_path: Path) -> None:
    run = _run(IMPORT, tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
    assert "libero" not in run.stderr.lower()
    assert "macro" not in run.stderr
    assert not (tmp_path / ".libero").exists()
    assert list((tmp_path / ".cache/embodied").glob("libero-*/config.yaml"))


def test_a_headless_machine_renders_through_egl_by_itself(tmp_path: Path) -> None:
    code = (
        "from sim.make import make_env; import sys; assert 'mujoco' not in sys.modules\n"
        "env = make_env('robosuite', 0, image_size=16); env.reset(seed=0, options={'settle_steps': 0})\n"
        "print(env.observe()['observation.images.image'].shape); env.close()"
    )
    run = _run(code, tmp_path)
    assert (run.stdout.strip(), run.stderr.strip()) == ("(16, 16, 3)", "")


def test_missing_assets_are_a_clear_error_at_use(tmp_path: Path) -> None:
    use = IMPORT + "from sim.make import make_env\nmake_env('libero_object', 0).reset(seed=0)\n"
    from sim.libero_setup import package_root

    if (package_root() / "assets").exists():
        pytest.skip("hf-libero has its assets inside the package")
    run = _run(use, tmp_path, EMBODIED_DATA="")
    assert run.returncode == 1
    assert "ValueError: LIBERO's assets should be in EMBODIED_DATA/libero_assets" in run.stderr
    assert "embodied doctor" in run.stderr
    assert "network" not in run.stderr


def test_a_home_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file, not a folder")
    run = _run(IMPORT, tmp_path / "home", TMPDIR=str(tmp_path))
    assert run.returncode == 0, run.stderr
