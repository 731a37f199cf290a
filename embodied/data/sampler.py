"""Which samples make the next batch: deterministic, resumable, and cut up between ranks.

A sampler is an endless sequence of sample numbers, a pure function of its seed. Batch b of a run takes the positions
b * batch * world .. of that sequence; rank r takes the r-th part of them. So the union over ranks is the same for any
number of ranks with an equal global batch, and the state is one number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_ROUNDS = 6
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)  # SplitMix64's constants (Steele et al. 2014)
_GOLDEN = 0x9E3779B97F4A7C15


def mix(values: np.ndarray, key: int) -> np.ndarray:
    """SplitMix64's finaliser of values + key: a well-mixed uint64 for each, the same everywhere."""
    x = np.asarray(values).astype(np.uint64) + np.uint64((key * _GOLDEN + _GOLDEN) % 2**64)
    x = (x ^ (x >> np.uint64(30))) * _M1
    x = (x ^ (x >> np.uint64(27))) * _M2
    return x ^ (x >> np.uint64(31))


def uniform(values: np.ndarray, key: int) -> np.ndarray:
    """A number in [0, 1) for each value, float64."""
    return (mix(values, key) >> np.uint64(11)).astype(np.float64) / 2.0**53


def permute(positions: np.ndarray, length: int, key: int) -> np.ndarray:
    """The images of positions under a pseudo-random permutation of range(length), without storing it.

    A Feistel network on the next even power of two, walked until it lands inside (Black and Rogaway 2002).
    """
    half = max(1, (int(length - 1).bit_length() + 1) // 2)
    result = np.asarray(positions).astype(np.uint64)
    outside: np.ndarray = np.ones(len(result), bool)
    while outside.any():
        result[outside] = _feistel(result[outside], half, key)
        outside = result >= np.uint64(length)
    return result.astype(np.int64)


def _feistel(values: np.ndarray, half: int, key: int) -> np.ndarray:
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    left, right = values >> shift, values & mask
    for i in range(_ROUNDS):
        left, right = right, left ^ (mix(right, key * _ROUNDS + i) & mask)
    return (left << shift) | right


class Sampler:
    """Base: `batch_size` samples a batch for this rank. Iterating never ends; `state_dict` resumes exactly."""

    def __init__(self, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"batch_size should be 1 or more and rank in [0, world_size), got {batch_size}, {rank}, {world_size}"
            )
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.batch = 0

    def next_batch(self) -> np.ndarray:
        """Sample numbers (batch_size,) int64; the batch counter goes up by one."""
        size = self.batch_size * self.world_size
        samples = self._global(self.batch * size, size)
        self.batch += 1
        return samples[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]

    def rng(self) -> np.random.Generator:
        """A generator for what the next batch draws at random (relabelling), different on every rank."""
        return np.random.default_rng([self.seed, self.batch, self.rank])

    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            yield self.next_batch()

    def state_dict(self) -> dict[str, Any]:
        return {"batch": self.batch, "global_batch": self.batch_size * self.world_size, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on after the batch at which `state` was taken. ValueError when it is from another sequence."""
        expected = self.state_dict()
        wrong = [key for key in expected if key != "batch" and not _equal(state.get(key), expected[key])]
        if wrong:
            raise ValueError(
                f"the sampler's {wrong[0]} is {expected[wrong[0]]}, the checkpoint's {state.get(wrong[0])}: "
                "resume with the same data, seed and global batch size"
            )
        self.batch = int(state["batch"])

    def _identity(self) -> dict[str, Any]:
        raise NotImplementedError

    def _global(self, start: int, count: int) -> np.ndarray:
        raise NotImplementedError


def _equal(a: Any, b: Any) -> bool:
    return list(a) == list(b) if isinstance(b, list) and isinstance(a, (list, tuple)) else a == b


class EpochSampler(Sampler):
    """Every sample exactly once an epoch, in a new order each epoch; batches run across the epoch's end."""

    def __init__(self, length: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(batch_size, seed, rank, world_size)
        if length < 1:
            raise ValueError(f"a sampler needs 1 sample or more, got {length}")
        self.length = length
        self._epochs = ShuffledEpochs(length, seed)

    @property
    def epoch(self) -> float:
        """Epochs done, counted in samples of all ranks."""
        return self.batch * self.batch_size * self.world_size / self.length

    def _identity(self) -> dict[str, Any]:
        return {"kind": "epoch", "length": self.length, "seed": self.seed}

    def _global(self, start: int, count: int) -> np.ndarray:
        return self._epochs(start, count)


class ShuffledEpochs:
    """Position p -> sample: epoch p // length has its own permutation of range(length). Computed a block at a time."""

    BLOCK = 4096

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed
        self._number = -1
        self._samples = np.empty(0, np.int64)

    def __call__(self, start: int, count: int) -> np.ndarray:
        """Samples (count,) int64 at positions start .. start + count - 1."""
        parts, stop = [], start + count
        while start < stop:
            block, inside = divmod(start, self.BLOCK)
            if block != self._number:
                self._samples = self._block(block)
                self._number = block
            parts.append(self._samples[inside : inside + stop - start])
            start += len(parts[-1])
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _block(self, block: int) -> np.ndarray:
        positions = np.arange(block * self.BLOCK, (block + 1) * self.BLOCK)
        epochs = positions // self.length
        result = np.empty(self.BLOCK, np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            key = int(mix(np.array([epoch]), self.seed)[0])
            result[chosen] = permute(positions[chosen] % self.length, self.length, key)
        return result


class MixtureSampler(Sampler):
    """Draws the data set of each position by `weights`, then that data set's next sample of its own shuffled epoch.

    Sample numbers count through the data sets one after another, as `Mixture` does. Weights are shares of samples; None
    draws in proportion to length. Each data set is used up once before any of its samples comes again.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        weights: Sequence[float] | None,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(batch_size, seed, rank, world_size)
        shares = np.asarray(lengths if weights is None else weights, np.float64)
        if min(lengths, default=0) < 1 or shares.shape != (len(lengths),):
            raise ValueError(f"a mixture needs lengths >= 1 and one weight each, got {list(lengths)} and {weights}")
        if not np.isfinite(shares).all() or shares.min() < 0 or shares.sum() <= 0:
            raise ValueError(f"mixture weights should be finite, >= 0 and not all 0, got {weights}")
        self.lengths = [int(n) for n in lengths]
        self._bounds = np.cumsum(shares / shares.sum())
        self._bounds[-1] = 1.0
        self._epochs = [ShuffledEpochs(n, seed + 1 + i) for i, n in enumerate(self.lengths)]
        self._offsets = np.concatenate([[0], np.cumsum(self.lengths)[:-1]])
        self.drawn: np.ndarray = np.zeros(len(self.lengths), np.int64)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "drawn": self.drawn.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict({**state, "drawn": self.drawn.tolist()})
        self.drawn = np.array(state["drawn"], np.int64)

    def _identity(self) -> dict[str, Any]:
        return {"kind": "mixture", "lengths": self.lengths, "bounds": self._bounds.tolist(), "seed": self.seed}

    def _global(self, start: int, count: int) -> np.ndarray:
        draws = uniform(np.arange(start, start + count), self.seed)
        which = np.searchsorted(self._bounds, draws, side="right")
        result = np.empty(count, np.int64)
        for i in np.unique(which):
            place = np.flatnonzero(which == i)
            samples = self._epochs[i](int(self.drawn[i]), len(place))
            result[place] = samples + int(self._offsets[i])
            self.drawn[i] += len(place)
        return result


class WeightedSampler(Sampler):
    """Independent draws with replacement, sample i with probability weights[i] / sum (weights (N,), >= 0)."""

    def __init__(self, weights: np.ndarray, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(batch_size, seed, rank, world_size)
        weights = np.asarray(weights, np.float64)
        if weights.ndim != 1 or not np.isfinite(weights).all() or weights.min(initial=0) < 0 or weights.sum() <= 0:
            raise ValueError("sample weights should be finite, >= 0, one-dimensional and not all 0")
        self._cumulative = np.cumsum(weights)

    def _identity(self) -> dict[str, Any]:
        return {
            "kind": "weighted",
            "length": len(self._cumulative),
            "sum": float(self._cumulative[-1]),
            "seed": self.seed,
        }

    def _global(self, start: int, count: int) -> np.ndarray:
        total = self._cumulative[-1]
        return np.searchsorted(
            self._cumulative, uniform(np.arange(start, start + count), self.seed) * total, side="right"
        )


def sequential_batches(length: int, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[np.ndarray]:
    """One pass in order for evaluation: every sample exactly once over all ranks, the last batches may be short."""
    for start in range(rank * batch_size, length, batch_size * world_size):
        yield np.arange(start, min(start + batch_size, length))
