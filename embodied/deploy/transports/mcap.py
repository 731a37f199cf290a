"""Bags: MCAP files of ROS 2 messages (rosbag2 layout), written and read through rosbags.

Any tool of ROS 2 reads them: `ros2 bag play`, Foxglove, `mcap` readers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.rosbag2.errors import ReaderError, WriterError

from embodied.deploy.transports import ros_types


class BagWriter:
    """A new bag folder. Topics are added as they come."""

    def __init__(self, folder: Path) -> None:
        try:
            self._writer = Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP)
            self._writer.open()
        except WriterError as error:
            raise ValueError(f"{folder} should be a new folder for a bag: {error}") from error
        self._connections: dict[tuple[str, str], Any] = {}

    def write(self, topic: str, type_name: str, message: Any, stamp_ns: int) -> None:
        """A message with the fields of its type, at nanoseconds since the epoch."""
        key = (topic, type_name)
        if key not in self._connections:
            store = ros_types.typestore()
            digest = ros_types.type_hash(type_name)
            self._connections[key] = self._writer.add_connection(topic, type_name, typestore=store, rihs01=digest)
        self._writer.write(self._connections[key], stamp_ns, ros_types.encode(type_name, message))

    def close(self) -> None:
        self._writer.close()


def read_bag(folder: Path) -> Iterator[tuple[str, str, int, bytes]]:
    """(topic, type, nanoseconds, CDR bytes) in order of time. ValueError for what is no bag."""
    try:
        with Reader(folder) as reader:
            for connection, stamp, data in reader.messages():
                yield connection.topic, connection.msgtype, stamp, bytes(data)
    except (ReaderError, FileNotFoundError, OSError) as error:
        raise ValueError(f"{folder} should be a ROS 2 bag folder: {error}") from error
