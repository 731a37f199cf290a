"""Autoregressive imagination: each predicted chunk joins the buffer that the next one is conditioned on.

`imagine` continues B rollouts for any number of interactions; `branch` continues each of them K times from one state,
which is computed once. Latents are fed back as they are. Every draw of noise has its own seed, a pure function of
(seed, rollout, candidate, interaction): results do not depend on what else is in the batch.

Shapes: B rollouts, N frames in the buffer, K candidates, L axes of a latent, A numbers of a frame's action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from world_models.persist.edm import euler, noise_like, schedule


@dataclass(frozen=True)
class Sampling:
    """How rollouts are sampled. steps: None, the model's own. guided: with the model's guidance; else D alone."""

    steps: int | None = None
    guided: bool = True
    policy: str = "new"


@dataclass(frozen=True)
class RolloutState:
    """buffer (B, N, *L): see `memory.py`. actions (B, >= N, A): at the buffer's places and on into the future."""

    buffer: Tensor
    actions: Tensor

    def rows(self, index: Tensor) -> RolloutState:
        return RolloutState(self.buffer[index], self.actions[index])


Stream = tuple[int, ...]  # what a rollout's noise is drawn from: seed, rollout, candidate


def seed_of(stream: Stream, interaction: int) -> int:
    return int(np.random.SeedSequence([*stream, interaction]).generate_state(1, np.uint64)[0])


@torch.no_grad()
def interact(
    world: Any, state: RolloutState, streams: Sequence[Stream], number: int, sampling: Sampling, condition: Any = None
) -> RolloutState:
    """One interaction: the next chunk, appended to the buffer. `condition`: computed already by `state_condition`."""
    with world.acting_as(sampling.policy):
        condition = state_condition(world, state) if condition is None else condition
        shape = (world.memory.chunk, *state.buffer.shape[2:])
        noise = noise_like(shape, [seed_of(stream, number) for stream in streams], state.buffer.device)
        denoiser = world.guided if sampling.guided else world.denoised
        sigmas = schedule(world.edm, sampling.steps, state.buffer.device)
        x = euler(lambda x, sigma: denoiser(x, sigma, condition), noise, sigmas)
        frames = world.from_model(x, state.buffer[:, -1])
    return replace(state, buffer=torch.cat([state.buffer, frames], dim=1))


def state_condition(world: Any, state: RolloutState) -> Any:
    """c of the next chunk. ValueError when the actions end before it does."""
    length, chunk = state.buffer.shape[1], world.memory.chunk
    if state.actions.shape[1] < length + chunk:
        missing = length + chunk - state.actions.shape[1]
        raise ValueError(f"the next chunk needs actions of {chunk} more frames, {missing} are missing: give more")
    places = world.memory.positions(length)
    actions = torch.cat([state.actions[:, places], state.actions[:, length : length + chunk]], dim=1)
    return world.condition(state.buffer[:, places], actions)


@torch.no_grad()
def imagine(
    world: Any,
    state: RolloutState,
    interactions: int,
    streams: Sequence[Stream],
    sampling: Sampling | None = None,
    first: int = 0,
) -> RolloutState:
    """Goes on for `interactions` chunks. streams: one a rollout; first: number of the first interaction."""
    if len(streams) != len(state.buffer):
        raise ValueError(
            f"imagine needs a stream of noise for each of {len(state.buffer)} rollouts, got {len(streams)}"
        )
    for number in range(first, first + interactions):
        state = interact(world, state, streams, number, sampling or Sampling())
    return state


@dataclass(frozen=True)
class Branches:
    """frames (B, K, T, *L), T the longest candidate's; zero after a candidate's end. lengths (B, K) interactions."""

    frames: Tensor
    lengths: Tensor

    def valid(self, chunk: int) -> Tensor:
        """(B, K, T) True where a candidate has a frame."""
        return torch.arange(self.frames.shape[2], device=self.frames.device) < self.lengths[..., None] * chunk


@torch.no_grad()
def branch(
    world: Any,
    state: RolloutState,
    lengths: Tensor,
    streams: Sequence[Stream],
    sampling: Sampling | None = None,
    first: int = 0,
) -> Branches:
    """K candidates from each state, of lengths (B, K) interactions; candidate k of rollout b draws from streams[b], k.

    The first condition (memory, action tokens) is computed once a state and shared; finished candidates cost nothing.
    """
    sampling, (count, candidates) = sampling or Sampling(), lengths.shape
    if int(lengths.min()) < 1 or count != len(state.buffer):
        raise ValueError(f"lengths should be (rollouts, candidates) of 1 or more, got {lengths.tolist()}")
    start, chunk = state.buffer.shape[1], world.memory.chunk
    names = [(*stream, k) for stream in streams for k in range(candidates)]
    lengths = lengths.to(state.buffer.device)
    flat = lengths.flatten()
    with world.acting_as(sampling.policy):
        shared = state_condition(world, state).repeat(candidates)
    alive = torch.arange(count * candidates, device=state.buffer.device)
    going = state.rows(alive // candidates)
    frames = state.buffer.new_zeros(len(alive), int(flat.max()) * chunk, *state.buffer.shape[2:])
    for number in range(int(flat.max())):
        keep = flat[alive] > number
        alive, going = alive[keep], going.rows(keep)
        chosen = [names[i] for i in alive.tolist()]
        going = interact(world, going, chosen, first + number, sampling, shared if number == 0 else None)
        frames[alive, number * chunk : (number + 1) * chunk] = going.buffer[:, start + number * chunk :]
    return Branches(frames.unflatten(0, (count, candidates)), lengths)
