"""A policy behind an openpi websocket server, ours or openpi's own, as a Policy of this stack.

    embodied node policy=openpi policy.uri=ws://127.0.0.1:8000 ...

It reconnects by itself, waiting longer from try to try; while the server is away `act` raises a ValueError, which a
control loop counts as a policy error and holds.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from websockets.exceptions import InvalidHandshake, InvalidURI, WebSocketException
from websockets.sync.client import ClientConnection, connect

from embodied.deploy.transports import msgpack_numpy
from embodied.protocols import Episode, Observation, PolicySpec
from embodied.schema import IMAGE, STATE, TASK, WRIST_IMAGE

LIBERO_KEYS = {IMAGE: "observation/image", WRIST_IMAGE: "observation/wrist_image", STATE: "observation/state"}
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0


class RemotePolicy:
    """keys: feature -> key of the server. What the server's metadata does not say is given by the arguments.

    mirrored: images are sent as openpi's LIBERO clients send them, mirrored left to right from ours.
    """

    def __init__(
        self,
        uri: str,
        keys: Mapping[str, str] | None = None,
        api_key: str | None = None,
        chunk: int | None = None,
        replan: int | None = None,
        action_dim: int | None = None,
        image_size: int = 224,
        mirrored: bool = True,
        connect_timeout_s: float = 30.0,
        answer_timeout_s: float = 60.0,
        max_message_bytes: int = 32 * 2**20,
    ) -> None:
        self.uri, self.api_key, self.mirrored = uri, api_key, mirrored
        self.keys = dict(keys or LIBERO_KEYS)
        self.answer_timeout_s, self.max_message_bytes = answer_timeout_s, max_message_bytes
        self._connection: ClientConnection | None = None
        self._stack = contextlib.ExitStack()
        self._retry_at, self._wait = 0.0, FIRST_WAIT_S
        self._new_episode = True
        self.metadata = self._first_connection(connect_timeout_s)
        self.spec = self._spec(chunk, replan, action_dim, image_size)

    def reset(self, slots: Sequence[int], episodes: Sequence[Episode]) -> None:  # noqa: ARG002
        if len(slots) != 1:
            raise ValueError(f"a remote policy serves one slot, got {len(slots)}: open one for each")
        self._new_episode = True

    def act(self, observation: Observation, slots: Sequence[int]) -> np.ndarray:
        """Batched observation of one slot -> (1, chunk, action_dim). ValueError when the server does not answer so."""
        if len(slots) != 1:
            raise ValueError(f"a remote policy serves one slot, got {len(slots)}: open one for each")
        request: dict[str, Any] = {
            key: self._sent(feature, observation[feature][0])
            for feature, key in self.keys.items()
            if feature in observation
        }
        request["prompt"] = str(observation.get(TASK, [""])[0])
        if self._new_episode:
            request["reset"] = True
        answer = self._ask(request)
        actions = np.asarray(answer.get("actions"), np.float32) if isinstance(answer, Mapping) else np.zeros(0)
        if actions.ndim != 2 or actions.shape[0] < self.spec.chunk or actions.shape[1] < self.spec.action_dim:
            raise ValueError(
                f"{self.uri} should answer ({self.spec.chunk}, {self.spec.action_dim}), got {actions.shape}"
            )
        self._new_episode = False
        return actions[None, : self.spec.chunk, : self.spec.action_dim]

    def close(self) -> None:
        self._stack.close()
        self._connection = None

    def _sent(self, feature: str, value: Any) -> np.ndarray:
        array = np.asarray(value)
        return np.ascontiguousarray(array[:, ::-1]) if self.mirrored and ".images." in feature else array

    def _ask(self, request: dict[str, Any]) -> Any:
        connection = self._connected()
        try:
            connection.send(msgpack_numpy.packb(request))
            answer = connection.recv(timeout=self.answer_timeout_s)
        except (WebSocketException, OSError, TimeoutError) as error:
            self._lost()
            raise ValueError(f"{self.uri} did not answer: {error}") from error
        if isinstance(answer, str):
            self._lost()
            raise ValueError(f"{self.uri} answered with an error: {answer.strip().splitlines()[-1][:500]}")  # noqa: TRY004
        return msgpack_numpy.unpackb(answer)

    def _connected(self) -> ClientConnection:
        if self._connection is not None:
            return self._connection
        if time.monotonic() < self._retry_at:
            raise ValueError(f"{self.uri} is away; the next try is in {self._retry_at - time.monotonic():.1f} s")
        self._connection, _ = self._connect(5.0)
        self._new_episode = True
        return self._connection

    def _connect(self, timeout_s: float) -> tuple[ClientConnection, dict[str, Any]]:
        headers = {"Authorization": f"Api-Key {self.api_key}"} if self.api_key else None
        try:
            stack = contextlib.ExitStack()
            connection = stack.enter_context(  # how connect() is entered in every version of websockets
                connect(
                    self.uri,
                    compression=None,
                    max_size=self.max_message_bytes,
                    additional_headers=headers,
                    open_timeout=timeout_s,
                    ping_timeout=None,
                )
            )
            self._stack = stack
            metadata = msgpack_numpy.unpackb(connection.recv(timeout=timeout_s))  # type: ignore[arg-type]
        except (WebSocketException, OSError, TimeoutError, InvalidHandshake) as error:
            self._lost()
            raise ValueError(f"{self.uri} should be an openpi policy server: {error}") from error
        self._wait = FIRST_WAIT_S
        return connection, metadata if isinstance(metadata, dict) else {}

    def _lost(self) -> None:
        self.close()
        self._retry_at = time.monotonic() + self._wait
        self._wait = min(2 * self._wait, LONGEST_WAIT_S)

    def _first_connection(self, timeout_s: float) -> dict[str, Any]:
        end = time.monotonic() + timeout_s
        while True:
            try:
                self._connection, metadata = self._connect(min(timeout_s, 5.0))
            except InvalidURI as error:
                raise ValueError(f"{self.uri} should be a URI such as ws://127.0.0.1:8000") from error
            except ValueError:
                if time.monotonic() > end:
                    raise
                time.sleep(self._wait)
                continue
            return metadata

    def _spec(self, chunk: int | None, replan: int | None, action_dim: int | None, image_size: int) -> PolicySpec:
        said = self.metadata
        size = chunk or said.get("action_horizon")
        width = action_dim or said.get("action_dim")
        if not isinstance(size, int) or not isinstance(width, int):
            raise ValueError(  # noqa: TRY004
                f"{self.uri} does not say its chunk and action_dim: give policy.chunk and policy.action_dim"
            )
        keys: dict[str, Any] = said.get("keys", {})
        sizes = [entry.get("size") for entry in keys.values() if entry.get("size")]
        names = [name for entry in keys.values() if entry.get("feature") == STATE for name in entry["names"]]
        extra: dict[str, Any] = {"state_names": names} if names else {}
        for name in ("action_names", "control_hz"):
            if name in said:
                extra[name] = said[name]
        return PolicySpec(
            name=f"remote:{said.get('policy', self.uri)}",
            digest=str(said.get("digest", "")),
            chunk=size,
            replan=replan or said.get("replan") or size,
            action_dim=width,
            image_keys=tuple(feature for feature in self.keys if ".images." in feature),
            image_size=sizes[0] if sizes else image_size,
            extra=extra,
        )
