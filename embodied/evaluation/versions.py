"""What a result depends on: versions of the packages that make it, and the commit of this one."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

SIMULATOR = ("mujoco", "robosuite", "hf-libero")
PACKAGES = (*SIMULATOR, "numpy", "torch", "lerobot", "gymnasium", "embodied-stack")


@cache
def versions() -> dict[str, str]:
    """Installed versions by name, "python" and, in a checkout, "commit" (with +changes when the tree differs)."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    commit = git_commit()
    return {**found, "commit": commit} if commit else found


def git_commit(folder: Path = Path(__file__).parents[2]) -> str | None:
    """The checkout's commit (12 digits, +changes when tracked files differ), or None outside one."""
    if not (folder / ".git").exists():
        return None
    try:
        head = _git(folder, "rev-parse", "--short=12", "HEAD")
        return head + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
