"""Training samples cut from a frame cache: (episode, t) -> observation history, action chunk, steps to go, language.

One sample per frame; where the data set was not rendered at every step, one per frame with pictures of its own.
`get_batch` gathers a whole batch with one indexed read per key. A key with several offsets gets a
time axis after the batch axis and a mask `KEY_is_pad` (True where the offset leaves the episode; the nearest frame of
the episode stands in); a key with one offset has neither, just as a simulator's observation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from embodied.data.cache import FrameCache
from embodied.data.still import still_frames
from embodied.schema import ACTION, IMAGE_KEYS, STATE, TASK

Batch = dict[str, Any]


@dataclass
class WindowConfig:
    """What a sample holds.

    observations: cameras and columns read at t - (history - 1) * stride, .., t - stride, t (oldest first).
    actions: columns read at t .. t + chunk - 1. offsets: other offsets for single keys, e.g. future frames for a world
    model. Frames are counted at the rate of the cache. skip_still: the frames of `actions` leave out those in which the
    demonstrator waits (`embodied.data.still`), so that a sample of a wait shows what comes after it.
    """

    observations: list[str] = field(default_factory=lambda: [*IMAGE_KEYS, STATE])
    actions: list[str] = field(default_factory=lambda: [ACTION])
    history: int = 1
    stride: int = 1
    chunk: int = 16
    offsets: dict[str, list[int]] = field(default_factory=dict)
    skip_still: bool = False

    def all_offsets(self) -> dict[str, np.ndarray]:
        """Key -> frame offsets (K,)."""
        if min(self.history, self.stride, self.chunk) < 1:
            raise ValueError(
                f"history, stride and chunk should be 1 or more, got {self.history}, {self.stride}, {self.chunk}"
            )
        past = np.arange(-(self.history - 1) * self.stride, 1, self.stride)
        result = dict.fromkeys(self.observations, past) | dict.fromkeys(self.actions, np.arange(self.chunk))
        empty = next((key for key, values in self.offsets.items() if len(values) == 0), None)
        if empty is not None:
            raise ValueError(f"offsets of {empty!r} should name at least one frame, got none")
        return result | {key: np.array(values, np.int64) for key, values in self.offsets.items()}


@dataclass(frozen=True)
class Rows:
    """Where samples lie: all (B,) int64. `frame` counts within the cache, `first` and `last` bound its episode."""

    frame: np.ndarray
    episode: np.ndarray
    first: np.ndarray
    last: np.ndarray


Relabel = Callable[[Batch, Rows, "Windows", np.random.Generator], Batch]


class Windows:
    """The samples of one cache, or of some of its episodes.

    episodes: positions in the cache's episode table (None: all). weights: one factor per episode or per sample, handed
    out with each sample. relabel: functions applied to each batch in order, e.g. `embodied.data.goals.FutureGoal`.
    """

    def __init__(
        self,
        cache: FrameCache,
        config: WindowConfig,
        episodes: Sequence[int] | np.ndarray | None = None,
        weights: np.ndarray | None = None,
        relabel: Sequence[Relabel] = (),
    ) -> None:
        self.cache = cache
        self.config = config
        self.relabel = tuple(relabel)
        self.episodes = np.arange(len(cache.episodes)) if episodes is None else np.asarray(episodes, np.int64)
        self._offsets = config.all_offsets()
        self._rows = {key: cache.rows(key) for key in self._offsets}
        self.every = self._image_every()
        self.counts = -(-cache.episodes.length[self.episodes] // self.every)
        self._ends = np.cumsum(self.counts)
        self._starts = self._ends - self.counts
        self._weights = self._sample_weights(weights)
        skipping = config.skip_still and config.actions
        self._moving = np.flatnonzero(~still_frames(cache)) if skipping else None
        if len(self) == 0:
            raise ValueError(f"{cache.folder}: no episode was chosen, so there is no sample: check the selection")

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def languages(self) -> list[str]:
        """Instructions; `task_id` of a batch counts in this list."""
        return self.cache.episodes.languages

    def rows(self, samples: np.ndarray) -> Rows:
        """Sample numbers (B,) in [0, len) -> their place in the cache. IndexError outside."""
        samples = np.asarray(samples, np.int64)
        if len(samples) and (samples.min() < 0 or samples.max() >= len(self)):
            raise IndexError(f"samples should lie in [0, {len(self)}), got {samples.min()} to {samples.max()}")
        position = np.searchsorted(self._ends, samples, side="right")
        episode = self.episodes[position]
        first = self.cache.episodes.start[episode]
        frame = first + (samples - self._starts[position]) * self.every
        return Rows(frame, episode, first, first + self.cache.episodes.length[episode] - 1)

    def samples_at(self, episode: int, frames: np.ndarray) -> np.ndarray:
        """Frame numbers in an episode (B,) -> their sample numbers. ValueError for frames that are no samples."""
        found = np.flatnonzero(self.episodes == episode)
        if not len(found):
            raise ValueError(f"{self.cache.folder}: episode {episode} is not among those chosen")
        position = found[0]
        local, rest = np.divmod(np.asarray(frames, np.int64), self.every)
        if rest.any() or local.min(initial=0) < 0 or local.max(initial=0) >= self.counts[position]:
            raise ValueError(
                f"{self.cache.folder}: episode {episode} has pictures every {self.every} frames: ask there"
            )
        return self._starts[position] + local

    def gather(self, key: str, frames: np.ndarray) -> np.ndarray:
        """Rows of a camera or column at frame numbers of any shape (...): (..., *value shape), a copy."""
        return (self._rows[key] if key in self._rows else self.cache.rows(key)).take(frames)

    def get_batch(self, samples: np.ndarray, rng: np.random.Generator | None = None) -> Batch:
        """Sample numbers (B,) -> a dict of arrays with a leading batch axis, and B instructions under "task".

        Beside the configured keys: steps_to_go (B,) int64 (0 at the last frame of the trajectory), index (frame in the
        cache), frame_index (frame in the episode), episode_index (position in the cache), task_id, success (1, 0,
        -1 unknown), weight (B,) float32. `rng` is what relabelling draws from.
        """
        rows = self.rows(samples)
        batch: Batch = {}
        for key, offsets in self._offsets.items():
            frames, is_pad = self._frames(key, rows, offsets)
            if len(offsets) == 1:
                batch[key] = self.gather(key, frames[:, 0])
            else:
                batch[key] = self.gather(key, frames)
                batch[f"{key}_is_pad"] = is_pad
        batch |= self._labels(rows)
        batch["weight"] = np.ones(len(rows.frame), np.float32) if self._weights is None else self._weights[samples]
        for function in self.relabel:
            batch = function(batch, rows, self, rng or np.random.default_rng(0))
        return batch

    def _frames(self, key: str, rows: Rows, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Frame numbers (B, K) of a key at `offsets` from each sample, and which of them would leave the episode; its
        nearest frame stands in for those."""
        bounds = [rows.frame, rows.first, rows.last]
        among = self._moving if key in self.config.actions else None
        if among is not None:  # counted among the frames that move; an episode's last one does
            bounds = [np.searchsorted(among, bound) for bound in bounds]
        frame, first, last = (bound[:, None] for bound in bounds)
        inside = np.clip(frame + offsets, first, last)
        return inside if among is None else among[inside], inside != frame + offsets

    def _labels(self, rows: Rows) -> Batch:
        table = self.cache.episodes
        task_id = table.task_id[rows.episode]
        return {
            TASK: [table.languages[i] for i in task_id],
            "task_id": task_id,
            "steps_to_go": rows.last - rows.frame,
            "index": rows.frame,
            "frame_index": rows.frame - rows.first,
            "episode_index": rows.episode,
            "success": table.success[rows.episode],
        }

    def _image_every(self) -> int:
        """Frames from one sample to the next. ValueError when pictures are asked for at frames that have none."""
        seen = [key for key in self._offsets if key in self.cache.cameras or key not in self.cache.specs]
        every = self.cache.image_every if seen else 1
        wrong = next((key for key in seen if (self._offsets[key] % every).any()), None)
        if wrong is not None:
            raise ValueError(
                f"{self.cache.folder} was rendered at every {every}th step: offsets of {wrong!r} should be multiples "
                f"of {every}, got {self._offsets[wrong].tolist()}"
            )
        return every

    def _sample_weights(self, weights: np.ndarray | None) -> np.ndarray | None:
        if weights is None:
            return None
        values = np.asarray(weights, np.float32)
        if len(values) == len(self.episodes) != len(self):
            values = np.repeat(values, self.counts)
        if values.shape != (len(self),) or not np.isfinite(values).all() or values.min() < 0:
            raise ValueError(
                f"weights should be {len(self.episodes)} (episodes) or {len(self)} (samples) finite numbers >= 0, "
                f"got {values.shape}"
            )
        return values


class Mixture:
    """Several `Windows` as one: sample numbers run through the members one after another.

    All members must give the same keys and shapes. `task_id` counts in the union of the members' instructions;
    `dataset_index` (B,) names the member. How often each member is drawn is the sampler's part.
    """

    def __init__(self, members: Sequence[Windows]) -> None:
        if not members:
            raise ValueError("a mixture needs at least one data set, got none")
        self.members = list(members)
        self._ends = np.cumsum([len(member) for member in self.members])
        self.languages = list(dict.fromkeys(word for member in self.members for word in member.languages))
        number = {word: i for i, word in enumerate(self.languages)}
        self._task_ids = [np.array([number[word] for word in m.languages], np.int32) for m in self.members]

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def lengths(self) -> list[int]:
        return [len(member) for member in self.members]

    def get_batch(self, samples: np.ndarray, rng: np.random.Generator | None = None) -> Batch:
        """As `Windows.get_batch`, rows in the order of `samples`."""
        samples = np.asarray(samples, np.int64)
        which = np.searchsorted(self._ends, samples, side="right")
        places, parts = [], []
        for i in np.unique(which):
            place = np.flatnonzero(which == i)
            part = self.members[i].get_batch(samples[place] - self._ends[i] + len(self.members[i]), rng)
            parts.append(part | {"task_id": self._task_ids[i][part["task_id"]]})
            places.append(place)
        batch = _merge(parts, places)
        return batch | {"dataset_index": which}


def _merge(parts: Sequence[Mapping[str, Any]], places: Sequence[np.ndarray]) -> Batch:
    """Puts each part's rows where they belong. ValueError names the first key whose shapes differ."""
    order = np.argsort(np.concatenate(places), kind="stable")
    if len(parts) == 1:
        return dict(parts[0])
    batch: Batch = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        values = [part.get(key) for part in parts]
        if any(value is None for value in values):
            raise ValueError(f"{key!r} is not in every data set of the mixture: choose keys that all of them have")
        if isinstance(values[0], list):
            joined = [item for value in values for item in value]  # type: ignore[union-attr]
            batch[key] = [joined[i] for i in order]
            continue
        shapes = {value.shape[1:] for value in values}  # type: ignore[union-attr]
        if len(shapes) > 1:
            raise ValueError(f"{key!r} has shapes {sorted(shapes)} in the mixture: cache the data sets at one size")
        batch[key] = np.concatenate(values)[order]  # type: ignore[arg-type]
    return batch


def split_episodes(cache: FrameCache, holdout: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Episode positions for training and validation: about `holdout` of each task's episodes, drawn by `seed`.

    Of a task with several episodes at least one is held out (if any is asked for), and at least one trained on.
    """
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout should lie in [0, 1), got {holdout}")
    rng = np.random.default_rng(seed)
    held: list[int] = []
    for task in range(len(cache.episodes.languages)):
        members = rng.permutation(np.flatnonzero(cache.episodes.task_id == task))
        count = max(1, round(holdout * len(members))) if holdout else 0
        held += members[: min(count, len(members) - 1)].tolist()
    mask = np.zeros(len(cache.episodes), bool)
    mask[held] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)
