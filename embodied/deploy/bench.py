"""Latency and jitter of every transport by image size.

A round trip is an image and a joint state sent, and the action that answers them received; the other side is a process
of its own for dds and openpi, a callback for inproc. `embodied.deploy.soak` is the long run.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import numpy as np

from embodied.bench.figures import Figure
from embodied.deploy import messages
from embodied.deploy.contract import Contract, QosProfile, contract_from
from embodied.protocols import PolicySpec
from embodied.schema import IMAGE, STATE

IMAGE_TYPE, STATE_TYPE, ACTION_TYPE = (
    "sensor_msgs/msg/Image",
    "sensor_msgs/msg/JointState",
    "std_msgs/msg/Float64MultiArray",
)
NAMES = ["a", "b", "c", "d", "e", "f", "g"]
ANSWER_TIMEOUT_S = 10.0
WARMUP = 20


@dataclass
class DeployBench:
    """sizes: [height, width] of the image. messages: round trips measured of each."""

    transports: list[str] = field(default_factory=lambda: ["inproc", "dds", "openpi"])
    sizes: list[list[int]] = field(default_factory=lambda: [[128, 128], [480, 640]])
    messages: int = 300

    def run(self, say: Callable[[str], None]) -> list[Figure]:
        figures = []
        for transport in self.transports:
            for height, width in self.sizes:
                say(f"{transport}, {width}x{height}")
                image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
                times = ROUND_TRIPS[transport](image, self.messages)
                figures += _figures(f"{transport}.image_{width}x{height}", times)
        return figures


def _figures(name: str, times_ms: list[float]) -> list[Figure]:
    values = {"p50": 50, "p99": 99, "max": 100}
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    note = f"{len(times_ms)} round trips, image and state there, action back; {load}"
    made = [
        Figure(f"{name}.{key}_ms", float(np.percentile(times_ms, at)), "ms", None, note) for key, at in values.items()
    ]
    jitter = float(np.std(times_ms))
    return [*made, Figure(f"{name}.jitter_ms", jitter, "ms", None, "standard deviation of the same")]


def _bus_round_trips(bus: Any, image: np.ndarray, count: int) -> list[float]:
    """Milliseconds of `count` round trips with an echo on the other side of `bus`."""
    answered = threading.Event()
    bus.subscribe("/action", ACTION_TYPE, QosProfile.reliable, lambda _: answered.set())
    send_image = bus.advertise("/image", IMAGE_TYPE, QosProfile.reliable)
    send_state = bus.advertise("/joints", STATE_TYPE, QosProfile.reliable)
    times: list[float] = []
    deadline = time.monotonic() + 60
    while len(times) < count + WARMUP:
        answered.clear()
        began = time.perf_counter()
        send_image(messages.image_message(image, time.time_ns()))
        send_state(messages.joint_state_message(NAMES, np.zeros(7), time.time_ns()))
        if answered.wait(ANSWER_TIMEOUT_S if times else 0.2):
            times.append(1e3 * (time.perf_counter() - began))
        elif time.monotonic() > deadline:
            raise ValueError("the echo process should answer, it does not: is the loopback interface up?")
        time.sleep(0.002)
    return times[WARMUP:]


def answer(bus: Any) -> None:
    """The other side: an action for every joint state, once the image that came before it is decoded."""
    reply = bus.advertise("/action", ACTION_TYPE, QosProfile.reliable)
    bus.subscribe("/image", IMAGE_TYPE, QosProfile.reliable, lambda message: message.data[0])
    bus.subscribe(
        "/joints", STATE_TYPE, QosProfile.reliable, lambda message: reply(messages.array_message(message.position))
    )
    bus.start()


def _inproc(image: np.ndarray, count: int) -> list[float]:
    from embodied.deploy.transports.inproc import Hub, InprocBus

    hub = Hub()
    bus = InprocBus(hub)
    answer(InprocBus(hub))
    bus.start()
    return _bus_round_trips(bus, image, count)


def _dds(image: np.ndarray, count: int) -> list[float]:
    from embodied.deploy.transports.dds import DdsBus

    domain = 1 + secrets.randbelow(229)
    other = get_context("spawn").Process(target=_dds_echo, args=(domain,), daemon=True)
    other.start()
    bus = DdsBus("bench", domain)
    bus.start()
    times = _bus_round_trips(bus, image, count)
    bus.stop()
    other.terminate()
    other.join()
    return times


def _dds_echo(domain: int) -> None:
    from embodied.deploy.transports.dds import DdsBus

    answer(DdsBus("echo", domain))
    threading.Event().wait()


def _openpi(image: np.ndarray, count: int) -> list[float]:
    from embodied.deploy.transports.openpi_client import RemotePolicy

    context = get_context("spawn")
    ours, theirs = context.Pipe()
    other = context.Process(target=_openpi_server, args=(theirs,), daemon=True)
    other.start()
    policy = RemotePolicy(f"ws://127.0.0.1:{ours.recv()}", mirrored=False)
    observation = {IMAGE: image[None], STATE: np.zeros((1, 7), np.float32), "task": ["measure"]}
    times = []
    for _ in range(count + WARMUP):
        began = time.perf_counter()
        policy.act(observation, [0])
        times.append(1e3 * (time.perf_counter() - began))
        time.sleep(0.002)
    policy.close()
    other.terminate()
    other.join()
    return times[WARMUP:]


def _openpi_server(pipe: Any) -> None:
    from embodied.deploy.policy_server import PolicyServer
    from embodied.deploy.transports.openpi_server import OpenpiServer

    server = OpenpiServer(PolicyServer(EchoPolicy(), bench_contract(20.0, keys=True)), port=0)
    server.start()
    pipe.send(server.port)
    threading.Event().wait()


ROUND_TRIPS = {"inproc": _inproc, "dds": _dds, "openpi": _openpi}


class EchoPolicy:
    """Answers at once with the state: what is measured is the way there and back."""

    def __init__(self) -> None:
        extra = {"state_names": NAMES, "action_names": NAMES}
        self.spec = PolicySpec("echo", "0", 10, 5, image_keys=(IMAGE,), extra=extra)

    def reset(self, slots: Any, episodes: Any) -> None:
        pass

    def act(self, observation: dict[str, Any], slots: Any) -> np.ndarray:  # noqa: ARG002
        return np.repeat(observation[STATE][:, None], self.spec.chunk, axis=1)


def bench_contract(rate_hz: float, keys: bool = False) -> Contract:
    """One camera and seven joints, over topics or over openpi's keys."""
    if keys:
        streams = [
            {"feature": IMAGE, "key": "observation/image", "type": "array"},
            {"feature": STATE, "key": "observation/state", "type": "array", "names": NAMES},
        ]
        action = {"key": "actions", "type": "array", "names": NAMES}
    else:
        streams = [
            {"feature": IMAGE, "topic": "/image", "type": IMAGE_TYPE, "max_age_s": 2.0},
            {"feature": STATE, "topic": "/joints", "type": STATE_TYPE, "names": NAMES, "max_age_s": 1.0},
        ]
        action = {"topic": "/action", "type": ACTION_TYPE, "names": NAMES}
    watchdog = {"max_skew_s": 2.0, "max_deadline_misses": 100}
    return contract_from(
        {"name": "bench", "rate_hz": rate_hz, "streams": streams, "action": action, "watchdog": watchdog}
    )
