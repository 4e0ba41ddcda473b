# SPDX-License-Identifier: Apache-2.0
"""HTTP without the routes: who may ask, reading bodies, streams, clients that go away, one log line per request."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any, Final, NoReturn, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ascend_dsv4.config.checks import show, strict_json
from ascend_dsv4.config.server_config import ApiKeys
from ascend_dsv4.server.bodies import Body
from ascend_dsv4.server.dialog import Event
from ascend_dsv4.server.errors import HttpError
from ascend_dsv4.server.logs import request_scope
from ascend_dsv4.server.metrics import Metrics

LOGGER = logging.getLogger("ascend_dsv4.server")
MAX_DEPTH: Final = 64
"""Of a JSON body. Deeper ones are accidents or attacks, and recursive readers would fail on them."""
KEEP_ALIVE: Final = b": keep-alive\n\n"
PUBLIC_PATHS: Final = ("/", "/health", "/metrics", "/version", "/status", "/docs", "/openapi.json")
PUBLIC_FOLDERS: Final = ("/page/", "/static-offline-docs/")
"""What a browser, a load balancer or Prometheus may see without an API key."""

READ_SECONDS: Final = 20
"""A client may take to send a request, and longer for a long body, at `MIN_BYTES_PER_SECOND`; or slow ones could hold all
connections."""
MIN_BYTES_PER_SECOND: Final = 1 << 14

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_METHODS: Final = frozenset(["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"])
B = TypeVar("B", bound=Body)
T = TypeVar("T")


class ClientGone(Exception):
    """The client has closed its connection; there is nobody to answer."""


class Gate:
    """Around the whole application: request ids, one log line and one count per request, and the last word on errors that
    nothing else has caught."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = _headers(scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id
        started, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # Two names: of the OpenAI protocols, and of the Messages protocol.
                names = (b"x-request-id", b"request-id")
                message["headers"] = [*message["headers"], *((name, request_id.encode()) for name in names)]
            await send(message)

        with request_scope(request_id):
            try:
                if (refusal := scope["state"].get("refusal")) is not None:
                    await error_response(refusal, scope)(scope, receive, send_with_id)
                else:
                    await self._app(scope, receive, send_with_id)
            except ClientGone:
                status = 499
            except Exception:
                LOGGER.exception("a request failed")
                if status == 0:
                    failure = HttpError(500, f"the server failed; its log says more under {request_id}", code="internal_error")
                    await error_response(failure, scope)(scope, receive, send_with_id)
            finally:
                self._report(scope, status, time.perf_counter() - started)

    def _report(self, scope: Scope, status: int, seconds: float) -> None:
        """Count and log a request. What clients invent, paths and methods, stands in neither."""
        path = getattr(scope.get("route"), "path", "unknown")
        method = scope["method"] if scope["method"] in _METHODS else "unknown"
        self._metrics.http_request(method, path, status)
        fields = {
            "method": method,
            "path": path,
            "status": status,
            "duration_ms": round(seconds * 1000, 1),
            "client": (scope.get("client") or ("",))[0],
            **scope["state"].get("log", {}),
        }
        is_polled = path in PUBLIC_PATHS  # by browsers and probes, each second
        LOGGER.log(logging.DEBUG if is_polled else logging.INFO, "request", extra={"fields": fields})


class KeyCheck:
    """Turns away requests without a valid API key."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._may_pass(scope["path"], _headers(scope)):
            await self._app(scope, receive, send)
            return
        error = HttpError(
            401, "no valid API key: expected `Authorization: Bearer KEY` or `x-api-key: KEY`, because this server asks for "
            "one. Get a key from whoever runs it.", code="invalid_api_key",
        )  # fmt: skip
        error.headers["WWW-Authenticate"] = "Bearer"
        await error_response(error, scope)(scope, receive, send)

    def _may_pass(self, path: str, headers: dict[str, str]) -> bool:
        if path in PUBLIC_PATHS or path.startswith(PUBLIC_FOLDERS):
            return True
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        presented = [headers.get("x-api-key", ""), bearer.strip() if scheme.lower() == "bearer" else ""]
        return any(self._keys.matches(key) for key in presented)


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def error_response(error: HttpError, scope: Scope) -> JSONResponse:
    """An error in the shape of the protocol of the path."""
    body = error.body(scope["path"], scope["state"]["request_id"])
    return JSONResponse(body, error.status, headers=error.headers)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The bytes of a body.

    Raises HttpError if it is too long, too slow or not declared as JSON, ClientGone if it breaks off.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise HttpError(
            415, f"Content-Type: got {kind or 'none'!r}, expected application/json, in which all bodies are. Set the header "
            "(curl: -H 'Content-Type: application/json').", code="unsupported_media_type",
        )  # fmt: skip
    parts: list[bytes] = []
    size, started = 0, time.monotonic()
    while True:
        limit = READ_SECONDS + size / MIN_BYTES_PER_SECOND
        try:
            message = await asyncio.wait_for(request.receive(), started + limit - time.monotonic())
        except asyncio.TimeoutError:
            slow = HttpError(
                408, f"only {size} bytes of the body came in {limit:.0f} seconds. Send the whole body at once.", code="timeout"
            )
            slow.headers["Connection"] = "close"
            raise slow from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > max_bytes:
            raise HttpError(
                413, f"the body has more than {max_bytes} bytes, the limit of this server (max_body_bytes). Send less.",
                code="body_too_large",
            )  # fmt: skip
        if not message.get("more_body", False):
            return b"".join(parts)


def parse_body(data: bytes, kind: type[B], *, reads_images: bool = False) -> tuple[B, dict[str, Any]]:
    """A body as its model, and as plain data without the ignored fields. Slow for long bodies. Raises HttpError.

    reads_images   whether messages may have images
    """
    content = _parse_json(data)
    if not isinstance(content, dict):
        raise HttpError(400, f"the body is {show(content)}, expected a JSON object. See /docs.", code="invalid_json")
    content = {name: value for name, value in content.items() if name not in kind.IGNORED}
    try:
        return kind.model_validate(content, context={"reads_images": reads_images}), content
    except ValidationError as error:
        _raise_invalid(error)


def _raise_invalid(error: ValidationError) -> NoReturn:
    found = error.errors(include_url=False)
    if found[0]["type"] == "unknown_field":
        name = ".".join([*(str(part) for part in found[0]["loc"]), found[0]["ctx"]["field"]])
        raise HttpError(400, f"{name[:200]}: unknown field. {found[0]['ctx']['hint']}", param=name[:100], code="unknown_field")
    lines = []
    for problem in found[:3]:
        where = ".".join(str(part) for part in problem["loc"])
        got = "" if problem["type"] == "missing" else f" got {show(problem['input'])};"
        lines.append(f"{where[:200]}:{got} {problem['msg'][:200]}")
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    param = str(found[0]["loc"][0])[:100] if found[0]["loc"] else None
    message = f"{'; '.join(lines)}{more}. Correct the request; /docs has the schema."
    raise HttpError(400, message, param=param, code="invalid_value")


def _parse_json(data: bytes) -> Any:
    """Strict JSON, without half surrogates."""
    try:
        text = data.decode("utf-8")
        content = strict_json(text, MAX_DEPTH)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(content, ensure_ascii=False).encode("utf-8")  # an escape for half a character is no text
    except ValueError as error:
        raise HttpError(400, f"the body is no JSON: {str(error)[:200]}. Correct it.", code="invalid_json") from error
    return content


async def until_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away. Raises ClientGone then."""
    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def encode_event(event: Event) -> bytes:
    """One server-sent event."""
    data = json.dumps(event.data, ensure_ascii=False, separators=(",", ":"))
    return (f"event: {event.name}\n" if event.name else "").encode() + f"data: {data}\n\n".encode()


class EventStream(StreamingResponse):
    """Server-sent events: `first`, and what `source` has left, which is closed as soon as the client goes away."""

    def __init__(self, first: bytes, source: AsyncGenerator[bytes, None]) -> None:
        self._source = source
        # Proxies that collect a response before they pass it on would turn a stream into a long silence.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(self._pieces(first), media_type="text/event-stream", headers=headers)

    @classmethod
    async def opened(cls, source: AsyncGenerator[bytes, None]) -> EventStream:
        """The response once its first piece is there, so that an error before it still gets a status code of its own."""
        return cls(await anext(source), source)

    async def _pieces(self, first: bytes) -> AsyncIterator[bytes]:
        yield first
        async for piece in self._source:
            yield piece

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._source):
            await super().stream_response(send)
