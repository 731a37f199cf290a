"""What every transport of messages offers the node and the simulated robot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from embodied.deploy.contract import QosProfile

Receive = Callable[[Any], None]
Publish = Callable[[Any], None]
Handle = Callable[[Any], Any]


class Bus(Protocol):
    """Topics and services by their ROS names and types. Messages have the fields of the ROS definitions.

    A callback runs in the transport's thread and must not block. What a peer sends wrongly is refused, counted and
    shown by `report`; it raises nothing here.
    """

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def subscribe(self, topic: str, type_name: str, qos: QosProfile, receive: Receive) -> None: ...

    def advertise(self, topic: str, type_name: str, qos: QosProfile) -> Publish: ...

    def serve(self, service: str, type_name: str, handle: Handle) -> None: ...

    def call(self, service: str, type_name: str, request: Any, timeout_s: float = 5.0) -> Any:
        """The response. TimeoutError when none comes."""
        ...

    def report(self) -> dict[str, Any]:
        """Counts by name: received, refused, incompatible QoS, ..."""
        ...
