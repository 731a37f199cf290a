"""Checks this machine: interpreter, rendering, simulators, assets, GPU, codecs, and says what to do about each.

    embodied doctor

Exit status 1 when something that the installed packages need does not work.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from embodied.paths import DATA_VARIABLE, data_root


class Status(StrEnum):
    OK = "ok"
    NOTE = "note"  # works without it; something is not available
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """One finding: what was looked at, what was found, what to do (empty when nothing)."""

    name: str
    status: Status
    found: str
    advice: str = ""


RENDER = """
import os, sys
os.environ.setdefault("MUJOCO_GL", "egl" if sys.platform == "linux" else "cgl")
os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])
import mujoco
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/><geom size='.2' rgba='1 0 0 1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 32, 32) as renderer:
    renderer.update_scene(data)
    image = renderer.render()
    from OpenGL import GL
    name = GL.glGetString(GL.GL_RENDERER)
assert image.max() > 50, "the picture is black"
print(os.environ["MUJOCO_GL"], name.decode() if name else "unknown renderer")
"""


def check_rendering() -> Check:
    """Renders a picture in a process of its own: a broken driver can take the process with it."""
    done = subprocess.run([sys.executable, "-c", RENDER], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode == 0:
        return Check("headless rendering", Status.OK, done.stdout.strip().splitlines()[-1])
    last = (done.stderr.strip().splitlines() or [f"killed by signal {-done.returncode}"])[-1]
    return Check(
        "headless rendering", Status.FAIL, last,
        "apt-get install libegl1 libgl1-mesa-dri libgles2 (software), or your GPU's EGL driver; MUJOCO_GL=egl",
    )  # fmt: skip


def check_python() -> Check:
    good = (3, 12) <= sys.version_info[:2] <= (3, 13)
    found = f"{platform.python_version()} ({sys.executable})"
    return Check("interpreter", Status.OK if good else Status.FAIL, found, "" if good else "use Python 3.12 or 3.13")


def check_package(package: str, extra: str, expected: str | None = None) -> Check:
    """Whether a package is installed, and in the version that results were made with where that matters."""
    try:
        found = version(package)
    except PackageNotFoundError:
        return Check(package, Status.NOTE, "not installed", f"pip install 'embodied-stack[{extra}]' when you need it")
    if expected is not None and found != expected:
        return Check(package, Status.FAIL, found, f"install {package}=={expected}: results differ with other versions")
    return Check(package, Status.OK, found)


def check_gpu() -> Check:
    import torch

    if torch.cuda.is_available():
        return Check("GPU", Status.OK, torch.cuda.get_device_name(0))
    return Check("GPU", Status.NOTE, f"none; torch {torch.__version__} on {os.cpu_count()} CPU cores", "")


def check_codecs() -> Check:
    """AV1 is what LeRobot data sets hold, H.264 what browsers and reports show."""
    if importlib.util.find_spec("av") is None:
        return Check("video codecs", Status.NOTE, "PyAV not installed", "pip install 'embodied-stack[data]'")
    import av

    wanted: dict[str, Literal["r", "w"]] = {"libsvtav1": "w", "libx264": "w", "av1": "r", "h264": "r"}
    missing = []
    for name, mode in wanted.items():
        try:
            av.codec.Codec(name, mode)
        except av.codec.codec.UnknownCodecError:
            missing.append(name)
    if missing:
        return Check("video codecs", Status.FAIL, f"missing {', '.join(missing)}", "reinstall av from its wheel")
    return Check("video codecs", Status.OK, f"PyAV {av.__version__}: AV1 and H.264, both ways")


def check_data() -> Check:
    try:
        root = data_root()
    except ValueError as error:
        return Check("outside data", Status.FAIL, str(error), f"correct or unset {DATA_VARIABLE}")
    if root is None:
        advice = f"optional: set {DATA_VARIABLE} to a folder with libero_assets, libero_demos, droid_sample"
        return Check("outside data", Status.NOTE, f"{DATA_VARIABLE} is not set", advice)
    return Check(
        "outside data", Status.OK, f"{root}: {', '.join(sorted(p.name for p in root.iterdir() if p.is_dir()))}"
    )


def all_checks() -> Iterator[Check]:
    """embodied's own checks, then those that sibling packages registered."""
    from embodied.registry import registry

    yield check_python()
    for package in ("torch", "transformers", "accelerate"):
        yield check_package(package, "all")
    yield check_gpu()
    yield check_package("lerobot", "data")
    yield check_codecs()
    yield check_data()
    yield check_package("robosuite", "sim", "1.4.0")
    yield check_package("mujoco", "sim", "3.3.7")
    if importlib.util.find_spec("mujoco") is not None:
        yield check_rendering()
    for path in registry().checks:
        yield from registry().resolve(path)()


def run(arguments: list[str]) -> int:
    """Prints one line a check, advice beneath. `--rendering` alone checks only that (what the bootstrap asks)."""
    if arguments not in ([], ["--rendering"]):
        raise ValueError(f"doctor takes no overrides, got {' '.join(arguments)}: run `embodied doctor`")
    failed = False
    for check in [check_rendering()] if arguments else all_checks():
        print(f"{check.status.value:>5}  {check.name:<20} {check.found}", flush=True)
        if check.advice:
            print(f"{'':>5}  {'':<20} -> {check.advice}")
        failed |= check.status is Status.FAIL
    return int(failed)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
