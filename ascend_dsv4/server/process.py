# SPDX-License-Identifier: Apache-2.0
"""The server process: listens, and when told to stop lets running requests finish first."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ascend_dsv4.server.app import create_app
from ascend_dsv4.server.errors import HttpError
from ascend_dsv4.server.service import Service
from ascend_dsv4.server.transport import READ_SECONDS

LOGGER = logging.getLogger("ascend_dsv4.server")
KEEP_ALIVE_SECONDS: Final = 60
"""Idle connections stay open longer than clients usually keep them, or one would be used just as it closes."""
_AFTER_DRAIN_SECONDS: Final = 5
"""For clients to read how their requests ended, and as long again for the server to end itself."""


class Connection(H11Protocol):
    """A connection whose client may not dawdle, and is told in JSON when it speaks no HTTP or is one too many."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # uvicorn would turn away the requests of all connections while there are too many; here the new ones have to go.
        self._max_connections, self.limit_concurrency = self.limit_concurrency, None
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio does so only for sockets made with an explicit protocol number. Without, a second small write, such as a
        # token behind the head of a response, waits up to 40 ms for the client to acknowledge the first.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._set_timer()
        limit = self._max_connections
        if limit is not None and len(self.connections) > limit:
            refusal = HttpError(
                503, f"{limit} connections are open, the limit of this server (max_num_connections). Try again later.",
                code="too_many_connections", retry_after=1,
            )  # fmt: skip
            refusal.headers["Connection"] = "close"
            self.app_state = {**self.app_state, "refusal": refusal}

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._set_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_timer()

    def _set_timer(self) -> None:
        """Wait a limited time for the rest of a head, or of a body that nobody reads any more."""
        is_unread = self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY
        if self.conn.their_state is not h11.IDLE and not is_unread:
            self._stop_timer()
        elif self._late is None:
            self._late = self.loop.call_later(READ_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            error = HttpError(
                400, "expected an HTTP/1.1 request with a head of at most 16 KiB, got something else. Correct the client.",
                code="invalid_http",
            )  # fmt: skip
            data = json.dumps(error.body("", "")).encode()
            headers = [("Content-Type", "application/json"), ("Content-Length", str(len(data))), ("Connection", "close")]
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=data), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class HttpServer(uvicorn.Server):
    """uvicorn with our way to stop: the first SIGTERM or SIGINT drains and ends with exit code 0, a second SIGINT does not
    wait and leaves 130. Requests that outlast the time for draining end with an error."""

    def __init__(self, service: Service) -> None:
        server = service.server
        super().__init__(
            uvicorn.Config(
                create_app(service),
                http=Connection,
                ws="none",
                log_config=None,
                server_header=False,
                limit_concurrency=server.max_num_connections,  # for `Connection`, which counts otherwise than uvicorn
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=round(server.drain_timeout_s) + 2 * _AFTER_DRAIN_SECONDS,
            )
        )
        self._service = service
        self._listening: Callable[[], None] = lambda: None

    def run_on(self, listener: socket.socket, listening: Callable[[], None]) -> None:
        """Serve on a bound socket until a signal comes; `listening` is called once requests are answered."""
        self._listening = listening
        self.run(sockets=[listener])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn would raise the signal again after a clean end, and the exit code would say "killed".
        if self.should_exit and sig == signal.SIGINT:
            LOGGER.warning("interrupted again: requests under way are dropped")
            os._exit(128 + sig)  # anything else would wait for threads that compute
        self.should_exit = True
        self._service.is_draining = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._listening()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        LOGGER.info("draining", extra={"fields": {"running": self._service.num_unfinished}})
        ending = asyncio.create_task(self._end_after_drain())
        await super().shutdown(sockets)
        ending.cancel()

    async def _end_after_drain(self) -> None:
        await asyncio.sleep(self._service.server.drain_timeout_s)
        LOGGER.warning("the time for draining is over", extra={"fields": {"running": self._service.num_unfinished}})
        await self._service.close()
        await asyncio.sleep(_AFTER_DRAIN_SECONDS)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
