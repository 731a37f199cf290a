"""Watches what a control loop depends on, and names what is wrong. It decides nothing: the loop holds or stops."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

from embodied.deploy.align import Aligned
from embodied.deploy.contract import Contract

SECOND = 1e9


@dataclass(frozen=True)
class Trouble:
    """kind: stale, skew, deadline, policy_dead, policy_error, value, unsafe, estop, hold."""

    kind: str
    detail: str


class Watchdog:
    """Ages, skew, missed deadlines, the policy's answers and values. Times are on the loop's two clocks, in ns."""

    def __init__(self, contract: Contract, warmup_timeout_s: float = 120.0) -> None:
        self.contract, self.settings = contract, contract.watchdog
        self.warmup_timeout_s = warmup_timeout_s
        self.counts: Counter[str] = Counter()
        self._misses: deque[int] = deque()
        self.reset()

    def reset(self) -> None:
        """Forgets what has been, except counts."""
        self._misses.clear()
        self._errors = 0
        self._last_error = ""
        self._low_values = 0
        self.value: float | None = None
        self._answered = False

    def check_streams(self, aligned: Aligned, now_ns: int, mono_ns: int) -> list[Trouble]:
        """Streams that are too old by their stamps or by their arrival, and observations with too much skew."""
        found = []
        for stream, stamp, received in zip(self.contract.streams, aligned.stamps, aligned.received, strict=True):
            if not stream.watch:
                continue
            limit = stream.max_age_s * SECOND
            if received is None:
                found.append(Trouble("stale", f"{stream.place}: nothing yet"))
            elif mono_ns - received > limit:
                age = (mono_ns - received) / SECOND
                found.append(Trouble("stale", f"{stream.place}: silent for {age:.3f} s, at most {stream.max_age_s} s"))
            elif stamp is not None and now_ns - stamp > limit:
                age = (now_ns - stamp) / SECOND
                found.append(
                    Trouble("stale", f"{stream.place}: measured {age:.3f} s ago, at most {stream.max_age_s} s")
                )
        stamps = [s for s, stream in zip(aligned.stamps, self.contract.streams, strict=True) if s and stream.watch]
        if len(stamps) > 1 and max(stamps) - min(stamps) > self.settings.max_skew_s * SECOND:
            skew = (max(stamps) - min(stamps)) / SECOND
            found.append(Trouble("skew", f"{skew:.3f} s between streams, at most {self.settings.max_skew_s} s"))
        return found

    def miss(self, kind: str, mono_ns: int) -> None:
        """Counts a tick that was late, overran its period or had no action: "late", "overrun", "starved"."""
        self.counts[kind] += 1
        self._misses.append(mono_ns)

    def answer(self, error: str | None, value: float | None) -> None:
        """Takes the outcome of an inference."""
        self._answered = True
        if error is not None:
            self._errors += 1
            self._last_error = error
            self.counts["policy_error"] += 1
            return
        self._errors = 0
        self.value = value
        threshold = self.settings.value_threshold
        if threshold is not None and value is not None:
            self._low_values = self._low_values + 1 if not value >= threshold else 0

    def check_policy(self, asked_ns: int | None, mono_ns: int) -> list[Trouble]:
        """`asked_ns`: when the inference under way began, None when there is none."""
        found = []
        allowed = self.settings.policy_timeout_s if self._answered else self.warmup_timeout_s
        if asked_ns is not None and mono_ns - asked_ns > allowed * SECOND:
            waited = (mono_ns - asked_ns) / SECOND
            found.append(Trouble("policy_dead", f"no answer for {waited:.3f} s, at most {allowed} s"))
        if self._errors >= self.settings.max_policy_errors:
            found.append(Trouble("policy_error", f"{self._errors} errors in a row, the last: {self._last_error}"))
        window = self.settings.window_s * SECOND
        while self._misses and mono_ns - self._misses[0] > window:
            self._misses.popleft()
        if len(self._misses) > self.settings.max_deadline_misses:
            found.append(
                Trouble(
                    "deadline",
                    f"{len(self._misses)} ticks missed in {self.settings.window_s} s, "
                    f"at most {self.settings.max_deadline_misses}",
                )
            )
        if self._low_values >= self.settings.value_patience:
            threshold = self.settings.value_threshold
            found.append(Trouble("value", f"value {self.value} below {threshold}, {self._low_values} times in a row"))
        return found
