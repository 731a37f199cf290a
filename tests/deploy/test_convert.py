"""Messages to features and actions to messages, with numbers worked out by hand."""

from __future__ import annotations

import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from embodied.deploy import messages
from embodied.deploy.contract import ActionMode, ActionOutput, StampSource, Stream
from embodied.deploy.convert import decode, decode_action, encode_action, stamp_of
from embodied.schema import IMAGE, STATE

JOINTS = Stream(
    feature=STATE,
    type="sensor_msgs/msg/JointState",
    topic="/j",
    names=["b", "a"],
    unit="deg",
    feature_unit="rad",
)
CAMERA = Stream(feature=IMAGE, type="sensor_msgs/msg/Image", topic="/c")


def test_joint_order_and_unit() -> None:
    message = messages.joint_state_message(["a", "x", "b"], np.array([180.0, 5.0, 90.0]), 0)
    np.testing.assert_allclose(decode(JOINTS, message), [np.pi / 2, np.pi], rtol=1e-6)


def test_missing_joint_and_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="should carry a"):
        decode(JOINTS, messages.joint_state_message(["b"], np.zeros(1), 0))
    with pytest.raises(ValueError, match="finite"):
        decode(JOINTS, messages.joint_state_message(["a", "b"], np.array([1.0, np.nan]), 0))
    with pytest.raises(ValueError, match="as many values as names"):
        decode(JOINTS, messages.joint_state_message(["a", "b"], np.zeros(3), 0))
    with pytest.raises(ValueError, match="something else"):
        decode(JOINTS, SimpleNamespace(data="x"))


def image(data: bytes, width: int, height: int, encoding: str, step: int) -> SimpleNamespace:
    return SimpleNamespace(height=height, width=width, encoding=encoding, step=step, data=np.frombuffer(data, np.uint8))


def test_bgr_with_padded_rows() -> None:
    """Two pixels a row, rows of 8 bytes: the last two bytes of a row are padding."""
    got = decode(CAMERA, image(bytes([1, 2, 3, 4, 5, 6, 0, 0] * 2), 2, 2, "bgr8", 8))
    assert np.asarray(got)[1].tolist() == [[3, 2, 1], [6, 5, 4]]


@pytest.mark.parametrize(
    ("width", "height", "encoding", "step", "size"),
    [
        (2, 2, "rgb8", 6, 11),
        (2, 2, "rgb8", 5, 10),
        (0, 2, "rgb8", 6, 12),
        (2, 2, "32FC1", 8, 16),
        (9000, 1, "mono8", 9000, 9000),
    ],
)
def test_images_that_make_no_sense(width: int, height: int, encoding: str, step: int, size: int) -> None:
    with pytest.raises(ValueError, match="image"):
        decode(CAMERA, image(bytes(size), width, height, encoding, step))


def test_rotation_and_size() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:2, :2] = 200
    stream = Stream(feature=IMAGE, type="sensor_msgs/msg/Image", topic="/c", size=2, rotate_180=True)
    got = np.asarray(decode(stream, messages.image_message(pixels, 0)))
    assert got.shape == (2, 2, 3)
    assert got[1, 1, 0] > 120
    assert got[0, 0, 0] < 50
    mirrored = replace(stream, rotate_180=False, mirrored=True)
    got = np.asarray(decode(mirrored, messages.image_message(pixels, 0)))
    assert got[0, 1, 0] > 120
    assert got[0, 0, 0] < 50


def test_compressed_image_is_jpeg_or_png_only() -> None:
    stream = Stream(feature=IMAGE, type="sensor_msgs/msg/CompressedImage", topic="/c")
    pixels = np.full((3, 5, 3), 77, np.uint8)
    for kind, good in (("PNG", True), ("GIF", False)):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        message = SimpleNamespace(data=np.frombuffer(buffer.getvalue(), np.uint8))
        if good:
            np.testing.assert_array_equal(np.asarray(decode(stream, message)), pixels)
        else:
            with pytest.raises(ValueError, match="JPEG or PNG"):
                decode(stream, message)


def test_pose_is_position_and_axis_angle() -> None:
    """A quarter turn about z; the opposite quaternion means the same rotation."""
    names = ["x", "y", "z", "rx", "ry", "rz"]
    stream = Stream(feature=STATE, type="geometry_msgs/msg/PoseStamped", topic="/p", names=names)
    half = np.sqrt(0.5)
    for sign in (1, -1):
        pose = SimpleNamespace(
            position=SimpleNamespace(x=1.0, y=2.0, z=3.0),
            orientation=SimpleNamespace(x=0.0, y=0.0, z=sign * half, w=sign * half),
        )
        np.testing.assert_allclose(decode(stream, SimpleNamespace(pose=pose)), [1, 2, 3, 0, 0, np.pi / 2], atol=1e-6)


def test_stamps() -> None:
    message = messages.joint_state_message(["a", "b"], np.zeros(2), 1_500_000_000)
    assert stamp_of(JOINTS, message, 7) == 1_500_000_000
    assert stamp_of(JOINTS, messages.joint_state_message([], np.zeros(0), 0), 7) == 7
    received = Stream(feature=STATE, type="sensor_msgs/msg/JointState", topic="/j", stamp=StampSource.receive)
    assert stamp_of(received, message, 7) == 7
    message.header.stamp.nanosec = 2_000_000_000
    with pytest.raises(ValueError, match="nanosec"):
        stamp_of(JOINTS, message, 7)


OUTPUTS = [
    ("trajectory_msgs/msg/JointTrajectory", ActionMode.position, ["a", "b"]),
    ("trajectory_msgs/msg/JointTrajectory", ActionMode.velocity, ["a", "b"]),
    ("sensor_msgs/msg/JointState", ActionMode.position, ["a", "b"]),
    ("std_msgs/msg/Float64MultiArray", ActionMode.delta, ["a", "b"]),
    ("geometry_msgs/msg/TwistStamped", ActionMode.velocity, ["wz", "vx"]),
]


@pytest.mark.parametrize(("kind", "mode", "names"), OUTPUTS)
@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=2))
def test_actions_come_back(kind: str, mode: ActionMode, names: list[str], values: list[float]) -> None:
    output = ActionOutput(type=kind, topic="/c", names=names, mode=mode, unit="deg", feature_unit="rad")
    action = np.array(values, np.float32)
    message = encode_action(output, action, 3_000_000_001, 0.05)
    np.testing.assert_allclose(decode_action(output, message), action, rtol=1e-5, atol=1e-6)


def test_trajectory_carries_time_and_unit() -> None:
    output = ActionOutput(
        type="trajectory_msgs/msg/JointTrajectory", topic="/c", names=["a"], unit="deg", feature_unit="rad"
    )
    message = encode_action(output, np.array([np.pi]), 3_000_000_001, 0.05)
    assert message.points[0].positions[0] == pytest.approx(180)
    assert (message.points[0].time_from_start.sec, message.points[0].time_from_start.nanosec) == (0, 50_000_000)
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (3, 1)


def test_openpi_images_float_and_channels_first() -> None:
    stream = Stream(feature=IMAGE, type="array", key="observation/image")
    floats = np.zeros((3, 2, 4), np.float32)
    floats[1] = 1.0
    got = np.asarray(decode(stream, floats))
    assert got.shape == (2, 4, 3)
    assert got[0, 0].tolist() == [0, 255, 0]
    with pytest.raises(ValueError, match="image"):
        decode(stream, np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match="numbers"):
        decode(stream, np.array(["x"]))
