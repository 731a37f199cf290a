"""Writing a per-frame column beside a cache, resumable after kill -9 (frozen features take minutes to compute)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType

import numpy as np

from embodied.data.source import ColumnSpec
from embodied.io import write_json


class ColumnWriter:
    """Writes values in frame order. `done` counts the frames that are safely on disk; start the next write there.

    A context manager; `close` (or leaving the block) syncs. The column is readable once `done` equals `frames`.
    """

    def __init__(self, folder: Path, name: str, frames: int, spec: ColumnSpec, digest: str) -> None:
        self.path = folder / f"{name}.bin"
        self.frames = frames
        self.spec = spec
        self.digest = digest
        self.done = self._resume()
        size = frames * spec.bytes_per_frame
        if self.done and (not self.path.exists() or self.path.stat().st_size != size):
            self.done = 0
            self._write_state()
        self._file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        self._file.truncate(size)
        self._unsynced = 0

    def _resume(self) -> int:
        path = self.path.with_name(f"{self.path.stem}.json")
        if not path.exists():
            return 0
        state = json.loads(path.read_text())
        found = (state["dtype"], tuple(state["shape"]), state["digest"])
        if found != (self.spec.dtype, self.spec.shape, self.digest):
            raise ValueError(
                f"column {self.path.stem} exists with dtype, shape, digest {found}, asked for "
                f"{(self.spec.dtype, self.spec.shape, self.digest)}: use another name or delete {self.path} and {path}"
            )
        return int(state["done"])

    def write(self, start: int, values: np.ndarray, sync_every: int = 4096) -> None:
        """Values (n, ...) of frames start .. start + n - 1, where start is `done` plus what was written since."""
        if start != self.done + self._unsynced or start + len(values) > self.frames:
            raise ValueError(
                f"column {self.path.stem}: frames should be written in order, next is {self.done + self._unsynced} "
                f"of {self.frames}, got {start} to {start + len(values)}"
            )
        if values.shape[1:] != self.spec.shape:
            raise ValueError(f"column {self.path.stem}: a value should be {self.spec.shape}, got {values.shape[1:]}")
        self._file.seek(start * self.spec.bytes_per_frame)
        self._file.write(np.ascontiguousarray(values, self.spec.dtype).data)
        self._unsynced += len(values)
        if self._unsynced >= sync_every or start + len(values) == self.frames:
            self.sync()

    def sync(self) -> None:
        """Values first, then the count: after a crash the count is never ahead of the values."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done += self._unsynced
        self._unsynced = 0
        self._write_state()

    def _write_state(self) -> None:
        state = {"dtype": self.spec.dtype, "shape": list(self.spec.shape), "digest": self.digest, "done": self.done}
        write_json(self.path.with_name(f"{self.path.stem}.json"), state)

    def close(self) -> None:
        if not self._file.closed:
            self.sync()
            self._file.close()

    def __enter__(self) -> ColumnWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
