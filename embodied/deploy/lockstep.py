"""Lockstep: a node and a simulated robot that exchange one control step at a time, so no result depends on how fast
the machine is.

    robot -> node   ROBOT/step (std_msgs/msg/String, JSON): {"time": ns, "stamps": {topic: ns}}
    node -> robot   NODE/stepped (the same type):           {"time": ns, "sent": whether a command was}

The robot publishes its streams, then the step. The node waits until it has the samples that the step names, sets its
clock (both of its times) to the step's, ticks once, sends its command and then says that it has ticked. Lost messages
are sent again after a while; a step that was done already is answered again, not done twice.

An inference takes `latency_s` of simulated time, however long it really takes. With 0 the tick that asks waits for
the answer and executes it: a node with schedule `sync` then does exactly what a direct evaluation does.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from embodied.deploy import messages
from embodied.deploy.align import Aligner
from embodied.deploy.bus import Bus
from embodied.deploy.clock import SimulatedClock
from embodied.deploy.contract import Contract, QosProfile
from embodied.deploy.inference import Inference, Request, Result
from embodied.deploy.loop import ControlLoop
from embodied.protocols import PolicySpec

TEXT = "std_msgs/msg/String"
ROBOT_STEP = "/robot_sim/step"
WAIT_S = 0.05  # between two looks at whether to stop
ARRIVAL_S = 0.001  # between two looks at whether the samples have come
MAX_STEP_BYTES = 20_000


class SteppedClock(SimulatedClock):
    """Both times are the robot's: nothing here can be late."""

    def monotonic_ns(self) -> int:
        return self.now_ns()


class SteppedInference:
    """An inference that answers `latency_s` of the clock after it was asked, and is waited for then."""

    def __init__(self, inference: Inference, clock: SteppedClock, latency_s: float = 0.0) -> None:
        if latency_s < 0:
            raise ValueError(f"the latency of an inference should be 0 s or more, got {latency_s}")
        self.inference, self.clock, self.latency_s = inference, clock, latency_s
        self.spec: PolicySpec = inference.spec
        self.policy = getattr(inference, "policy", None)
        self.ending = threading.Event()
        self._asked_ns = 0

    @property
    def busy(self) -> bool:
        return self.inference.busy

    def submit(self, request: Request) -> None:
        self._asked_ns = self.clock.monotonic_ns()
        self.inference.submit(request)

    def poll(self) -> Result | None:
        """The answer, waited for when it is due; None before that, or when `close` was called meanwhile."""
        if not self.inference.busy or self.clock.monotonic_ns() - self._asked_ns < round(self.latency_s * 1e9):
            return None
        while (result := self.inference.poll()) is None:
            if self.ending.wait(ARRIVAL_S):
                return None
        return result

    def finish(self) -> None:
        while self.inference.busy and not self.ending.wait(ARRIVAL_S):
            self.inference.poll()

    def close(self) -> None:
        self.ending.set()
        self.inference.close()


@dataclass(frozen=True)
class Step:
    """time_ns: of the robot. stamps: topic -> stamp of the newest sample that belongs to it."""

    time_ns: int
    stamps: Mapping[str, int]


def step_message(step: Step) -> Any:
    return messages.text_message(json.dumps({"time": step.time_ns, "stamps": dict(step.stamps)}))


def read_step(text: str) -> Step:
    """ValueError when the text is no step."""
    content = _object(text)
    time_ns, stamps = content.get("time"), content.get("stamps")
    if not isinstance(time_ns, int) or not isinstance(stamps, dict):
        raise ValueError('a step should be {"time": nanoseconds, "stamps": {topic: nanoseconds}}')  # noqa: TRY004
    if not all(isinstance(stamp, int) for stamp in stamps.values()):
        raise ValueError("a step's stamps should be nanoseconds")
    return Step(time_ns, stamps)


def read_stepped(text: str) -> tuple[int, bool]:
    """The time that was ticked and whether a command was sent. ValueError when the text says neither."""
    content = _object(text)
    if not isinstance(content.get("time"), int) or not isinstance(content.get("sent"), bool):
        raise ValueError('an answer to a step should be {"time": nanoseconds, "sent": true or false}')  # noqa: TRY004
    return content["time"], content["sent"]


def _object(text: str) -> dict[str, Any]:
    if len(text) > MAX_STEP_BYTES:
        raise ValueError(f"a step should have at most {MAX_STEP_BYTES} characters, got {len(text)}")
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"a step should be JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"a step should be a JSON object, got {type(content).__name__}")  # noqa: TRY004
    return content


class Lockstep:
    """The node's side: `run` in place of the loop's own."""

    def __init__(self, contract: Contract, bus: Bus, clock: SteppedClock, aligner: Aligner, name: str) -> None:
        self.bus, self.clock, self.aligner = bus, clock, aligner
        self.stepped_topic = f"{name}/stepped"
        self.refused = 0
        self._indices = {stream.topic: index for index, stream in enumerate(contract.streams)}
        self._step: Step | None = None
        self._came = threading.Event()
        self._last: tuple[int, bool] | None = None

    def start(self) -> None:
        self._publish = self.bus.advertise(self.stepped_topic, TEXT, QosProfile.reliable)
        self.bus.subscribe(ROBOT_STEP, TEXT, QosProfile.reliable, self._take)

    def run(self, loop: ControlLoop, stop: threading.Event) -> None:
        """One tick a step, until `stop` is set."""
        while not stop.is_set():
            step = self._next(stop)
            if step is None:
                continue
            if self._last is None or step.time_ns > self._last[0]:
                self._last = (step.time_ns, loop.tick().action is not None)
            time_ns, sent = self._last
            self._publish(messages.text_message(json.dumps({"time": time_ns, "sent": sent})))

    def _take(self, message: Any) -> None:
        """In the bus's thread. The clock moves here, so that samples of a robot that is ahead are not refused."""
        try:
            step = read_step(str(message.data))
        except ValueError:
            self.refused += 1
            return
        self.clock.set(max(self.clock.now_ns(), step.time_ns))
        self._step = step
        self._came.set()

    def _next(self, stop: threading.Event) -> Step | None:
        """The step that came last, once its samples are there."""
        if not self._came.wait(WAIT_S):
            return None
        step = self._step
        if step is None or not self._complete(step):
            stop.wait(ARRIVAL_S)
            return None
        self._came.clear()
        if self._step is not step:
            self._came.set()
        return step

    def _complete(self, step: Step) -> bool:
        wanted = [(self._indices[topic], stamp) for topic, stamp in step.stamps.items() if topic in self._indices]
        return all((self.aligner.newest(index) or 0) >= stamp for index, stamp in wanted)
