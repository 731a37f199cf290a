"""Real processes: `embodied node` over DDS against a robot here, silence and SIGTERM; openpi's own client."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace as Ns
from typing import Any

import numpy as np
import pytest
from long_inference import LONG_S, LongInference, openpi_python
from loop_parts import ARM_CONTRACT, until

pytest.importorskip("cyclonedds", reason="the deploy extra is not installed")
pytest.importorskip("rosbags", reason="the deploy extra is not installed")
from embodied.deploy import messages
from embodied.deploy.contract import QosProfile
from embodied.deploy.transports.dds import DdsBus
from embodied.schema import STATE_NAMES

TRIGGER = "std_srvs/srv/Trigger"


class Robot:
    """Joint states at 50 Hz on a bus of its own; keeps the times of the commands."""

    def __init__(self, domain: int) -> None:
        self.bus = DdsBus("robot", domain)
        self.commands: list[float] = []
        self.states: list[str] = []
        self.bus.subscribe(
            "/action", "std_msgs/msg/Float64MultiArray", QosProfile.reliable,
            lambda _: self.commands.append(time.monotonic()),
        )  # fmt: skip
        self.bus.subscribe("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", QosProfile.reliable, self._note)
        self._publish = self.bus.advertise("/joint_states", "sensor_msgs/msg/JointState", QosProfile.sensor)
        self.bus.start()
        self.silent, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def state(self) -> str:
        return self.states[-1] if self.states else ""

    def runs(self) -> bool:
        """Resets the node while it holds; a machine that was busy may have made it hold once more."""
        if self.state() == "held":
            try:
                self.bus.call("/embodied/reset", TRIGGER, Ns(), 2.0)
            except TimeoutError:
                return False
        return self.state() == "running"

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.bus.stop()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            if not self.silent.is_set():
                self._publish(messages.joint_state_message(list(STATE_NAMES), np.zeros(8), time.time_ns()))

    def _note(self, message: Any) -> None:
        values = {pair.key: pair.value for pair in message.status[0].values}
        self.states.append(values["state"])


def start(tmp_path: Path, domain: int, *extra: str, contract: str = ARM_CONTRACT) -> subprocess.Popen[str]:
    path = tmp_path / "arm.yaml"
    path.write_text(contract)
    command = [sys.executable, "-m", "embodied.cli", "node", "policy=random", f"contract={path}", *extra]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command.append(f"network.domain_id={domain}")
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


@pytest.fixture
def domain() -> int:
    return random.SystemRandom().randrange(1, 230)


@pytest.fixture
def robot(domain: int) -> Iterator[Robot]:
    made = Robot(domain)
    yield made
    made.close()


def test_a_node_and_a_robot_in_two_processes(tmp_path: Path, domain: int, robot: Robot) -> None:
    """Runs, holds when the robot falls silent, stays so, resets, records, and ends cleanly on SIGTERM."""
    node = start(tmp_path, domain, f"record={tmp_path / 'bag'}")
    try:
        assert until(lambda: len(robot.commands) > 20, 90), "the node should act"
        assert until(lambda: robot.bus.peers() == ["/embodied"])
        assert until(robot.runs)
        robot.silent.set()
        assert until(lambda: robot.state() == "held")
        robot.silent.clear()
        assert until(robot.runs)
    finally:
        node.send_signal(signal.SIGTERM)
    output, _ = node.communicate(timeout=60)
    assert node.returncode == 0, output
    assert "/embodied ended" in output
    count = len(robot.commands)
    time.sleep(0.3)
    assert len(robot.commands) == count
    from embodied.deploy.replay import replay_bag
    from embodied.registry import build

    result = replay_bag(tmp_path / "bag", build({"_target_": "policies.reference.random.RandomPolicy"}))
    assert result.differences == []
    assert result.actions > 20


def test_a_wrong_contract_ends_with_status_2(tmp_path: Path, domain: int) -> None:
    node = start(tmp_path, domain, contract=ARM_CONTRACT.replace("gripper]", "gripper, extra]", 1))
    output, _ = node.communicate(timeout=120)
    assert node.returncode == 2
    assert "action" in output


CLIENT = """
import json, sys, numpy as np
from openpi_client import websocket_client_policy
from openpi_client.action_chunk_broker import ActionChunkBroker
client = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", int(sys.argv[1]))
observation = {
    "observation/image": np.zeros((224, 224, 3), np.uint8),
    "observation/wrist_image": np.zeros((224, 224, 3), np.uint8),
    "observation/state": np.zeros(8, np.float32),
    "prompt": "do something",
}
answer = client.infer(observation)
broker = ActionChunkBroker(client, 5)
single = [broker.infer(observation)["actions"].shape for _ in range(7)]
print(json.dumps({"numpy": np.__version__, "metadata": client.get_server_metadata()["policy"],
                  "shape": answer["actions"].shape, "single": single, "timing": sorted(answer["server_timing"])}))
"""


def test_the_real_openpi_client(tmp_path: Path) -> None:
    pytest.importorskip("websockets", reason="the deploy extra is not installed")
    python = openpi_python()
    server = subprocess.Popen(
        [sys.executable, "-m", "embodied.cli", "serve", "policy=random", "port=0"],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert server.stdout is not None
    lines = iter(server.stdout.readline, "")
    port = next(line for line in lines if line.startswith("serving")).rsplit(":", 1)[1].strip()
    done = subprocess.run([python, "-c", CLIENT, port], capture_output=True, text=True, check=False, timeout=120)
    server.send_signal(signal.SIGTERM)
    server.communicate(timeout=60)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["numpy"].startswith("1.")
    assert seen["metadata"] == "random"
    assert seen["shape"] == [10, 7]
    assert seen["single"] == [[7]] * 7
    assert "infer_ms" in seen["timing"]
    assert server.returncode == 0


def test_an_inference_of_50_seconds_with_the_real_client(long_inference: LongInference | None) -> None:
    """More than twice the client's keep-alive of 20 s: pings are answered, and so is the health check."""
    if long_inference is None:
        pytest.skip("openpi-client cannot be installed here")
    client = long_inference.client
    if client.poll() is None:
        with urllib.request.urlopen(f"http://127.0.0.1:{long_inference.server.port}/healthz", timeout=20) as health:
            assert health.read() == b"OK\n"
    output, errors = client.communicate(timeout=180)
    assert client.returncode == 0, errors
    seen = json.loads(output)
    assert seen["seconds"] >= LONG_S
    assert seen["shape"] == seen["again"] == [4, 7]
