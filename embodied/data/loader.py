"""Batches for a training loop: sampler, windows, and a thread that gathers ahead. Resumable."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

from embodied.data.sampler import Sampler
from embodied.data.windows import Batch, Mixture, Windows


class BatchLoader:
    """Endless batches of `windows` in the order of `sampler`. `ahead` batches are gathered in the background (0: none).

    Gathering copies memory outside Python's lock, so one thread is enough. `state_dict` names the batches handed out,
    not those gathered ahead. Close it (or use it as a context manager) to stop the thread.
    """

    def __init__(self, windows: Windows | Mixture, sampler: Sampler, ahead: int = 2) -> None:
        self.windows, self.sampler, self.ahead = windows, sampler, ahead
        self._state = sampler.state_dict()
        self._queue: queue.Queue[Any] = queue.Queue(max(ahead, 1))
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.next()

    def next(self) -> Batch:
        """The next batch. An error of the gathering thread is raised here."""
        if self.ahead == 0:
            batch, self._state = self._make()
            return batch
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="batch-loader", daemon=True)
            self._thread.start()
        item = self._wait()
        if isinstance(item, BaseException):
            self.close()
            raise item
        batch, self._state = item
        return batch

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.close()
        self.sampler.load_state_dict(state)
        self._state = self.sampler.state_dict()

    def close(self) -> None:
        """Stops the thread. The sampler goes back to the batches handed out."""
        if self._thread is not None:
            self._stop.set()
            while self._thread.is_alive():
                self._drain()
                self._thread.join(0.05)
            self._drain()
            self._thread = None
            self._stop.clear()
            self.sampler.load_state_dict(self._state)

    def _wait(self) -> Any:
        while True:
            try:
                return self._queue.get(timeout=1.0)
            except queue.Empty:
                if self._thread is None or not self._thread.is_alive():
                    raise RuntimeError("the gathering thread died: see its traceback above") from None

    def _drain(self) -> None:
        while not self._queue.empty():
            self._queue.get_nowait()

    def _make(self) -> tuple[Batch, dict[str, Any]]:
        rng = self.sampler.rng()
        batch = self.windows.get_batch(self.sampler.next_batch(), rng)
        return batch, self.sampler.state_dict()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                item: Any = self._make()
            except (ValueError, IndexError, OSError, MemoryError) as error:
                item = error
            self._put(item)
            if isinstance(item, BaseException):
                return

    def _put(self, item: Any) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
