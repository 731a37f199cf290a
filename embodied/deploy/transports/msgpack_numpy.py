"""openpi's wire format: msgpack with numpy arrays as maps of bytes keys. Nothing in it can run code.

An array is {b"__ndarray__": True, b"data", b"dtype", b"shape"}, a numpy scalar {b"__npgeneric__": True, ...}; object,
void and complex types are refused. Limits keep a small hostile message from becoming a large object.
"""

from __future__ import annotations

import math
from typing import Any

import msgpack
import numpy as np

REFUSED_KINDS = "VOcMm"
MAX_ITEMS = 10_000
MAX_TEXT = 1 << 20
ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    RecursionError,
    msgpack.exceptions.UnpackException,
)


def packb(value: Any) -> bytes:
    """Bytes of dicts, lists, strings, numbers and numpy arrays."""
    return msgpack.packb(value, default=_pack)


def unpackb(data: bytes) -> Any:
    """The value behind foreign bytes; arrays are read-only. ValueError for everything that is not the format."""
    try:
        return msgpack.unpackb(
            data,
            object_hook=_unpack,
            strict_map_key=False,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_str_len=MAX_TEXT,
            max_ext_len=0,
        )
    except ERRORS as error:
        raise ValueError(f"{len(data)} bytes are no message of the openpi protocol: {error}") from error


def _pack(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in REFUSED_KINDS:
        raise ValueError(f"arrays of dtype {value.dtype} are not sent")
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"{type(value).__name__} is not sent")


def _unpack(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        dtype, shape, data = _dtype(value[b"dtype"]), [int(n) for n in value[b"shape"]], value[b"data"]
        if len(shape) > 8 or any(n < 0 for n in shape) or len(data) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"an array of shape {shape} and dtype {dtype} does not have {len(data)} bytes")
        return np.frombuffer(data, dtype).reshape(shape)
    if b"__npgeneric__" in value:
        return _dtype(value[b"dtype"]).type(value[b"data"])
    return value


def _dtype(name: Any) -> np.dtype:
    if not isinstance(name, (str, bytes)) or len(name) > 8:
        raise ValueError("a dtype should be a short string")
    dtype = np.dtype(name.decode("ascii") if isinstance(name, bytes) else name)
    if dtype.kind in REFUSED_KINDS or dtype.itemsize == 0:
        raise ValueError(f"arrays of dtype {dtype} are refused")
    return dtype
