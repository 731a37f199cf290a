"""The policy, asked from the control thread and run elsewhere: in a thread, or in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any, Protocol

import numpy as np

from embodied.deploy.rtc import PrefixPolicy
from embodied.deploy.schedule import Ask
from embodied.protocols import Episode, Observation, Policy, PolicySpec, ValueFunction

SLOT = 0


@dataclass(frozen=True)
class Request:
    """One inference: number, step its chunk counts from, batched observation of one, what RTC adds.

    reset: the episode that begins with it; the policy is reset before it is asked.
    """

    number: int
    step: int
    observation: Observation
    ask: Ask = field(default_factory=Ask)
    reset: Episode | None = None


@dataclass(frozen=True)
class Result:
    """chunk (H, D) or an error in words; seconds: how long the policy took."""

    request: Request
    chunk: np.ndarray | None = None
    value: float | None = None
    error: str | None = None
    seconds: float = 0.0


class Inference(Protocol):
    """At most one inference is under way; `poll` never blocks."""

    spec: PolicySpec

    @property
    def busy(self) -> bool: ...

    def submit(self, request: Request) -> None: ...

    def poll(self) -> Result | None: ...

    def finish(self) -> None:
        """Waits for the inference under way, if there is one, and forgets it. Only lockstep has time for that."""
        ...

    def close(self) -> None: ...


def infer(policy: Policy, value: ValueFunction | None, request: Request) -> tuple[np.ndarray, float | None, float]:
    """Asks the policy, and the value function about its answer. Chunk (H, D) float32, value, seconds."""
    began = time.monotonic()
    ask = request.ask
    if request.reset is not None:
        policy.reset([SLOT], [request.reset])
    if ask.prefix is not None and ask.guidance is not None:
        assert isinstance(policy, PrefixPolicy)
        actions = policy.act_with_prefix(request.observation, [SLOT], ask.prefix[None], ask.guidance)
    else:
        actions = policy.act(request.observation, [SLOT])
    batch = np.asarray(actions, np.float32)
    expected = (1, policy.spec.chunk, policy.spec.action_dim)
    if batch.shape != expected or not np.isfinite(batch).all():
        what = "numbers that are not finite" if batch.shape == expected else f"shape {batch.shape}"
        raise ValueError(f"policy {policy.spec.name} should give finite actions of shape {expected}, got {what}")
    estimate = None
    if value is not None:
        instructions = list(request.observation.get("task", [""]))
        estimate = float(value.value(request.observation, batch, instructions)[0])
    return batch[0], estimate, time.monotonic() - began


def own_value(policy: Policy, watched: bool) -> ValueFunction | None:
    """The policy as its own value function (PRTS), when the contract has a threshold. ValueError when it is none."""
    if not watched:
        return None
    if not isinstance(policy, ValueFunction):
        raise ValueError(  # noqa: TRY004
            f"watchdog.value_threshold needs a value function, policy {policy.spec.name} is none: give value=..., "
            "or take the threshold out of the contract"
        )
    return policy


class _Pool:
    """What thread and process have in common: one future at a time."""

    spec: PolicySpec

    def __init__(self) -> None:
        self._future: Future[Any] | None = None
        self._request: Request | None = None
        self._executor: Executor | None = None

    @property
    def busy(self) -> bool:
        return self._future is not None

    def poll(self) -> Result | None:
        if self._future is None or self._request is None or not self._future.done():
            return None
        future, request = self._future, self._request
        self._future = self._request = None
        error = future.exception()
        if error is not None:
            self._failed(error)
            return Result(request, error=f"{type(error).__name__}: {error}"[:1000])
        chunk, value, seconds = future.result()
        return Result(request, chunk, value, None, seconds)

    def finish(self) -> None:
        while self.busy:
            wait([self._future] if self._future is not None else [])
            self.poll()

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)

    def _failed(self, error: BaseException) -> None:
        """For a pool that has to do something about it."""

    def _start(self, request: Request, function: Callable[..., Any], *arguments: Any) -> None:
        if self._future is not None or self._executor is None:
            raise ValueError("an inference is under way: poll until it is done")
        self._request = request
        self._future = self._executor.submit(function, *arguments)


class ThreadInference(_Pool):
    """The policy in one thread of this process. A hung policy keeps its thread: only a process can be ended."""

    def __init__(self, policy: Policy, value: ValueFunction | None = None) -> None:
        super().__init__()
        self.policy, self.value, self.spec = policy, value, policy.spec
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="policy")

    def submit(self, request: Request) -> None:
        self._start(request, infer, self.policy, self.value, request)


class ProcessInference(_Pool):
    """The policy in a process of its own, built there from its config; a crashed process is replaced."""

    def __init__(self, config: Mapping[str, Any], watched: bool = False) -> None:
        """watched: the policy's own value is asked for as well."""
        super().__init__()
        self.config, self.watched = dict(config), watched
        self._executor = self._fresh()
        self.spec = self._executor.submit(_process_spec).result()

    def submit(self, request: Request) -> None:
        from concurrent.futures.process import BrokenProcessPool

        try:
            self._start(request, _process_infer, request)
        except BrokenProcessPool as error:  # it died while idle
            self._failed(error)
            self._start(request, _process_infer, request)

    @property
    def pids(self) -> list[int]:
        return list(getattr(self._executor, "_processes", {}))

    def _failed(self, error: BaseException) -> None:
        from concurrent.futures.process import BrokenProcessPool

        if isinstance(error, BrokenProcessPool):
            self.close()
            self._executor = self._fresh()

    def _fresh(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            1, get_context("spawn"), initializer=_process_build, initargs=(self.config, self.watched)
        )


_built: dict[str, Any] = {}


def _process_build(config: dict[str, Any], watched: bool) -> None:
    import signal

    from embodied.registry import build

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _built["policy"] = policy = build(config)
    _built["value"] = own_value(policy, watched)


def _process_spec() -> PolicySpec:
    return _built["policy"].spec


def _process_infer(request: Request) -> tuple[np.ndarray, float | None, float]:
    return infer(_built["policy"], _built["value"], request)
