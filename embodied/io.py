"""Small durable files: written whole or not at all, by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def take_lock(path: Path) -> int:
    """A file descriptor that keeps other processes out until it is closed, or its process ends however it does.

    ValueError while another holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise ValueError(
            f"{path.parent} is being written by another process: wait for it, or choose another folder"
        ) from None
    return lock


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Runs a block as the only process that writes to a run's folder. ValueError while another does."""
    lock = take_lock(folder / ".lock")
    try:
        yield
    finally:
        os.close(lock)


def write_atomic(path: Path, content: bytes) -> None:
    """Writes beside `path`, syncs, renames: a reader or a crash sees the old file or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Appends one JSON line and syncs it. A torn last line (kill -9, power) is what `read_lines` repairs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole JSON lines of a file. A torn last line is cut off the file, so that appending goes on cleanly."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole, newline, torn = content.rpartition(b"\n")
    if torn:
        with path.open("r+b") as file:
            file.truncate(len(whole) + len(newline))
    return [json.loads(line) for line in whole.splitlines() if line.strip()]
