"""The control loop on a manual clock: schedules by hand, latching, reset, starvation, pacing."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from loop_parts import PERIOD, STATE, CountingPolicy, Rig, firsts

from embodied.deploy.loop import LoopState
from embodied.deploy.schedule import Aggregate


def test_waits_for_streams_and_sends_nothing() -> None:
    rig = Rig()
    ticks = rig.steps(3, None)
    assert firsts(ticks) == [None, None, None]
    assert ticks[-1].state is LoopState.waiting
    assert rig.loop.waiting_for[0] == "/joints: nothing yet"
    assert rig.inference.requests == []
    assert rig.policy.resets == 0


def test_async_time_aligned() -> None:
    """Latency of 2 ticks, chunks of 4, a new one every 2 ticks: asked at 0, 2, 4 and answered at 2, 4, 6."""
    rig = Rig("async", 2 * PERIOD)
    assert firsts(rig.steps(8)) == [None, None, 2, 3, 102, 103, 202, 203]
    assert [request.step for request in rig.inference.requests] == [0, 2, 4, 6]
    assert rig.policy.resets == 1


def test_async_keeps_up_without_latency() -> None:
    """The answer is taken at the next tick: one step late."""
    rig = Rig("async", 0.0)
    assert firsts(rig.steps(6)) == [None, 1, 2, 101, 102, 201]


def test_aggregate_average() -> None:
    """Chunk 1 (asked at 2) gives 101 for step 3, where chunk 0 planned 3; chunk 2 gives 201 for step 5."""
    rig = Rig("async", 0.0, aggregate=Aggregate.average)
    assert firsts(rig.steps(6)) == [None, 1, 2, 52, 102, (103 + 201) / 2]


def test_synchronized_chunks_count_from_what_was_seen() -> None:
    """Every second tick a sample comes that is a tick old: asked at ticks 0, 2, 4, about steps -1, 1, 3, answered a
    tick later, when two actions of the chunk have gone by. Between them nothing new is there to ask about."""
    rig = Rig("async", 0.0, synchronize=True)
    ticks = []
    for step in range(6):
        if step % 2 == 0:
            now = rig.clock.now_ns()
            seen = np.array([step, 0.0], np.float32)
            rig.loop.aligner.put(0, seen, now - round(PERIOD * 1e9), rig.clock.monotonic_ns(), now)
        ticks.append(rig.step(None))
    assert firsts(ticks) == [None, 2, 3, 102, 103, 202]
    assert [request.step for request in rig.inference.requests] == [-1, 1, 3]
    assert [request.observation[STATE][0, 0] for request in rig.inference.requests] == [0, 2, 4]


def test_synchronized_and_fresh_is_as_usual() -> None:
    rig, usual = Rig("async", 2 * PERIOD, synchronize=True), Rig("async", 2 * PERIOD)
    assert firsts(rig.steps(8)) == firsts(usual.steps(8))


def test_sync_holds_while_the_policy_thinks() -> None:
    """Delta actions hold with zeros. 2 of 4 actions run, then 2 ticks of thought."""
    rig = Rig("sync", 2 * PERIOD)
    assert firsts(rig.steps(9)) == [None, None, 0, 1, 0, 0, 100, 101, 0]
    assert rig.loop.watchdog.counts["starved"] == 0, "a pause to think is not a miss"


def test_starvation_is_counted_and_latches_in_the_end() -> None:
    """Latency of 7 ticks and chunks of 4: never an action in time, so the robot never starts."""
    rig = Rig("async", 7 * PERIOD)
    assert firsts(rig.steps(15)) == [None] * 15
    rig = Rig("async", 0.0, watchdog={"max_deadline_misses": 3, "policy_timeout_s": 100})
    rig.steps(3)
    rig.inference.hung = True
    ticks = rig.steps(12)
    held = next(i for i, tick in enumerate(ticks) if tick.state is LoopState.held)
    starved = rig.loop.watchdog.counts["starved"]
    assert starved == 4, "the fourth miss is one too many"
    assert "deadline" in rig.loop.report()["latched"][0]
    assert held == 5, "chunk 0 covers steps 0 to 3; misses at 4, 5, 6, 7 are seen at step 8, the sixth of these"


def test_stale_stream_holds_within_the_stated_time() -> None:
    """max_age 0.35 s and ticks of 0.1 s: the fourth silent tick is the first with an age of 0.4 s."""
    rig = Rig()
    rig.steps(5)
    ticks = rig.steps(6, None)
    assert [tick.state.value for tick in ticks] == ["running"] * 3 + ["held"] * 3
    latched = next(tick for tick in ticks if tick.state is LoopState.held)
    assert (latched.mono_ns - ticks[0].mono_ns) / 1e9 + PERIOD <= 0.35 + PERIOD + 1e-9
    assert latched.troubles[0].kind == "stale"
    assert "/joints: silent for 0.400 s, at most 0.35 s" in latched.troubles[0].detail
    assert firsts(ticks)[-1] == 0, "the hold action is sent at every tick"


def test_hold_is_latched_until_reset() -> None:
    rig = Rig()
    rig.steps(5)
    rig.steps(5, None)
    assert rig.loop.state is LoopState.held
    assert rig.loop.reset() == ["stale: /joints: silent for 0.600 s, at most 0.35 s"], "refused while it is still wrong"
    assert {tick.state for tick in rig.steps(5)} == {LoopState.held}, "a stream that is back does not release it"
    asked = len(rig.inference.requests)
    rig.publish()
    assert rig.loop.reset() == []
    ticks = rig.steps(4)
    assert ticks[-1].state is LoopState.running
    assert len(rig.inference.requests) > asked
    assert rig.policy.resets == 2, "the policy starts a new episode"
    assert rig.loop.latched == []


def test_stop_sends_one_hold_and_then_nothing() -> None:
    rig = Rig(on_trouble="stop")
    rig.steps(5)
    ticks = rig.steps(8, None)
    stopped = [tick for tick in ticks if tick.state is LoopState.stopped]
    assert firsts(stopped) == [0] + [None] * (len(stopped) - 1)
    assert len(stopped) >= 4


def test_emergency_stop_wins_over_hold_and_is_not_softened() -> None:
    rig = Rig()
    rig.steps(5)
    rig.loop.hold()
    assert rig.step().state is LoopState.held
    rig.loop.stop("button")
    assert rig.step().state is LoopState.stopped
    rig.loop.hold()
    assert rig.step().state is LoopState.stopped
    assert [trouble.kind for trouble in rig.loop.latched] == ["hold", "estop"]


def test_asked_hold_holds_even_where_trouble_stops() -> None:
    rig = Rig(on_trouble="stop")
    rig.steps(5)
    rig.loop.hold()
    assert rig.step().state is LoopState.held


def test_dead_policy() -> None:
    rig = Rig("async", 0.0, watchdog={"policy_timeout_s": 0.45, "max_deadline_misses": 100})
    rig.steps(5)
    rig.inference.hung = True
    ticks = rig.steps(12)
    first = next(tick for tick in ticks if tick.state is LoopState.held)
    assert rig.inference.requests[-1].step == 4
    assert first.mono_ns / 1e9 - 4 * PERIOD == pytest.approx(0.5)
    assert rig.loop.reset() != [], "a dead policy keeps it held"
    rig.inference.hung = False
    rig.step()
    assert rig.loop.reset() == []


def test_policy_errors_are_counted_and_latch() -> None:
    rig = Rig("async", 0.0)
    rig.steps(5)
    rig.inference.broken = "ValueError: no"
    ticks = rig.steps(8)
    assert ticks[-1].state is LoopState.held
    assert "3 errors in a row, the last: ValueError: no" in rig.loop.report()["latched"][0]


class NanPolicy(CountingPolicy):
    def act(self, observation: dict, slots: object) -> np.ndarray:
        return np.full((1, 4, 2), np.nan, np.float32)


def test_numbers_that_are_not_finite_never_leave() -> None:
    from embodied.deploy.inference import Request, infer

    with pytest.raises(ValueError, match="not finite"):
        infer(NanPolicy(), None, Request(0, 0, {}))


def test_answers_from_before_a_reset_are_dropped() -> None:
    rig = Rig("async", 3 * PERIOD)
    rig.step()
    rig.loop.hold()
    rig.step()
    assert rig.loop.reset() == []
    ticks = rig.steps(8)
    dropped = next(tick for tick in ticks if tick.answered == 0)
    assert dropped.action is None
    assert firsts(ticks)[-1] is not None


class Falling:
    def __init__(self) -> None:
        self.values = iter([0.0, -1.0, -9.0, 0.0, -9.0, -9.0, -9.0, -9.0])

    def value(self, observation: dict, actions: np.ndarray, instructions: list[str]) -> np.ndarray:
        return np.array([next(self.values)])


def test_value_below_threshold_three_times_in_a_row() -> None:
    rig = Rig("async", 0.0, value=Falling(), watchdog={"value_threshold": -5.0, "value_patience": 3})
    ticks = rig.steps(15)
    held = next(tick for tick in ticks if tick.state is LoopState.held)
    assert held.answered == 6
    assert "value -9.0 below -5.0, 3 times in a row" in held.troubles[0].detail


def test_unsafe_action_latches() -> None:
    """A workspace box and no measured state for it: the stream comes, then the box cannot be checked no more."""
    limits = {"workspace": {"a": [-1.0, 1.0]}, "low": [-0.5, -0.5], "high": [0.5, 0.5]}
    rig = Rig("async", 0.0, limits=limits)
    ticks = rig.steps(4, (0.9, 0.0))
    assert firsts(ticks)[1] == pytest.approx(0.1), "1 is asked for, 0.1 is left in the box"
    assert ticks[1].changed == ("absolute", "workspace")


def test_run_keeps_its_rate_and_skips_what_is_lost() -> None:
    """On a manual clock: 20 ticks are 20 periods apart, a tick that takes 3.5 periods costs 3 of them."""
    rig = Rig()
    stop = threading.Event()
    times: list[int] = []

    def on_tick(tick: object) -> None:
        times.append(rig.clock.mono)
        rig.publish()
        if len(times) == 5:
            rig.clock.advance(3.5 * PERIOD)
        if len(times) == 10:
            stop.set()

    rig.loop.on_tick = on_tick
    rig.loop.run(stop)
    steps = np.diff(times) / 1e9 / PERIOD
    np.testing.assert_allclose(steps, [1, 1, 1, 1, 4, 1, 1, 1, 1], atol=1e-6)
    assert rig.loop.counts["skipped"] == 3
