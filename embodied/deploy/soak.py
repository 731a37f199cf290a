"""`embodied bench soak`: the node at its rate for minutes, over DDS from a robot in another process.

Looked at are how late ticks begin, how many deadlines are missed, whether it is still running in the end, and memory.
The policy answers at once: what is measured is the node, not a model.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import numpy as np

from embodied.bench.figures import Figure
from embodied.deploy import messages
from embodied.deploy.bench import IMAGE_TYPE, NAMES, STATE_TYPE, EchoPolicy, bench_contract
from embodied.deploy.bus import Bus
from embodied.deploy.contract import QosProfile
from embodied.deploy.inference import ThreadInference
from embodied.deploy.loop import Tick
from embodied.deploy.node import Node
from embodied.deploy.schedule import ScheduleSettings
from embodied.workers import resident_mb

BEGIN_TIMEOUT_S = 60.0


@dataclass
class SoakBench:
    """image: [height, width], sent with every `image_every`-th joint state. transport: dds or inproc."""

    minutes: float = 10.0
    rate_hz: float = 20.0
    transport: str = "dds"
    image: list[int] = field(default_factory=lambda: [128, 128])
    image_every: int = 3

    def run(self, say: Callable[[str], None]) -> list[Figure]:
        say(f"soak of {self.minutes:g} minutes at {self.rate_hz:g} Hz over {self.transport}")
        with self._robot() as bus:
            return self._soak(bus, say)

    def _soak(self, bus: Bus, say: Callable[[str], None]) -> list[Figure]:
        node = Node(bench_contract(self.rate_hz), ScheduleSettings(), ThreadInference(EchoPolicy()), bus)
        late, running = array("d"), threading.Event()

        def on_tick(tick: Tick) -> None:
            if tick.action is not None:
                running.set()
                late.append((tick.mono_ns - (tick.due_ns or tick.mono_ns)) / 1e6)

        node.loop.on_tick = on_tick
        node.start()
        node.configure()
        node.activate()
        if not running.wait(BEGIN_TIMEOUT_S):
            raise ValueError(f"the node should begin to act, it waits for {node.loop.waiting_for}")
        memory = [resident_mb()]
        for tenth in range(1, 11):
            time.sleep(6.0 * self.minutes)
            memory.append(resident_mb())
            say(f"{10 * tenth}%: {len(late)} ticks, {sum(node.loop.watchdog.counts.values())} missed")
        missed, skipped = sum(node.loop.watchdog.counts.values()), node.loop.counts["skipped"]
        state = node.loop.state.value
        node.shutdown()
        return self._figures(np.array(late), missed, skipped, state, memory)

    def _figures(self, late: np.ndarray, missed: int, skipped: int, state: str, memory: list[float]) -> list[Figure]:
        load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
        note = f"{len(late)} ticks, {state} in the end; load of the machine {load} on {os.cpu_count()} cores"
        share = 100.0 * missed / max(len(late), 1)
        return [
            Figure("soak.minutes", self.minutes, "min", None, f"{self.rate_hz:g} Hz over {self.transport}"),
            Figure("soak.late_p50_ms", float(np.percentile(late, 50)), "ms", None, note),
            Figure("soak.late_p99_ms", float(np.percentile(late, 99)), "ms", None, note),
            Figure("soak.late_max_ms", float(late.max()), "ms", None, note),
            Figure("soak.missed_percent", share, "%", None, f"late by a period, overrun or starved; {skipped} skipped"),
            Figure("soak.memory_mb", memory[-1], "MB", memory[1], "resident in the end; baseline after a tenth"),
            Figure("soak.memory_growth_mb", memory[-1] - memory[1], "MB", None, "from a tenth of the time to the end"),
        ]

    @contextmanager
    def _robot(self) -> Iterator[Bus]:
        """Joint states and images until the end, and the node's side of the bus."""
        if self.transport == "dds":
            from embodied.deploy.transports.dds import DdsBus

            domain = 1 + secrets.randbelow(229)
            other = get_context("spawn").Process(target=_publish_dds, args=(domain, self), daemon=True)
            other.start()
            yield DdsBus("soak", domain)
            other.terminate()
            other.join()
            return
        if self.transport != "inproc":
            raise ValueError(f"transport should be dds or inproc, got {self.transport!r}")
        from embodied.deploy.transports.inproc import Hub, InprocBus

        hub, stop = Hub(), threading.Event()
        thread = threading.Thread(target=_publish, args=(InprocBus(hub), self, stop), daemon=True)
        thread.start()
        yield InprocBus(hub)
        stop.set()
        thread.join()


def _publish_dds(domain: int, settings: SoakBench) -> None:
    from embodied.deploy.transports.dds import DdsBus

    _publish(DdsBus("soak_robot", domain), settings, threading.Event())


def _publish(bus: Any, settings: SoakBench, stop: threading.Event) -> None:
    bus.start()
    send_image = bus.advertise("/image", IMAGE_TYPE, QosProfile.sensor)
    send_state = bus.advertise("/joints", STATE_TYPE, QosProfile.sensor)
    image, step = np.zeros((*settings.image, 3), np.uint8), 0
    while not stop.wait(1 / settings.rate_hz):
        if step % settings.image_every == 0:
            send_image(messages.image_message(image, time.time_ns()))
        send_state(messages.joint_state_message(NAMES, np.zeros(7), time.time_ns()))
        step += 1
