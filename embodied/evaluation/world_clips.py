"""The fixed list of held-out clips that world models are compared on, and their frames.

A clip is (episode, start): what was known at the start, and the frames of the next interactions. Where the episode ends
earlier, its last state is held: the model is told to stay, and those frames are left out of every score.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from embodied.data.cache import FrameCache
from embodied.data.windows import WindowConfig, Windows, split_episodes
from embodied.schema import ACTION, EXECUTED_ACTION

GRIPPER = 6


class Imagining(Protocol):
    """What evaluation needs of a world model; a checkpoint's `make_world_model` gives one."""

    name: str
    digest: str
    keys: list[str]
    chunk: int
    skip: int
    known: int

    def set_steps(self, steps: int | None) -> None: ...

    def offsets(self, interactions: int) -> dict[str, list[int]]: ...

    def encode(self, batch: Mapping[str, Any]) -> tuple[Any, Any]: ...

    def truth(self, batch: Mapping[str, Any]) -> dict[str, Any]: ...

    def start(self, batch: Mapping[str, Any]) -> dict[str, Any]: ...

    def rollout(
        self, batch: Mapping[str, Any], interactions: int, streams: Sequence[tuple[int, ...]], forced: bool = False
    ) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Clip:
    """episode: position in the cache's table. start: frame of the episode. steps: frames of data after it."""

    episode: int
    start: int
    steps: int

    @property
    def key(self) -> str:
        return f"{self.episode}/{self.start}"

    def to_json(self) -> dict[str, int]:
        return asdict(self)


@dataclass
class ClipConfig:
    """holdout, split_seed: as the training run had them, so that the episodes are those it did not see.

    starts: of each episode, spread evenly from its first frame as long as `least` interactions fit. limit: clips in
    all, null for every one.
    """

    path: str = "data/libero_demos"
    holdout: float = 0.15
    split_seed: int = 0
    interactions: int = 14
    starts: int = 2
    least: int = 6
    limit: int | None = None


def list_clips(cache: FrameCache, config: ClipConfig, chunk_steps: int) -> list[Clip]:
    """Clips of the held-out episodes. chunk_steps: frames of data an interaction advances. ValueError without any."""
    _, held = split_episodes(cache, config.holdout, config.split_seed)
    clips = []
    for episode in held:
        length = int(cache.episodes.length[episode])
        last = length - 1 - config.least * chunk_steps
        if last < 0:
            continue
        starts = np.linspace(0, last, config.starts).astype(int) if config.starts > 1 else np.array([0])
        starts = np.unique(starts // cache.image_every * cache.image_every)
        clips += [Clip(int(episode), int(start), length - 1 - int(start)) for start in starts]
    if not clips:
        raise ValueError(f"{cache.folder} has no held-out episode of {config.least} interactions: raise holdout")
    if config.limit is not None and config.limit < len(clips):
        clips = [clips[i] for i in np.linspace(0, len(clips) - 1, config.limit).astype(int)]
    return clips


def read_clips(cache: FrameCache, clips: Sequence[Clip], world: Imagining, interactions: int) -> dict[str, Any]:
    """The batch that `world.rollout` takes, with `valid` (B, T): frames inside the episode.

    After the end, actions are zero with the gripper's last command.
    """
    offsets = world.offsets(interactions)
    windows = Windows(cache, WindowConfig(observations=[], actions=[], chunk=1, offsets=offsets))
    samples = np.concatenate([windows.samples_at(clip.episode, np.array([clip.start])) for clip in clips])
    batch = windows.get_batch(samples)
    for key in (ACTION, EXECUTED_ACTION):
        if key in batch:
            after = np.array(offsets[key])[None] >= np.array([clip.steps for clip in clips])[:, None]
            batch[key] = batch[key].copy()
            batch[key][..., :GRIPPER][after] = 0.0
    frames = world.skip * (1 + np.arange(interactions * world.chunk))
    batch["valid"] = frames[None] <= np.array([clip.steps for clip in clips])[:, None]
    return batch


def in_batches(clips: Sequence[Clip], size: int) -> Iterator[Sequence[Clip]]:
    for first in range(0, len(clips), size):
        yield clips[first : first + size]


def stream(clip: Clip, seed: int) -> tuple[int, ...]:
    """What a clip's noise is drawn from: the same for every model."""
    return (seed, clip.episode, clip.start)
