"""The DDS bus between real participants: topics, services, graph, QoS, foreign and hostile peers."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace as Ns
from typing import Any

import numpy as np
import pytest
from loop_parts import until

pytest.importorskip("cyclonedds", reason="the deploy extra is not installed")
pytest.importorskip("rosbags", reason="the deploy extra is not installed")
from cyclonedds.topic import Topic

from embodied.deploy import messages
from embodied.deploy.contract import QosProfile
from embodied.deploy.transports import dds, ros_types
from embodied.deploy.transports.dds import DdsBus
from embodied.deploy.transports.dds_types import sample, topic_class

JOINTS, TRIGGER = "sensor_msgs/msg/JointState", "std_srvs/srv/Trigger"


@pytest.fixture(scope="module")
def domain() -> int:
    return random.SystemRandom().randrange(1, 230)


@pytest.fixture
def buses(domain: int) -> Iterator[tuple[DdsBus, DdsBus]]:
    pair = DdsBus("one", domain, max_message_bytes=100_000), DdsBus("two", domain, max_message_bytes=100_000)
    for bus in pair:
        bus.start()
    yield pair
    for bus in pair:
        bus.stop()


def joints(value: float = 0.0) -> Ns:
    return messages.joint_state_message(["a", "b"], np.array([value, 1.0]), time.time_ns())


def test_topics_and_late_joiners(buses: tuple[DdsBus, DdsBus]) -> None:
    one, two = buses
    got: list[Any] = []
    latched = one.advertise("/success", "std_msgs/msg/Bool", QosProfile.latched)
    latched(Ns(data=True))
    two.subscribe("/joints", JOINTS, QosProfile.sensor, got.append)
    publish = one.advertise("/joints", JOINTS, QosProfile.sensor)
    assert until(lambda: publish(joints(3.0)) or len(got) > 0)
    assert got[0].name == ["a", "b"]
    assert got[0].position.tolist() == [3.0, 1.0]
    late: list[Any] = []
    two.subscribe("/success", "std_msgs/msg/Bool", QosProfile.latched, late.append)
    assert until(lambda: bool(late))
    assert late[0].data is True


def test_services_and_graph(buses: tuple[DdsBus, DdsBus]) -> None:
    one, two = buses
    one.serve("/one/hold", TRIGGER, lambda _: Ns(success=True, message="holding"))
    one.serve(
        "/one/get_parameters", "rcl_interfaces/srv/GetParameters",
        lambda request: Ns(values=[ros_types.default("rcl_interfaces/msg/ParameterValue") for _ in request.names]),
    )  # fmt: skip
    response = two.call("/one/hold", TRIGGER, Ns())
    assert (response.success, response.message) == (True, "holding")
    names = Ns(names=["x", "y"])
    assert len(two.call("/one/get_parameters", "rcl_interfaces/srv/GetParameters", names).values) == 2
    with pytest.raises(TimeoutError, match="no service"):
        two.call("/nobody/hold", TRIGGER, Ns(), timeout_s=0.2)
    assert until(lambda: two.peers() == ["/one"])
    assert until(lambda: one.peers() == ["/two"])


def test_incompatible_qos_is_reported(buses: tuple[DdsBus, DdsBus]) -> None:
    one, two = buses
    one.advertise("/joints", JOINTS, QosProfile.sensor)
    two.subscribe("/joints", JOINTS, QosProfile.reliable, lambda _: None)
    assert until(lambda: any("incompatible_qos: /joints" in key for key in two.report()))
    assert until(lambda: any("incompatible_qos: /joints" in key for key in one.report()))


def test_hostile_messages_are_refused_and_the_bus_goes_on(buses: tuple[DdsBus, DdsBus]) -> None:
    """cyclonedds itself drops what is no CDR of the type; the rest is ours: size, text that is no UTF-8."""
    one, two = buses
    got: list[Any] = []
    two.subscribe("/joints", JOINTS, QosProfile.reliable, got.append)
    publish = one.advertise("/joints", JOINTS, QosProfile.reliable)
    assert until(lambda: publish(joints()) or len(got) > 0)
    publish(messages.joint_state_message(["a"], np.zeros(20_000), 0))
    assert until(lambda: two.report().get("refused, too large: /joints", 0) == 1)
    bad = ros_types.encode(JOINTS, joints()).replace(b"a\x00", b"\xff\x00", 1)
    one._write(one._writers[-1], sample(topic_class(JOINTS), bad), "/joints")
    assert until(lambda: two.report().get("refused: /joints", 0) == 1)
    count = len(got)
    assert until(lambda: publish(joints()) or len(got) > count), "good messages still come through"


def test_hostile_datagrams(domain: int, buses: tuple[DdsBus, DdsBus]) -> None:
    """Noise, some of it behind an RTPS header, on every port of the participants."""
    one, two = buses
    generator = random.Random(0)
    base = 7400 + 250 * domain
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        for number in range(2000):
            noise = generator.randbytes(generator.randrange(0, 300))
            data = (b"RTPS\x02\x01\x01\x10" + noise) if number % 2 else noise
            out.sendto(data, ("127.0.0.1", base + 10 + generator.randrange(8)))
    got: list[Any] = []
    two.subscribe("/joints", JOINTS, QosProfile.sensor, got.append)
    publish = one.advertise("/joints", JOINTS, QosProfile.sensor)
    assert until(lambda: publish(joints()) or len(got) > 0)


def test_wrong_requests_are_refused(buses: tuple[DdsBus, DdsBus]) -> None:
    one, two = buses
    kind = "rcl_interfaces/srv/GetParameters"
    one.serve("/one/get", kind, lambda request: Ns(values=[]))
    assert two.call("/one/get", kind, Ns(names=["a"])).values == []
    writer, _ = two._clients["/one/get"]
    encoded = ros_types.encode(f"{kind}_Request", Ns(names=["a"])).replace(b"a\x00", b"\xff\x00", 1)
    two._write(writer, sample(writer.data_type, encoded[:4] + bytes(16) + encoded[4:]), "/one/get")
    assert until(lambda: one.report().get("refused: /one/get", 0) == 1)
    assert two.call("/one/get", kind, Ns(names=["a"])).values == []


@pytest.mark.parametrize("data", [b"", b"\x00\x01\x00\x00", b"\x00\x00\x00\x00" + bytes(40)])
def test_service_messages_without_identity(data: bytes) -> None:
    with pytest.raises(ValueError, match="20 bytes"):
        dds._split(data)


def test_names_follow_ros(buses: tuple[DdsBus, DdsBus]) -> None:
    one, _ = buses
    one.advertise("joints", JOINTS, QosProfile.sensor)
    one.serve("/one/hold", TRIGGER, lambda _: Ns(success=True, message=""))
    topics = {name: topic.typename for name, topic in one._topics.items()}
    assert topics["rt/joints"] == "sensor_msgs::msg::dds_::JointState_"
    assert topics["rq/one/holdRequest"] == "std_srvs::srv::dds_::Trigger_Request_"
    assert topics["rr/one/holdReply"] == "std_srvs::srv::dds_::Trigger_Response_"
    assert isinstance(one._topics["rt/joints"], Topic)


def test_domain_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_DOMAIN_ID", "17")
    assert dds.domain_from_environment() == 17
    monkeypatch.setenv("ROS_DOMAIN_ID", "999")
    with pytest.raises(ValueError, match="0 to 232"):
        dds.domain_from_environment()
