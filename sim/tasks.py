"""The suites and their tasks, listed without importing a simulator, and LIBERO's stored initial states.

LIBERO's words are those of the benchmark's file names, as in every published evaluation.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import numpy as np

from embodied.protocols import Task
from sim.init_states import load_array
from sim.libero_setup import package_root

LIBERO_LIMITS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
ROBOSUITE = "robosuite"
ROBOSUITE_TASKS = (
    # name, words, limit in control steps
    ("Lift", "lift the red cube", 200),
    ("Stack", "stack the red cube on the green cube", 300),
    ("PickPlaceCan", "put the can in its bin", 300),
    ("PickPlaceMilk", "put the milk carton in its bin", 300),
    ("PickPlaceBread", "put the bread in its bin", 300),
    ("PickPlaceCereal", "put the cereal box in its bin", 300),
    ("PickPlace", "put the milk carton, the bread, the cereal box and the can in their bins", 1000),
    ("NutAssemblySquare", "put the square nut on the square peg", 400),
    ("NutAssemblyRound", "put the round nut on the round peg", 400),
    ("NutAssembly", "put the square nut on the square peg and the round nut on the round peg", 800),
    ("Door", "open the door", 300),
)


def suites() -> list[str]:
    """Names of all suites, LIBERO's first."""
    return [*LIBERO_LIMITS, ROBOSUITE]


def tasks(suite: str) -> list[Task]:
    """The tasks of a suite in the benchmark's order. ValueError for an unknown suite."""
    if suite == ROBOSUITE:
        return [Task(suite, i, name, words, limit) for i, (name, words, limit) in enumerate(ROBOSUITE_TASKS)]
    if suite not in LIBERO_LIMITS:
        raise ValueError(f"suite should be one of {', '.join(suites())}, got {suite!r}")
    limit = LIBERO_LIMITS[suite]
    return [Task(suite, i, name, _words(name), limit) for i, name in enumerate(_libero_map()[suite])]


def get_task(suite: str, index: int) -> Task:
    """One task. ValueError when the suite has no task of that index."""
    listed = tasks(suite)
    if not 0 <= index < len(listed):
        raise ValueError(f"task of {suite} should be 0..{len(listed) - 1}, got {index}")
    return listed[index]


def bddl_file(suite: str, index: int) -> Path:
    """LIBERO's problem file of a task."""
    return package_root() / "bddl_files" / suite / f"{get_task(suite, index).name}.bddl"


@cache
def init_states(suite: str, index: int) -> np.ndarray:
    """LIBERO's stored initial states of a task: (n, 1 + nq + nv) float64 of time, qpos, qvel. ValueError if none."""
    if suite == ROBOSUITE:
        raise ValueError("robosuite tasks have no stored initial states: reset with a seed instead")
    states = load_array(package_root() / "init_files" / suite / f"{get_task(suite, index).name}.pruned_init")
    states.setflags(write=False)
    return states


def count_init_states(suite: str, index: int) -> int:
    """How many stored initial states a task has; 0 for robosuite's."""
    return 0 if suite == ROBOSUITE else len(init_states(suite, index))


@cache
def _libero_map() -> dict[str, list[str]]:
    """hf-libero's own table of task names, read as data (importing it would import torch and ask questions)."""
    source = (package_root() / "benchmark" / "libero_suite_task_map.py").read_text()
    assignment = next(node for node in ast.parse(source).body if isinstance(node, ast.Assign))
    return ast.literal_eval(assignment.value)


def _words(name: str) -> str:
    """The instruction in a task's name: KITCHEN_SCENE10_close_the_drawer -> close the drawer."""
    if name[0].isupper():
        _, _, name = name.partition("SCENE")
        _, _, name = name.partition("_")
    return name.replace("_", " ")
