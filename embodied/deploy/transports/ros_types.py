"""ROS 2 message types without a ROS install: definitions, CDR bytes and type hashes through rosbags."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from rosbags.interfaces import Nodetype
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

MAX_SEQUENCE = 64 * 2**20  # elements; the size of a message bounds it further
EMPTY = "structure_needs_at_least_one_member"
SERVICES = {
    "std_srvs/srv/Trigger": ("", "bool success\nstring message"),
    "std_srvs/srv/SetBool": ("bool data", "bool success\nstring message"),
    "lifecycle_msgs/srv/ChangeState": ("lifecycle_msgs/Transition transition", "bool success"),
    "lifecycle_msgs/srv/GetState": ("", "lifecycle_msgs/State current_state"),
    "lifecycle_msgs/srv/GetAvailableStates": ("", "lifecycle_msgs/State[] available_states"),
    "lifecycle_msgs/srv/GetAvailableTransitions": (
        "",
        "lifecycle_msgs/TransitionDescription[] available_transitions",
    ),
    "rcl_interfaces/srv/GetParameters": ("string[] names", "rcl_interfaces/ParameterValue[] values"),
    "rcl_interfaces/srv/SetParameters": (
        "rcl_interfaces/Parameter[] parameters",
        "rcl_interfaces/SetParametersResult[] results",
    ),
    "rcl_interfaces/srv/ListParameters": (
        "string[] prefixes\nuint64 depth",
        "rcl_interfaces/ListParametersResult result",
    ),
}
# What decoding foreign bytes can raise: rosbags wraps most of these, not all.
DECODE_ERRORS = (SerdeError, ValueError, IndexError, TypeError, OverflowError, MemoryError, RecursionError, KeyError)


@cache
def typestore() -> Typestore:
    """The types of ROS 2 Jazzy and the services that the node offers."""
    store = get_typestore(Stores.ROS2_JAZZY)
    store.max_sequence_length = MAX_SEQUENCE
    for service, texts in SERVICES.items():
        for part, text in zip(("Request", "Response"), texts, strict=True):
            register(f"{service}_{part}", text, store)
    return store


def register(type_name: str, text: str, store: Typestore | None = None) -> None:
    """Adds a type from its .msg text, such as "my_msgs/msg/Grip" or "my_msgs/srv/Open_Request"."""
    store = store or typestore()
    package, kind, name = type_name.split("/")
    made = get_types_from_msg(text, type_name)
    # rosbags files services under PACKAGE/srv/msg/NAME
    fields = {type_name if key.endswith(f"/{name}") and key.startswith(package) else key: v for key, v in made.items()}
    if not fields[type_name][1]:
        fields[type_name] = ([], [(EMPTY, (Nodetype.BASE, ("uint8", 0)))])
    assert kind in ("msg", "srv")
    store.register(fields)


def known(type_name: str) -> bool:
    return type_name in typestore().fielddefs


@cache
def type_hash(type_name: str) -> str:
    """RIHS01 hash. ROS's `char` is a uint8 there, which rosbags hashes as another type."""
    plain = Typestore()
    plain.fielddefs = {
        name: (constants, [(field, _without_char(kind)) for field, kind in fields])
        for name, (constants, fields) in typestore().fielddefs.items()
    }
    return plain.hash_rihs01(type_name)


def encode(type_name: str, message: Any) -> bytes:
    """Little-endian CDR with its encapsulation header. ValueError when a field is missing or of a wrong kind."""
    store = typestore()
    if type_name not in store.fielddefs:
        raise ValueError(f"message type should be a known one, got {type_name!r}: register it first")
    try:
        built = message if hasattr(message, "__msgtype__") else _build(type_name, message)
        return bytes(store.serialize_cdr(built, type_name, little_endian=True))
    except (AttributeError, TypeError, AssertionError, OverflowError, SerdeError) as error:
        raise ValueError(f"a {type_name} cannot be made of {message!r:.200}: {error}") from error


def decode(type_name: str, data: bytes) -> Any:
    """The message behind CDR bytes of any origin. ValueError for everything that is not one."""
    try:
        return typestore().deserialize_cdr(data, type_name)
    except DECODE_ERRORS as error:
        raise ValueError(f"{len(data)} bytes are no {type_name}: {error}") from error


@cache
def ros1_typestore() -> Typestore:
    """The types of ROS 1 Noetic: other md5 sums, other bytes, a sequence number in headers."""
    store = get_typestore(Stores.ROS1_NOETIC)
    store.max_sequence_length = MAX_SEQUENCE
    return store


def encode_ros1(type_name: str, message: Any) -> bytes:
    """`encode` in ROS 1's format; a header's sequence number is 0 where the message has none."""
    try:
        built = _build(type_name, message, ros1_typestore())
        return bytes(ros1_typestore().serialize_ros1(built, type_name))
    except (AttributeError, TypeError, AssertionError, OverflowError, SerdeError) as error:
        raise ValueError(f"a ROS 1 {type_name} cannot be made of {message!r:.200}: {error}") from error


def decode_ros1(type_name: str, data: bytes) -> Any:
    """`decode` of ROS 1's format."""
    try:
        return ros1_typestore().deserialize_ros1(data, type_name)
    except DECODE_ERRORS as error:
        raise ValueError(f"{len(data)} bytes are no ROS 1 {type_name}: {error}") from error


def default(type_name: str) -> SimpleNamespace:
    """A message with every field zero or empty."""
    return SimpleNamespace(
        **{name: _default(kind) for name, kind in typestore().fielddefs[type_name][1] if name != EMPTY}
    )


def _build(type_name: str, message: Any, store: Typestore | None = None) -> Any:
    store = store or typestore()
    values = {}
    for name, kind in store.fielddefs[type_name][1]:
        made = name == EMPTY or (name == "seq" and not hasattr(message, name))
        values[name] = 0 if made else _value(kind, getattr(message, name), store)
    return store.types[type_name](**values)


def _value(kind: Any, value: Any, store: Typestore) -> Any:
    node, inner = kind
    if node == Nodetype.BASE:
        return value
    if node == Nodetype.NAME:
        return value if hasattr(value, "__msgtype__") else _build(inner, value, store)
    (element_node, element), _ = inner
    if element_node == Nodetype.NAME:
        return [item if hasattr(item, "__msgtype__") else _build(element, item, store) for item in value]
    if element[0] == "string":
        return list(value)
    return np.asarray(value, dtype=_dtype(element[0]))


def _default(kind: Any) -> Any:
    node, inner = kind
    if node == Nodetype.NAME:
        return default(inner)
    if node == Nodetype.SEQUENCE:
        return []
    if node == Nodetype.ARRAY:
        (element_node, element), count = inner
        return [_default((element_node, element)) for _ in range(count)]
    return "" if inner[0] == "string" else False if inner[0] == "bool" else 0


def _dtype(name: str) -> str:
    return {"byte": "uint8", "char": "uint8", "octet": "uint8"}.get(name, name)


def _without_char(kind: Any) -> Any:
    node, inner = kind
    if node == Nodetype.BASE:
        return (node, ("uint8", inner[1])) if inner[0] == "char" else kind
    if node in (Nodetype.ARRAY, Nodetype.SEQUENCE):
        return (node, (_without_char(inner[0]), inner[1]))
    return kind
