"""Chunk scheduling by hand, and real-time chunking against the paper's formulas and LeRobot's implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_parts import PERIOD, CountingPolicy, Rig, firsts

from embodied.deploy.rtc import (
    PrefixAttentionSchedule,
    PrefixGuidance,
    PrefixPolicy,
    guidance_weight,
    guided_velocity,
    prefix_weights,
)
from embodied.deploy.schedule import ScheduleMode, ScheduleSettings, make_scheduler

EXP = PrefixAttentionSchedule.EXP


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


def test_temporal_ensemble_weights_the_oldest_most() -> None:
    settings_ = ScheduleSettings(mode=ScheduleMode["temporal_ensemble"], temporal_ensemble_coeff=np.log(2.0))
    scheduler = make_scheduler(settings_, 4, 2)
    scheduler.add(0, 1, column(0, 0, 0, 0))
    scheduler.add(2, 3, column(30, 30, 30, 30))
    for step, value in ((1, 0.0), (3, 10.0), (4, 30.0)):
        action = scheduler.action(step)
        assert action is not None
        assert action[0] == pytest.approx(value), step
    assert scheduler.action(6) is None


def test_every_tick_asks_again_with_temporal_ensemble() -> None:
    rig = Rig("temporal_ensemble", 0.0, temporal_ensemble_coeff=0.0)
    ticks = rig.steps(3)
    assert firsts(ticks) == [None, 1, (2 + 101) / 2]
    assert [request.step for request in rig.inference.requests] == [0, 1, 2]


class PrefixCounting(CountingPolicy):
    """Notes what it is asked with, and continues the prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[list[float], PrefixGuidance]] = []

    def act_with_prefix(self, observation: dict, slots: object, prefix: np.ndarray, guidance: PrefixGuidance):
        self.seen.append((prefix[0, :, 0].tolist(), guidance))
        return self.act(observation, slots)


def test_rtc_passes_what_is_left_and_the_measured_delay() -> None:
    """Latency 1 tick: asked at 0 without a prefix, at 2 with what chunk 0 planned for steps 2, 3."""
    policy = PrefixCounting()
    assert isinstance(policy, PrefixPolicy)
    rig = Rig("rtc", PERIOD, policy, execution_horizon=3, prefix_attention_schedule=EXP)
    rig.steps(4)
    assert [prefix for prefix, _ in policy.seen] == [[2.0, 3.0]]
    assert policy.seen[0][1] == PrefixGuidance(1, 3, 10.0, EXP)


@settings(max_examples=200, deadline=None)
@given(
    mode=st.sampled_from(["sync", "async", "rtc"]),
    chunk=st.integers(1, 8),
    replan=st.integers(1, 8),
    asked=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=8),
)
def test_an_action_is_always_one_that_was_planned_for_its_step(
    mode: str, chunk: int, replan: int, asked: list[tuple[int, int]]
) -> None:
    """Chunks hold (number of the chunk, step each action is meant for); sync counts from the answer."""
    replan = min(replan, chunk)
    scheduler = make_scheduler(ScheduleSettings(mode=ScheduleMode[mode]), chunk, replan)
    now = 0
    for number, (wait, delay) in enumerate(asked):
        start = now + wait
        now = start + delay
        base = now if mode == "sync" else start
        scheduler.add(start, now, np.stack([np.full(chunk, number), base + np.arange(chunk)], 1).astype(np.float32))
        for step in range(now, now + 12):
            action = scheduler.action(step)
            if action is None:
                assert step >= base + (replan if mode == "sync" else chunk)
            else:
                assert action.tolist() == [number, step]


def test_prefix_weights_by_hand() -> None:
    """Delay 1, horizon 4, chunk 6: 1, then 3/4 ... 1/4 falling over 3 steps to 0."""
    linear = prefix_weights(1, 4, 6, PrefixAttentionSchedule.LINEAR)
    np.testing.assert_allclose(linear, [1, 3 / 4, 2 / 4, 1 / 4, 0, 0])
    expected = [x * (np.exp(x) - 1) / (np.e - 1) for x in (3 / 4, 2 / 4, 1 / 4)]
    np.testing.assert_allclose(prefix_weights(1, 4, 6, EXP), [1, *expected, 0, 0], rtol=1e-6)
    assert prefix_weights(9, 4, 6, PrefixAttentionSchedule.ZEROS).tolist() == [1, 1, 1, 1, 0, 0]
    assert prefix_weights(0, 2, 3, PrefixAttentionSchedule.ONES).tolist() == [1, 1, 0]


def test_guidance_weight_by_hand() -> None:
    """tau 1/2: (1/2)/(1/2) * (1/4 + 1/4) / (1/4) = 2."""
    assert guidance_weight(0.5, 10.0) == pytest.approx(2.0)
    assert guidance_weight(0.5, 1.5) == 1.5
    assert guidance_weight(0.0, 10.0) == guidance_weight(1.0, 10.0) == 10.0


def test_linear_flow_is_guided_through_the_model() -> None:
    """v(x) = 2 x: the estimate x + (1 - tau) v = 2 x at tau 1/2, its Jacobian 2, the weight 2.

    x = 1, target 4: error 4 - 2 = 2; correction 2 * 2 = 4; v + 2 * 4 = 10 where the prefix counts fully, 2 elsewhere.
    """
    guidance = PrefixGuidance(1, 1, 10.0, PrefixAttentionSchedule.ZEROS)
    got = guided_velocity(lambda x: 2 * x, torch.ones(1, 2, 1), 0.5, torch.full((1, 1, 1), 4.0), guidance)
    assert got[0, :, 0].tolist() == [10.0, 2.0]
    plain = guided_velocity(lambda x: 2 * x, torch.ones(1, 2, 1), 0.5, torch.full((1, 1, 1), 4.0), guidance, False)
    assert plain[0, :, 0].tolist() == [6.0, 2.0]


def test_a_guided_chunk_agrees_with_its_prefix() -> None:
    """Euler integration of the exact flow to actions of N(0, 1); guided, the first actions follow the prefix."""
    torch.manual_seed(0)
    noise, prefix = torch.randn(1, 10, 2), torch.full((1, 10, 2), 1.5)
    guidance = PrefixGuidance(4, 6, 10.0, PrefixAttentionSchedule.EXP)
    steps = 20
    results = []
    for guided in (False, True):
        x = noise.clone()
        for i in range(steps):
            tau = i / steps

            def velocity(y: torch.Tensor, tau: float = tau) -> torch.Tensor:
                return y * (2 * tau - 1) / (tau**2 + (1 - tau) ** 2)

            x = x + (guided_velocity(velocity, x, tau, prefix, guidance) if guided else velocity(x)) / steps
        results.append((x - prefix).abs().mean(dim=(0, 2)))
    free, held = results
    assert held[:4].mean() < 0.3 * free[:4].mean()
    torch.testing.assert_close(held[6:], free[6:])


@pytest.mark.parametrize("schedule", list(PrefixAttentionSchedule))
def test_equal_to_lerobot(schedule: PrefixAttentionSchedule) -> None:
    """LeRobot 0.6.1's RTCProcessor: time from 1 to 0, velocity to the noise, Jacobian of the model left out."""
    pytest.importorskip("lerobot")
    from lerobot.configs import RTCAttentionSchedule
    from lerobot.policies.rtc.configuration_rtc import RTCConfig
    from lerobot.policies.rtc.modeling_rtc import RTCProcessor

    torch.manual_seed(1)
    theirs = RTCProcessor(RTCConfig(prefix_attention_schedule=RTCAttentionSchedule[schedule.name]))
    model = torch.nn.Linear(3, 3)
    for time, delay, horizon, known in ((0.9, 2, 6, 8), (0.5, 0, 10, 5), (0.1, 7, 4, 3)):
        x, prefix = torch.randn(2, 8, 3), torch.randn(2, known, 3)
        with torch.no_grad():
            expected = theirs.denoise_step(x, prefix, delay, time, lambda y: model(y).detach(), horizon)
        guidance = PrefixGuidance(delay, horizon, 10.0, schedule)
        ours = guided_velocity(lambda y: -model(y), x, 1 - time, prefix, guidance, through_model=False)
        torch.testing.assert_close(-ours, expected, rtol=1e-4, atol=1e-5)
