"""The node: a contract, a policy and a bus made into a managed ROS 2 node.

    /diagnostics            DiagnosticArray once a second
    ~/hold ~/estop ~/reset  std_srvs/srv/Trigger; reset is refused while something is wrong, and says what
    ~/change_state ~/get_state ~/get_available_states ~/get_available_transitions ~/transition_event
    ~/get_parameters ~/set_parameters ~/list_parameters   `task` can be set while it runs

The bus's thread decodes messages, one thread runs the control loop, another the policy, and `spin` reports.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from embodied.deploy import node_services
from embodied.deploy.align import Aligner
from embodied.deploy.bus import Bus, Publish
from embodied.deploy.clock import Clock, SimulatedClock, SystemClock
from embodied.deploy.contract import Contract, QosProfile, Stream
from embodied.deploy.contract_check import require_match
from embodied.deploy.convert import decode, encode_action, stamp_of
from embodied.deploy.inference import Inference
from embodied.deploy.lifecycle import Lifecycle, LifecycleState, Transition
from embodied.deploy.lockstep import Lockstep, SteppedClock, SteppedInference
from embodied.deploy.loop import ControlLoop
from embodied.deploy.messages import nanoseconds
from embodied.deploy.rtc import PrefixPolicy
from embodied.deploy.schedule import ScheduleMode, ScheduleSettings

END_TIMEOUT_S = 5.0
Published = Callable[[Any, int], None]  # the action's message, its stamp in ns


class Node:
    """`configure` checks the contract against the policy; `activate` starts to act; `spin` until told to stop."""

    def __init__(
        self,
        contract: Contract,
        schedule: ScheduleSettings,
        inference: Inference,
        bus: Bus,
        *,
        name: str = "embodied",
        clock: Clock | None = None,
        warmup_timeout_s: float = 120.0,
    ) -> None:
        self.contract, self.schedule, self.inference, self.bus = contract, schedule, inference, bus
        self.name = "/" + name.strip("/")
        self.clock = clock or SystemClock()
        self.aligner = Aligner(contract)
        stepped = isinstance(self.clock, SteppedClock)
        self.loop = ControlLoop(
            contract, schedule, inference, self.clock, self._send, self.aligner, warmup_timeout_s, stepped
        )
        self.lockstep: Lockstep | None = None
        if isinstance(self.clock, SteppedClock):
            self.lockstep = Lockstep(contract, bus, self.clock, self.aligner, self.name)
        self.lifecycle = Lifecycle(self._work)
        self.unchecked: list[str] = []
        self.on_action: list[Published] = []
        self._publish: Publish | None = None
        self._stop_loop = threading.Event()
        self._control: Future[None] | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="control")

    def start(self) -> None:
        """Puts the services on the bus; the node is unconfigured."""
        node_services.add_services(self)
        self.bus.start()

    def configure(self) -> None:
        """ValueError when contract and policy disagree, with every mismatch."""
        self._change(Transition.configure)

    def activate(self) -> None:
        self._change(Transition.activate)

    def shutdown(self) -> None:
        """Ends the loop after a last hold action, leaves the bus. Safe to call twice."""
        if self.lifecycle.state is not LifecycleState.finalized:
            self.lifecycle.change(Transition.shutdown)
        self.bus.stop()
        self.inference.close()
        self._executor.shutdown(wait=False)

    def failure(self) -> BaseException | None:
        """What ended the control loop before its time, None when nothing did."""
        return self._control.exception() if self._control is not None and self._control.done() else None

    def spin(self, stop: threading.Event, period_s: float = 1.0) -> None:
        """Publishes diagnostics until `stop` is set, the node is finalized or the control loop failed."""
        publish = self.bus.advertise("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", QosProfile.reliable)
        while not stop.is_set():
            publish(node_services.diagnostics(self))
            if self.lifecycle.state is LifecycleState.finalized or self.failure() is not None:
                return
            stop.wait(period_s)

    def received(self, index: int, message: Any) -> None:
        """Takes a message of stream `index`; what cannot be decoded is refused and counted."""
        mono_ns, now_ns = self.clock.monotonic_ns(), self.clock.now_ns()
        stream = self.contract.streams[index]
        try:
            value = decode(stream, message)
            stamp_ns = stamp_of(stream, message, now_ns)
        except ValueError as error:
            self.aligner.refuse(index, str(error))
            return
        self.aligner.put(index, value, stamp_ns, mono_ns, now_ns, message)

    def _change(self, transition: Transition) -> None:
        if not self.lifecycle.change(transition):
            raise ValueError(self.lifecycle.error)

    def _work(self, state: LifecycleState, transition: Transition) -> None:
        if transition is Transition.configure:
            self._configure()
        elif transition is Transition.activate:
            self._stop_loop.clear()
            if isinstance(self.inference, SteppedInference):
                self.inference.ending.clear()
            self._control = self._executor.submit(self._run_loop)
        elif state is LifecycleState.active:
            self._end_loop()

    def _run_loop(self) -> None:
        if self.lockstep is None:
            self.loop.run(self._stop_loop)
        else:
            self.lockstep.run(self.loop, self._stop_loop)

    def _configure(self) -> None:
        spec = self.inference.spec
        findings = require_match(self.contract, spec, self.schedule.replan)
        policy = getattr(self.inference, "policy", None)
        if self.schedule.mode is ScheduleMode["rtc"] and not isinstance(policy, PrefixPolicy):
            raise ValueError(
                f"schedule.mode rtc needs a policy in this process with act_with_prefix, {spec.name} has none: "
                "choose async, sync or temporal_ensemble"
            )
        self.unchecked = findings.unchecked
        if self._publish is not None:
            return  # configured before
        action = self.contract.action
        self._publish = self.bus.advertise(action.topic, action.type, action.qos)
        if self.lockstep is not None:
            self.lockstep.start()
        elif isinstance(self.clock, SimulatedClock):
            self.bus.subscribe("/clock", "rosgraph_msgs/msg/Clock", QosProfile.sensor, self._set_clock)
        for index, stream in enumerate(self.contract.streams):
            self._subscribe(index, stream)

    def _subscribe(self, index: int, stream: Stream) -> None:
        self.bus.subscribe(stream.topic, stream.type, stream.qos, lambda message: self.received(index, message))

    def _set_clock(self, message: Any) -> None:
        assert isinstance(self.clock, SimulatedClock)
        self.clock.set(nanoseconds(message.clock))

    def _end_loop(self) -> None:
        """The loop's last act is to hold."""
        self._stop_loop.set()
        if isinstance(self.inference, SteppedInference):
            self.inference.ending.set()
        try:
            if self._control is not None:
                self._control.exception(timeout=END_TIMEOUT_S)
        except TimeoutError as error:
            raise ValueError(f"the control loop should end within {END_TIMEOUT_S} s, it did not") from error
        self.loop.pause()

    def _send(self, action: np.ndarray, stamp_ns: int) -> None:
        if self._publish is None:
            return
        message = encode_action(self.contract.action, action, stamp_ns, self.contract.period_s)
        self._publish(message)
        for tap in self.on_action:
            tap(message, stamp_ns)
