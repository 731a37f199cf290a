"""Message -> feature and action -> message, as the contract says. Anything not as expected is a ValueError.

Used by the live node, the policy server and the import of bags alike. Features are in the policy's units and order:
images (H, W, 3) uint8 RGB, vectors (N,) float32, the task a string.
"""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import numpy as np

from embodied.deploy import messages
from embodied.deploy.contract import POSE_NAMES, TWIST_NAMES, ActionMode, ActionOutput, StampSource, Stream, unit_factor

CHANNELS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}
MAX_SIDE = 8192
MAX_TEXT = 4096
Feature = np.ndarray | str


def decode(stream: Stream, message: Any) -> Feature:
    """The feature that a message carries. ValueError: what was expected and what came."""
    try:
        value = _select(stream, message)
    except (AttributeError, TypeError, KeyError, IndexError, OverflowError) as error:
        raise ValueError(f"{stream.place} should carry {stream.type}, got something else: {error}") from error
    if isinstance(value, str):
        return value
    if value.dtype == np.uint8 and value.ndim == 3:
        return _fit(stream, value)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
        vector = (value.astype(np.float64) * unit_factor(stream.unit, stream.feature_unit)).astype(np.float32)
    if not np.isfinite(vector).all():
        raise ValueError(f"{stream.place} should be finite, element {int(np.argmin(np.isfinite(vector)))} is not")
    if len(vector) != len(stream.names):
        raise ValueError(f"{stream.place} should have {len(stream.names)} elements, got {len(vector)}")
    return vector


def stamp_of(stream: Stream, message: Any, received_ns: int) -> int:
    """When the message was measured, in nanoseconds; the time of receipt where it does not say."""
    if stream.stamp is StampSource.receive or not hasattr(message, "header"):
        return received_ns
    return messages.nanoseconds(message.header.stamp) or received_ns


def encode_action(output: ActionOutput, action: np.ndarray, stamp_ns: int, period_s: float) -> SimpleNamespace:
    """One action (N,) in the policy's units -> the message of the contract's type."""
    values = np.asarray(action, np.float64) * unit_factor(output.feature_unit, output.unit)
    names = list(output.names)
    if len(values) != len(names):
        raise ValueError(f"an action should have {len(names)} elements, got {len(values)}")
    if output.type == "trajectory_msgs/msg/JointTrajectory":
        velocity = output.mode is ActionMode.velocity
        return messages.trajectory_message(names, values[None], period_s, stamp_ns, velocity)
    if output.type == "sensor_msgs/msg/JointState":
        return messages.joint_state_message(names, values, stamp_ns)
    if output.type == "geometry_msgs/msg/TwistStamped":
        return messages.twist_message(dict(zip(names, values, strict=True)), stamp_ns, output.frame_id)
    return messages.array_message(values, label="action")


def decode_action(output: ActionOutput, message: Any) -> np.ndarray:
    """The inverse of `encode_action`: what a robot, or the import of a bag, reads from a command. (N,) float32."""
    try:
        values = _action_values(output, message)
    except (AttributeError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"{output.topic} should carry {output.type}, got something else: {error}") from error
    if values.shape != (len(output.names),) or not np.isfinite(values).all():
        raise ValueError(f"{output.topic} should carry {len(output.names)} finite numbers, got {values.shape}")
    return (values * unit_factor(output.unit, output.feature_unit)).astype(np.float32)


def _action_values(output: ActionOutput, message: Any) -> np.ndarray:
    if output.type == "trajectory_msgs/msg/JointTrajectory":
        point = message.points[0]
        values = point.velocities if output.mode is ActionMode.velocity else point.positions
        return _by_name(output.topic, list(output.names), list(message.joint_names), np.asarray(values, np.float64))
    if output.type == "sensor_msgs/msg/JointState":
        return _by_name(output.topic, list(output.names), list(message.name), np.asarray(message.position, np.float64))
    if output.type == "geometry_msgs/msg/TwistStamped":
        twist = dict(zip(TWIST_NAMES, _twist(message.twist), strict=True))
        return np.array([twist[name] for name in output.names], np.float64)
    return np.asarray(message.data, np.float64)


def _select(stream: Stream, message: Any) -> Feature:
    if stream.type == "sensor_msgs/msg/Image":
        return _raw_image(message)
    if stream.type == "sensor_msgs/msg/CompressedImage":
        return _compressed_image(message)
    if stream.type == "array":
        return _array(stream, message)
    if stream.type == "std_msgs/msg/String":
        return _text(message.data)
    if stream.type == "sensor_msgs/msg/JointState":
        values = np.asarray(getattr(message, stream.selector or "position"), np.float64)
        return _by_name(stream.place, list(stream.names), list(message.name), values)
    if stream.type == "geometry_msgs/msg/PoseStamped":
        return _named(stream, POSE_NAMES, _pose(message.pose))
    if stream.type == "geometry_msgs/msg/TwistStamped":
        return _named(stream, TWIST_NAMES, _twist(message.twist))
    return np.asarray(message.data, np.float64)


def _named(stream: Stream, known: tuple[str, ...], values: list[float]) -> np.ndarray:
    """The elements that the stream asks for; elements of other names are taken in order if all are asked for."""
    if set(stream.names) <= set(known):
        return np.array([values[known.index(name)] for name in stream.names], np.float64)
    return np.array(values, np.float64)


def _by_name(place: str, wanted: list[str], given: list[str], values: np.ndarray) -> np.ndarray:
    if len(given) != len(values):
        raise ValueError(f"{place} should have as many values as names, got {len(values)} for {len(given)} names")
    missing = [name for name in wanted if name not in given]
    if missing:
        raise ValueError(f"{place} should carry {', '.join(missing)}, it has {', '.join(given[:20])}")
    return values[[given.index(name) for name in wanted]]


def _pose(pose: Any) -> list[float]:
    """Position and axis-angle (3 + 3); the quaternion is normalised, its sign chosen so that the angle is <= pi."""
    q = np.array([pose.orientation.x, pose.orientation.y, pose.orientation.z, pose.orientation.w], np.float64)
    norm = np.linalg.norm(q)
    if not np.isfinite(norm) or norm < 1e-6:
        raise ValueError(f"a quaternion should have length 1, got {q.tolist()}")
    q = q / norm if q[3] >= 0 else -q / norm
    sine = np.linalg.norm(q[:3])
    scale = 2.0 if sine < 1e-9 else 2.0 * np.arctan2(sine, q[3]) / sine
    return [pose.position.x, pose.position.y, pose.position.z, *(q[:3] * scale)]


def _twist(twist: Any) -> list[float]:
    return [twist.linear.x, twist.linear.y, twist.linear.z, twist.angular.x, twist.angular.y, twist.angular.z]


def _text(text: Any) -> str:
    if not isinstance(text, str) or not 0 < len(text) <= MAX_TEXT:
        raise ValueError(f"a text should be a string of 1 to {MAX_TEXT} characters")
    return text


def _array(stream: Stream, value: Any) -> Feature:
    if stream.feature == "task":
        return _text(value)
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{stream.place} should be numbers, got dtype {array.dtype}")
    if ".images." not in stream.feature:
        return array.astype(np.float64).reshape(-1)
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        array = array.transpose(1, 2, 0)
    if array.dtype.kind == "f" and array.size and np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1:
        array = np.round(array * 255).astype(np.uint8)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(f"{stream.place} should be an image (H, W, 3) uint8, got {array.shape} {array.dtype}")
    return array


def _raw_image(message: Any) -> np.ndarray:
    channels = CHANNELS.get(message.encoding)
    if channels is None:
        raise ValueError(f"an image's encoding should be one of {', '.join(CHANNELS)}, got {message.encoding!r}")
    height, width, step = int(message.height), int(message.width), int(message.step)
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE and step >= width * channels):
        raise ValueError(f"an image of {width} x {height} {message.encoding} with step {step} makes no sense")
    data = np.asarray(message.data, np.uint8)
    if data.size != height * step:
        raise ValueError(f"an image of {height} rows of {step} bytes should have {height * step}, got {data.size}")
    rows = data.reshape(height, step)[:, : width * channels].reshape(height, width, channels)
    if channels == 1:
        return np.repeat(rows, 3, axis=2)
    return rows[:, :, :3] if message.encoding.startswith("rgb") else rows[:, :, 2::-1]


def _compressed_image(message: Any) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(bytes(message.data)), formats=("JPEG", "PNG")) as picture:
            if max(picture.size) > MAX_SIDE:
                raise ValueError(f"an image should be at most {MAX_SIDE} pixels a side, got {picture.size}")
            return np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"a compressed image should be JPEG or PNG: {error}") from error


def _fit(stream: Stream, image: np.ndarray) -> np.ndarray:
    if stream.rotate_180:
        image = image[::-1, ::-1]
    if stream.mirrored:
        image = image[:, ::-1]
    if stream.size and image.shape[:2] != (stream.size, stream.size):
        from embodied.data.resize import resize_frames

        image = resize_frames(np.array(image)[None], (stream.size, stream.size))[0]
    return np.ascontiguousarray(image)
