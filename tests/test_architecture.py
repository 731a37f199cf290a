"""The house rules that a program can hold: import direction, light imports, lengths, no outside paths."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("embodied", "sim", "policies", "world_models")
ALLOWED = {"embodied": {"embodied"}, **{name: {"embodied", name} for name in PACKAGES[1:]}}
HEAVY = ("mujoco", "robosuite", "libero", "lerobot", "gymnasium", "av", "cyclonedds")
PLUGIN = "policies/prts/lerobot_policy_prts"
MAX_FILE, MAX_FUNCTION = 400, 50


def sources(*packages: str) -> list[Path]:
    files = [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]
    return [path for path in files if PLUGIN not in path.as_posix()]


def imported_tops(tree: ast.AST) -> set[str]:
    tops = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            tops |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            tops.add(node.module.partition(".")[0])
    return tops


@pytest.mark.parametrize("package", PACKAGES)
def test_dependencies_point_one_way(package: str) -> None:
    for path in sources(package):
        found = imported_tops(ast.parse(path.read_text())) & set(PACKAGES)
        assert found <= ALLOWED[package], f"{path.relative_to(ROOT)} imports {found - ALLOWED[package]}"


def is_adapter(path: Path) -> bool:
    """Adapters may import their library at module level; no other module may."""
    return path.name.endswith("_env.py") or path.name.startswith("lerobot_") or "transports" in path.parts


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_core_imports_without_heavy_libraries() -> None:
    modules = [module_name(p) for p in sources("embodied", "policies", "world_models") if not is_adapter(p)]
    blocked = "".join(f"sys.modules[{name!r}] = None; " for name in HEAVY)
    code = f"import sys, importlib; {blocked}[importlib.import_module(m) for m in {modules!r}]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_lengths(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE, f"{path.name} is longer than {MAX_FILE} lines: give parts their own file"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= MAX_FUNCTION, f"{path.name}:{node.lineno} {node.name} has {length} lines"


def test_nothing_names_outside_places() -> None:
    """Outside data is found through EMBODIED_DATA alone."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split(
        "\n"
    )
    texts = [ROOT / name for name in listed if name.endswith((".py", ".md", ".yaml", ".toml", ".json", ".j2"))]
    pattern = re.compile(r"\.\./" + r"shared|/" + r"work/(main|shared)")
    named = [path.name for path in texts if path.exists() and pattern.search(path.read_text())]
    assert not named, f"{named} name a place outside the repository"


def test_tests_mirror_without_init_files() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
