"""Messages of a bus, neutral to the transport: objects with the field names of the ROS message definitions.

A transport hands over whatever object it decodes to, as long as it has these attributes; what the node sends is built
here from SimpleNamespace, and each transport turns it into its own classes. Times are nanoseconds since the epoch.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

SECOND = 1_000_000_000


def time_message(nanoseconds: int) -> SimpleNamespace:
    return SimpleNamespace(sec=int(nanoseconds // SECOND), nanosec=int(nanoseconds % SECOND))


def duration_message(seconds: float) -> SimpleNamespace:
    return time_message(round(seconds * SECOND))


def nanoseconds(stamp: Any) -> int:
    """builtin_interfaces/Time -> nanoseconds. ValueError when its nanoseconds make more than a second."""
    if not 0 <= int(stamp.nanosec) < SECOND:
        raise ValueError(f"a stamp's nanosec should be below {SECOND}, got {stamp.nanosec}")
    return int(stamp.sec) * SECOND + int(stamp.nanosec)


def header(stamp_ns: int, frame_id: str = "") -> SimpleNamespace:
    return SimpleNamespace(stamp=time_message(stamp_ns), frame_id=frame_id)


def image_message(image: np.ndarray, stamp_ns: int, frame_id: str = "camera") -> SimpleNamespace:
    """(H, W, 3) uint8 RGB -> sensor_msgs/msg/Image."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image should be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    height, width = image.shape[:2]
    return SimpleNamespace(
        header=header(stamp_ns, frame_id),
        height=height,
        width=width,
        encoding="rgb8",
        is_bigendian=0,
        step=3 * width,
        data=np.ascontiguousarray(image).reshape(-1),
    )


def joint_state_message(names: list[str], positions: np.ndarray, stamp_ns: int) -> SimpleNamespace:
    """Named values (N,) -> sensor_msgs/msg/JointState."""
    empty = np.zeros(0, np.float64)
    values = np.asarray(positions, np.float64)
    return SimpleNamespace(header=header(stamp_ns), name=list(names), position=values, velocity=empty, effort=empty)


def array_message(values: np.ndarray, label: str = "") -> SimpleNamespace:
    """(N,) -> std_msgs/msg/Float64MultiArray."""
    size = len(values)
    dim = [SimpleNamespace(label=label, size=size, stride=size)] if label else []
    layout = SimpleNamespace(dim=dim, data_offset=0)
    return SimpleNamespace(layout=layout, data=np.asarray(values, np.float64))


def twist_message(values: dict[str, float], stamp_ns: int, frame_id: str = "") -> SimpleNamespace:
    """Elements among vx vy vz wx wy wz -> geometry_msgs/msg/TwistStamped; those not named are zero."""
    linear = SimpleNamespace(**{axis: float(values.get(f"v{axis}", 0.0)) for axis in "xyz"})
    angular = SimpleNamespace(**{axis: float(values.get(f"w{axis}", 0.0)) for axis in "xyz"})
    return SimpleNamespace(header=header(stamp_ns, frame_id), twist=SimpleNamespace(linear=linear, angular=angular))


def trajectory_message(
    names: list[str], points: np.ndarray, period_s: float, stamp_ns: int, velocity: bool = False
) -> SimpleNamespace:
    """Points (n, N), the first due one period from now -> trajectory_msgs/msg/JointTrajectory."""
    empty = np.zeros(0, np.float64)
    rows = [np.asarray(point, np.float64) for point in points]
    made = [
        SimpleNamespace(
            positions=empty if velocity else row,
            velocities=row if velocity else empty,
            accelerations=empty,
            effort=empty,
            time_from_start=duration_message((i + 1) * period_s),
        )
        for i, row in enumerate(rows)
    ]
    return SimpleNamespace(header=header(stamp_ns), joint_names=list(names), points=made)


def text_message(text: str) -> SimpleNamespace:
    return SimpleNamespace(data=text)
