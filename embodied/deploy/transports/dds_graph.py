"""The ROS graph over DDS: which nodes there are and which endpoints are theirs, on `ros_discovery_info`."""

from __future__ import annotations

import threading
from types import SimpleNamespace as Ns
from typing import Any

import numpy as np
from cyclonedds.core import DDSException, Entity, ReadCondition
from cyclonedds.domain import DomainParticipant
from cyclonedds.pub import DataWriter
from cyclonedds.qos import Policy, Qos
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
from cyclonedds.util import duration

from embodied.deploy.transports import ros_types
from embodied.deploy.transports.dds_types import sample, topic_class

TYPE = "rmw_dds_common/msg/ParticipantEntitiesInfo"
NAME = "ros_discovery_info"


class Graph:
    """Announces one node; `peers` lists the others."""

    def __init__(self, participant: DomainParticipant, node_name: str) -> None:
        self.node_name = node_name.strip("/")
        self._lock = threading.RLock()
        self._kind = topic_class(TYPE)
        self._topic = Topic(participant, NAME, self._kind)
        qos = Qos(
            Policy.Reliability.Reliable(duration(milliseconds=100)),
            Policy.Durability.TransientLocal,
            Policy.History.KeepLast(1),
            Policy.DataRepresentation(use_cdrv0_representation=True),
            Policy.Userdata(f"typehash={ros_types.type_hash(TYPE)};".encode()),
        )
        self._writer = DataWriter(participant, self._topic, qos=qos)
        # every participant is one writer without a key: keep what all of them said
        self._reader = DataReader(participant, self._topic, qos=qos + Qos(Policy.History.KeepAll))
        self._condition = ReadCondition(self._reader, 0x7F)
        self._participant_gid = _gid(participant)
        self._readers: list[Ns] = []
        self._writers: list[Ns] = []
        self._seen: dict[bytes, list[str]] = {}
        self._announce()

    def add_reader(self, reader: DataReader) -> None:
        with self._lock:
            self._readers.append(_gid(reader))
            self._announce()

    def add_writer(self, writer: DataWriter) -> None:
        with self._lock:
            self._writers.append(_gid(writer))
            self._announce()

    def peers(self) -> list[str]:
        """Full names of the nodes announced so far, our own left out."""
        own = bytes(self._participant_gid.data)
        with self._lock:
            for got in self._reader.take(100, self._condition):
                self._note(getattr(got, "data", None))
            return sorted(name for gid, names in self._seen.items() if gid != own for name in names)

    def close(self) -> None:
        """Lets go of the endpoints."""
        with self._lock:
            del self._condition, self._reader, self._writer, self._topic

    def _note(self, data: bytes | None) -> None:
        if data is None:
            return
        try:
            info = ros_types.decode(TYPE, data)
        except ValueError:
            return
        names = [f"{node.node_namespace.rstrip('/')}/{node.node_name}" for node in info.node_entities_info_seq]
        self._seen[bytes(info.gid.data)] = names

    def _announce(self) -> None:
        node = Ns(
            node_namespace="/",
            node_name=self.node_name,
            reader_gid_seq=self._readers,
            writer_gid_seq=self._writers,
        )
        message = Ns(gid=self._participant_gid, node_entities_info_seq=[node])
        try:
            self._writer.write(sample(self._kind, ros_types.encode(TYPE, message)))
        except DDSException as error:
            raise ValueError(f"the ROS graph cannot be announced: {error.msg}") from error


def _gid(entity: Entity) -> Any:
    return Ns(data=np.frombuffer(entity.guid.bytes, np.uint8))
