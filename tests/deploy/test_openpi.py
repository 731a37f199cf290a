"""The openpi protocol between our server and our client, with slow policies, bad keys and hostile messages."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_parts import until

pytest.importorskip("websockets", reason="the deploy extra is not installed")
pytest.importorskip("msgpack", reason="the deploy extra is not installed")
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from embodied.deploy.contract import Contract, contract_from
from embodied.deploy.policy_server import PolicyServer
from embodied.deploy.transports import msgpack_numpy
from embodied.deploy.transports.openpi_client import RemotePolicy
from embodied.deploy.transports.openpi_server import OpenpiServer
from embodied.protocols import PolicySpec
from embodied.schema import ACTION_NAMES, IMAGE, STATE, STATE_NAMES


def libero_contract(**changes: Any) -> Contract:
    streams = [
        {"feature": IMAGE, "key": "observation/image", "type": "array", "size": 8},
        {"feature": STATE, "key": "observation/state", "type": "array", "names": list(STATE_NAMES)},
    ]
    action = {"key": "actions", "type": "array", "names": list(ACTION_NAMES), "mode": "delta"}
    limits = {"low": [-1] * 7, "high": [1] * 7}
    return contract_from({"name": "libero", "streams": streams, "action": action, "limits": limits, **changes})


class Echo:
    """First action: the state's first 7 numbers; notes resets and instructions; can be slow or broken."""

    def __init__(self) -> None:
        self.spec = PolicySpec("echo", "d1", 4, 2, image_keys=(IMAGE,), image_size=8)
        self.resets: list[Any] = []
        self.tasks: list[str] = []
        self.asked = False
        self.wait = threading.Event()
        self.wait.set()

    def reset(self, slots: Any, episodes: Any) -> None:
        self.resets.append((slots[0], episodes[0].instruction))

    def act(self, observation: dict[str, Any], slots: Any) -> np.ndarray:
        self.asked = True
        self.wait.wait(120)
        self.tasks.append(observation["task"][0])
        if observation["task"][0] == "break":
            raise RuntimeError("no gripper")
        assert observation[IMAGE].shape == (1, 8, 8, 3)
        return np.repeat(observation[STATE][:, None, :7], 4, axis=1)


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def server(echo: Echo) -> Iterator[OpenpiServer]:
    made = OpenpiServer(PolicyServer(echo, libero_contract()), port=0, max_message_bytes=1 << 20)
    made.start()
    yield made
    echo.wait.set()
    made.stop()


def observation(value: float = 0.25, task: str = "open the drawer") -> dict[str, Any]:
    return {
        IMAGE: np.zeros((1, 16, 16, 3), np.uint8),
        STATE: np.full((1, 8), value, np.float32),
        "task": [task],
    }


def healthz(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=60) as answer:
        return answer.read()


def test_remote_policy_acts_like_the_policy(server: OpenpiServer, echo: Echo) -> None:
    policy = RemotePolicy(f"ws://127.0.0.1:{server.port}")
    spec = policy.spec
    assert (spec.name, spec.digest, spec.chunk, spec.replan, spec.action_dim) == ("remote:echo", "d1", 4, 2, 7)
    assert spec.image_size == 8
    assert list(spec.extra["state_names"]) == list(STATE_NAMES)
    actions = policy.act(observation(0.25), [0])
    assert actions.shape == (1, 4, 7)
    assert (actions == 0.25).all()
    assert (policy.act(observation(9.0), [0]) == 1.0).all(), "the contract's bounds hold"
    assert len(echo.resets) == 1
    policy.reset([0], [])  # type: ignore[arg-type]
    policy.act(observation(), [0])
    assert [words for _, words in echo.resets] == ["open the drawer"] * 2, "reset reaches the server"
    policy.close()


def test_health_and_other_clients_while_an_inference_takes_long(server: OpenpiServer, echo: Echo) -> None:
    policy = RemotePolicy(f"ws://127.0.0.1:{server.port}")
    echo.wait.clear()
    asking = threading.Thread(target=policy.act, args=(observation(), [0]))
    asking.start()
    assert until(lambda: echo.asked)
    assert healthz(server.port) == b"OK\n"
    with connect(f"ws://127.0.0.1:{server.port}", compression=None) as other:
        assert msgpack_numpy.unpackb(other.recv(timeout=60))["policy"] == "echo"  # type: ignore[arg-type]
    assert asking.is_alive(), "the inference was still under way when both were answered"
    echo.wait.set()
    asking.join(60)
    assert not asking.is_alive()


def test_errors_are_text_and_the_client_comes_back(server: OpenpiServer) -> None:
    policy = RemotePolicy(f"ws://127.0.0.1:{server.port}")
    policy._wait = 600.0  # longer than any machine takes between two calls
    with pytest.raises(ValueError, match="RuntimeError: no gripper"):
        policy.act(observation(task="break"), [0])
    with pytest.raises(ValueError, match="next try"):
        policy.act(observation(), [0])
    policy._retry_at = 0.0
    assert policy.act(observation(), [0]).shape == (1, 4, 7)
    policy.close()


def test_server_goes_and_comes_back(echo: Echo) -> None:
    first = OpenpiServer(PolicyServer(echo, libero_contract()), port=0)
    first.start()
    policy = RemotePolicy(f"ws://127.0.0.1:{first.port}")
    first.stop()
    with pytest.raises(ValueError, match="did not answer"):
        policy.act(observation(), [0])
    second = OpenpiServer(PolicyServer(echo, libero_contract()), port=first.port)
    second.start()

    def answers() -> bool:
        try:
            return policy.act(observation(), [0]).shape == (1, 4, 7)
        except ValueError:
            return False

    assert until(answers)
    policy.close()
    second.stop()


def test_text_missing_keys_and_size(server: OpenpiServer) -> None:
    uri = f"ws://127.0.0.1:{server.port}"
    for message, part in (
        ("hello", "binary message"),
        (msgpack_numpy.packb({"observation/image": 3}), "should hold observation/state"),
        (msgpack_numpy.packb([1]), "should be a dict"),
        (b"\xc1", "no message of the openpi protocol"),
    ):
        with connect(uri, compression=None) as client:
            client.recv(timeout=60)
            client.send(message)
            answer = client.recv(timeout=60)
            assert isinstance(answer, str)
            assert part in answer
            with pytest.raises(ConnectionClosed):
                client.recv(timeout=60)
            assert client.close_code == 1011
    with connect(uri, compression=None) as client:
        client.recv(timeout=60)
        client.send(bytes(2 << 20))
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=60)
        assert client.close_code == 1009
    assert healthz(server.port) == b"OK\n"


def test_api_key(echo: Echo) -> None:
    server = OpenpiServer(PolicyServer(echo, libero_contract()), port=0, api_key="secret")
    server.start()
    uri = f"ws://127.0.0.1:{server.port}"
    for headers in (None, {"Authorization": "Api-Key wrong"}):
        with pytest.raises(InvalidStatus):
            connect(uri, additional_headers=headers)
    assert server.counts["refused: api key"] == 2
    policy = RemotePolicy(uri, api_key="secret")
    assert policy.act(observation(), [0]).shape == (1, 4, 7)
    assert healthz(server.port) == b"OK\n"
    policy.close()
    server.stop()


def test_a_taken_port_is_said(server: OpenpiServer, echo: Echo) -> None:
    with pytest.raises(ValueError, match="free to listen"):
        OpenpiServer(PolicyServer(echo, libero_contract()), port=server.port).start()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None)
@given(value=VALUES, array=st.lists(st.floats(width=32, allow_nan=False), max_size=6))
def test_round_trip(value: Any, array: list[float]) -> None:
    sent = {"v": value, "a": np.array(array, np.float32), "s": np.float64(3.5)}
    got = msgpack_numpy.unpackb(msgpack_numpy.packb(sent))
    assert got["v"] == value
    assert got["s"] == 3.5
    assert got["a"].dtype == np.float32
    assert got["a"].tolist() == sent["a"].tolist()


@settings(max_examples=2000, deadline=None)
@given(data=st.binary(max_size=100))
def test_hostile_bytes(data: bytes) -> None:
    try:
        msgpack_numpy.unpackb(data)
    except ValueError:
        return


@settings(max_examples=500, deadline=None)
@given(
    dtype=st.sampled_from(["<f4", "|O", "<c8", "|V4", "<M8[s]", "f4,f4", "x" * 50, b"<f4", 7, "|S0"]),
    shape=st.lists(st.integers(-3, 2**40), max_size=3) | st.just("x"),
    size=st.integers(0, 40),
)
def test_hostile_arrays(dtype: Any, shape: Any, size: int) -> None:
    """Only a plain numeric array whose shape fits its bytes comes through."""
    import msgpack

    sent = msgpack.packb({b"__ndarray__": True, b"data": bytes(size), b"dtype": dtype, b"shape": shape})
    try:
        got = msgpack_numpy.unpackb(sent)
    except ValueError:
        return
    assert got.nbytes == size
    assert got.dtype.kind == "f"


ECHO_SERVER: list[PolicyServer] = []


@settings(max_examples=100, deadline=None)
@given(value=st.dictionaries(st.sampled_from(["observation/image", "observation/state", "prompt", "reset"]), VALUES))
def test_hostile_observations(value: dict[str, Any]) -> None:
    """Every request without real images is refused with a ValueError, before the policy sees it."""
    if not ECHO_SERVER:
        ECHO_SERVER.append(PolicyServer(Echo(), libero_contract()))
    with pytest.raises(ValueError, match=r"."):
        ECHO_SERVER[0].infer(0, value)
