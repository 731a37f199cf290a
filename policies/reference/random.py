"""Uniform random actions, drawn from a generator that only the episode determines."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from embodied.protocols import Episode, Observation
from policies.reference.base import blind_spec


class RandomPolicy:
    """Every entry uniform in [-scale, scale], the gripper's uniform in [-1, 1]; each drawn action held `hold` steps."""

    def __init__(self, chunk: int = 10, scale: float = 1.0, hold: int = 1, seed: int = 0) -> None:
        if not 0 < scale <= 1 or hold < 1:
            raise ValueError(f"scale should lie in (0, 1] and hold be at least 1, got {scale} and {hold}")
        self.scale, self.hold, self.seed = scale, hold, seed
        self.spec = blind_spec("random", chunk, {"scale": scale, "hold": hold, "seed": seed})
        self._generators: dict[int, np.random.Generator] = {}

    def reset(self, slots: Sequence[int], episodes: Sequence[Episode]) -> None:
        for slot, episode in zip(slots, episodes, strict=True):
            self._generators[slot] = np.random.default_rng([self.seed, zlib.crc32(episode.key.encode())])

    def act(self, observation: Observation, slots: Sequence[int]) -> np.ndarray:  # noqa: ARG002
        """Actions (B, chunk, 7). ValueError for a slot that was not reset."""
        return np.stack([self._chunk(slot) for slot in slots])

    def _chunk(self, slot: int) -> np.ndarray:
        if slot not in self._generators:
            raise ValueError(f"slot {slot} should be reset before it acts: call reset([{slot}], [episode])")
        chunk, dim = self.spec.chunk, self.spec.action_dim
        drawn = self._generators[slot].uniform(-1, 1, (-(-chunk // self.hold), dim)).astype(np.float32)
        drawn[:, :-1] *= self.scale
        return np.repeat(drawn, self.hold, axis=0)[:chunk]
