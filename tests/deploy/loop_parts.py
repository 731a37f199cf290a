"""A small robot and policies for the tests of the loop: real objects of the interfaces, with known numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from embodied.deploy.clock import ManualClock
from embodied.deploy.contract import Contract, contract_from
from embodied.deploy.inference import Request, Result, infer
from embodied.deploy.loop import ControlLoop, Tick
from embodied.deploy.schedule import ScheduleMode, ScheduleSettings
from embodied.protocols import PolicySpec

PERIOD = 0.1
STATE = "observation.state"
ARM_CONTRACT = """
name: arm
rate_hz: 20
streams:
  - {feature: observation.state, topic: /joint_states, type: sensor_msgs/msg/JointState, max_age_s: 2.0,
     names: [x, y, z, rx, ry, rz, gripper_left, gripper_right]}
action: {topic: /action, type: std_msgs/msg/Float64MultiArray, names: [dx, dy, dz, drx, dry, drz, gripper], mode: delta,
         gripper: [gripper]}
limits: {low: [-1, -1, -1, -1, -1, -1, -1], high: [1, 1, 1, 1, 1, 1, 1]}
watchdog: {max_deadline_misses: 100000, policy_timeout_s: 60.0}
"""


def contract(**changes: Any) -> Contract:
    """Two joints at 10 Hz, moved by delta actions in [-1, 1]."""
    stream = {
        "feature": STATE,
        "topic": "/joints",
        "type": "sensor_msgs/msg/JointState",
        "names": ["a", "b"],
        "max_age_s": 0.35,
    }
    action = {"topic": "/command", "type": "std_msgs/msg/Float64MultiArray", "names": ["a", "b"], "mode": "delta"}
    values = {"name": "arm", "rate_hz": 1 / PERIOD, "streams": [stream], "action": action, "limits": {}}
    return contract_from({**values, **changes})


class CountingPolicy:
    """Asked for the n-th time, its i-th action is (100 n + i, the measured first joint)."""

    def __init__(self, chunk: int = 4, replan: int = 2) -> None:
        extra = {"state_names": ["a", "b"], "action_names": ["a", "b"]}
        self.spec = PolicySpec("counting", "0", chunk, replan, action_dim=2, extra=extra)
        self.asked = 0
        self.resets = 0

    def reset(self, slots: Any, episodes: Any) -> None:
        self.resets += 1

    def act(self, observation: dict[str, Any], slots: Any) -> np.ndarray:
        first = 100.0 * self.asked + np.arange(self.spec.chunk)
        self.asked += 1
        return np.stack([first, np.full(self.spec.chunk, observation[STATE][0, 0])], 1)[None].astype(np.float32)


class TimedInference:
    """Runs the policy at once and gives its answer after `latency_s` of the clock; `broken` stands for an error."""

    def __init__(self, policy: Any, clock: ManualClock, latency_s: float = 0.0, value: Any = None) -> None:
        self.policy, self.spec, self.clock, self.latency_s, self.value = policy, policy.spec, clock, latency_s, value
        self.broken: str | None = None
        self.hung = False
        self.requests: list[Request] = []
        self._due: int | None = None

    @property
    def busy(self) -> bool:
        return self._due is not None

    def submit(self, request: Request) -> None:
        assert not self.busy
        self.requests.append(request)
        self._due = self.clock.mono + round(self.latency_s * 1e9)

    def poll(self) -> Result | None:
        if self._due is None or self.hung or self.clock.mono < self._due:
            return None
        self._due = None
        request = self.requests[-1]
        if self.broken is not None:
            return Result(request, error=self.broken)
        chunk, value, _ = infer(self.policy, self.value, request)
        return Result(request, chunk, value, None, self.latency_s)

    def finish(self) -> None:
        self._due = None

    def close(self) -> None:
        pass


class Rig:
    """A loop on a manual clock, with everything it sent. `step` publishes the joints and ticks once."""

    def __init__(
        self, mode: str = "async", latency_s: float = 0.0, policy: Any = None, value: Any = None, **changes: Any
    ) -> None:
        schedule = {key: changes.pop(key) for key in list(changes) if key in ScheduleSettings.__dataclass_fields__}
        self.clock = ManualClock()
        self.policy = policy or CountingPolicy()
        self.inference = TimedInference(self.policy, self.clock, latency_s, value)
        self.sent: list[np.ndarray] = []
        self.loop = ControlLoop(
            contract(**changes),
            ScheduleSettings(mode=ScheduleMode[mode], **schedule),
            self.inference,
            self.clock,
            lambda action, _: self.sent.append(action),
        )

    def publish(self, joints: tuple[float, float] = (0.0, 0.0)) -> None:
        now = self.clock.now_ns()
        self.loop.aligner.put(0, np.array(joints, np.float32), now, self.clock.monotonic_ns(), now)

    def step(self, joints: tuple[float, float] | None = (0.0, 0.0)) -> Tick:
        if joints is not None:
            self.publish(joints)
        tick = self.loop.tick()
        self.clock.advance(PERIOD)
        return tick

    def steps(self, count: int, joints: tuple[float, float] | None = (0.0, 0.0)) -> list[Tick]:
        return [self.step(joints) for _ in range(count)]


def firsts(ticks: list[Tick]) -> list[float | None]:
    """The first element of what each tick sent."""
    return [None if tick.action is None else float(tick.action[0]) for tick in ticks]


def until(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Waits for something that other threads or processes bring about."""
    import time

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return condition()
