"""The control loop: at every tick of a fixed rate one safe action, whatever the policy and the streams do.

    waiting   nothing is sent until every stream has spoken and the first chunk is there
    running   actions are sent; a tick without one gets the hold action and counts as missed
    held      the hold action at every tick, latched: only `reset` leads out
    stopped   the hold action once, then nothing, latched

Everything that happens in a tick depends on the clock's two times, the samples received before it and the inferences
finished before it, so a recording of these replays to equal actions.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from embodied.deploy.align import Aligned, Aligner
from embodied.deploy.clock import Clock
from embodied.deploy.contract import Contract, OnTrouble
from embodied.deploy.inference import Inference, Request, Result
from embodied.deploy.safety import SafetyFilter, UnsafeActionError
from embodied.deploy.schedule import ScheduleSettings, make_scheduler
from embodied.deploy.watchdog import Trouble, Watchdog
from embodied.protocols import Episode

SECOND = 1e9


class LoopState(Enum):
    waiting = "waiting"
    running = "running"
    held = "held"
    stopped = "stopped"


@dataclass
class Tick:
    """What one tick saw and did. `answered`: the inference taken, `asked`: the one begun. action: what was sent."""

    step: int
    mono_ns: int
    now_ns: int
    due_ns: int | None = None
    overrun_ns: int | None = None  # when the tick before began, if it took more than a period
    state: LoopState = LoopState.waiting
    commands: list[tuple[str, str]] = field(default_factory=list)
    aligned: Aligned = field(default_factory=Aligned)
    result: Result | None = None
    answered: int | None = None
    asked: int | None = None
    action: np.ndarray | None = None
    changed: tuple[str, ...] = ()
    troubles: list[Trouble] = field(default_factory=list)


Send = Callable[[np.ndarray, int], None]  # action (N,) in the policy's units, stamp in ns


class ControlLoop:
    """`run` paces it in the calling thread; `tick` is one step, for tests and replay. `hold`, `stop` and `reset` may be
    called from any thread and take effect at the next tick."""

    def __init__(
        self,
        contract: Contract,
        schedule: ScheduleSettings,
        inference: Inference,
        clock: Clock,
        send: Send,
        aligner: Aligner | None = None,
        warmup_timeout_s: float = 120.0,
        answers_at_once: bool = False,
    ) -> None:
        """answers_at_once: an answer that is there when the tick has asked is used in the same tick (lockstep)."""
        spec = inference.spec
        self.answers_at_once = answers_at_once
        self.contract, self.inference, self.clock, self.send = contract, inference, clock, send
        self.aligner = aligner or Aligner(contract)
        self.scheduler = make_scheduler(schedule, spec.chunk, schedule.replan or spec.replan)
        self.safety = SafetyFilter(contract)
        self.watchdog = Watchdog(contract, warmup_timeout_s)
        self.state = LoopState.waiting
        self.task = contract.task
        self.on_tick: Callable[[Tick], None] | None = None
        self.counts: Counter[str] = Counter()
        self.latched: list[Trouble] = []
        self.waiting_for: list[str] = []
        self.latencies: deque[float] = deque(maxlen=1000)
        self._commands: deque[tuple[str, str]] = deque()
        self._step = self._number = self._episode_start = 0
        self._new_episode = True  # the policy is reset before it is asked, until a chunk came
        self._overrun_ns: int | None = None
        self._asked_ns: int | None = None
        self._shown_ns: int | None = None  # the moment that the policy was shown last
        self._sent_ns: int | None = None

    def hold(self, reason: str = "asked to hold") -> None:
        self._commands.append(("hold", reason))

    def stop(self, reason: str = "emergency stop") -> None:
        self._commands.append(("estop", reason))

    def command(self, kind: str, reason: str) -> None:
        """What a recording says was asked for: hold, estop or reset."""
        self._commands.append((kind, reason))

    def reset(self) -> list[str]:
        """Asks to leave held or stopped. What is still wrong and so refuses it; empty when it will happen."""
        found = self._present_troubles()
        if found:
            self.counts["reset_refused"] += 1
            return [f"{trouble.kind}: {trouble.detail}" for trouble in found]
        self._commands.append(("reset", ""))
        return []

    def pause(self) -> None:
        """Ends a run that is not ticking any more with the hold action. What is latched stays so."""
        if self.state is LoopState.running:
            tick = Tick(self._step, self.clock.monotonic_ns(), self.clock.now_ns())
            tick.aligned = self.aligner.sample(tick.now_ns)
            self._send_hold(tick)
            self.state = LoopState.waiting
            self.scheduler.reset()

    def tick(self, due_ns: int | None = None) -> Tick:
        """One step. `due_ns`: when it should have begun, on the monotonic clock."""
        tick = Tick(self._step, self.clock.monotonic_ns(), self.clock.now_ns(), due_ns, self._overrun_ns)
        self._overrun_ns = None
        tick.aligned = aligned = self.aligner.sample(tick.now_ns)
        self._take_commands(tick)
        self._collect(tick)
        if tick.overrun_ns is not None:
            self.watchdog.miss("overrun", tick.overrun_ns)
        if due_ns is not None and self.state is LoopState.running and tick.mono_ns - due_ns > self._period_ns:
            self.watchdog.miss("late", tick.mono_ns)
        self._watch(tick, aligned)
        if self.state in (LoopState.waiting, LoopState.running):
            self._ask(tick, aligned)
            if self.answers_at_once:
                self._collect(tick)
        self._act(tick)
        tick.state = self.state
        self._step += 1
        if self.on_tick is not None:
            self.on_tick(tick)
        return tick

    def run(self, stop: threading.Event) -> None:
        """Ticks at the contract's rate until `stop` is set. A late tick is not made up for: the phase moves on."""
        due = self.clock.monotonic_ns()
        while not stop.is_set():
            self.tick(due)
            behind = self.clock.monotonic_ns() - due
            if behind > self._period_ns:
                self.counts["skipped"] += int(behind // self._period_ns)
                if self.state is LoopState.running:
                    self._overrun_ns = due
                due += int(behind // self._period_ns) * self._period_ns
            due += self._period_ns
            self.clock.wait_until(due, stop)

    def report(self) -> dict[str, Any]:
        """State and counts, for diagnostics."""
        return {
            "state": self.state.value,
            "steps": self._step,
            "latched": [f"{trouble.kind}: {trouble.detail}" for trouble in self.latched],
            "waiting_for": list(self.waiting_for),
            "counts": dict(self.counts),
            "watchdog": dict(self.watchdog.counts),
            "safety": dict(self.safety.counts),
            "value": self.watchdog.value,
            "inference_ms": _summary([1e3 * seconds for seconds in self.latencies]),
            "streams": {
                stream.place: vars(counts).copy()
                for stream, counts in zip(self.contract.streams, self.aligner.counts, strict=True)
            },
        }

    @property
    def _period_ns(self) -> int:
        return round(self.contract.period_s * SECOND)

    def _take_commands(self, tick: Tick) -> None:
        while self._commands:
            kind, reason = self._commands.popleft()
            tick.commands.append((kind, reason))
            if kind == "reset":
                self._restart()
            else:
                self._latch(tick, [Trouble(kind, reason)])

    def _restart(self) -> None:
        if self.answers_at_once:  # so that an episode does not begin differently after a long answer to the last one
            self.inference.finish()
            self._asked_ns = None
        self.scheduler.reset()
        self._shown_ns = None
        self.watchdog.reset()
        self.safety.reset()
        self.latched = []
        self.state = LoopState.waiting
        self._episode_start = self._number
        self._new_episode = True
        self.counts["resets"] += 1

    def _collect(self, tick: Tick) -> None:
        result = self.inference.poll()
        if result is None:
            return
        self._asked_ns = None
        tick.result, tick.answered = result, result.request.number
        if result.request.number < self._episode_start:
            return  # asked before the last reset
        self.watchdog.answer(result.error, result.value)
        self._adopt(result, tick)

    def _adopt(self, result: Result, tick: Tick) -> None:
        if result.chunk is None:
            self.counts["inference_errors"] += 1
            return
        self._new_episode = False
        self.latencies.append(result.seconds)
        self.scheduler.add(result.request.step, tick.step, result.chunk)

    def _present_troubles(self) -> list[Trouble]:
        now_ns, mono_ns = self.clock.now_ns(), self.clock.monotonic_ns()
        found = self.watchdog.check_streams(self.aligner.sample(now_ns), now_ns, mono_ns)
        return found + [t for t in self.watchdog.check_policy(self._asked_ns, mono_ns) if t.kind == "policy_dead"]

    def _watch(self, tick: Tick, aligned: Aligned) -> None:
        streams = self.watchdog.check_streams(aligned, tick.now_ns, tick.mono_ns)
        policy = self.watchdog.check_policy(self._asked_ns, tick.mono_ns)
        tick.troubles += streams + policy
        self.waiting_for = [trouble.detail for trouble in streams] + aligned.missing
        if self.state is LoopState.running:
            self._latch(tick, streams + policy)
        elif self.state is LoopState.waiting:
            self._latch(tick, policy)

    def _latch(self, tick: Tick, troubles: list[Trouble]) -> None:
        """Holds or stops. A stop is never softened to a hold."""
        if not troubles or self.state is LoopState.stopped:
            return
        stops = self.contract.on_trouble is OnTrouble.stop or any(trouble.kind == "estop" for trouble in troubles)
        if any(trouble.kind == "hold" for trouble in troubles) and all(t.kind == "hold" for t in troubles):
            stops = False
        if self.state is LoopState.held and not stops:
            return
        self.latched = self.latched + troubles
        self.counts["latched"] += 1
        if stops:
            self._send_hold(tick)
        self.state = LoopState.stopped if stops else LoopState.held

    def _ask(self, tick: Tick, aligned: Aligned) -> None:
        blocked = self.state is LoopState.waiting and bool(self.waiting_for)
        if self.inference.busy or aligned.missing or blocked or not self.scheduler.wants(tick.step):
            return
        step = tick.step
        if self.scheduler.settings.synchronize:
            moment = self._moment(aligned)
            aligned = self.aligner.sample(moment)
            if aligned.missing or moment == self._shown_ns:
                return
            self._shown_ns = moment
            step -= round((tick.now_ns - moment) / self._period_ns)
        batch: dict[str, Any] = {
            key: [value] if isinstance(value, str) else np.array(value[None])  # a message's own buffer is read-only
            for key, value in aligned.features.items()
        }
        batch.setdefault("task", [self.task])
        begins = Episode("robot", 0, self._number, instruction=self.task or None)
        ask = self.scheduler.ask(step)
        self.inference.submit(Request(self._number, step, batch, ask, begins if self._new_episode else None))
        self._asked_ns = tick.mono_ns
        tick.asked = self._number
        self._number += 1

    def _moment(self, aligned: Aligned) -> int:
        """The stamp of the slowest watched stream's newest sample (ns)."""
        watched = zip(self.contract.streams, aligned.stamps, strict=True)
        return min(stamp for stream, stamp in watched if stream.watch and stamp is not None)

    def _act(self, tick: Tick) -> None:
        if self.state is LoopState.stopped:
            return
        if self.state is LoopState.held:
            self._send_hold(tick)
            return
        action = self.scheduler.action(tick.step)
        if self.state is LoopState.waiting:
            if action is None or self.waiting_for:
                return
            self.state = LoopState.running
        if action is None:
            if not self.scheduler.synchronous:
                self.watchdog.miss("starved", tick.mono_ns)
            self._send_hold(tick)
            return
        self._send_safe(tick, action)

    def _send_safe(self, tick: Tick, action: np.ndarray) -> None:
        elapsed = self.contract.period_s if self._sent_ns is None else (tick.mono_ns - self._sent_ns) / SECOND
        try:
            filtered = self.safety.apply(action, tick.aligned.measured, elapsed)
        except UnsafeActionError as error:
            tick.troubles.append(Trouble("unsafe", str(error)))
            self._latch(tick, [Trouble("unsafe", str(error))])
            if self.state is LoopState.held:
                self._send_hold(tick)
            return
        tick.changed = filtered.changed
        self._send(tick, filtered.action)

    def _send_hold(self, tick: Tick) -> None:
        held = self.safety.hold(tick.aligned.measured)
        if held is not None:
            self._send(tick, held)

    def _send(self, tick: Tick, action: np.ndarray) -> None:
        tick.action = action
        self._sent_ns = tick.mono_ns
        self.counts["sent"] += 1
        self.send(action, tick.now_ns)


def _summary(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    names = {"p50": 50, "p95": 95, "p99": 99, "max": 100}
    return {name: float(np.percentile(values, at)) for name, at in names.items()} | {"count": float(len(values))}
