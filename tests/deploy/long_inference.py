"""An inference of 50 s, asked by the real openpi-client in an environment of its own (it pins numpy < 2)."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embodied.deploy.contract import contract_from
from embodied.protocols import PolicySpec
from embodied.schema import ACTION_NAMES, STATE_NAMES

LONG_S = 50.0
LONG_CLIENT = """
import json, sys, time, urllib.request, numpy as np
from openpi_client import websocket_client_policy
port = sys.argv[1]
client = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", int(port))
state = np.full(8, 0.25, np.float32)
began = time.monotonic()
answer = client.infer({"observation/state": state, "prompt": "think"})
seconds = time.monotonic() - began
again = client.infer({"observation/state": state, "prompt": "now"})
print(json.dumps({"seconds": seconds, "shape": answer["actions"].shape, "again": again["actions"].shape}))
"""


class Thinker:
    """Thinks for 50 s when it is told to."""

    def __init__(self) -> None:
        self.spec = PolicySpec("thinker", "0", 4, 2)

    def reset(self, slots: Any, episodes: Any) -> None:
        pass

    def act(self, observation: dict[str, Any], slots: Any) -> np.ndarray:
        time.sleep(LONG_S if observation["task"] == ["think"] else 0.0)
        return np.repeat(observation["observation.state"][:, None, :7], 4, axis=1)


class LongInference:
    """Our server in a thread, the real client in a process that waits for it."""

    def __init__(self, python: Path) -> None:
        from embodied.deploy.policy_server import PolicyServer
        from embodied.deploy.transports.openpi_server import OpenpiServer

        stream = {"feature": "observation.state", "key": "observation/state", "type": "array"}
        action = {"key": "actions", "type": "array", "names": list(ACTION_NAMES), "mode": "delta"}
        values = {"name": "slow", "streams": [{**stream, "names": list(STATE_NAMES)}], "action": action}
        self.server = OpenpiServer(PolicyServer(Thinker(), contract_from(values)), port=0)
        self.server.start()
        command = [str(python), "-c", LONG_CLIENT, str(self.server.port)]
        self.client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def close(self) -> None:
        self.client.kill()
        self.client.wait()
        self.server.stop()


def openpi_python() -> Path:
    """An environment with the real openpi-client (numpy < 2), made once; skips where it cannot be made."""
    folder = Path(tempfile.gettempdir()) / "embodied-openpi-client"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", "-q", "openpi-client==0.1.2", "typing_extensions"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
            if done.returncode != 0:
                pytest.skip(f"openpi-client cannot be installed here: {done.stderr.strip()[-200:]}")
        (folder / "ready").touch()
    return python
