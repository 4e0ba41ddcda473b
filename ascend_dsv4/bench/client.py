# SPDX-License-Identifier: Apache-2.0
"""Requests to an OpenAI-compatible server over HTTP, and what its streams say."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import anyio
import httpx

from ascend_dsv4.bench.config import LoadConfig
from ascend_dsv4.bench.record import Record
from ascend_dsv4.bench.sse import Event, EventDecoder, EventTooLarge
from ascend_dsv4.bench.workload import Prompt
from ascend_dsv4.errors import ConfigError

_MAX_REASON = 300  # characters of a server's message that a report repeats
_MAX_ERROR_BYTES: Final = 1 << 16
_DRAIN_SECONDS: Final = 1.0
_KEEPALIVE_SECONDS: Final = 2.0
"""Servers commonly close idle connections after five seconds; a request sent at that moment would be lost."""
_CONTENT_FIELDS: Final = ("content", "reasoning_content", "reasoning", "tool_calls", "function_call", "refusal")


class _Failure(Exception):
    """A request that did not get its answer: (kind, reason)."""


class Client:
    """Sends requests to one server. Connections are direct: proxies of the environment are not asked.

    raises   ConfigError if the API key is not there
    """

    def __init__(self, config: LoadConfig) -> None:
        key = config.api_key()
        self.config = config
        self._path = "/chat/completions" if config.endpoint == "chat" else "/completions"
        self._headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream, application/json",
            "Accept-Encoding": "identity",  # a compressed stream comes in other pieces than the server's
            **({"Authorization": f"Bearer {key}"} if key else {}),
        }
        self._tls = httpx.create_ssl_context(trust_env=False)
        self._idle: list[httpx.AsyncClient] = []
        self._all: list[httpx.AsyncClient] = []

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        for http in self._all:
            await http.aclose()

    @contextmanager
    def _connection(self) -> Iterator[httpx.AsyncClient]:
        """An HTTP client for one request at a time.

        One client for all would look through all its connections whenever a request begins or ends, which at some hundred
        of them costs more than everything else.
        """
        if self._idle:
            http = self._idle.pop()
        else:
            http = httpx.AsyncClient(
                base_url=self.config.base_url,
                headers=self._headers,
                timeout=None,  # each request has a deadline of its own
                limits=httpx.Limits(keepalive_expiry=_KEEPALIVE_SECONDS),
                verify=self._tls,
                trust_env=False,
            )
            self._all.append(http)
        try:
            yield http
        finally:
            self._idle.append(http)

    async def model(self) -> str:
        """The name to put into requests. Raises ConfigError if the server does not tell."""
        if self.config.model is not None:
            return self.config.model
        where = f"--url {self.config.url}: GET {self.config.base_url}/models"
        try:
            with anyio.fail_after(self.config.timeout), self._connection() as http:
                response = await http.get("/models")
        except (httpx.HTTPError, OSError) as error:  # OSError: also TimeoutError
            raise unreachable(self.config, reason_of(error)) from error
        if response.status_code != 200:
            hint = "Pass a key with --api-key-env." if response.status_code in (401, 403) else "Name the model with --model."
            raise ConfigError(
                f"{where} answered {response.status_code} ({_message(response.content)}); expected the list of models. {hint}"
            )
        try:
            name = json.loads(response.content)["data"][0]["id"]
        except (ValueError, LookupError, TypeError):
            name = None
        if not isinstance(name, str):
            raise ConfigError(
                f"{where} answered {_message(response.content)!r}; expected a list with at least one model. Name it with "
                "--model."
            )
        return name

    def body(self, prompt: Prompt, model: str) -> bytes:
        """The request of a prompt."""
        fields = {
            "model": model,
            **prompt.content,
            "max_tokens": prompt.max_tokens,
            "temperature": self.config.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"ignore_eos": True} if self.config.ignore_eos else {}),
            **self.config.extra_body,
        }
        return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()

    async def send(self, body: bytes, record: Record, on_chunk: Callable[[], None] = lambda: None) -> None:
        """Send one request and put everything that happens into the record. Raises nothing but cancellation."""
        record.sent = time.perf_counter()
        try:
            with anyio.fail_after(self.config.timeout), self._connection() as http:
                await self._stream(http, body, record, on_chunk)
        except TimeoutError:
            if record.end is None:
                record.fail("timeout", f"not finished after {self.config.timeout:g} s", time.perf_counter())
        except _Failure as failure:
            kind, reason = failure.args
            record.fail(kind, reason, time.perf_counter())
        except (httpx.HTTPError, OSError) as error:
            if record.end is None:
                record.fail("truncated" if record.chunks else "connection", reason_of(error), time.perf_counter())

    async def _stream(self, http: httpx.AsyncClient, body: bytes, record: Record, on_chunk: Callable[[], None]) -> None:
        response = await http.send(http.build_request("POST", self._path, content=body), stream=True)
        try:
            await _check_response(response)
            answer, decoder = _Answer(record, on_chunk), EventDecoder()
            pieces = response.aiter_bytes()
            async for data in pieces:
                now = time.perf_counter()
                for event in _decode(decoder, data):
                    answer.take(event, now)
                if record.end is not None:
                    break
            else:
                answer.close()
            # The connection can be used again once its last bytes are read.
            with anyio.move_on_after(_DRAIN_SECONDS):
                async for _ in pieces:
                    pass
        finally:
            await response.aclose()


class _Answer:
    """One stream: fills the record of its request."""

    def __init__(self, record: Record, on_chunk: Callable[[], None]) -> None:
        self._record = record
        self._on_chunk = on_chunk
        self._last_event = 0.0

    def take(self, event: Event, now: float) -> None:
        """Account for one event. Raises _Failure for one that ends the request."""
        record = self._record
        if event.type not in ("message", "error") or record.end is not None:
            return
        if event.data == "[DONE]":
            record.end = now
            return
        chunk = _chunk(event)
        self._last_event = now
        if usage := chunk.get("usage"):
            _take_usage(record, usage)
        choices = chunk.get("choices") or []
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            raise _Failure("bad_stream", f"choices is no list of objects: {_message(event.data.encode())}")
        for choice in choices:
            if _has_content(choice):
                record.chunks.append(now)
                self._on_chunk()
            if isinstance(reason := choice.get("finish_reason"), str):
                record.finish_reason = reason

    def close(self) -> None:
        """The stream ended without [DONE]. Raises _Failure unless a finish reason came before."""
        if self._record.finish_reason is None:
            raise _Failure("truncated", "the stream ended without a finish reason and without [DONE]")
        self._record.end = self._last_event


def _chunk(event: Event) -> dict[str, Any]:
    try:
        chunk = json.loads(event.data)
    except ValueError as error:
        if event.type == "error":
            raise _Failure("error_event", _shorten(event.data)) from error
        raise _Failure("bad_stream", f"an event that is no JSON: {_shorten(event.data)}") from error
    is_object = isinstance(chunk, dict)
    if event.type == "error" or (is_object and (chunk.get("error") or chunk.get("object") == "error")):
        raise _Failure("error_event", _message(event.data.encode()))
    if not is_object:
        raise _Failure("bad_stream", f"an event that is no JSON object: {_shorten(event.data)}")
    return dict(chunk)


def _has_content(choice: Mapping[str, Any]) -> bool:
    """Whether a chunk brings something of the answer; the first one of a chat only says whose turn it is."""
    if choice.get("text"):
        return True
    delta = choice.get("delta")
    return isinstance(delta, dict) and any(delta.get(name) for name in _CONTENT_FIELDS)


def _take_usage(record: Record, usage: object) -> None:
    if not isinstance(usage, dict):
        return
    record.input_tokens = _count(usage, "prompt_tokens") or None
    record.usage_tokens = _count(usage, "completion_tokens")
    details = usage.get("prompt_tokens_details")
    record.cached_tokens = _count(details, "cached_tokens") if isinstance(details, dict) else None


def _count(usage: Mapping[str, Any], name: str) -> int | None:
    value = usage.get(name)
    return value if type(value) is int and value >= 0 else None


def _decode(decoder: EventDecoder, data: bytes) -> list[Event]:
    try:
        return decoder.feed(data)
    except EventTooLarge as error:
        raise _Failure("bad_stream", str(error)) from error


async def _check_response(response: httpx.Response) -> None:
    """Raise _Failure unless this is the beginning of an event stream."""
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if response.status_code == 200 and kind in ("text/event-stream", ""):
        return
    content = b""
    async for data in response.aiter_bytes():
        content += data
        if len(content) > _MAX_ERROR_BYTES:
            break
    if response.status_code != 200:
        retry = response.headers.get("retry-after")
        wait = f" (Retry-After: {_shorten(retry)})" if retry else ""
        raise _Failure(f"http_{response.status_code}", _message(content) + wait)
    raise _Failure("not_a_stream", f"the answer is {_shorten(kind)}, no event stream: {_message(content)}")


def _message(content: bytes) -> str:
    """What an error body says, in whichever of the usual shapes."""
    text = content.decode("utf-8", errors="replace")
    try:
        value = json.loads(text)
    except ValueError:
        return _shorten(text) or "no message"
    for name in ("error", "message", "detail"):
        if isinstance(value, dict) and value.get(name):
            value = value[name]
    return _shorten(value if isinstance(value, str) else json.dumps(value)) or "no message"


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_REASON else line[:_MAX_REASON] + " …"


def reason_of(error: BaseException) -> str:
    """What went wrong on the way to the server, in the words of the system if it said something."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionError) and cause.errno:
            return os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    return _shorten(str(error)) or type(error).__name__


def unreachable(config: LoadConfig, reason: str) -> ConfigError:
    """The error for a server that cannot be talked to at all."""
    return ConfigError(
        f"--url {config.url}: no answer ({reason}); expected an OpenAI-compatible server there. Start it, or correct the "
        "address."
    )
