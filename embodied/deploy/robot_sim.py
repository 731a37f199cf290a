"""A simulated robot: a simulator environment behind a bus, as a real robot's driver would be.

It publishes the contract's streams and obeys the contract's actions, either in real time (one control step a period;
a period without a command holds still, as a driver's own watchdog would) or in lockstep (one control step for each
command, as fast as both sides can). Images are rendered every `image_every` steps: rendering is what costs.

    /robot_sim/success    std_msgs/msg/Bool, whether the task's success predicate holds
    /robot_sim/status     std_msgs/msg/String, JSON: episode, step, success, commands, missed
    /robot_sim/reset      std_srvs/srv/Trigger: the next episode
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace as Ns
from typing import Any

import numpy as np

from embodied.deploy import messages
from embodied.deploy.bus import Bus, Publish
from embodied.deploy.clock import Clock, SystemClock
from embodied.deploy.contract import IMAGE_TYPES, ActionMode, Contract, QosProfile, Stream, unit_factor
from embodied.deploy.convert import decode_action
from embodied.protocols import SimEnv
from embodied.schema import ACTION_NAMES, STATE, STATE_NAMES

NAME = "/robot_sim"
BACKLOG = 4  # commands that wait for a simulator that is slower than real time; older ones are dropped
LOCKSTEP_RETRY_S = 0.5  # without a command the state is published again: a lost message must not stop both sides


@dataclass
class RobotSettings:
    """Episode i has seed + i and starts at the stored state first_init_state + i (null: a scene drawn from it)."""

    seed: int = 7
    first_init_state: int | None = 0
    episodes: int = 1
    max_steps: int = 0  # 0: the task's own
    image_every: int = 4
    lockstep: bool = False
    reset_service: str = "/embodied/reset"  # called at the start of every episode; empty: nobody is told
    reset_timeout_s: float = 60.0


class SimulatedRobot:
    """`run` plays the episodes in the calling thread and returns whether each succeeded."""

    def __init__(
        self, env: SimEnv, contract: Contract, bus: Bus, settings: RobotSettings, clock: Clock | None = None
    ) -> None:
        _require_same_elements(contract)
        self.env, self.contract, self.bus, self.settings = env, contract, bus, settings
        self.clock = clock or SystemClock()
        self.counts: Counter[str] = Counter()
        self.successes: list[bool] = []
        self._commands: queue.Queue[np.ndarray] = queue.Queue(maxsize=BACKLOG)
        self._next = threading.Event()
        self._gripper = 0.0
        self._publishers: list[tuple[Stream, Publish]] = []

    def start(self) -> None:
        action = self.contract.action
        self.bus.start()
        self.bus.subscribe(action.topic, action.type, action.qos, self._command)
        self._publishers = [(s, self.bus.advertise(s.topic, s.type, s.qos)) for s in self.contract.streams]
        self._success = self.bus.advertise(f"{NAME}/success", "std_msgs/msg/Bool", QosProfile.latched)
        self._status = self.bus.advertise(f"{NAME}/status", "std_msgs/msg/String", QosProfile.latched)
        self.bus.serve(f"{NAME}/reset", "std_srvs/srv/Trigger", self._reset_service)

    def run(self, stop: threading.Event) -> list[bool]:
        """Plays the episodes of the settings, or until `stop` is set."""
        for episode in range(self.settings.episodes):
            if stop.is_set():
                break
            self.successes.append(self._episode(episode, stop))
        return self.successes

    def _episode(self, episode: int, stop: threading.Event) -> bool:
        first = self.settings.first_init_state
        options = {} if first is None else {"init_state": first + episode}
        _, info = self.env.reset(seed=self.settings.seed + episode, options=options)
        self._next.clear()
        self._reset_node(stop)
        while not self._commands.empty():
            self._commands.get_nowait()
        self._gripper = 0.0
        success, step, limit = bool(info.get("success", False)), 0, self.settings.max_steps or self.env.task.max_steps
        due = self.clock.monotonic_ns()
        self._publish_streams(True)
        while step < limit and not success and not stop.is_set() and not self._next.is_set():
            action = self._take(due, stop)
            if action is None:
                continue
            success = self.env.run_steps(action[None].astype(np.float32)).success
            step += 1
            self._publish_streams(step % self.settings.image_every == 0)
            due = max(due + round(self.contract.period_s * 1e9), self.clock.monotonic_ns() - 10**9)
        self._report(episode, step, success)
        return success

    def _take(self, due: int, stop: threading.Event) -> np.ndarray | None:
        """The next command. In real time at `due`, the newest one or the hold action; in lockstep whenever it comes."""
        if self.settings.lockstep:
            try:
                return self._commands.get(timeout=LOCKSTEP_RETRY_S)
            except queue.Empty:
                self._publish_streams(True)
                return None
        self.clock.wait_until(due, stop)
        command = self._next_command()
        if command is not None:
            return command
        self.counts["missed"] += 1
        held = np.zeros(len(self.contract.action.names), np.float32)
        if self.contract.action.mode is ActionMode.delta:
            held[[name in self.contract.action.gripper for name in self.contract.action.names]] = self._gripper
        return held

    def _next_command(self) -> np.ndarray | None:
        """The newest command; of motions (delta actions), which add up, the oldest that was not executed yet."""
        newest = None
        while not self._commands.empty():
            newest = self._commands.get_nowait()
            if self.contract.action.mode is ActionMode.delta:
                break
        return newest

    def _reset_node(self, stop: threading.Event) -> None:
        """Shows the new scene until the node has begun a new episode. ValueError when it does not in time."""
        if not self.settings.reset_service:
            return
        end = self.clock.monotonic_ns() + round(self.settings.reset_timeout_s * 1e9)
        refused = "no answer"
        while not stop.is_set():
            self._publish_streams(True)
            try:
                answer = self.bus.call(self.settings.reset_service, "std_srvs/srv/Trigger", Ns(), timeout_s=0.5)
            except TimeoutError:
                answer = Ns(success=False, message="no answer")
            if answer.success:
                return
            refused = answer.message
            if self.clock.monotonic_ns() > end:
                raise ValueError(f"{self.settings.reset_service} should start an episode, it says: {refused}")

    def _command(self, message: Any) -> None:
        """A command from the bus, clipped to the simulator's range; a bad one is refused and counted."""
        try:
            action = np.clip(decode_action(self.contract.action, message), -1.0, 1.0)
        except ValueError:
            self.counts["refused"] += 1
            return
        self.counts["commands"] += 1
        self._gripper = float(action[-1])
        if self._commands.full():
            self.counts["overrun"] += 1
            with contextlib.suppress(queue.Empty):
                self._commands.get_nowait()
        self._commands.put_nowait(action)

    def _publish_streams(self, images: bool) -> None:
        observation = self.env.observe(images=images)
        now = self.clock.now_ns()
        for stream, publish in self._publishers:
            message = encode_stream(stream, observation, now)
            if message is not None:
                publish(message)

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
