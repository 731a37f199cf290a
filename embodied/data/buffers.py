"""Arrays whose memory is used again once nobody holds it.

A fresh array of some megabytes costs a page fault every 4 KiB, more than filling it does. A buffer counts as free when
the pool holds the only reference, and every view, slice or tensor made from it holds one.
"""

from __future__ import annotations

import sys

import numpy as np

HELD_BY_POOL = 3  # the list, the loop variable, getrefcount's argument


class BufferPool:
    """At most `keep` buffers of one size. Not shared between threads: each reader has its own."""

    def __init__(self, keep: int = 8) -> None:
        self.keep = keep
        self._buffers: list[np.ndarray] = []

    def empty(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """An array with arbitrary content, C order."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        for buffer in self._buffers:
            if buffer.nbytes == size and sys.getrefcount(buffer) == HELD_BY_POOL:
                return buffer.view(dtype).reshape(shape)
        buffer = np.empty(size, np.uint8)
        same_size = [b for b in self._buffers if b.nbytes == size]
        self._buffers = [*same_size[-self.keep + 1 :], buffer]
        return buffer.view(dtype).reshape(shape)
