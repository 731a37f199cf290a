"""The bus inside one process, without any library: for tests, benchmarks and a robot driver in the same program.

A publisher's thread delivers each message to the subscribers' callbacks; late joiners get the last latched message.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from typing import Any

from embodied.deploy.bus import Handle, Publish, Receive
from embodied.deploy.contract import QosProfile


class Hub:
    """What the buses of one program share: the network, so to say."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.subscribers: dict[str, list[tuple[str, Receive, InprocBus]]] = defaultdict(list)
        self.services: dict[str, tuple[str, Handle]] = {}
        self.latched: dict[str, Any] = {}


class InprocBus:
    """One participant of a Hub."""

    def __init__(self, hub: Hub | None = None) -> None:
        self.hub = hub or Hub()
        self.counts: Counter[str] = Counter()
        self.running = False

    def start(self) -> None:
        self.running = True

    def stop(self) -> None:
        """Leaves the hub: its subscriptions end."""
        self.running = False
        with self.hub.lock:
            for entries in self.hub.subscribers.values():
                entries[:] = [entry for entry in entries if entry[2] is not self]

    def subscribe(self, topic: str, type_name: str, qos: QosProfile, receive: Receive) -> None:
        with self.hub.lock:
            self.hub.subscribers[topic].append((type_name, receive, self))
            latched = self.hub.latched.get(topic) if qos is QosProfile.latched else None
        if latched is not None:
            receive(latched)

    def advertise(self, topic: str, type_name: str, qos: QosProfile) -> Publish:
        def publish(message: Any) -> None:
            with self.hub.lock:
                entries = list(self.hub.subscribers[topic])
                if qos is QosProfile.latched:
                    self.hub.latched[topic] = message
            for wanted, receive, bus in entries:
                if not bus.running:
                    continue
                if wanted != type_name:
                    bus.counts[f"refused: {topic} is {type_name}, not {wanted}"] += 1
                    continue
                bus.counts["received"] += 1
                receive(message)

        return publish

    def serve(self, service: str, type_name: str, handle: Handle) -> None:
        with self.hub.lock:
            self.hub.services[service] = (type_name, handle)

    def call(self, service: str, type_name: str, request: Any, timeout_s: float = 5.0) -> Any:
        with self.hub.lock:
            entry = self.hub.services.get(service)
        if entry is None or entry[0] != type_name:
            raise TimeoutError(f"no answer from {service} ({type_name}) in {timeout_s} s")
        return entry[1](request)

    def report(self) -> dict[str, Any]:
        return dict(self.counts)
