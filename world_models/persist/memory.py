"""Which frames a prediction sees: a sparse memory of frames already known or imagined, the current one, the new ones.

A rollout keeps all its frames in one buffer: position 0 is the first frame known, positions 1 .. lookback the frames
just before the start, position lookback + 1 the start; each interaction appends `chunk` frames. Memory frames are
conditioned on the actions at their own places ("pose-conditioned memory").
"""

from __future__ import annotations

from dataclasses import dataclass, field

# An offset that windows clip to the episode's first frame; a multiple of 1 to 16, as pictures rendered at every third
# step, say, ask of offsets.
FIRST = -720_720_000


@dataclass
class MemoryConfig:
    """history: frames back from the current one at the model's rate, negative; 0 stands for the first frame known.

    chunk: frames predicted at once. skip: frames of the data set a frame of the model.
    """

    history: list[int] = field(default_factory=lambda: [0, 0, -8, -6, -4, -2])
    chunk: int = 4
    skip: int = 2

    def __post_init__(self) -> None:
        self.history = list(self.history)
        if self.chunk < 1 or self.skip < 1 or any(offset > 0 for offset in self.history):
            raise ValueError(f"chunk and skip should be at least 1 and history offsets at most 0, got {self}")

    @property
    def context(self) -> int:
        """Frames given: history and current."""
        return len(self.history) + 1

    @property
    def frames(self) -> int:
        return self.context + self.chunk

    @property
    def lookback(self) -> int:
        return -min([*self.history, 0])

    def training_offsets(self) -> list[int]:
        """Frames of the data set, relative to the current one, of one training sample."""
        past = [FIRST if offset == 0 else offset * self.skip for offset in self.history]
        return [*past, 0, *self.future_offsets(self.chunk)]

    def future_offsets(self, count: int) -> list[int]:
        return [self.skip * (i + 1) for i in range(count)]

    def buffer_offsets(self) -> list[int]:
        """Frames of the data set, relative to the start, that fill a rollout's buffer."""
        return [FIRST, *(self.skip * (i - self.lookback) for i in range(self.lookback + 1))]

    def positions(self, length: int) -> list[int]:
        """Buffer positions of history and current frame, for a buffer of `length` frames that ends in the current."""
        if length < self.lookback + 2:
            raise ValueError(f"a rollout's buffer should hold at least {self.lookback + 2} frames, got {length}")
        current = length - 1
        return [*(0 if offset == 0 else current + offset for offset in self.history), current]
