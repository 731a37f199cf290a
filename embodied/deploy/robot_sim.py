"""A simulated robot: a simulator environment behind a bus, as a real robot's driver would be.

It publishes the contract's streams and obeys the contract's actions, either in real time (one control step a period;
a period without a command holds still, as a driver's own watchdog would) or in lockstep with a node (one control step
for each of its ticks, as fast as both sides can: `embodied.deploy.lockstep`). Images are rendered every `image_every`
steps, in real time beside the arm's motion: rendering is what costs.

    /robot_sim/success    std_msgs/msg/Bool, whether the task's success predicate holds
    /robot_sim/status     std_msgs/msg/String, JSON: episode, step, success, commands, missed
    /robot_sim/reset      std_srvs/srv/Trigger: the next episode
    /clock                in lockstep: simulated time
"""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from types import SimpleNamespace as Ns
from typing import Any

import numpy as np

from embodied.deploy import messages
from embodied.deploy.bus import Bus, Publish
from embodied.deploy.clock import Clock, SystemClock
from embodied.deploy.contract import IMAGE_TYPES, ActionMode, Contract, QosProfile, Stream, unit_factor
from embodied.deploy.convert import decode_action
from embodied.deploy.lockstep import ROBOT_STEP, TEXT, Step, read_stepped, step_message
from embodied.evaluation.records import state_digest
from embodied.protocols import Episode, SimEnv, Task
from embodied.schema import ACTION_NAMES, STATE, STATE_NAMES

NAME = "/robot_sim"
STAMPED = ("sensor_msgs/msg/Image", "sensor_msgs/msg/JointState")
BACKLOG = 4  # commands that wait for a simulator that is slower than real time; older ones are dropped
PHASE, FOLLOW = 1 / 3, 1 / 4  # of a period: control steps come this long after commands; share of the error corrected
LOCKSTEP_RETRY_S = 0.5  # without an answer the step is published again: a lost message must not stop both sides


@dataclass
class RobotSettings:
    """Episode i has seed + i and starts at the stored state first_init_state + i (null: a scene drawn from it)."""

    seed: int = 7
    first_init_state: int | None = 0
    episodes: int = 1
    max_steps: int = 0  # 0: the task's own
    image_every: int = 4
    lockstep: bool = False
    node: str = "/embodied"  # told to begin anew at the start of every episode; empty: nobody is told
    answer_timeout_s: float = 120.0  # a node that is silent for so long is not there


@dataclass
class Played:
    """One episode as it went: actions (n, 7) executed, snapshot of its start, digest of the last state."""

    episode: Episode
    task: Task
    success: bool
    actions: np.ndarray
    snapshot: dict[str, np.ndarray]
    end: str
    wall_s: float


class SimulatedRobot:
    """`run` plays the episodes in the calling thread and returns whether each succeeded."""

    def __init__(
        self,
        env: SimEnv,
        contract: Contract,
        bus: Bus,
        settings: RobotSettings,
        clock: Clock | None = None,
        on_played: Callable[[Played], None] = lambda _: None,
    ) -> None:
        _require_same_elements(contract)
        self.env, self.contract, self.bus, self.settings = env, contract, bus, settings
        self.clock = clock or SystemClock()
        self.on_played = on_played
        self.counts: Counter[str] = Counter()
        self.successes: list[bool] = []
        self._commands: queue.Queue[np.ndarray] = queue.Queue(maxsize=BACKLOG)
        self._next = threading.Event()
        self._gripper = 0.0
        self._fingers = [name in contract.action.gripper for name in contract.action.names]  # of the action's elements
        self._publishers: list[tuple[Stream, Publish]] = []
        self._rendering: tuple[int, Future[dict[str, np.ndarray]]] | None = None  # images under way, and their stamp
        self._arrived: int | None = None  # when the newest command came, on the monotonic clock
        self._stepped: queue.Queue[tuple[int, bool]] = queue.Queue()
        self._now_ns = self.clock.now_ns()  # in lockstep: simulated time

    def start(self) -> None:
        action = self.contract.action
        self.bus.start()
        self.bus.subscribe(action.topic, action.type, action.qos, self._command)
        self._publishers = [(s, self.bus.advertise(s.topic, s.type, s.qos)) for s in self.contract.streams]
        self._success = self.bus.advertise(f"{NAME}/success", "std_msgs/msg/Bool", QosProfile.latched)
        self._status = self.bus.advertise(f"{NAME}/status", TEXT, QosProfile.latched)
        self.bus.serve(f"{NAME}/reset", "std_srvs/srv/Trigger", self._reset_service)
        if self.settings.lockstep:
            self._publish_clock = self.bus.advertise("/clock", "rosgraph_msgs/msg/Clock", QosProfile.sensor)
            self._publish_step = self.bus.advertise(ROBOT_STEP, TEXT, QosProfile.reliable)
            self.bus.subscribe(f"{self.settings.node}/stepped", TEXT, QosProfile.reliable, self._take_stepped)

    def run(self, stop: threading.Event) -> list[bool]:
        """Plays the episodes of the settings, or until `stop` is set."""
        for episode in range(self.settings.episodes):
            if stop.is_set():
                break
            self.successes.append(self._episode(episode, stop))
        return self.successes

    def _episode(self, number: int, stop: threading.Event) -> bool:
        settings, began = self.settings, self.clock.monotonic_ns()
        first = settings.first_init_state
        init_state, seed = None if first is None else first + number, settings.seed + number
        _, info = self.env.reset(seed=seed, options={} if init_state is None else {"init_state": init_state})
        snapshot = self.env.snapshot()
        self._rendering = None
        self._next.clear()
        self._reset_node(stop)
        self._drain()
        self._await_command(stop)
        self._gripper = 0.0
        success, actions = bool(info.get("success", False)), self._actions(stop)
        limit = settings.max_steps or self.env.task.max_steps
        executed: list[np.ndarray] = []
        while len(executed) < limit and not success and not stop.is_set() and not self._next.is_set():
            action = next(actions).astype(np.float32)
            if stop.is_set():
                break
            success = self.env.run_steps(action[None]).success
            executed.append(action)
        self._report(number, len(executed), success)
        if not (stop.is_set() or self._next.is_set()) or success:
            task = replace(self.env.task, max_steps=limit)
            episode = Episode(task.suite, task.index, seed, init_state)
            done = np.stack(executed) if executed else np.zeros((0, len(ACTION_NAMES)), np.float32)
            end = state_digest({STATE: self.env.observe(images=False)[STATE]})
            wall = (self.clock.monotonic_ns() - began) / 1e9
            self.on_played(Played(episode, task, success, done, snapshot, end, wall))
        return success

    def _actions(self, stop: threading.Event) -> Iterator[np.ndarray]:
        """Publishes the state before each control step and yields the action of that step."""
        period, due = round(self.contract.period_s * 1e9), self.clock.monotonic_ns()
        for step in itertools.count():
            images = step % self.settings.image_every == 0
            if self.settings.lockstep:
                command = self._exchange(images, stop)
            else:
                self._publish_streams(images)
                self.clock.wait_until(due, stop)
                late = self.clock.monotonic_ns() - due > period
                command = self._next_command(late)
                due = self._in_phase(max(due + period, self.clock.monotonic_ns() - 10**9), period)
            if command is None:
                self.counts["missed"] += 1
            yield self._held() if command is None else command

    def _held(self) -> np.ndarray:
        """What is executed in a period without a command."""
        held = np.zeros(len(self.contract.action.names), np.float32)
        if self.contract.action.mode is ActionMode.delta:
            held[self._fingers] = self._gripper
        return held

    def _exchange(self, images: bool, stop: threading.Event) -> np.ndarray | None:
        """One step of lockstep: the command of the node's tick at it, None when it sent none. ValueError: no node."""
        self._now_ns += round(self.contract.period_s * 1e9)
        sent = self._messages(self.env.observe(images=images), self._now_ns)
        stamps = {stream.topic: self._now_ns for stream, _, _ in sent if stream.type in STAMPED}
        end = self.clock.monotonic_ns() + round(self.settings.answer_timeout_s * 1e9)
        while not stop.is_set():
            self._send(sent)
            self._publish_clock(Ns(clock=messages.time_message(self._now_ns)))
            self._publish_step(step_message(Step(self._now_ns, stamps)))
            with contextlib.suppress(queue.Empty):
                return self._answer()
            if self.clock.monotonic_ns() > end:
                raise ValueError(
                    f"{self.settings.node} should answer a step, it is silent for {self.settings.answer_timeout_s} s: "
                    "start `embodied node lockstep=true` on the same domain, with the same contract"
                )
        return None

    def _answer(self) -> np.ndarray | None:
        """Waits for the answer to the step under way. queue.Empty when none comes for a while."""
        while True:
            time_ns, sent = self._stepped.get(timeout=LOCKSTEP_RETRY_S)
            if time_ns == self._now_ns:
                return self._commands.get(timeout=self.settings.answer_timeout_s) if sent else None

    def _take_stepped(self, message: Any) -> None:
        try:
            self._stepped.put(read_stepped(str(message.data)))
        except ValueError:
            self.counts["refused"] += 1

    def _in_phase(self, due: int, period: int) -> int:
        """A time moved towards PHASE of a period after the commands' arrivals (ns).

        Then a command is there in time and the state after it is out before the node's next tick, whatever the phase in
        which both were started: otherwise their jitter makes now none and now two of a period's commands.
        """
        if self._arrived is None:
            return due
        error = (self._arrived + round(PHASE * period) - due + period // 2) % period - period // 2
        return due + round(FOLLOW * error)

    def _next_command(self, late: bool = False) -> np.ndarray | None:
        """The newest command. Motions (delta actions) add up: all that wait, within limits, or, of a robot that is late
        and so makes up for its steps, the oldest."""
        waiting: list[np.ndarray] = []
        delta = self.contract.action.mode is ActionMode.delta
        while not self._commands.empty() and not (delta and late and waiting):
            waiting.append(self._commands.get_nowait())
        if not waiting or not delta:
            return waiting[-1] if waiting else None
        motion = np.clip(np.sum(waiting, axis=0), -1.0, 1.0)
        motion[self._fingers] = waiting[-1][self._fingers]
        return motion

    def _drain(self) -> None:
        while not self._commands.empty():
            self._commands.get_nowait()

    def _reset_node(self, stop: threading.Event) -> None:
        """Shows the new scene until the node has begun a new episode. ValueError when it does not in time."""
        if not self.settings.node:
            return
        end = self.clock.monotonic_ns() + round(self.settings.answer_timeout_s * 1e9)
        service = f"{self.settings.node}/reset"
        while not stop.is_set():
            if self.settings.lockstep:
                self._exchange(True, stop)
                self._drain()
            else:
                self._publish_streams(True, wait=True)
            try:
                answer = self.bus.call(service, "std_srvs/srv/Trigger", Ns(), timeout_s=0.5)
            except TimeoutError:
                answer = Ns(success=False, message="no answer")
            if answer.success:
                return
            if self.clock.monotonic_ns() > end:
                raise ValueError(f"{service} should start an episode, it says: {answer.message}")

    def _await_command(self, stop: threading.Event) -> None:
        """In real time: stands still until the node acts, so that its first, slow inference is no part of the episode.
        ValueError when it does not in time."""
        if self.settings.lockstep or not self.settings.node:
            return
        begin = self.clock.monotonic_ns()
        while self._commands.empty() and not stop.is_set() and not self._next.is_set():
            self._publish_streams(True)
            self.clock.wait_until(self.clock.monotonic_ns() + round(self.contract.period_s * 1e9), stop)
            if self.clock.monotonic_ns() - begin > self.settings.answer_timeout_s * 1e9:
                raise ValueError(
                    f"{self.settings.node} should send commands, it sent none for {self.settings.answer_timeout_s} s: "
                    "its /diagnostics say what it waits for"
                )

    def _command(self, message: Any) -> None:
        """A command from the bus, clipped to the simulator's range; a bad one is refused and counted."""
        try:
            action = np.clip(decode_action(self.contract.action, message), -1.0, 1.0)
        except ValueError:
            self.counts["refused"] += 1
            return
        self.counts["commands"] += 1
        self._arrived = self.clock.monotonic_ns()
        self._gripper = float(action[-1])
        if self._commands.full():
            self.counts["overrun"] += 1
            with contextlib.suppress(queue.Empty):
                self._commands.get_nowait()
        self._commands.put_nowait(action)

    def _publish_streams(self, images: bool, wait: bool = False) -> None:
        """Publishes the state now, and images when they are rendered, unless told to wait, while the arm moves on.

        As with a camera, the stamp is the time of what they show; while they are rendered no others are taken.
        """
        now_ns = self.clock.now_ns()
        self._send(self._messages(self.env.observe(images=False), now_ns))
        self._send_rendered()
        if images and self._rendering is None:
            self._rendering = now_ns, self.env.images_later()
        elif images:
            self.counts["late_images"] += 1
        if wait:
            self._send_rendered(wait)

    def _send_rendered(self, wait: bool = False) -> None:
        if self._rendering is not None and (wait or self._rendering[1].done()):
            stamp_ns, rendered = self._rendering
            self._rendering = None
            self._send(self._messages(rendered.result(), stamp_ns))

    def _send(self, sent: list[tuple[Stream, Publish, Any]]) -> None:
        for _, publish, message in sent:
            publish(message)

    def _messages(self, observation: dict[str, Any], stamp_ns: int) -> list[tuple[Stream, Publish, Any]]:
        """What the streams of an observation say."""
        found = [
            (stream, publish, encode_stream(stream, observation, stamp_ns)) for stream, publish in self._publishers
        ]
        return [(stream, publish, message) for stream, publish, message in found if message is not None]

    def _report(self, episode: int, step: int, success: bool) -> None:
        self._success(Ns(data=success))
        status = {"episode": episode, "step": step, "success": success, **self.counts}
        self._status(messages.text_message(json.dumps(status)))

    def _reset_service(self, _: Any) -> Ns:
        self._next.set()
        return Ns(success=True, message="the next episode begins")


def encode_stream(stream: Stream, observation: dict[str, Any], stamp_ns: int) -> Ns | None:
    """The message by which a robot would send this stream; None when the observation does not hold it."""
    value = observation.get(stream.feature)
    if value is None:
        return None
    if stream.type == "std_msgs/msg/String":
        return messages.text_message(str(value))
    if stream.type in IMAGE_TYPES:
        image = value[::-1, ::-1] if stream.rotate_180 else value
        image = image[:, ::-1] if stream.mirrored else image
        return messages.image_message(np.ascontiguousarray(image), stamp_ns)
    chosen = np.array([value[STATE_NAMES.index(name)] for name in stream.names], np.float64)
    chosen = chosen * unit_factor(stream.feature_unit, stream.unit)
    if stream.type == "sensor_msgs/msg/JointState":
        return messages.joint_state_message(list(stream.names), chosen, stamp_ns)
    return messages.array_message(chosen, stream.feature)


def _require_same_elements(contract: Contract) -> None:
    """The simulators speak the item format."""
    made = ("sensor_msgs/msg/Image", "sensor_msgs/msg/JointState", "std_msgs/msg/Float64MultiArray")
    for stream in contract.streams:
        if stream.type not in (*made, "std_msgs/msg/String"):
            raise ValueError(f"{stream.place}: a simulated robot publishes {', '.join(made)}, not {stream.type}")
        unknown = set(stream.names) - set(STATE_NAMES)
        if stream.feature == STATE and unknown:
            raise ValueError(f"{stream.place}: a simulated robot has {', '.join(STATE_NAMES)}, not {sorted(unknown)}")
    if tuple(contract.action.names) != ACTION_NAMES:
        raise ValueError(f"a simulated robot obeys actions {', '.join(ACTION_NAMES)}, got {contract.action.names}")
