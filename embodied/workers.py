"""Processes that own simulators (or anything else from the registry) and are called by message.

Each worker is a fresh interpreter, never a fork: simulators keep GL contexts and global random generators that must
not be shared. An object is built in the worker from a registry config, so nothing is pickled but plain arguments and
results between this process and its own children. A worker that raises, crashes or exceeds a call's time is killed
and replaced; the call ends in a `WorkerError` and the worker's objects are gone. Use a pool from one thread.

    with WorkerPool(2) as pool:
        pool.build(0, "env", {"_target_": "sim.make.make_env", "suite": "libero_object", "task": 3})
        pool.submit(0, "env", "run_steps", actions, timeout=60)
        for reply in pool.wait():
            steps = reply.value()
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_connections
from typing import IO, Any

from embodied.registry import build, registry

CALL_TIMEOUT = 300.0
START_ALLOWANCE = 120.0  # added to a new process's first call: interpreter start and imports
SINGLE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
LOG_TAIL = 4000
PR_SET_PDEATHSIG = 1
START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from embodied.workers import serve
serve(int(sys.argv[2]), int(sys.argv[3]))
"""


class FailureKind(Enum):
    EXCEPTION = "exception"
    CRASH = "crash"
    TIMEOUT = "timeout"


class WorkerError(RuntimeError):
    """A call that did not end well. `kind` says how, `detail` holds the traceback or the end of the worker's log."""

    def __init__(self, worker: int, kind: FailureKind, summary: str, detail: str) -> None:
        super().__init__(f"worker {worker}: {kind.value}: {summary}")
        self.worker, self.kind, self.summary, self.detail = worker, kind, summary, detail


@dataclass(frozen=True)
class Ref:
    """Stands for an object of the worker's own, as an argument: `pool.call(0, "expert", "act", Ref("env"))`."""

    name: str


@dataclass(frozen=True)
class Reply:
    """How one call ended: a result, or an error. `rss_mb` is the worker's resident memory after it."""

    worker: int
    error: WorkerError | None
    result: Any = None
    seconds: float = 0.0
    rss_mb: float = 0.0

    def value(self) -> Any:
        """The call's result. Raises its WorkerError."""
        if self.error is not None:
            raise self.error
        return self.result


class WorkerPool:
    """`count` worker processes, each with named objects and at most one call under way.

    A process starts with its first call and again with the first call after a failure.
    """

    def __init__(self, count: int, *, timeout: float = CALL_TIMEOUT, environment: Mapping[str, str] | None = None):
        if count < 1:
            raise ValueError(f"a pool needs at least 1 worker, got {count}")
        self.count = count
        self.timeout = timeout
        self.environment = {**os.environ, **SINGLE_THREAD, **(environment or {})}
        self._processes: dict[int, _Process] = {}
        self.restarts = 0

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pids(self) -> dict[int, int]:
        """Process id of every running worker."""
        return {worker: process.popen.pid for worker, process in self._processes.items()}

    def busy(self) -> list[int]:
        return [worker for worker, process in self._processes.items() if process.deadline is not None]

    def idle(self) -> list[int]:
        return [worker for worker in range(self.count) if worker not in self.busy()]

    def submit(
        self, worker: int, name: str, method: str, *args: Any, timeout: float | None = None, **kwargs: Any
    ) -> None:
        """Starts `method` of the worker's object `name`; its Reply comes from `wait`."""
        self._send(worker, ("call", name, method, args, kwargs), timeout)

    def submit_build(
        self, worker: int, name: str, config: Mapping[str, Any], *, timeout: float | None = None, **overrides: Any
    ) -> None:
        """Starts building a registry config as the worker's object `name`; an older one of that name goes first."""
        self._send(worker, ("build", name, dict(config), overrides), timeout)

    def call(self, worker: int, name: str, method: str, *args: Any, timeout: float | None = None, **kwargs: Any) -> Any:
        """One call, waited for. Raises WorkerError."""
        self.submit(worker, name, method, *args, timeout=timeout, **kwargs)
        return self._wait_for(worker)

    def build(
        self, worker: int, name: str, config: Mapping[str, Any], *, timeout: float | None = None, **overrides: Any
    ) -> None:
        self.submit_build(worker, name, config, timeout=timeout, **overrides)
        self._wait_for(worker)

    def drop(self, worker: int, name: str, *, timeout: float | None = None) -> None:
        """Closes an object (its `close`, if it has one), forgets it and collects its memory."""
        if worker in self._processes:
            self._send(worker, ("drop", name), timeout)
            self._wait_for(worker)

    def clear(self) -> None:
        """Drops every object of every worker; a worker with a call under way is ended instead."""
        for worker in self.busy():
            self.restart(worker)
        for worker in list(self._processes):
            with contextlib.suppress(WorkerError):
                self._send(worker, ("clear", ""), None)
                self._wait_for(worker)

    def restart(self, worker: int) -> None:
        """Ends the process, and any call under way; the next call starts a new one."""
        process = self._processes.pop(worker, None)
        if process is not None:
            process.end()
            process.log.close()
            self.restarts += 1

    def wait(self, timeout: float | None = None) -> list[Reply]:
        """Waits until at least one call under way has ended (in a result or an error), or `timeout` seconds.

        Returns every reply at hand, each call's once; the empty list when nothing is under way.
        """
        give_up = None if timeout is None else time.monotonic() + timeout
        while busy := {w: p for w, p in self._processes.items() if p.deadline is not None}:
            first = min(p.deadline for p in busy.values() if p.deadline is not None)
            pause = max(0.0, (first if give_up is None else min(first, give_up)) - time.monotonic())
            ready = set(wait_connections([p.connection for p in busy.values()], pause))
            now = time.monotonic()
            replies = [self._receive(w) for w, p in busy.items() if p.connection in ready]
            late = [w for w, p in busy.items() if p.connection not in ready and p.deadline <= now]  # type: ignore[operator]
            replies += [self._fail(w, FailureKind.TIMEOUT, f"no answer in {busy[w].allowed:.0f} s") for w in late]
            if replies or (give_up is not None and now >= give_up):
                return replies
        return []

    def close(self) -> None:
        """Ends all workers."""
        for process in self._processes.values():
            process.end()
            process.log.close()
        self._processes.clear()

    def _wait_for(self, worker: int) -> Any:
        """This worker's reply. Only for a pool whose other workers are not being waited for."""
        others = [w for w in self.busy() if w != worker]
        if others:
            raise ValueError(f"calls are under way on workers {others}: use submit and wait, not call, beside them")
        return self.wait()[0].value()

    def _send(self, worker: int, message: tuple[Any, ...], timeout: float | None) -> None:
        if not 0 <= worker < self.count:
            raise ValueError(f"worker should be 0 to {self.count - 1}, got {worker}")
        process = self._processes.get(worker)
        if process is None:
            process = self._processes[worker] = _Process(self.environment)
        if process.deadline is not None:
            raise ValueError(f"worker {worker} is busy: wait for its reply before the next call")
        process.allowed = (self.timeout if timeout is None else timeout) + (0 if process.used else START_ALLOWANCE)
        process.deadline = (began := time.monotonic()) + process.allowed
        process.began = began
        process.used = True
        process.send(message)

    def _receive(self, worker: int) -> Reply:
        process = self._processes[worker]
        try:
            kind, *content = process.connection.recv()
        except (EOFError, ConnectionResetError):
            return self._fail(worker, FailureKind.CRASH, "")
        if kind == "error":
            return self._fail(worker, FailureKind.EXCEPTION, content[0], content[1])
        seconds = time.monotonic() - process.began
        process.deadline = None
        return Reply(worker, None, content[0], seconds, content[1])

    def _fail(self, worker: int, kind: FailureKind, summary: str, detail: str = "") -> Reply:
        process = self._processes[worker]
        seconds = time.monotonic() - process.began
        if kind is FailureKind.TIMEOUT:
            process.dump_stack()
        code = process.end(patience=1.0 if kind is FailureKind.CRASH else 0.0)
        error = WorkerError(worker, kind, summary or _exit_words(code), detail or process.log_tail())
        process.log.close()
        del self._processes[worker]
        self.restarts += 1
        return Reply(worker, error, None, seconds)


class _Process:
    """One worker process as its parent sees it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        with theirs:
            self.popen = subprocess.Popen(
                [sys.executable, "-c", START, json.dumps(sys.path), str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
                env=dict(environment),
                pass_fds=[theirs.fileno()],
            )
        self.connection = Connection(ours.detach())
        self.send(registry().targets)
        self.deadline: float | None = None
        self.began = self.allowed = 0.0
        self.used = False

    def send(self, message: Any) -> None:
        """To a process that has died it sends nothing: reading the reply finds that out and says why."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(message)

    def dump_stack(self) -> None:
        """Has a hung process write where it hangs to its log."""
        self.popen.send_signal(signal.SIGUSR1)
        time.sleep(0.1)

    def end(self, patience: float = 0.0) -> int:
        """Closes the pipe, kills the process if it is still there after `patience` seconds; its exit status."""
        self.connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.popen.wait(patience)
        self.popen.kill()
        return self.popen.wait()

    def log_tail(self) -> str:
        size = self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, size - LOG_TAIL))
        return self.log.read().decode(errors="replace").strip()


def _exit_words(code: int) -> str:
    if code >= 0:
        return f"the process ended with status {code}"
    name = signal.Signals(-code).name
    return f"the process was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def serve(descriptor: int, parent: int) -> None:
    """The worker's side: takes messages until the pipe closes. Never returns."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _die_with(parent)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    connection = Connection(descriptor)
    sys.excepthook = _report_to(connection)
    registry().targets |= _receive(connection)
    objects: dict[str, Any] = {}
    while True:
        result = _handle(objects, *_receive(connection))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.send(("result", result, resident_mb()))


def _receive(connection: Connection) -> Any:
    try:
        return connection.recv()
    except (EOFError, ConnectionResetError):
        os._exit(0)  # the parent closed the pipe; no teardown, which GL drivers crash in


def _handle(objects: dict[str, Any], kind: str, name: str, *rest: Any) -> Any:
    if kind == "call":
        method, args, kwargs = rest
        if name not in objects:
            raise ValueError(f"the worker owns {sorted(objects)}, not {name!r}: build it first (a restart loses all)")
        args = tuple(objects[arg.name] if isinstance(arg, Ref) else arg for arg in args)
        return getattr(objects[name], method)(*args, **kwargs)
    for old in list(objects) if kind == "clear" else [name]:
        _drop(objects, old)
    if kind == "build":
        config, overrides = rest
        objects[name] = build(config, **overrides)
    return None


def _drop(objects: dict[str, Any], name: str) -> None:
    old = objects.pop(name, None)
    if old is None:
        return
    if hasattr(old, "close"):
        old.close()
    del old
    gc.collect()


def _report_to(connection: Connection) -> Any:
    """An excepthook that tells the parent, then ends the process at once."""

    def report(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        text = "".join(traceback.format_exception(kind, error, trace))
        connection.send(("error", f"{kind.__name__}: {error}", text))
        os._exit(1)

    return report


def _die_with(parent: int) -> None:
    """Asks Linux to kill this process when its parent dies, however it dies. Elsewhere the closed pipe does it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def resident_mb() -> float:
    """Resident memory of this process in MB (0.0 where /proc is missing)."""
    try:
        with open("/proc/self/statm") as file:  # noqa: PTH123
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except FileNotFoundError:
        return 0.0
