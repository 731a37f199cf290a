"""Goal relabelling: what a sample's goal is, drawn afresh for every batch. Use them in `Windows(relabel=...)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from embodied.data.windows import Batch, Rows, Windows
from embodied.schema import TASK


@dataclass(frozen=True)
class FutureGoal:
    """Goal = a later frame of the same trajectory, k steps ahead, P(k) proportional to gamma^k, k = 1 .. steps to go.

    The last frame is its own goal (k = 0). Adds goal_index (frame in the cache), goal_steps (k) and `goal.KEY` for the
    keys named. gamma = 1 draws uniformly.
    """

    gamma: float = 0.99
    keys: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma should lie in (0, 1], got {self.gamma}")

    def __call__(self, batch: Batch, rows: Rows, windows: Windows, rng: np.random.Generator) -> Batch:
        left = rows.last - rows.frame
        steps = self._steps(rng.random(len(left)), left)
        added: Batch = {"goal_steps": steps, "goal_index": rows.frame + steps}
        for key in self.keys:
            added[f"goal.{key}"] = windows.gather(key, rows.frame + steps)
        return batch | added

    def _steps(self, uniform: np.ndarray, left: np.ndarray) -> np.ndarray:
        """Inverse of the truncated geometric distribution function (1 - gamma^k) / (1 - gamma^left)."""
        if self.gamma == 1:
            steps = np.floor(uniform * left) + 1
        else:
            steps = np.ceil(np.log1p(-uniform * (1 - self.gamma**left)) / np.log(self.gamma))
        return np.minimum(np.maximum(steps, 1), left).astype(np.int64)


@dataclass(frozen=True)
class Paraphrase:
    """Replaces an instruction by itself or one of its paraphrases; others stay. `task_id` keeps its meaning."""

    paraphrases: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __call__(self, batch: Batch, rows: Rows, windows: Windows, rng: np.random.Generator) -> Batch:  # noqa: ARG002
        draws = rng.random(len(rows.frame))
        return batch | {TASK: [self._pick(word, u) for word, u in zip(batch[TASK], draws, strict=True)]}

    def _pick(self, words: str, uniform: float) -> str:
        choices = [words, *self.paraphrases.get(words, ())]
        return choices[int(uniform * len(choices))]
