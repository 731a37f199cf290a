"""A checkpoint's world model as the rest of the stack sees it: item format in, images out.

`rollout` predicts recorded clips, closed loop or teacher-forced; `imagine` (protocol WorldModel) continues any history
under any actions, with the arm's state integrated from them.

Shapes: B clips, T frames at the model's rate, S steps of control, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embodied.chunk_policy import to_tensors
from embodied.schema import ACTION, ACTION_DIM, STATE
from embodied.transforms import Pipeline
from world_models.persist.actions import FRAME_ACTION
from world_models.persist.proprioception import Proprioception
from world_models.persist.rollout import RolloutState, Sampling, imagine


class Imagination:
    """`world` is a PersistWorld with cameras. `cameras`, `size`, `chunk`, `skip` say what goes in and comes out."""

    def __init__(self, world: Any, pipeline: Pipeline, name: str, digest: str, device: str = "cpu") -> None:
        self.world, self.pipeline, self.name, self.digest = world.to(device).eval(), pipeline, name, digest
        self.device = torch.device(device)
        self.keys: list[str] = list(world.space.keys)
        self.chunk, self.skip = world.memory.chunk, world.memory.skip
        self.sampling, self.arm = Sampling(), Proprioception()

    def set_steps(self, steps: int | None) -> None:
        """How many steps the sampler takes; None: as many as the model says."""
        self.sampling = replace(self.sampling, steps=steps)

    def offsets(self, interactions: int) -> dict[str, list[int]]:
        """Key -> frames of the data set around the start that `rollout` needs."""
        memory = self.world.memory
        return self.world.offsets([*memory.buffer_offsets(), *memory.future_offsets(interactions * memory.chunk)])

    @property
    def known(self) -> int:
        """Frames of a clip before the first new one."""
        return self.world.memory.lookback + 2

    def encode(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """A clip in the item format -> latents (B, T, *L) and frame actions (B, T, A)."""
        values = {key: value for key, value in self.pipeline.forward(batch).items() if isinstance(value, np.ndarray)}
        tensors = to_tensors(values, self.device)
        return self.world.space.encode(tensors), tensors[FRAME_ACTION]

    def truth(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The clip's new frames as the model's images would show them at best: (B, T, H, W, 3) uint8 by camera."""
        pixels = self.world.space.frames(to_tensors({key: batch[key] for key in self.keys}, self.device))
        return self._images(pixels[:, self.known :])

    def start(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The start's frame (B, 1, H, W, 3) by camera."""
        pixels = self.world.space.frames(to_tensors({key: batch[key] for key in self.keys}, self.device))
        return self._images(pixels[:, self.known - 1 : self.known])

    def _images(self, pixels: Tensor) -> dict[str, Tensor]:
        from world_models.persist.codec import to_images

        size = pixels.shape[:2]
        return {key: to_images(pixels[:, :, i].flatten(0, 1)).unflatten(0, size) for i, key in enumerate(self.keys)}

    @torch.no_grad()
    def rollout(
        self, batch: Mapping[str, Any], interactions: int, streams: Sequence[tuple[int, ...]], forced: bool = False
    ) -> dict[str, Tensor]:
        """Images (B, T, H, W, 3) uint8 by camera. forced: every chunk from the true frames before it."""
        latents, actions = self.encode(batch)
        if not forced:
            state = RolloutState(latents[:, : self.known], actions)
            return self.world.space.decode(
                imagine(self.world, state, interactions, streams, self.sampling).buffer[:, self.known :]
            )
        chunks = []
        for number in range(interactions):
            state = RolloutState(latents[:, : self.known + number * self.chunk], actions)
            state = imagine(self.world, state, 1, streams, self.sampling, first=number)
            chunks.append(state.buffer[:, -self.chunk :])
        return self.world.space.decode(torch.cat(chunks, dim=1))

    def imagine(self, history: Mapping[str, np.ndarray], actions: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        """Frames after each `skip` actions (B, S // skip, H, W, 3) uint8 by camera.

        history: cameras (B, P, H', W', 3) and STATE (B, P, 8) at the rate of control, the last one now, and ACTION
        (B, P - 1, 7) executed between them (none: it stood still). actions (B, S, 7), S a multiple of chunk * skip.
        """
        interactions, rest = divmod(actions.shape[1], self.chunk * self.skip)
        if rest or not interactions:
            raise ValueError(f"imagine takes a multiple of {self.chunk * self.skip} actions, got {actions.shape[1]}")
        state = self.begin(history, actions)
        streams = [(seed, i) for i in range(len(actions))]
        frames = imagine(self.world, state, interactions, streams, self.sampling).buffer[:, self.known :]
        return {key: value.cpu().numpy() for key, value in self.world.space.decode(frames).items()}

    def begin(self, history: Mapping[str, np.ndarray], actions: np.ndarray) -> RolloutState:
        """A rollout's state from a history and the actions to come; the arm's states are integrated."""
        memory, past = self.world.memory, history[STATE].shape[1]
        states = np.concatenate([history[STATE], self.arm.integrate(history[STATE], actions)], axis=1)
        earlier = history.get(ACTION)
        if earlier is None:
            earlier = np.zeros((len(actions), past - 1, ACTION_DIM), np.float32)
            earlier[..., 6] = -1.0
        every = np.concatenate([earlier, actions], axis=1)
        frames = [*memory.buffer_offsets(), *memory.future_offsets(actions.shape[1] // memory.skip)]
        columns = {STATE: states, self.world.world.action_key: every, ACTION: every}
        item: dict[str, Any] = {}
        for key, offsets in self.world.offsets(frames).items():
            source = history[key] if key in history and key not in columns else columns[key]
            offsets = offsets[: self.known] if key in self.keys else offsets
            item[key] = source[:, np.clip(np.array(offsets) + past - 1, 0, source.shape[1] - 1)]
        latents, frame_actions = self.encode(item)
        return RolloutState(latents, frame_actions)
