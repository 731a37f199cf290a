"""ROS 2 types as cyclonedds sees them: IDL classes made at run time whose samples are CDR bytes.

cyclonedds does discovery and quality of service with the generated class; the bytes come from and go to
`ros_types` (rosbags), which is some 2000 times faster than cyclonedds' Python serialiser on an image.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from cyclonedds.idl import IdlStruct, make_idl_struct
from cyclonedds.idl import types as idl_types
from rosbags.interfaces import Nodetype

from embodied.deploy.transports import ros_types

types: Any = idl_types  # its generics are made by __class_getitem__, which type checkers do not see
BASE: dict[str, Any] = {
    "bool": bool,
    "byte": types.byte,
    "char": types.uint8,
    "string": str,
    "int8": types.int8,
    "uint8": types.uint8,
    "int16": types.int16,
    "uint16": types.uint16,
    "int32": types.int32,
    "uint32": types.uint32,
    "int64": types.int64,
    "uint64": types.uint64,
    "float32": types.float32,
    "float64": types.float64,
}
SERVICE_HEADER = {"guid_": types.uint64, "sequence_": types.int64}


def _serialize(self: Any, buffer: Any = None, endianness: Any = None, use_version_2: bool | None = None) -> bytes:  # noqa: ARG001
    return self.data


def _deserialize(cls: Any, data: bytes, has_header: bool = True, use_version_2: bool | None = None) -> Any:  # noqa: ARG001
    return sample(cls, bytes(data))


def sample(kind: Any, data: bytes) -> Any:
    """A sample that carries its CDR bytes, encapsulation header included."""
    made = kind.__new__(kind)
    made.data = data
    return made


@cache
def topic_class(type_name: str) -> Any:
    """The class of a message type, for cyclonedds.topic.Topic."""
    return _carrying_bytes(_generate(type_name, {}))


@cache
def service_class(type_name: str) -> Any:
    """The class of PACKAGE/srv/NAME_Request or _Response: as rmw_cyclonedds sends it, with its 16 bytes before."""
    return _carrying_bytes(_generate(type_name, SERVICE_HEADER))


@cache
def _nested(type_name: str) -> type[IdlStruct]:
    return _generate(type_name, {})


def _carrying_bytes(kind: Any) -> Any:
    """Nothing is encoded or decoded in cyclonedds' hands."""
    kind.serialize = _serialize
    kind.deserialize = kind.deserialize_key = classmethod(_deserialize)
    return kind


def _generate(type_name: str, before: dict[str, Any]) -> type[IdlStruct]:
    package, kind, name = type_name.split("/")
    fields = {f"{field}_": _idl(desc) for field, desc in ros_types.typestore().fielddefs[type_name][1]}
    return make_idl_struct(f"{name}_", f"{package}.{kind}.dds_.{name}_", {**before, **fields})


def _idl(desc: Any) -> Any:
    node, inner = desc
    if node == Nodetype.BASE:
        name, bound = inner
        if name not in BASE:
            raise ValueError(f"{name} fields are not supported over DDS")
        return types.bounded_str[bound] if name == "string" and bound else BASE[name]
    if node == Nodetype.NAME:
        return _nested(inner)
    element, count = inner
    if node == Nodetype.ARRAY:
        return types.array[_idl(element), count]
    return types.sequence[(_idl(element), count) if count else _idl(element)]
