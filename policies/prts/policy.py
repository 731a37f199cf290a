"""PRTS as a Policy and a ValueFunction: what a checkpoint gives to evaluation and to the robot.

Shapes: B observations, H steps of a chunk, A action channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from embodied.chunk_policy import ChunkPolicy
from embodied.deploy.rtc import PrefixGuidance, guided_velocity
from embodied.protocols import Episode, Observation
from embodied.schema import ACTION, ACTION_DIM, TASK
from embodied.transforms import Pipeline
from policies.prts.model import PRTS


class PRTSPolicy(ChunkPolicy):
    """Chunks by the head that was trained last. The flow's noise comes from the episode's identity: equal episodes
    get equal noise, whatever runs beside them."""

    model: PRTS

    def __init__(
        self, model: PRTS, pipeline: Pipeline, name: str, digest: str, replan: int, device: str = "cpu"
    ) -> None:
        super().__init__(model, pipeline, name, digest, replan, device)
        self.spec = replace(self.spec, extra={"gamma": model.settings.crl.gamma})
        self._noise: dict[int, torch.Generator] = {}

    def reset(self, slots: Sequence[int], episodes: Sequence[Episode]) -> None:
        for slot, episode in zip(slots, episodes, strict=True):
            self._noise[slot] = _generator(episode.key)

    def act(self, observation: Observation, slots: Sequence[int]) -> np.ndarray:
        batch = self.read(observation)
        with torch.inference_mode():
            return self._actions(self.model.predict(batch, self._draw(slots)))

    def act_with_prefix(
        self, observation: Observation, slots: Sequence[int], prefix: np.ndarray, guidance: PrefixGuidance
    ) -> np.ndarray:
        """Real-time chunking: chunks that agree with the actions `prefix` (B, L, A) still under way."""
        if self.model.head != "flow":
            raise ValueError("schedule.mode rtc needs the flow head, this checkpoint acts by tokens: use stage=joint")
        batch = self.read({**observation, ACTION: np.asarray(prefix, np.float32)})
        under_way_BLA = batch.pop(ACTION)

        def guide(velocity: Callable[[Tensor], Tensor], x_BHA: Tensor, time: float) -> Tensor:
            return guided_velocity(velocity, x_BHA, time, under_way_BLA, guidance)

        with torch.no_grad():  # guidance takes a gradient, which inference mode would forbid
            return self._actions(self.model.predict(batch, self._draw(slots), guide))

    def value(self, observation: Observation, actions: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
        """(B,) temperature-scaled phi(s, a) . psi(l): the log discounted probability of reaching l, up to C(l)."""
        item = {**observation, ACTION: np.asarray(actions, np.float32), TASK: list(instructions)}
        with torch.inference_mode():
            return self.model.value(self.read(item)).float().cpu().numpy()

    def _actions(self, normalised_BHA: Tensor) -> np.ndarray:
        actions_BHA = self.pipeline.inverse_action(normalised_BHA.float().cpu().numpy(), ACTION)
        return np.clip(actions_BHA, -1.0, 1.0).astype(np.float32)

    def _draw(self, slots: Sequence[int]) -> Tensor:
        """Standard normal (B, H, A), each row from its slot's generator."""
        shape = (self.spec.chunk, ACTION_DIM)
        rows = [torch.randn(shape, generator=self._noise.setdefault(s, _generator(str(s)))) for s in slots]
        return torch.stack(rows).to(self.device)


def _generator(identity: str) -> torch.Generator:
    digest = hashlib.sha256(identity.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
