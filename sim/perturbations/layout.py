"""Where objects start: LIBERO's regions moved, or exchanged, for one reset.

They act on the sampling of a scene, so they need one drawn from the seed: a stored init state says where everything is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from sim.perturbations.names import Perturbation


@contextlib.contextmanager
def shifted(inner: Any, change: Perturbation, seed: int) -> Iterator[None]:
    """All regions in which movable objects start, moved together by `shift` metres in a direction from the seed."""
    angle = change.rng(seed).uniform(0, 2 * np.pi)
    dx, dy = change.values["shift"] * np.array([np.cos(angle), np.sin(angle)])
    regions = _problem(inner)["regions"]
    names = {state[2] for state in _table_starts(inner)}
    before = {name: regions[name]["ranges"] for name in names}
    for name in names:
        regions[name]["ranges"] = [[x0 + dx, y0 + dy, x1 + dx, y1 + dy] for x0, y0, x1, y1 in before[name]]
    try:
        yield
    finally:
        for name, ranges in before.items():
            regions[name]["ranges"] = ranges


@contextlib.contextmanager
def exchanged(inner: Any, change: Perturbation) -> Iterator[None]:
    """The object of interest and the `swap`-th other object start in each other's region."""
    starts = _table_starts(inner)
    interest = [state for state in starts if state[1] in inner.obj_of_interest]
    if not interest or len(starts) < 2:
        raise ValueError("position:swap needs an object of interest and another object on the table: use another task")
    first = interest[0]
    others = [state for state in starts if state is not first]
    second = others[(int(change.values["swap"]) - 1) % len(others)]
    first[2], second[2] = second[2], first[2]
    try:
        yield
    finally:
        first[2], second[2] = second[2], first[2]


def _problem(inner: Any) -> dict[str, Any]:
    problem = getattr(inner, "parsed_problem", None)
    if problem is None:
        raise ValueError("layout and position need a LIBERO task: robosuite's scenes have no regions")
    return problem


def _table_starts(inner: Any) -> list[list[str]]:
    """Entries ["on", object, region] of movable objects that start in a region of table or floor."""
    problem = _problem(inner)
    holders = {*inner.objects_dict, *inner.fixtures_dict}
    regions = problem["regions"]
    return [
        state
        for state in problem["initial_state"]
        if state[0] == "on"
        and state[1] in inner.objects_dict
        and state[2] in regions
        and regions[state[2]]["target"] not in holders
    ]
