"""Buffers of the newest samples of each stream, and the observation that belongs to a tick.

`hold`: the newest sample not after the tick. `asof`: the same, unless older than the stream's tolerance. `drop`: only
a sample measured since the last tick. A stream without a sample leaves the tick without an observation.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from embodied.deploy.contract import Align, Contract, Stream
from embodied.deploy.convert import Feature

CAPACITY = 64
SECOND = 1e9


@dataclass(frozen=True)
class Sample:
    """stamp_ns: when measured. received_ns: when it came in, on the monotonic clock."""

    stamp_ns: int
    received_ns: int
    value: Feature


@dataclass
class Counts:
    """What became of the messages of one stream."""

    received: int = 0
    refused: int = 0
    late: int = 0  # older than what the ring holds, or a stamp that was there already
    ahead: int = 0  # stamped further ahead of the clock than the contract allows
    last_error: str = ""


class Ring:
    """The newest samples of a stream, sorted by stamp: messages may come out of order."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self._stamps: list[int] = []
        self._samples: list[Sample] = []

    def put(self, sample: Sample) -> bool:
        """False when the sample was not kept: a repeated stamp, or older than everything in a full ring."""
        index = bisect.bisect_left(self._stamps, sample.stamp_ns)
        repeated = index < len(self._stamps) and self._stamps[index] == sample.stamp_ns
        if repeated or (index == 0 and len(self._stamps) == self.capacity):
            return False
        self._stamps.insert(index, sample.stamp_ns)
        self._samples.insert(index, sample)
        if len(self._stamps) > self.capacity:
            del self._stamps[0], self._samples[0]
        return True

    def at(self, stamp_ns: int) -> Sample | None:
        """The newest sample not after `stamp_ns`."""
        index = bisect.bisect_right(self._stamps, stamp_ns)
        return self._samples[index - 1] if index else None

    def newest(self) -> int | None:
        """The last stamp it holds."""
        return self._stamps[-1] if self._stamps else None

    def __len__(self) -> int:
        return len(self._stamps)


@dataclass
class Aligned:
    """What a tick has, all of one moment: features by key (empty when `missing` names a stream) and their stamps."""

    features: dict[str, Feature] = field(default_factory=dict)
    stamps: list[int | None] = field(default_factory=list)
    received: list[int | None] = field(default_factory=list)  # last arrival of each stream, monotonic ns
    missing: list[str] = field(default_factory=list)
    measured: np.ndarray | None = None  # the newest state, for the safety filter
    puts: int = 0  # samples kept before this one was made: a recording cuts here


class Aligner:
    """All streams of a contract. `put` is called by transports from any thread, `sample` by the loop."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.counts = [Counts() for _ in contract.streams]
        self.last_received: list[int | None] = [None for _ in contract.streams]
        self._rings = [Ring() for _ in contract.streams]
        self._ahead_ns = contract.watchdog.max_skew_s * SECOND
        self._lock = threading.Lock()
        self._puts = 0
        self.on_put: Callable[[int, Sample, Any], None] | None = None  # the recorder's place; called under the lock

    def put(
        self, index: int, value: Feature, stamp_ns: int, received_ns: int, now_ns: int, message: Any = None
    ) -> bool:
        """Takes a decoded message of stream `index`; False when it was not kept. `message`: for a recording."""
        with self._lock:
            counts = self.counts[index]
            counts.received += 1
            if stamp_ns - now_ns > self._ahead_ns:
                counts.ahead += 1
                counts.last_error = f"stamped {(stamp_ns - now_ns) / SECOND:.3f} s ahead of this machine's clock"
                return False
            self.last_received[index] = received_ns
            sample = Sample(stamp_ns, received_ns, value)
            if not self._rings[index].put(sample):
                counts.late += 1
                return False
            self._puts += 1
            if self.on_put is not None:
                self.on_put(index, sample, message)
            return True

    def refuse(self, index: int, reason: str) -> None:
        """Counts a message that could not be decoded."""
        with self._lock:
            self.counts[index].received += 1
            self.counts[index].refused += 1
            self.counts[index].last_error = reason[:300]

    def sample(self, now_ns: int) -> Aligned:
        """The observation at `now_ns`. Streams of one feature are joined in the contract's order."""
        streams = self.contract.streams
        with self._lock:
            pairs = list(zip(streams, self._rings, strict=True))
            samples = [self._choose(stream, ring, now_ns) for stream, ring in pairs]
            state = [(s, ring.at(now_ns)) for s, ring in pairs if s.feature == self.contract.limits.state]
            result = Aligned(received=list(self.last_received), puts=self._puts)
        result.stamps = [None if s is None else s.stamp_ns for s in samples]
        result.missing = [stream.place for stream, s in zip(streams, samples, strict=True) if s is None]
        if not result.missing:
            result.features = _join(streams, [s.value for s in samples if s is not None])
        result.measured = _measured(state)
        return result

    def newest(self, index: int) -> int | None:
        """The last stamp that stream `index` has been given."""
        with self._lock:
            return self._rings[index].newest()

    def clear(self) -> None:
        """Forgets all samples; the counts stay."""
        with self._lock:
            self._rings = [Ring() for _ in self.contract.streams]
            self.last_received = [None for _ in self.contract.streams]

    def _choose(self, stream: Stream, ring: Ring, now_ns: int) -> Sample | None:
        sample = ring.at(now_ns)
        if sample is None or stream.align is Align.hold:
            return sample
        span = stream.tolerance_s if stream.align is Align.asof else self.contract.period_s
        age = now_ns - sample.stamp_ns
        inside = age <= span * SECOND if stream.align is Align.asof else age < span * SECOND
        return sample if inside else None


def _measured(parts: list[tuple[Stream, Sample | None]]) -> np.ndarray | None:
    """The joined values of all parts of the state, None while one is missing."""
    known = [(stream, sample.value) for stream, sample in parts if sample is not None]
    if not known or len(known) < len(parts):
        return None
    joined = _join([stream for stream, _ in known], [value for _, value in known])
    (value,) = joined.values()
    return value if isinstance(value, np.ndarray) else None


def _join(streams: list[Stream], values: list[Feature]) -> dict[str, Feature]:
    joined: dict[str, Feature] = {}
    for stream, value in zip(streams, values, strict=True):
        before = joined.get(stream.feature)
        if isinstance(before, np.ndarray) and isinstance(value, np.ndarray):
            joined[stream.feature] = np.concatenate([before, value])
        else:
            joined[stream.feature] = value
    return joined
