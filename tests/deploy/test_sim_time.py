"""`use_sim_time`: stamps are compared with /clock, ticks stay on the monotonic clock."""

from __future__ import annotations

import threading

import numpy as np
from loop_parts import CountingPolicy, contract, until

from embodied.deploy.clock import SimulatedClock
from embodied.deploy.contract import QosProfile
from embodied.deploy.inference import ThreadInference
from embodied.deploy.messages import joint_state_message, time_message
from embodied.deploy.node import Node
from embodied.deploy.schedule import ScheduleMode, ScheduleSettings
from embodied.deploy.transports.inproc import Hub, InprocBus


class SimulatedJoints:
    """Joint states and /clock in a time that is 10 times faster than the machine's and began at 100 s."""

    def __init__(self, hub: Hub) -> None:
        bus = InprocBus(hub)
        bus.start()
        self.now_ns, self.clock_runs = 100 * 10**9, True
        self._clock = bus.advertise("/clock", "rosgraph_msgs/msg/Clock", QosProfile.sensor)
        self._joints = bus.advertise("/joints", "sensor_msgs/msg/JointState", QosProfile.sensor)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        from types import SimpleNamespace as Ns

        while not self._stop.wait(0.02):
            self.now_ns += 200 * 10**6
            if self.clock_runs:
                self._clock(Ns(clock=time_message(self.now_ns)))
            self._joints(joint_state_message(["a", "b"], np.zeros(2), self.now_ns))

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def test_stamps_follow_clock_and_a_stopped_clock_is_noticed() -> None:
    hub = Hub()
    joints = SimulatedJoints(hub)
    stream = {"feature": "observation.state", "topic": "/joints", "type": "sensor_msgs/msg/JointState"}
    values = {"streams": [{**stream, "names": ["a", "b"], "max_age_s": 3.0}], "rate_hz": 20.0}
    patient = {"max_deadline_misses": 100_000, "policy_timeout_s": 60.0}
    node = Node(
        contract(**values, watchdog=patient), ScheduleSettings(mode=ScheduleMode["async"]),
        ThreadInference(CountingPolicy()), InprocBus(hub), clock=SimulatedClock(),
    )  # fmt: skip
    sent: list[int] = []
    node.on_action.append(lambda message, stamp_ns: sent.append(stamp_ns))
    node.start()
    node.configure()
    node.activate()
    running = until(lambda: node.loop.state.value == "running" and len(sent) > 5)
    assert running, node.loop.report()
    assert 100 * 10**9 < sent[0] <= sent[-1] <= joints.now_ns, "commands are stamped with /clock's time"
    joints.clock_runs = False
    assert until(lambda: node.loop.state.value == "held")
    assert node.aligner.counts[0].ahead > 0, "samples from the future of a stopped clock"
    assert "stale" in node.loop.report()["latched"][0]
    node.shutdown()
    joints.close()
