"""Record and replay: byte-equal actions, a named difference for another policy, bags that other readers read."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from loop_parts import CountingPolicy, contract, until

pytest.importorskip("rosbags", reason="the deploy extra is not installed")
from embodied.deploy.contract import QosProfile
from embodied.deploy.inference import ThreadInference
from embodied.deploy.messages import joint_state_message
from embodied.deploy.node import Node
from embodied.deploy.record import Recorder, TopicRecorder
from embodied.deploy.replay import replay_bag
from embodied.deploy.schedule import ScheduleMode, ScheduleSettings
from embodied.deploy.transports.inproc import Hub, InprocBus
from embodied.deploy.transports.mcap import read_bag


def runs(node: Node) -> bool:
    """Resets it while it holds; a machine that was busy may have made it hold once more."""
    if node.loop.state.value == "held":
        node.loop.reset()
    return node.loop.state.value == "running"


def record(folder: Path, mode: str) -> None:
    """A short life with noise: joints at 50 Hz, a hold, a reset, silence in the end."""
    hub = Hub()
    robot = InprocBus(hub)
    robot.start()
    publish = robot.advertise("/joints", "sensor_msgs/msg/JointState", QosProfile.sensor)
    settings = ScheduleSettings(mode=ScheduleMode[mode])
    limits = {"max_step": [40.0, 0.5], "low": [-1000, -1], "high": [1000, 1]}
    arm = contract(rate_hz=40.0, limits=limits, watchdog={"max_deadline_misses": 100_000, "policy_timeout_s": 60.0})
    arm.streams[0].max_age_s = 1.0
    node = Node(arm, settings, ThreadInference(CountingPolicy()), InprocBus(hub), name="brain")
    recorder = Recorder(node, folder, settings)
    node.start()
    node.configure()
    node.activate()
    stop = threading.Event()
    generator = np.random.default_rng(0)

    def drive() -> None:
        while not stop.wait(0.02):
            publish(joint_state_message(["a", "b"], generator.normal(size=2), time.time_ns()))

    driving = threading.Thread(target=drive)
    driving.start()
    assert until(lambda: node.loop.counts["sent"] > 20)
    node.loop.hold("a test")
    assert until(lambda: node.loop.state.value == "held")
    assert until(lambda: runs(node))
    stop.set()
    driving.join()
    assert until(lambda: node.loop.state.value == "held")
    node.shutdown()
    recorder.close()
    assert recorder.lost == 0


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_replay_is_byte_equal(tmp_path: Path, mode: str) -> None:
    record(tmp_path / "bag", mode)
    result = replay_bag(tmp_path / "bag", CountingPolicy())
    assert result.differences == []
    assert result.actions > 20


def test_another_policy_differs_and_is_named(tmp_path: Path) -> None:
    record(tmp_path / "bag", "async")

    class Other(CountingPolicy):
        def act(self, observation: dict, slots: object) -> np.ndarray:
            return super().act(observation, slots) + np.float32(0.25)

    result = replay_bag(tmp_path / "bag", Other())
    assert result.differences[0].startswith("tick ")
    assert "recorded [" in result.differences[0]
    changed = CountingPolicy(chunk=5)
    object.__setattr__(changed.spec, "digest", "other")
    with pytest.raises(ValueError, match="the recording is of policy counting"):
        replay_bag(tmp_path / "bag", changed)


def test_topic_recorder_makes_a_bag_that_others_read(tmp_path: Path) -> None:
    hub = Hub()
    bus, robot = InprocBus(hub), InprocBus(hub)
    bus.start()
    recorder = TopicRecorder(contract(), bus, tmp_path / "bag")
    publish = robot.advertise("/joints", "sensor_msgs/msg/JointState", QosProfile.sensor)
    for value in range(5):
        publish(joint_state_message(["a", "b"], np.array([value, 0.0]), time.time_ns()))
    recorder.close()
    entries = list(read_bag(tmp_path / "bag"))
    assert [(topic, kind) for topic, kind, _, _ in entries] == [("/joints", "sensor_msgs/msg/JointState")] * 5
    mcap_ros2 = pytest.importorskip("mcap_ros2.reader", reason="mcap-ros2-support is not installed")
    (path,) = (tmp_path / "bag").glob("*.mcap")
    seen = [message.ros_msg.position[0] for message in mcap_ros2.read_ros2_messages(str(path))]
    assert seen == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_what_is_no_bag_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bag"):
        list(read_bag(tmp_path / "nothing"))
