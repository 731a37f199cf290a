"""The names of perturbations: "camera:orbit=30", "light:intensity=0.5,shadow=1+noise:fog=3", "none".

An axis, its keys with numbers, and "+" between axes. The name and the episode's seed determine everything, so a name in
a record is enough to repeat the episode.
"""

from __future__ import annotations

import difflib
import zlib
from dataclasses import dataclass

import numpy as np

NOISES = ("gaussian_noise", "gaussian_blur", "motion_blur", "zoom_blur", "fog", "glass_blur")
# axis -> key -> (lowest, highest, meaning)
AXES: dict[str, dict[str, tuple[float, float, str]]] = {
    "camera": {
        "orbit": (-180, 180, "degrees around the vertical axis through (0, 0, 0.8) m"),
        "elevation": (-45, 45, "degrees up, around the same point"),
        "distance": (0.5, 3, "factor on the distance from the same point"),
        "yaw": (-30, 30, "degrees, the camera's own rotation"),
        "pitch": (-30, 30, "degrees, the camera's own rotation"),
        "roll": (-180, 180, "degrees, the camera's own rotation"),
    },
    "light": {
        "intensity": (0, 4, "factor on all lamps"),
        "tilt": (0, 60, "degrees by which lamps move around the scene, in a direction drawn from the seed"),
        "tint": (0, 1, "strength of a colour drawn from the seed"),
        "shadow": (0, 1, "1: lamps cast shadows, 0: they do not"),
    },
    "background": {
        "floor": (1, 1000, "which of the drawn colours"),
        "wall": (1, 1000, "which of the drawn colours"),
        "table": (1, 1000, "which of the drawn colours"),
    },
    "noise": dict.fromkeys(NOISES, (1, 10, "severity")),
    "robot": {
        "r": (0, 1, "rad, length of the change of the arm's seven initial joints, direction from the seed"),
        "compat": (0, 1, "1: a stored init state restores the arm afterwards, as in LIBERO-plus's pipeline"),
    },
    "language": {
        "paraphrase": (1, 5, "which rewording of the task's words"),
        "swap": (1, 100, "words of the task that many places on in the suite; the predicate stays"),
    },
    "goal": {"other": (1, 20, "which other goal of the scene: words and predicate change, see sim.goals")},
    "layout": {"shift": (0, 0.2, "m by which all objects' regions move together, direction from the seed")},
    "position": {"swap": (1, 20, "which other object exchanges its region with the object of interest")},
    "object": {"recolour": (1, 1000, "which of the drawn colours for the object of interest")},
}


@dataclass(frozen=True)
class Perturbation:
    """One axis with its values."""

    axis: str
    values: dict[str, float]

    def rng(self, seed: int) -> np.random.Generator:
        """This axis's own random stream of an episode: other axes do not shift it."""
        return np.random.default_rng([seed % 2**32, zlib.crc32(self.axis.encode())])


def axes() -> list[str]:
    return list(AXES)


def parse(name: str) -> list[Perturbation]:
    """The perturbations of a name; none for "none". ValueError that names the nearest right axis or key."""
    if name in ("", "none"):
        return []
    found = [_parse_one(part) for part in name.split("+")]
    twice = {p.axis for p in found if sum(q.axis == p.axis for q in found) > 1}
    if twice:
        raise ValueError(f"each axis should come once, got {sorted(twice)} twice in {name!r}: join its keys by commas")
    return found


def _parse_one(text: str) -> Perturbation:
    axis, colon, settings = text.partition(":")
    if axis not in AXES or not colon:
        raise ValueError(f"perturbation should be AXIS:KEY=NUMBER, got {text!r}: {_hint(axis, list(AXES))}")
    values = {}
    for setting in settings.split(","):
        key, _, number = setting.partition("=")
        if key not in AXES[axis]:
            raise ValueError(f"unknown key {key!r} of {axis}: {_hint(key, list(AXES[axis]))}")
        values[key] = _number(axis, key, number)
    return Perturbation(axis, values)


def _number(axis: str, key: str, text: str) -> float:
    low, high, meaning = AXES[axis][key]
    try:
        value = float(text)
    except ValueError as error:
        raise ValueError(f"{axis}:{key} should be a number ({meaning}), got {text!r}") from error
    if not low <= value <= high:
        raise ValueError(f"{axis}:{key} should be between {low:g} and {high:g} ({meaning}), got {value:g}")
    return value


def _hint(wrong: str, known: list[str]) -> str:
    near = difflib.get_close_matches(wrong, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"choose among {', '.join(known)}"
