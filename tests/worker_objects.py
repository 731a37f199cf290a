"""Objects that the worker tests build in worker processes: what a simulator does at its worst."""

from __future__ import annotations

import ctypes
import os
import signal
import time

import numpy as np


class Patient:
    """A counter that can raise, crash, hang, be killed, or hold memory."""

    def __init__(self, start: int = 0, megabytes: int = 0) -> None:
        self.count = start
        self.memory = np.ones(megabytes * 125_000)

    def add(self, amount: int) -> int:
        self.count += amount
        return self.count

    def add_of(self, other: Patient) -> int:
        return self.count + other.count

    def image(self, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)

    def pid(self) -> int:
        return os.getpid()

    def fail(self) -> None:
        raise KeyError("no such body")

    def end_of_input(self) -> str:
        return input()

    def segfault(self) -> None:
        ctypes.string_at(0)

    def killed(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def hang(self) -> None:
        time.sleep(1000)

    def sleep(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def settings(self) -> tuple[str, bool]:
        return os.environ["OMP_NUM_THREADS"], signal.getsignal(signal.SIGINT) is signal.SIG_IGN
