"""Time for the loop: a monotonic clock to pace it, and the time in which message stamps are given.

`monotonic_ns` never jumps and paces ticks, ages of receipt and timeouts. `now_ns` is what header stamps are compared
with: the system's clock, or simulated time. Tests and replay use ManualClock, so nothing below depends on real time.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    def monotonic_ns(self) -> int: ...

    def now_ns(self) -> int: ...

    def wait_until(self, monotonic_ns: int, wake: threading.Event) -> None:
        """Returns at that monotonic time, or earlier when `wake` is set."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def now_ns(self) -> int:
        return time.time_ns()

    def wait_until(self, monotonic_ns: int, wake: threading.Event) -> None:
        remaining = (monotonic_ns - time.monotonic_ns()) / 1e9
        if remaining > 0:
            wake.wait(remaining)


class SimulatedClock(SystemClock):
    """`use_sim_time`: stamps follow /clock. Ticks stay on the monotonic clock, so a stopped /clock is noticed."""

    def __init__(self) -> None:
        self._now = 0

    def set(self, nanoseconds: int) -> None:
        self._now = nanoseconds

    def now_ns(self) -> int:
        return self._now


class ManualClock:
    """Moves only when told to. `wait_until` moves it there."""

    def __init__(self, now_ns: int = 1_000_000_000, monotonic_ns: int = 0) -> None:
        self.now, self.mono = now_ns, monotonic_ns

    def monotonic_ns(self) -> int:
        return self.mono

    def now_ns(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)
        self.mono += round(seconds * 1e9)

    def wait_until(self, monotonic_ns: int, wake: threading.Event) -> None:  # noqa: ARG002
        if monotonic_ns > self.mono:
            self.now += monotonic_ns - self.mono
            self.mono = monotonic_ns
