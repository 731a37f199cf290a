"""The node over the in-process bus: a whole life, refusals, services, diagnostics, kill the camera."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace as Ns
from typing import Any

import numpy as np
import pytest
from loop_parts import CountingPolicy, contract, until

from embodied.deploy.contract import QosProfile
from embodied.deploy.inference import ThreadInference
from embodied.deploy.lifecycle import Lifecycle, LifecycleState, Transition
from embodied.deploy.loop import Tick
from embodied.deploy.messages import joint_state_message
from embodied.deploy.node import Node
from embodied.deploy.schedule import ScheduleMode, ScheduleSettings
from embodied.deploy.transports.inproc import Hub, InprocBus

TRIGGER = "std_srvs/srv/Trigger"
MAX_AGE_S = 1.5


class Robot:
    """Publishes joints in a thread of its own, and keeps the commands it gets with their times."""

    def __init__(self, hub: Hub, rate_hz: float = 50.0) -> None:
        self.bus = InprocBus(hub)
        self.bus.start()
        self.commands: list[tuple[float, list[float]]] = []
        self.bus.subscribe(
            "/command", "std_msgs/msg/Float64MultiArray", QosProfile.reliable,
            lambda message: self.commands.append((time.monotonic(), message.data.tolist())),
        )  # fmt: skip
        self._publish = self.bus.advertise("/joints", "sensor_msgs/msg/JointState", QosProfile.sensor)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(1 / rate_hz,), daemon=True)

    def _run(self, period: float) -> None:
        while not self._stop.wait(period):
            self._publish(joint_state_message(["b", "a"], np.array([2.0, 1.0]), time.time_ns()))

    def start(self) -> Robot:
        self._thread.start()
        return self

    def kill(self) -> float:
        self._stop.set()
        self._thread.join()
        return time.monotonic()


def make_node(hub: Hub, policy: Any = None, **changes: Any) -> Node:
    """Patient with a busy machine: a stream may be silent for MAX_AGE_S."""
    values = {"rate_hz": 20.0, "watchdog": {"max_deadline_misses": 100_000, "policy_timeout_s": 60.0}, **changes}
    arm = contract(**values)
    arm.streams[0].max_age_s = MAX_AGE_S
    schedule = ScheduleSettings(mode=ScheduleMode["async"])
    node = Node(arm, schedule, ThreadInference(policy or CountingPolicy()), InprocBus(hub), name="brain")
    node.start()
    return node


def test_a_whole_life() -> None:
    hub = Hub()
    robot, node = Robot(hub).start(), make_node(hub)
    client = InprocBus(hub)
    events: list[str] = []
    client.start()
    client.subscribe(
        "/brain/transition_event", "lifecycle_msgs/msg/TransitionEvent", QosProfile.reliable,
        lambda event: events.append(event.transition.label),
    )  # fmt: skip
    assert client.call("/brain/get_state", "lifecycle_msgs/srv/GetState", Ns()).current_state.label == "unconfigured"
    wrong = client.call("/brain/change_state", "lifecycle_msgs/srv/ChangeState", Ns(transition=Ns(id=3, label="")))
    assert not wrong.success
    node.configure()
    node.activate()
    assert until(lambda: len(robot.commands) > 10)
    assert any(values[1] == 1.0 for _, values in robot.commands), "the policy saw joint a first, whatever the order"
    node.shutdown()
    count = len(robot.commands)
    assert robot.commands[-1][1] == [0.0, 0.0], "its last act is to hold"
    time.sleep(0.15)
    assert len(robot.commands) == count
    assert events == ["configure", "activate", "shutdown"]
    robot.kill()


def test_a_mismatch_keeps_it_unconfigured() -> None:
    hub = Hub()
    policy = CountingPolicy()
    policy.spec.extra["state_names"] = ["b", "a"]  # type: ignore[index]
    node = make_node(hub, policy)
    with pytest.raises(ValueError, match="element 0 is 'a' in the contract, 'b' in the policy"):
        node.configure()
    assert node.lifecycle.state is LifecycleState.unconfigured
    assert hub.subscribers["/joints"] == []
    node.shutdown()


def test_kill_the_robots_joints_and_reset() -> None:
    """1.5 s of age and a period of 0.05 s: held within 1.55 s, plus what this machine was late with a tick."""
    hub = Hub()
    robot, node = Robot(hub).start(), make_node(hub)
    ticks: list[Tick] = []
    node.loop.on_tick = ticks.append
    node.configure()
    node.activate()
    assert until(lambda: len(robot.commands) > 5)
    robot.kill()
    last = node.aligner.last_received[0]
    assert until(lambda: node.loop.state.value == "held")
    held = next(tick for tick in ticks if tick.state.value == "held")
    gaps = np.diff([tick.mono_ns for tick in ticks])
    assert last is not None
    assert held.mono_ns - last <= 1e9 * MAX_AGE_S + max(gaps.max(), 0.05e9)
    client = InprocBus(hub)
    refused = client.call("/brain/reset", TRIGGER, Ns())
    assert not refused.success
    assert "/joints: silent" in refused.message
    again = Robot(hub).start()
    assert until(lambda: client.call("/brain/reset", TRIGGER, Ns()).success)
    assert until(lambda: node.loop.state.value == "running")
    assert client.call("/brain/estop", TRIGGER, Ns()).success
    assert until(lambda: node.loop.state.value == "stopped")
    again.kill()
    node.shutdown()


def test_bad_messages_are_refused_and_reported() -> None:
    hub = Hub()
    node = make_node(hub)
    node.configure()
    other = InprocBus(hub)
    joints = other.advertise("/joints", "sensor_msgs/msg/JointState", QosProfile.sensor)
    joints(joint_state_message(["a"], np.zeros(1), 0))
    joints(Ns(position="x"))
    joints(joint_state_message(["a", "b"], np.array([1.0, np.inf]), 0))
    other.advertise("/joints", "std_msgs/msg/String", QosProfile.sensor)(Ns(data="hello"))
    counts = node.aligner.counts[0]
    assert (counts.received, counts.refused) == (3, 3)
    assert "finite" in counts.last_error
    seen: list[Any] = []
    other.start()
    other.subscribe("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", QosProfile.reliable, seen.append)
    stop = threading.Event()
    spinning = threading.Thread(target=node.spin, args=(stop, 0.05))
    spinning.start()
    assert until(lambda: len(seen) > 1)
    stop.set()
    spinning.join()
    by_name = {status.name: status for status in seen[-1].status}
    assert by_name["brain: /joints"].level == 3, "stale: no good message yet"
    assert {pair.key: pair.value for pair in by_name["brain: /joints"].values}["refused"] == "3"
    assert by_name["brain: bus"].level == 1, "a topic of another type is reported"
    node.shutdown()


def test_parameters() -> None:
    hub = Hub()
    node = make_node(hub)
    client = InprocBus(hub)
    listed = client.call("/brain/list_parameters", "rcl_interfaces/srv/ListParameters", Ns()).result.names
    assert "task" in listed
    new = Ns(name="task", value=Ns(type=4, string_value="pick up the cup"))
    bad = Ns(name="rate_hz", value=Ns(type=3, string_value=""))
    results = client.call(
        "/brain/set_parameters", "rcl_interfaces/srv/SetParameters", Ns(parameters=[new, bad])
    ).results
    assert [result.successful for result in results] == [True, False]
    names = Ns(names=["task", "nothing", "rate_hz"])
    values = client.call("/brain/get_parameters", "rcl_interfaces/srv/GetParameters", names).values
    assert [value.type for value in values] == [4, 0, 3]
    assert values[0].string_value == "pick up the cup"
    assert values[2].double_value == 20.0
    node.shutdown()


def test_lifecycle_refuses_what_is_not_open() -> None:
    done: list[Transition] = []
    life = Lifecycle(lambda _, transition: done.append(transition))
    assert not life.change(3)
    assert "configure, shutdown are" in life.error
    assert life.change(0, "configure")
    assert life.change(3)
    assert life.change(7), "7 is ROS 2's number for shutdown from active"
    assert life.state is LifecycleState.finalized
    assert not life.change(99)
    assert done == [Transition.configure, Transition.activate, Transition.shutdown]
