"""Rows of a cache file at any frame numbers, with resident memory that does not depend on the file's size.

Small rows (states, actions) are taken from a memory map that is given back now and then. Large rows (images, features)
are read with positional reads straight into the batch: one request a run of neighbouring frames, no page of the file
ever mapped into the process, and about twice as fast as mapping and giving back.
"""

from __future__ import annotations

import mmap
import os
from itertools import pairwise
from pathlib import Path

import numpy as np

from embodied.data.buffers import BufferPool
from embodied.data.source import ColumnSpec

LARGE_ROW = 4096
FAULT_BYTES = 65536  # what the kernel maps around a touched page
KEEP_BYTES = 128 * 2**20


class RowReader:
    """Values (frames, *shape) of one file. For one thread at a time; pickles as its path."""

    def __init__(self, path: Path, frames: int, spec: ColumnSpec) -> None:
        self.path, self.frames, self.spec = path, frames, spec
        self._map: np.memmap | None = None
        self._file: int | None = None
        self._touched = 0
        self._pool = BufferPool()

    def __reduce__(self) -> tuple[type, tuple]:
        return RowReader, (self.path, self.frames, self.spec)

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)

    def array(self) -> np.ndarray:
        """The whole file as a read-only memory map."""
        if self._map is None:
            self._map = np.memmap(self.path, self.spec.dtype, "r", shape=(self.frames, *self.spec.shape))
        return np.asarray(self._map)

    def take(self, frames: np.ndarray) -> np.ndarray:
        """Rows at frame numbers (...), which must lie in [0, frames): (..., *shape), a copy."""
        if self.spec.bytes_per_frame >= LARGE_ROW and hasattr(os, "preadv"):
            return self._read(frames.ravel()).reshape(*frames.shape, *self.spec.shape)
        array = self.array()
        result = np.take(array, frames.ravel(), axis=0, mode="clip").reshape(*frames.shape, *self.spec.shape)
        self._touched += min(frames.size * FAULT_BYTES, array.nbytes)
        if self._touched > KEEP_BYTES:
            self.release()
        return result

    def release(self) -> None:
        """Gives mapped pages back to the system; later reads map them again."""
        self._touched = 0
        if self._map is not None:
            self._map._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]

    def _read(self, frames: np.ndarray) -> np.ndarray:
        if self._file is None:
            self._file = os.open(self.path, os.O_RDONLY)
        size = self.spec.bytes_per_frame
        result = self._pool.empty((len(frames), *self.spec.shape), self.spec.dtype)
        content = memoryview(result).cast("B")
        breaks = [0, *(np.flatnonzero(np.diff(frames) != 1) + 1).tolist(), len(frames)]
        for start, stop in pairwise(breaks):
            self._fill(content[start * size : stop * size], int(frames[start]) * size if stop > start else 0)
        return result

    def _fill(self, content: memoryview, offset: int) -> None:
        """Reads exactly len(content) bytes: a request may return less (at most 2 GiB at a time on Linux)."""
        assert self._file is not None
        while content:
            count = os.preadv(self._file, [content], offset)
            if count <= 0:
                raise ValueError(f"{self.path} ends at byte {offset}: it was cut while in use; build the cache again")
            content, offset = content[count:], offset + count
