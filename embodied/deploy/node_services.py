"""The node's ROS 2 services and its diagnostics, as functions on a Node."""

from __future__ import annotations

from types import SimpleNamespace as Ns
from typing import TYPE_CHECKING, Any

from embodied.deploy import messages
from embodied.deploy.clock import SimulatedClock
from embodied.deploy.contract import QosProfile
from embodied.deploy.lifecycle import LifecycleState
from embodied.deploy.loop import LoopState

if TYPE_CHECKING:
    from embodied.deploy.node import Node

OK, WARN, ERROR, STALE = 0, 1, 2, 3
NOT_SET, BOOL, INTEGER, DOUBLE, STRING = 0, 1, 2, 3, 4
MAX_TASK = 1000


def add_services(node: Node) -> None:
    """Everything under the node's name; see `embodied.deploy.node`."""
    trigger, prefix = "std_srvs/srv/Trigger", node.name
    node.bus.serve(f"{prefix}/hold", trigger, lambda _: _hold(node))
    node.bus.serve(f"{prefix}/estop", trigger, lambda _: _stop(node))
    node.bus.serve(f"{prefix}/reset", trigger, lambda _: _reset(node))
    lifecycle = "lifecycle_msgs/srv/"
    node.bus.serve(f"{prefix}/change_state", lifecycle + "ChangeState", lambda request: _change(node, request))
    node.bus.serve(f"{prefix}/get_state", lifecycle + "GetState", lambda _: Ns(current_state=state(node)))
    node.bus.serve(f"{prefix}/get_available_states", lifecycle + "GetAvailableStates", lambda _: _states())
    node.bus.serve(
        f"{prefix}/get_available_transitions", lifecycle + "GetAvailableTransitions", lambda _: _transitions(node)
    )
    node.bus.serve(f"{prefix}/get_parameters", "rcl_interfaces/srv/GetParameters", lambda request: _get(node, request))
    node.bus.serve(f"{prefix}/set_parameters", "rcl_interfaces/srv/SetParameters", lambda request: _set(node, request))
    node.bus.serve(f"{prefix}/list_parameters", "rcl_interfaces/srv/ListParameters", lambda _: _list(node))
    event = node.bus.advertise(f"{prefix}/transition_event", "lifecycle_msgs/msg/TransitionEvent", QosProfile.reliable)
    node.lifecycle.on_change = lambda transition, start, goal: event(
        Ns(
            timestamp=node.clock.now_ns(),
            transition=Ns(id=int(transition), label=transition.name),
            start_state=_state(start),
            goal_state=_state(goal),
        )
    )


def state(node: Node) -> Ns:
    return _state(node.lifecycle.state)


def parameters(node: Node) -> dict[str, bool | int | float | str]:
    """What `ros2 param list` shows."""
    return {
        "use_sim_time": isinstance(node.clock, SimulatedClock),
        "task": node.loop.task,
        "contract": node.contract.name,
        "policy": node.inference.spec.name,
        "policy_digest": node.inference.spec.digest,
        "chunk": node.inference.spec.chunk,
        "replan": node.schedule.replan or node.inference.spec.replan,
        "rate_hz": node.contract.rate_hz,
    }


def diagnostics(node: Node) -> Ns:
    """DiagnosticArray: the loop, then one status a stream, then the bus."""
    report = node.loop.report()
    loop_state = LoopState(report["state"])
    level = {LoopState.running: OK, LoopState.waiting: WARN}.get(loop_state, ERROR)
    if node.lifecycle.state is not LifecycleState.active:
        level = WARN
    words = report["latched"] or report["waiting_for"] or [loop_state.value]
    loop = _status(
        f"{node.name[1:]}: control", level, "; ".join(words)[:500], node,
        {
            "lifecycle": node.lifecycle.state.name,
            "state": loop_state.value,
            "steps": report["steps"],
            **report["counts"],
            **report["watchdog"],
            **{f"safety_{kind}": count for kind, count in report["safety"].items()},
            **({} if report["value"] is None else {"value": round(report["value"], 4)}),
            **{f"inference_{name}_ms": round(value, 2) for name, value in report["inference_ms"].items()},
        },
    )  # fmt: skip
    streams = [_stream_status(node, index) for index in range(len(node.contract.streams))]
    bus_counts = node.bus.report()
    troubled = any(word in key for key in bus_counts for word in ("refused", "incompatible"))
    bus = _status(
        f"{node.name[1:]}: bus", WARN if troubled else OK, "see values" if troubled else "ok", node, bus_counts
    )
    return Ns(header=messages.header(node.clock.now_ns()), status=[loop, *streams, bus])


def _stream_status(node: Node, index: int) -> Ns:
    stream, counts = node.contract.streams[index], node.aligner.counts[index]
    received = node.aligner.last_received[index]
    age = None if received is None else (node.clock.monotonic_ns() - received) / 1e9
    stale = stream.watch and (age is None or age > stream.max_age_s)
    level = STALE if stale else WARN if counts.refused or counts.ahead else OK
    words = "no message yet" if age is None else f"last message {age:.3f} s ago"
    values = {key: value for key, value in vars(counts).items() if value != ""}
    return _status(f"{node.name[1:]}: {stream.place}", level, words, node, values)


def _status(name: str, level: int, message: str, node: Node, values: dict[str, Any]) -> Ns:
    pairs = [Ns(key=str(key)[:200], value=str(value)[:500]) for key, value in values.items()]
    return Ns(level=level, name=name, message=message, hardware_id=node.contract.name, values=pairs)


def _hold(node: Node) -> Ns:
    node.loop.hold("service ~/hold")
    return Ns(success=True, message="holding until ~/reset")


def _stop(node: Node) -> Ns:
    node.loop.stop("service ~/estop")
    return Ns(success=True, message="stopped until ~/reset")


def _reset(node: Node) -> Ns:
    if node.lifecycle.state is not LifecycleState.active:
        return Ns(success=False, message=f"the node is {node.lifecycle.state.name}")
    refused = node.loop.reset()
    return Ns(success=not refused, message="; ".join(refused) or "waiting for a fresh observation")


def _change(node: Node, request: Any) -> Ns:
    return Ns(success=node.lifecycle.change(int(request.transition.id), str(request.transition.label)))


def _state(value: LifecycleState) -> Ns:
    return Ns(id=int(value), label=value.name)


def _states() -> Ns:
    return Ns(available_states=[_state(value) for value in LifecycleState])


def _transitions(node: Node) -> Ns:
    described = [
        Ns(
            transition=Ns(id=int(transition), label=transition.name),
            start_state=state(node),
            goal_state=_state(goal),
        )
        for transition, goal in node.lifecycle.available()
    ]
    return Ns(available_transitions=described)


def _value(value: bool | int | float | str | None) -> Ns:
    kinds = {bool: BOOL, int: INTEGER, float: DOUBLE, str: STRING}
    result = Ns(
        type=kinds.get(type(value), NOT_SET), bool_value=False, integer_value=0, double_value=0.0, string_value="",
        byte_array_value=[], bool_array_value=[], integer_array_value=[], double_array_value=[], string_array_value=[],
    )  # fmt: skip
    if isinstance(value, bool):
        result.bool_value = value
    elif isinstance(value, int):
        result.integer_value = value
    elif isinstance(value, float):
        result.double_value = value
    elif isinstance(value, str):
        result.string_value = value
    return result


def _get(node: Node, request: Any) -> Ns:
    known = parameters(node)
    return Ns(values=[_value(known.get(str(name))) for name in request.names[:100]])


def _set(node: Node, request: Any) -> Ns:
    results = []
    for parameter in request.parameters[:100]:
        text = str(parameter.value.string_value)
        good = parameter.name == "task" and parameter.value.type == STRING and 0 < len(text) <= MAX_TASK
        if good:
            node.loop.task = text
        reason = "" if good else "only task, a string, can be set while the node runs"
        results.append(Ns(successful=good, reason=reason))
    return Ns(results=results)


def _list(node: Node) -> Ns:
    return Ns(result=Ns(names=list(parameters(node)), prefixes=[]))
