"""What a policy's value says while it acts: at every look, of the chunk that it chose, under several instructions.

An evaluation with `values=N` keeps a trace beside each episode's actions; the report draws it under the rollout video.

Shapes: L looks of an episode, W instructions (the episode's own first).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from embodied.protocols import Task
from embodied.schema import TASK

WIDTH, HEIGHT = 400.0, 100.0  # of the drawing's coordinates


@dataclass
class ValueTrace:
    """`steps` executed before each look (L), `values` (L, W) under `words` (W)."""

    words: list[str]
    steps: list[int] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)

    def to_arrays(self) -> dict[str, np.ndarray]:
        return {
            "words": np.array(self.words),
            "steps": np.array(self.steps, np.int64),
            "values": np.array(self.values, np.float32),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> ValueTrace:
        return cls(arrays["words"].tolist(), arrays["steps"].tolist(), arrays["values"].tolist())


def instructions(own: str, tasks: Sequence[Task], count: int) -> list[str]:
    """The episode's instruction, and up to `count` of the other tasks' (which may name what its scene has not)."""
    others = [task.language for task in tasks if task.language != own]
    return [own, *list(dict.fromkeys(others))[:count]]


def values_of(policy: Any, observation: Mapping[str, Any], chunks: np.ndarray, words: Sequence[str]) -> list[float]:
    """(W) values of one observation's (its words aside) chunk (1, H, A), in one batch."""
    count = len(words)
    repeated = {key: np.repeat(value, count, axis=0) for key, value in observation.items()}
    values = policy.value({**repeated, TASK: list(words)}, np.repeat(chunks, count, axis=0), list(words))
    return [float(value) for value in values]


def draw(trace: ValueTrace, steps: int) -> list[dict[str, str]]:
    """Each instruction's words and its curve as an SVG path, the episode's own last (on top); x runs to `steps`."""
    if len(trace.steps) < 2:
        return []
    values = np.array(trace.values)
    low, high = float(values.min()), float(values.max())
    x = np.array(trace.steps) * WIDTH / max(steps, 1)
    y = HEIGHT * (1 - (values - low) / max(high - low, 1e-9))
    curves = [
        {"words": words, "path": "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y[:, i], strict=True))}
        for i, words in enumerate(trace.words)
    ]
    return curves[::-1]
