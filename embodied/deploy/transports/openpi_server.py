"""The openpi websocket protocol, server side: openpi's own client and runtime drive it unchanged.

On connecting the client gets a metadata dict; then each binary message is an observation and is answered by
{"actions", "server_timing"}. An error is answered by its traceback as a text message and the connection is closed
(1011), which is the protocol. Inference runs in an executor, so /healthz, pings and other clients go on meanwhile.
"""

from __future__ import annotations

import asyncio
import hmac
import http
import logging
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from embodied.deploy.policy_server import PolicyServer
from embodied.deploy.transports import msgpack_numpy

log = logging.getLogger(__name__)


class OpenpiServer:
    """`start` serves in a thread of its own; `stop` ends it. `port` 0 takes a free one: see `port` after `start`."""

    def __init__(
        self,
        server: PolicyServer,
        host: str = "127.0.0.1",
        port: int = 8000,
        api_key: str | None = None,
        max_message_bytes: int = 32 * 2**20,
        max_clients: int = 16,
    ) -> None:
        self.server, self.host, self.port = server, host, port
        self.api_key, self.max_message_bytes, self.max_clients = api_key, max_message_bytes, max_clients
        self.counts = server.counts
        self._clients = 0
        self._loop = asyncio.new_event_loop()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="infer")
        self._ready = threading.Event()
        self._ending: asyncio.Event | None = None
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="openpi", daemon=True)

    def start(self) -> None:
        """ValueError when the address cannot be bound."""
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise ValueError(f"{self.host}:{self.port} should be free to listen on: {self._error}") from self._error

    def stop(self) -> None:
        """Closes every connection (1001). An inference under way is not waited for."""
        if self._thread.is_alive() and self._ending is not None:
            self._loop.call_soon_threadsafe(self._ending.set)
            self._thread.join(timeout=5)
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._ending = asyncio.Event()
        try:
            listening: Server = await serve(
                self._client,
                self.host,
                self.port,
                compression=None,
                max_size=self.max_message_bytes,
                process_request=self._process,
                ping_timeout=60,
            )
        except OSError as error:
            self._error = error
            return
        async with listening:
            self.port = next(iter(listening.sockets)).getsockname()[1]
            self._ready.set()
            await self._ending.wait()

    def _process(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if self.api_key is not None:
            given = request.headers.get("Authorization", "")
            if not hmac.compare_digest(given.encode(), f"Api-Key {self.api_key}".encode()):
                self.counts["refused: api key"] += 1
                return connection.respond(http.HTTPStatus.UNAUTHORIZED, "a valid Api-Key is required\n")
        if self._clients >= self.max_clients:
            self.counts["refused: too many clients"] += 1
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "too many clients\n")
        return None

    async def _client(self, connection: ServerConnection) -> None:
        slot = self.server.connect()
        self._clients += 1
        try:
            await connection.send(msgpack_numpy.packb(self.server.metadata()))
            async for message in connection:
                if not await self._answer(connection, slot, message):
                    return
        except ConnectionClosed:
            self.counts["closed by the client"] += 1
        finally:
            self._clients -= 1
            self.server.disconnect(slot)

    async def _answer(self, connection: ServerConnection, slot: int, message: str | bytes) -> bool:
        """False when the connection was closed over an error."""
        future = self._executor.submit(self._infer, slot, message)
        await asyncio.wait([asyncio.wrap_future(future)])
        error = future.exception()
        if error is None:
            await connection.send(future.result())
            return True
        self.counts["errors"] += 1
        log.warning("request refused: %s", error)
        await connection.send("".join(traceback.format_exception(error)))
        await connection.close(1011, "Internal server error. Traceback included in previous frame.")
        return False

    def _infer(self, slot: int, message: str | bytes) -> bytes:
        if isinstance(message, str):
            raise ValueError("an observation should be a binary message of msgpack, got text")  # noqa: TRY004
        request: Any = msgpack_numpy.unpackb(message)
        return msgpack_numpy.packb(self.server.infer(slot, request))
