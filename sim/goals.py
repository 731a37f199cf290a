"""Other goals in a task's scene: what the same words-to-action mapping should do when another thing is asked for.

libero_object: each other movable object of the scene into the basket. libero_goal: the goals of the suite's other
tasks, which share one scene. libero_spatial: the scene's second bowl onto the plate, in the words of the task whose
bowl starts there; the other instructions of that suite name places where a scene has no bowl. The order is fixed, so
that a number names a goal ("goal:other=2", sim.perturbations).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from embodied.protocols import Task
from sim.tasks import bddl_file, tasks

_OBJECTS = re.compile(r"\(:objects(.*?)\)", re.DOTALL)
_GOAL = re.compile(r"\(:goal\s*\(And\s*(.*?)\)\s*\)\s*\)?\s*\Z", re.DOTALL | re.IGNORECASE)
_INIT = re.compile(r"\(:init(.*?)\(:goal", re.DOTALL | re.IGNORECASE)
_PREDICATE = re.compile(r"\(\s*(\w+)((?:\s+\w+)+)\s*\)")


@dataclass(frozen=True)
class SceneGoal:
    """Words for the policy, and predicates as the simulator names them: [["in", "milk_1", "basket_1_region"], ...]."""

    words: str
    predicates: list[list[str]]


def other_goals(task: Task) -> list[SceneGoal]:
    """Goals other than the task's own in its scene. ValueError for a suite where none are defined."""
    if task.suite == "libero_object":
        return _other_objects(task)
    if task.suite == "libero_goal":
        own = goal_of(task)
        each = [SceneGoal(other.language, goal_of(other)) for other in tasks(task.suite)]
        return [goal for goal in each if goal.predicates != own]
    if task.suite == "libero_spatial":
        return [_other_bowl(task)]
    raise ValueError(f"other goals are defined for libero_object, libero_goal and libero_spatial, got {task.suite}")


def other_goal(task: Task, number: int) -> SceneGoal:
    """The number-th (from 1) of them. ValueError past the last."""
    goals = other_goals(task)
    if not 1 <= number <= len(goals):
        raise ValueError(f"{task.name} has other goals 1..{len(goals)}, got {number}")
    return goals[number - 1]


def goal_of(task: Task) -> list[list[str]]:
    """The predicates of a LIBERO task's problem file."""
    found = _GOAL.search(_text(task.suite, task.index))
    predicates = _PREDICATE.findall(found.group(0)) if found else []
    if not predicates:
        raise ValueError(f"no goal found in the problem file of {task.name}")
    return [[name.lower(), *arguments.split()] for name, arguments in predicates]


def _other_objects(task: Task) -> list[SceneGoal]:
    ((predicate, own, region),) = goal_of(task)
    listed = _OBJECTS.search(_text(task.suite, task.index))
    assert listed is not None
    kinds = dict(re.findall(r"(\w+)\s+-\s+(\w+)", listed.group(1)))
    container = next(name for name in kinds if region.startswith(f"{name}_"))
    said = kinds[own].replace("_", " ")
    return [
        SceneGoal(task.language.replace(said, kind.replace("_", " ")), [[predicate, name, region]])
        for name, kind in kinds.items()
        if name not in (own, container)
    ]


def _other_bowl(task: Task) -> SceneGoal:
    ((predicate, own, plate),) = goal_of(task)
    places = _start(task)
    (other,) = [name for name in places if name != own and name.startswith(own.rpartition("_")[0])]
    words = next(each.language for each in tasks(task.suite) if _start(each)[goal_of(each)[0][1]] == places[other])
    return SceneGoal(words, [[predicate, other, plate]])


def _start(task: Task) -> dict[str, str]:
    """Where the problem file lets each object start."""
    found = _INIT.search(_text(task.suite, task.index))
    arguments = [words.split() for _, words in _PREDICATE.findall(found.group(1) if found else "")]
    return {pair[0]: pair[1] for pair in arguments if len(pair) == 2}


@cache
def _text(suite: str, index: int) -> str:
    return bddl_file(suite, index).read_text()
