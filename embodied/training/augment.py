"""Noise on what a policy reads, drawn by the loader's generator: the same after a resume.

Use it in `Windows(relabel=...)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from embodied.data.windows import Batch, Rows, Windows
from embodied.schema import STATE


@dataclass(frozen=True)
class StateNoise:
    """Adds Gaussian noise to a column; `deviation` holds one standard deviation per number, in the column's units.

    A policy that copies the exact state of its demonstrations drifts; noise makes it look at the images.
    """

    deviation: Sequence[float] = field(default_factory=lambda: (0.005,) * 3 + (0.01,) * 3 + (0.0007,) * 2)
    key: str = STATE

    def __call__(self, batch: Batch, rows: Rows, windows: Windows, rng: np.random.Generator) -> Batch:  # noqa: ARG002
        value = batch[self.key]
        if value.shape[-1] != len(self.deviation):
            raise ValueError(
                f"{self.key} has {value.shape[-1]} numbers, deviation {len(self.deviation)}: give one each"
            )
        noise = rng.standard_normal(value.shape, np.float32) * np.asarray(self.deviation, np.float32)
        return batch | {self.key: value + noise}
