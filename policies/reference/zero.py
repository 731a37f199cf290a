"""No motion, gripper open: the success rate of doing nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embodied.protocols import Episode, Observation
from policies.reference.base import blind_spec

OPEN = -1.0


class ZeroPolicy:
    """Zero pose change and an open gripper, `chunk` steps at a time."""

    def __init__(self, chunk: int = 10) -> None:
        self.spec = blind_spec("zero", chunk, {})

    def reset(self, slots: Sequence[int], episodes: Sequence[Episode]) -> None:
        """Nothing to forget."""

    def act(self, observation: Observation, slots: Sequence[int]) -> np.ndarray:  # noqa: ARG002
        """Actions (B, chunk, 7): zeros with the gripper entry -1."""
        actions = np.zeros((len(slots), self.spec.chunk, self.spec.action_dim), np.float32)
        actions[..., -1] = OPEN
        return actions
