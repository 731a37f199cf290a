"""A node, a camera, a robot's joints and a policy, each a process: kill or freeze one and see the hold in time.

What is in time is read from the node's own recording: the stated age or timeout, plus the ticks that this machine was
late with. So a slow machine makes these tests slow, not red.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace as Ns
from typing import Any

import numpy as np
import pytest
from loop_parts import until

pytest.importorskip("cyclonedds", reason="the deploy extra is not installed")
pytest.importorskip("rosbags", reason="the deploy extra is not installed")
from embodied.deploy.contract import QosProfile
from embodied.deploy.transports import ros_types
from embodied.deploy.transports.dds import DdsBus
from embodied.deploy.transports.mcap import read_bag

TRIGGER = "std_srvs/srv/Trigger"
MAX_AGE_S, POLICY_TIMEOUT_S, PERIOD_S = 1.0, 2.0, 0.05
ATTEMPTS = 5
CONTRACT = f"""
name: arm
rate_hz: 20
streams:
  - {{feature: observation.images.image, topic: /camera, type: sensor_msgs/msg/Image, size: 64, max_age_s: {MAX_AGE_S}}}
  - {{feature: observation.state, topic: /joints, type: sensor_msgs/msg/JointState, max_age_s: {MAX_AGE_S},
     names: [x, y, z, rx, ry, rz, gripper_left, gripper_right]}}
action: {{topic: /action, type: std_msgs/msg/Float64MultiArray, mode: delta, gripper: [gripper],
          names: [dx, dy, dz, drx, dry, drz, gripper]}}
limits: {{low: [-1, -1, -1, -1, -1, -1, -1], high: [1, 1, 1, 1, 1, 1, 1]}}
watchdog: {{max_deadline_misses: 100000, policy_timeout_s: {POLICY_TIMEOUT_S}, max_skew_s: 5.0}}
"""


class Scene:
    """The processes, and an observer of the commands."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.domain = folder, random.SystemRandom().randrange(1, 230)
        self.bus = DdsBus("observer", self.domain)
        self.commands: list[np.ndarray] = []
        self.states: list[str] = []
        self.reason = ""
        self.bus.subscribe("/action", "std_msgs/msg/Float64MultiArray", QosProfile.reliable, self._take)
        self.bus.subscribe("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", QosProfile.reliable, self._note)
        self.bus.start()
        self.peers = {kind: self.peer(kind) for kind in ("camera", "joints")}
        (folder / "arm.yaml").write_text(CONTRACT)
        command = [sys.executable, "-m", "embodied.cli", "node", "policy=random", f"contract={folder / 'arm.yaml'}"]
        command += ["runs=process", f"record={folder / 'bag'}", f"network.domain_id={self.domain}"]
        self.log = (folder / "node.log").open("w")
        self.node = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT, env=environment())

    def peer(self, kind: str) -> subprocess.Popen[bytes]:
        script = Path(__file__).with_name("peer.py")
        return subprocess.Popen([sys.executable, str(script), kind, str(self.domain)], env=environment())

    def signal(self, kind: str, number: signal.Signals) -> None:
        self.peers[kind].send_signal(number)

    def restart(self, kind: str) -> None:
        self.peers[kind].wait()
        self.peers[kind] = self.peer(kind)

    def _take(self, message: Any) -> None:
        self.commands.append(np.array(message.data))

    def _note(self, message: Any) -> None:
        self.reason = message.status[0].message
        self.states.append({pair.key: pair.value for pair in message.status[0].values}["state"])

    def moving(self) -> bool:
        """A command that came just now and is not the hold action."""
        count = len(self.commands)
        return until(lambda: len(self.commands) > count, 2) and bool(self.commands[-1][:6].any())

    def holds(self) -> bool:
        """The node says so, once a second."""
        count = len(self.states)
        return until(lambda: len(self.states) > count, 2) and self.states[-1] == "held"

    def go(self) -> None:
        """Resets until it moves; a machine that was busy may have made it hold meanwhile."""
        assert until(lambda: self.moving() or (self._reset() and self.moving()), 90), "the node should act"

    def _reset(self) -> bool:
        try:
            return bool(self.bus.call("/embodied/reset", TRIGGER, Ns(), 2.0).success)
        except TimeoutError:
            return False

    def policy_process(self) -> int:
        """The node's child that has the policy (the other one tracks multiprocessing's resources)."""
        children: list[str] = []
        for thread in Path(f"/proc/{self.node.pid}/task").iterdir():
            children += (thread / "children").read_text().split()
        named = {int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()}
        assert len(named) == 1, named
        return named.pop()

    def close(self) -> None:
        for process in (*self.peers.values(), self.node):
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        self.bus.stop()
        self.log.close()


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.close()


def ticks_of(bag: Path) -> list[dict[str, Any]]:
    records = [
        json.loads(ros_types.decode(kind, data).data) for topic, kind, _, data in read_bag(bag) if "/tick" in topic
    ]
    return sorted(records, key=lambda record: record["step"])


def hold_after(ticks: list[dict[str, Any]], moment_ns: int) -> tuple[dict[str, Any], float, int]:
    """The first held tick after a moment when it was running, the longest pause between ticks until then, its index."""
    before = max(i for i, tick in enumerate(ticks) if tick["mono_ns"] <= moment_ns)
    assert ticks[before]["state"] == "running"
    held = next(i for i in range(before, len(ticks)) if ticks[i]["state"] == "held")
    gaps = np.diff([tick["mono_ns"] for tick in ticks[before : held + 1]]) / 1e9
    return ticks[held], max(float(gaps.max()), PERIOD_S), held


def test_every_part_that_dies_is_held_for_in_time(scene: Scene) -> None:
    moments: dict[str, int] = {}

    def fault(name: str, words: str, do: Callable[[], None], mend: Callable[[], None] = lambda: None) -> None:
        """Again, when the machine stood still so long at that moment that the node held for everything's silence."""
        for _ in range(ATTEMPTS):
            scene.go()
            moments[name] = time.monotonic_ns()
            do()
            assert until(scene.holds, 60), f"{name}: it should hold"
            reason = scene.reason
            mend()
            if words in reason:
                return
        pytest.fail(f"{name}: held for another reason, {ATTEMPTS} times: {reason}")

    fault("camera killed", "/camera", partial(scene.signal, "camera", signal.SIGKILL), partial(scene.restart, "camera"))
    cut, back = (partial(scene.signal, "joints", number) for number in (signal.SIGSTOP, signal.SIGCONT))
    fault("network cut", "/joints", cut, back)
    fault("robot killed", "/joints", partial(scene.signal, "joints", signal.SIGKILL), partial(scene.restart, "joints"))
    fault("policy killed", "policy", lambda: os.kill(scene.policy_process(), signal.SIGKILL))
    scene.go()
    scene.node.send_signal(signal.SIGTERM)
    assert scene.node.wait(60) == 0, (scene.folder / "node.log").read_text()
    assert "/embodied ended" in (scene.folder / "node.log").read_text()

    ticks = ticks_of(scene.folder / "bag")
    last = np.array([tick["action"] is not None for tick in ticks[-3:]])
    assert last.any()
    for name, words in (("camera killed", "/camera"), ("network cut", "/joints"), ("robot killed", "/joints")):
        held, gap, index = hold_after(ticks, moments[name])
        stream = ["/camera", "/joints"].index(words)
        came = max(put[2] for tick in ticks[: index + 1] for put in tick["puts"] if put[0] == stream)
        assert any(words in trouble for trouble in held["troubles"]), (name, held["troubles"])
        assert (held["mono_ns"] - came) / 1e9 <= MAX_AGE_S + gap, name
        assert_still(ticks[index])
    held, gap, index = hold_after(ticks, moments["policy killed"])
    assert any("policy" in trouble for trouble in held["troubles"]), held["troubles"]
    asked = max(tick["mono_ns"] for tick in ticks[: index + 1] if tick["asked"] is not None)
    assert (held["mono_ns"] - asked) / 1e9 <= POLICY_TIMEOUT_S + gap
    assert_still(ticks[index])


def assert_still(tick: dict[str, Any]) -> None:
    """What was sent moves nothing."""
    action = np.frombuffer(bytes.fromhex(tick["action"]), np.float32)
    assert not action[:6].any()
