"""Reads LIBERO's initial states: torch archives around one pickled numpy array.

A pickle can name any function to call. Here only what rebuilds a plain array is looked up; everything else is refused
before it runs. torch itself is not needed.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MAX_BYTES = 64 * 1024 * 1024


def load_array(path: Path) -> np.ndarray:
    """The array (n, state) float64 in a torch archive. ValueError for anything a plain array does not need."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((n for n in archive.namelist() if n.endswith("/data.pkl")), None)
            if name is None or archive.getinfo(name).file_size > MAX_BYTES:
                raise ValueError(f"{path} should be a torch archive of one array: refused to load it")
            value = _ArrayUnpickler(io.BytesIO(archive.read(name))).load()
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, IndexError, TypeError) as error:
        raise ValueError(f"{path} should hold one array and nothing else, refused to load it: {error}") from error
    if not isinstance(value, np.ndarray) or value.dtype != np.float64 or value.ndim != 2 or not len(value):
        got = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise ValueError(f"{path} should hold a float64 array (n, state), got {got}: reinstall hf-libero")
    return value


class _ArrayUnpickler(pickle.Unpickler):
    """Knows the four names that a pickled numpy array consists of."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        allowed = _ALLOWED.get((module.replace("numpy._core", "numpy.core"), name))
        if allowed is None:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of an array")
        return allowed


def _empty_array(subtype: type, shape: tuple[int, ...], kind: bytes) -> np.ndarray:
    """numpy's `_reconstruct` for plain arrays; the pickle's state then fills it."""
    if subtype is not np.ndarray:
        raise pickle.UnpicklingError(f"{subtype} is not numpy's array type")
    return np.ndarray(shape, np.dtype(kind.decode()))


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding} is not what numpy writes")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
}
