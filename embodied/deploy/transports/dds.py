"""The bus as a ROS 2 peer over DDS: cyclonedds for discovery and quality of service, rosbags for the bytes.

    bus = DdsBus("brain", domain_id=42)      # loopback unless another interface is named

Topics are shared with every vendor's ROS 2; services are rmw_cyclonedds' own. One thread waits on all readers.
Messages that are too large, do not decode or have a type we do not know are refused and counted, never raised.
"""

from __future__ import annotations

import os
import secrets
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from cyclonedds.core import DDSException, GuardCondition, Listener, ReadCondition, WaitSet
from cyclonedds.domain import Domain, DomainParticipant
from cyclonedds.pub import DataWriter
from cyclonedds.qos import Policy, Qos
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
from cyclonedds.util import duration

from embodied.deploy.bus import Handle, Publish, Receive
from embodied.deploy.contract import QosProfile
from embodied.deploy.transports import ros_types
from embodied.deploy.transports.dds_graph import Graph
from embodied.deploy.transports.dds_types import sample, service_class, topic_class

ANY = 0x7F  # every sample, view and instance state
BATCH = 32
RAW_HEADER = struct.Struct("<Qq")
CONFIG = (
    "<CycloneDDS><Domain><General><Interfaces><NetworkInterface {interface} multicast='{multicast}'/></Interfaces>"
    "<AllowMulticast>{allow}</AllowMulticast></General><Discovery><ParticipantIndex>auto</ParticipantIndex>"
    "<MaxAutoParticipantIndex>100</MaxAutoParticipantIndex>{peers}</Discovery></Domain></CycloneDDS>"
)
LOOPBACK_PEER = "<Peers><Peer Address='127.0.0.1'/></Peers>"

_domains: dict[int, Domain] = {}
_domains_lock = threading.Lock()


def domain_from_environment() -> int:
    """ROS_DOMAIN_ID, 0 where it is not set. ValueError when it is no number from 0 to 232."""
    value = os.environ.get("ROS_DOMAIN_ID") or "0"
    if not value.isdigit() or int(value) > 232:
        raise ValueError(f"ROS_DOMAIN_ID should be a number from 0 to 232, got {value!r}")
    return int(value)


class DdsBus:
    """One participant and one ROS node. `interface`: "lo" (the default), a network interface, or "auto"."""

    def __init__(
        self,
        name: str = "embodied",
        domain_id: int | None = None,
        interface: str = "lo",
        max_message_bytes: int = 16 * 2**20,
    ) -> None:
        self.domain_id = domain_from_environment() if domain_id is None else domain_id
        self.max_message_bytes = max_message_bytes
        self.counts: Counter[str] = Counter()
        _open_domain(self.domain_id, interface)
        self._participant: Any = DomainParticipant(self.domain_id, qos=Qos(Policy.Userdata(b"enclave=/;")))
        self._graph = Graph(self._participant, name)
        self._waitset = WaitSet(self._participant)
        self._wake = GuardCondition(self._participant)
        self._waitset.attach(self._wake)
        self._readers: list[tuple[DataReader, ReadCondition, Callable[[bytes], None], str]] = []
        self._topics: dict[str, Topic] = {}
        self._writers: list[DataWriter] = []
        self._pending: dict[tuple[int, int], Any] = {}
        self._clients: dict[str, tuple[DataWriter, DataReader]] = {}
        self._lock = threading.RLock()
        self._running = threading.Event()
        self._thread = threading.Thread(target=self._receive_all, name="dds", daemon=True)

    @property
    def place(self) -> str:
        return f"domain {self.domain_id}"

    def start(self) -> None:
        if not self._running.is_set():
            self._running.set()
            self._thread.start()

    def stop(self) -> None:
        """Leaves the network; peers see the endpoints go."""
        if self._participant is None:
            return
        self._running.clear()
        self._wake.set(True)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=5)
        with self._lock:
            self._readers, self._topics, self._clients = [], {}, {}
            self._writers = []
            self._graph.close()
            del self._waitset, self._wake
            self._participant = None

    def subscribe(self, topic: str, type_name: str, qos: QosProfile, receive: Receive) -> None:
        def take(data: bytes) -> None:
            receive(ros_types.decode(type_name, data))

        with self._lock:
            entity = self._topic(f"rt{_absolute(topic)}", topic_class(_checked(type_name)))
            reader = self._reader(entity, _qos(qos, f"typehash={ros_types.type_hash(type_name)};"), take, topic)
            self._graph.add_reader(reader)

    def advertise(self, topic: str, type_name: str, qos: QosProfile) -> Publish:
        with self._lock:
            kind = topic_class(_checked(type_name))
            writer = self._writer(
                self._topic(f"rt{_absolute(topic)}", kind),
                _qos(qos, f"typehash={ros_types.type_hash(type_name)};"),
                topic,
            )
            self._graph.add_writer(writer)

        def publish(message: Any) -> None:
            self._write(writer, sample(kind, ros_types.encode(type_name, message)), topic)

        return publish

    def serve(self, service: str, type_name: str, handle: Handle) -> None:
        with self._lock:
            request_kind, reply_kind, qos = self._service_parts(type_name)
            writer = self._writer(self._topic(f"rr{_absolute(service)}Reply", reply_kind), qos, service)

            def take(data: bytes) -> None:
                identity, body = _split(data)
                response = handle(ros_types.decode(f"{type_name}_Request", body))
                encoded = ros_types.encode(f"{type_name}_Response", response)
                self._write(writer, sample(reply_kind, encoded[:4] + identity + encoded[4:]), service)

            entity = self._topic(f"rq{_absolute(service)}Request", request_kind)
            self._graph.add_reader(self._reader(entity, qos, take, service))
            self._graph.add_writer(writer)

    def call(self, service: str, type_name: str, request: Any, timeout_s: float = 5.0) -> Any:
        """Never from a callback of this bus: the answer comes through the thread that runs it."""
        writer = self._client(service, type_name)
        end = time.monotonic() + timeout_s
        while not (writer[0].get_matched_subscriptions() and writer[1].get_matched_publications()):
            if time.monotonic() > end:
                raise TimeoutError(f"no service {service} ({type_name}) appeared in {timeout_s} s")
            time.sleep(0.005)
        identity = (int.from_bytes(secrets.token_bytes(8), "little"), secrets.randbelow(2**62))
        waiting = SimpleNamespace(done=threading.Event(), response=None)
        self._pending[identity] = waiting
        encoded = ros_types.encode(f"{type_name}_Request", request)
        data = encoded[:4] + RAW_HEADER.pack(*identity) + encoded[4:]
        self._write(writer[0], sample(writer[0].data_type, data), service)
        answered = waiting.done.wait(max(0.0, end - time.monotonic()))
        del self._pending[identity]
        if not answered:
            raise TimeoutError(f"no answer from {service} in {timeout_s} s")
        return waiting.response

    def report(self) -> dict[str, Any]:
        return dict(self.counts)

    def peers(self) -> list[str]:
        """Full names of the ROS nodes seen on the network."""
        return self._graph.peers()

    def _client(self, service: str, type_name: str) -> tuple[DataWriter, DataReader]:
        with self._lock:
            if service in self._clients:
                return self._clients[service]
            request_kind, reply_kind, qos = self._service_parts(type_name)

            def take(data: bytes) -> None:
                identity, body = _split(data)
                waiting = self._pending.get(RAW_HEADER.unpack(identity))
                if waiting is not None:
                    waiting.response = ros_types.decode(f"{type_name}_Response", body)
                    waiting.done.set()

            reader = self._reader(self._topic(f"rr{_absolute(service)}Reply", reply_kind), qos, take, service)
            writer = self._writer(self._topic(f"rq{_absolute(service)}Request", request_kind), qos, service)
            self._graph.add_reader(reader)
            self._graph.add_writer(writer)
            self._clients[service] = (writer, reader)
            return self._clients[service]

    def _service_parts(self, type_name: str) -> tuple[Any, Any, Qos]:
        kinds = [service_class(_checked(f"{type_name}_{part}")) for part in ("Request", "Response")]
        identity = ".".join(f"{byte:02x}" for byte in secrets.token_bytes(16))
        return kinds[0], kinds[1], _qos(QosProfile.reliable, f"serviceid={identity};")

    def _topic(self, name: str, kind: Any) -> Topic:
        if name not in self._topics:
            self._topics[name] = Topic(self._participant, name, kind)
        return self._topics[name]

    def _reader(self, topic: Topic, qos: Qos, take: Callable[[bytes], None], name: str) -> DataReader:
        def incompatible(_: DataReader, status: Any) -> None:
            self.counts[f"incompatible_qos: {name} (policy {status.last_policy_id})"] += 1

        reader = DataReader(
            self._participant, topic, qos=qos, listener=Listener(on_requested_incompatible_qos=incompatible)
        )
        condition = ReadCondition(reader, ANY)
        self._readers.append((reader, condition, take, name))
        self._waitset.attach(condition)
        self._wake.set(True)
        return reader

    def _writer(self, topic: Topic, qos: Qos, name: str) -> DataWriter:
        def incompatible(_: DataWriter, status: Any) -> None:
            self.counts[f"incompatible_qos: {name} (policy {status.last_policy_id})"] += 1

        writer = DataWriter(
            self._participant, topic, qos=qos, listener=Listener(on_offered_incompatible_qos=incompatible)
        )
        self._writers.append(writer)
        return writer

    def _write(self, writer: DataWriter, value: Any, name: str) -> None:
        try:
            writer.write(value)
        except DDSException as error:
            self.counts[f"not sent: {name} (DDS {error.code})"] += 1

    def _receive_all(self) -> None:
        while self._running.is_set():
            try:
                self._waitset.wait(duration(milliseconds=200))
            except DDSException:
                self.counts["wait failed"] += 1
                time.sleep(0.05)
                continue
            self._wake.set(False)
            with self._lock:
                readers = list(self._readers)
            for reader, condition, take, name in readers:
                self._take(reader, condition, take, name)

    def _take(self, reader: DataReader, condition: ReadCondition, take: Callable[[bytes], None], name: str) -> None:
        try:
            samples = reader.take(BATCH, condition)
        except DDSException as error:
            self.counts[f"not taken: {name} (DDS {error.code})"] += 1
            return
        for got in samples:
            data = getattr(got, "data", None)
            if data is None:
                continue  # a writer that went
            if len(data) > self.max_message_bytes:
                self.counts[f"refused, too large: {name}"] += 1
                continue
            self.counts["received"] += 1
            try:
                take(data)
            except ValueError:
                self.counts[f"refused: {name}"] += 1


def _split(data: bytes) -> tuple[bytes, bytes]:
    """A service message: the 16 bytes that identify the call, and the message without them."""
    if len(data) < 4 + RAW_HEADER.size or data[:2] != b"\x00\x01":
        raise ValueError(f"a service message should be little-endian CDR of 20 bytes or more, got {len(data)}")
    return data[4 : 4 + RAW_HEADER.size], data[:4] + data[4 + RAW_HEADER.size :]


def _absolute(name: str) -> str:
    return name if name.startswith("/") else f"/{name}"


def _checked(type_name: str) -> str:
    if not ros_types.known(type_name):
        raise ValueError(f"message type should be a known one, got {type_name!r}: ros_types.register adds others")
    return type_name


def _qos(profile: QosProfile, userdata: str) -> Qos:
    policies: list[Any] = [
        Policy.DataRepresentation(use_cdrv0_representation=True),
        Policy.Userdata(userdata.encode()),
    ]
    if profile is QosProfile.sensor:
        policies += [Policy.Reliability.BestEffort, Policy.History.KeepLast(5), Policy.Durability.Volatile]
    elif profile is QosProfile.latched:
        policies += [Policy.Reliability.Reliable(duration(milliseconds=100)), Policy.History.KeepLast(1)]
        policies.append(Policy.Durability.TransientLocal)
    else:
        policies += [Policy.Reliability.Reliable(duration(milliseconds=100)), Policy.History.KeepLast(10)]
        policies.append(Policy.Durability.Volatile)
    return Qos(*policies)


def _open_domain(domain_id: int, interface: str) -> None:
    """A domain has one configuration a process. CYCLONEDDS_URI, where it is set, rules instead of ours."""
    if os.environ.get("CYCLONEDDS_URI") or interface == "auto":
        return
    loopback = interface == "lo"
    config = CONFIG.format(
        interface=f"name='{interface}'",
        multicast="default",
        allow="false" if loopback else "default",
        peers=LOOPBACK_PEER if loopback else "",
    )
    with _domains_lock:
        if domain_id not in _domains:
            _domains[domain_id] = Domain(domain_id, config)
