"""The bus as a ROS 1 node: rospy for discovery and connections, rosbags for the bytes.

rospy comes with a ROS 1 install (Debian and Ubuntu: `apt install ros-core`), not from PyPI. Where this Python does not
find it, the system's folders are looked through. Message packages are not needed. ROS 1 knows no lifecycle and no
parameter services: what has no ROS 1 type is left out (`report` counts it). One bus a process: rospy has one node.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

from embodied.deploy.bus import Handle, Publish, Receive
from embodied.deploy.contract import QosProfile
from embodied.deploy.transports import ros_types

PLACES = ("/opt/ros/noetic/lib/python3/dist-packages", "/usr/lib/python3/dist-packages")
SERVICES = ("std_srvs/srv/Trigger", "std_srvs/srv/SetBool")
DEPTH = {QosProfile.sensor: 5, QosProfile.reliable: 10, QosProfile.latched: 1}
_node: list[str] = []


@cache
def rospy() -> Any:
    """The module. ValueError where it is not installed."""
    for place in ("", *PLACES):
        if place and (Path(place) / "rospy").is_dir():
            sys.path.append(place)  # last: nothing of this environment is replaced
        try:
            return importlib.import_module("rospy")
        except ImportError:
            continue
    raise ValueError("ROS 1 needs rospy, which comes with a ROS 1 install (apt install ros-core): it is not found")


class Ros1Bus:
    """Topics and Trigger services at the master of ROS_MASTER_URI."""

    def __init__(self, name: str = "embodied", max_message_bytes: int = 16 * 2**20) -> None:
        self.max_message_bytes = max_message_bytes
        self.counts: Counter[str] = Counter()
        self._ends: list[Any] = []
        self._stopped = False
        wanted = name.strip("/")
        if _node and _node[0] != wanted:
            raise ValueError(f"rospy has one node a process, it is {_node[0]!r}: start {wanted!r} in another")
        if not _node:
            rospy().init_node(wanted, disable_signals=True, disable_rostime=True)
            _node.append(wanted)

    @property
    def place(self) -> str:
        return f"ROS 1 master {os.environ.get('ROS_MASTER_URI', 'http://localhost:11311')}"

    def start(self) -> None:
        """rospy's threads run already."""

    def stop(self) -> None:
        """Takes everything of this bus from the master."""
        self._stopped = True
        for end in self._ends:
            end.shutdown("stop") if hasattr(end, "shutdown") else end.unregister()
        self._ends = []

    def subscribe(self, topic: str, type_name: str, qos: QosProfile, receive: Receive) -> None:
        def take(raw: Any) -> None:
            if self._stopped:
                return
            if len(raw.data) > self.max_message_bytes:
                self.counts[f"refused, too large: {topic}"] += 1
                return
            self.counts["received"] += 1
            try:
                receive(ros_types.decode_ros1(type_name, raw.data))
            except ValueError:
                self.counts[f"refused: {topic}"] += 1

        kind = message_class(type_name)
        self._ends.append(rospy().Subscriber(topic, kind, take, queue_size=DEPTH[qos], tcp_nodelay=True))

    def advertise(self, topic: str, type_name: str, qos: QosProfile) -> Publish:
        if type_name not in ros_types.ros1_typestore().fielddefs:
            self.counts[f"no ROS 1 type: {topic}"] += 1
            return lambda _: None
        kind, client = message_class(type_name), rospy()
        publisher = client.Publisher(
            topic, kind, queue_size=DEPTH[qos], latch=qos is QosProfile.latched, tcp_nodelay=True
        )
        self._ends.append(publisher)

        def publish(message: Any) -> None:
            try:
                publisher.publish(kind(ros_types.encode_ros1(type_name, message)))
            except client.ROSException:  # closed meanwhile
                self.counts[f"not sent: {topic}"] += 1

        return publish

    def serve(self, service: str, type_name: str, handle: Handle) -> None:
        if type_name not in SERVICES:
            self.counts[f"no ROS 1 type: {service}"] += 1
            return
        kind = service_class(type_name)

        def answer(request: Any) -> Any:
            return kind._response_class(_encode(type_name, "Response", handle(_decode(type_name, "Request", request))))

        self._ends.append(rospy().Service(service, kind, answer))

    def call(self, service: str, type_name: str, request: Any, timeout_s: float = 5.0) -> Any:
        kind, client, end = service_class(type_name), rospy(), time.monotonic() + timeout_s
        try:
            client.wait_for_service(service, timeout=max(0.01, end - time.monotonic()))
            raw = client.ServiceProxy(service, kind)(kind._request_class(_encode(type_name, "Request", request)))
        except (client.ROSException, client.ServiceException) as error:
            raise TimeoutError(f"no answer from {service} in {timeout_s} s: {error}") from error
        return _decode(type_name, "Response", raw)

    def report(self) -> dict[str, Any]:
        return dict(self.counts)


@cache
def message_class(type_name: str) -> Any:
    """A class for rospy that carries the bytes as they are. ValueError for a type that ROS 1 does not have."""
    store = ros_types.ros1_typestore()
    if type_name not in store.fielddefs:
        raise ValueError(f"message type should be one of ROS 1's, got {type_name!r}")
    text, digest = store.generate_msgdef(type_name, ros_version=1)
    return _raw_class(type_name.replace("/msg/", "/"), digest, text)


@cache
def service_class(type_name: str) -> Any:
    """The same for a service. Its md5 sum is that of both its texts."""
    if type_name not in SERVICES:
        raise ValueError(f"service type should be one of {', '.join(SERVICES)} in ROS 1, got {type_name!r}")
    texts, name = ros_types.SERVICES[type_name], type_name.replace("/srv/", "/")
    parts = [
        _raw_class(f"{name}{part}", _md5(text), text) for part, text in zip(("Request", "Response"), texts, strict=True)
    ]
    values = {"_type": name, "_md5sum": _md5("".join(texts)), "_request_class": parts[0], "_response_class": parts[1]}
    return type(name.rpartition("/")[2], (), values)


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _raw_class(name: str, digest: str, text: str) -> Any:
    rospy()
    base: Any = importlib.import_module("genpy").Message

    class Raw(base):
        __slots__ = ("data",)
        _slot_types = ("uint8[]",)
        _type, _md5sum, _full_text, _has_header = name, digest, text, False

        def __init__(self, data: bytes = b"") -> None:
            self.data = data

        def serialize(self, buffer: Any) -> None:
            buffer.write(self.data)

        def deserialize(self, data: bytes) -> Any:
            self.data = bytes(data)
            return self

    return Raw


def _encode(type_name: str, part: str, message: Any) -> bytes:
    """Trigger and SetBool only: a bool, then for a response a string."""
    if part == "Request":
        return b"" if type_name.endswith("Trigger") else bytes([bool(message.data)])
    words = str(message.message).encode()
    return bytes([bool(message.success)]) + len(words).to_bytes(4, "little") + words


def _decode(type_name: str, part: str, raw: Any) -> Any:
    from types import SimpleNamespace as Ns

    data = raw.data
    if part == "Request":
        return Ns() if type_name.endswith("Trigger") else Ns(data=bool(data[:1] == b"\x01"))
    return Ns(success=bool(data[:1] == b"\x01"), message=data[5:].decode(errors="replace"))
