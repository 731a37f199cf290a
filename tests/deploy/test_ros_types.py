"""CDR bytes and type hashes against those of a real rclpy; hostile bytes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace as Ns

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("rosbags", reason="the deploy extra is not installed")
from embodied.deploy import messages
from embodied.deploy.contract import IMAGE_TYPES, Stream
from embodied.deploy.convert import decode as to_feature
from embodied.deploy.transports import ros_types

HEADER = messages.header(7_000_000_009, "cam")
FLOATS = np.array([1.0, 2.0])


def golden(outside_data: Path) -> dict:
    return json.loads((outside_data / "ros2_golden" / "vectors.json").read_text())


@pytest.mark.data
def test_bytes_are_rclpys(outside_data: Path) -> None:
    """What the node itself sends, field by field as the vectors were made."""
    vectors = golden(outside_data)["cdr"]
    image = Ns(
        header=HEADER, height=2, width=3, encoding="rgb8", is_bigendian=0, step=9, data=np.arange(18, dtype=np.uint8)
    )
    joints = Ns(header=HEADER, name=["a", "bcd"], position=FLOATS, velocity=[0.5], effort=[])
    key = Ns(key="hz", value="20")
    status = Ns(level=2, name="policy", message="stale", hardware_id="x", values=[key])
    made = {
        "sensor_msgs/msg/Image": image,
        "sensor_msgs/msg/JointState": joints,
        "diagnostic_msgs/msg/DiagnosticArray": Ns(header=HEADER, status=[status]),
        "std_msgs/msg/String": messages.text_message("hé"),
        "std_msgs/msg/Bool": Ns(data=True),
        "lifecycle_msgs/msg/State": Ns(id=3, label="active"),
    }
    for name, message in made.items():
        assert ros_types.encode(name, message).hex() == vectors[name], name


@pytest.mark.data
def test_all_vectors_come_back_byte_for_byte(outside_data: Path) -> None:
    vectors = golden(outside_data)["cdr"]
    assert len(vectors) == 12
    for name, text in vectors.items():
        data = bytes.fromhex(text)
        assert ros_types.encode(name, ros_types.decode(name, data)) == data, name


@pytest.mark.data
def test_type_hashes_are_rclpys(outside_data: Path) -> None:
    """Of all types both know, those that hold a `char` included."""
    hashes = {name: value for name, value in golden(outside_data)["hash"].items() if ros_types.known(name)}
    assert len(hashes) > 100
    assert "rmw_dds_common/msg/Gid" in hashes
    assert {name: ros_types.type_hash(name) for name in hashes} == hashes


def test_every_service_type_can_be_made_and_read() -> None:
    for service in ros_types.SERVICES:
        for part in ("Request", "Response"):
            name = f"{service}_{part}"
            data = ros_types.encode(name, ros_types.default(name))
            assert ros_types.encode(name, ros_types.decode(name, data)) == data


def test_what_cannot_be_encoded_says_so() -> None:
    with pytest.raises(ValueError, match="cannot be made"):
        ros_types.encode("sensor_msgs/msg/JointState", Ns(name=["a"]))
    with pytest.raises(ValueError, match="known one"):
        ros_types.encode("my_msgs/msg/Secret", Ns())
    ros_types.register("my_msgs/msg/Grip", "float64 width\nstring[] fingers")
    data = ros_types.encode("my_msgs/msg/Grip", Ns(width=0.5, fingers=["a"]))
    assert ros_types.decode("my_msgs/msg/Grip", data).fingers == ["a"]


TYPES = [*IMAGE_TYPES, "sensor_msgs/msg/JointState", "geometry_msgs/msg/PoseStamped", "std_msgs/msg/String"]


def consume(type_name: str, data: bytes) -> bool:
    """What the node does with bytes: True when they became a feature. Anything but a ValueError fails the test."""
    stream = Stream(feature="observation.state", type=type_name, topic="/x", names=["a", "b"])
    try:
        to_feature(stream, ros_types.decode(type_name, data))
    except ValueError:
        return False
    return True


@settings(max_examples=1500, deadline=None)
@given(type_name=st.sampled_from(TYPES), data=st.binary(max_size=200))
def test_random_bytes_are_refused(type_name: str, data: bytes) -> None:
    consume(type_name, b"\x00\x01\x00\x00" + data)
    consume(type_name, data)


GOOD = {
    "sensor_msgs/msg/Image": messages.image_message(np.zeros((3, 4, 3), np.uint8), 5),
    "sensor_msgs/msg/JointState": messages.joint_state_message(["a", "b"], np.zeros(2), 5),
}


@settings(max_examples=1500, deadline=None)
@given(
    type_name=st.sampled_from(sorted(GOOD)),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 40),
)
def test_good_messages_with_flipped_bytes(type_name: str, changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(ros_types.encode(type_name, GOOD[type_name]))
    assert consume(type_name, bytes(data))
    for place, value in changes:
        data[place % len(data)] = value
    consume(type_name, bytes(data[: len(data) - cut]))
