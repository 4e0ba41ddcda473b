# SPDX-License-Identifier: Apache-2.0
"""A foreign server for the tests: speaks HTTP/1.1 and OpenAI events by hand, well or badly, as the model's name says."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

FIRST_TOKEN_S, GAP_S = 0.02, 0.004
OVERHEAD_TOKENS = 7


def count_tokens(text: str) -> int:
    """Long words take two tokens, and every prompt a few more."""
    return OVERHEAD_TOKENS + sum(1 + (len(word) > 5) for word in text.split())


@dataclass
class Call:
    """One request to the stub."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    received: float
    writer: asyncio.StreamWriter

    @property
    def text(self) -> str:
        prompt = self.body.get("prompt")
        return str(self.body["messages"][-1]["content"] if prompt is None else prompt)

    async def head(self, status: int = 200, kind: str = "text/event-stream; charset=utf-8", more: str = "") -> None:
        self.writer.write(f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n{more}\r\n".encode())

    async def write(self, data: bytes) -> None:
        self.writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await self.writer.drain()

    async def event(self, content: Any) -> None:
        await self.write(b"data: " + (content if isinstance(content, bytes) else json.dumps(content).encode()) + b"\n\n")

    async def piece(self, text: str, finish_reason: str | None = None, name: str = "content") -> None:
        choice = {"text": text} if "prompt" in self.body else {"delta": {name: text}}
        await self.event({"choices": [{"index": 0, **choice, "finish_reason": finish_reason}]})

    async def usage(self, completion_tokens: int) -> None:
        tokens = {"prompt_tokens": count_tokens(self.text), "completion_tokens": completion_tokens}
        await self.event({"choices": [], "usage": tokens})

    async def done(self) -> None:
        await self.event(b"[DONE]")
        await self.end()

    async def end(self) -> None:
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()

    async def plain(self, status: int, content: bytes, kind: str = "application/json", more: str = "") -> None:
        await self.head(status, kind, more)
        await self.write(content)
        await self.end()


Behaviour = Callable[["Stub", Call], Awaitable[None]]
BEHAVIOURS: dict[str, Behaviour] = {}


def behaviour(function: Behaviour) -> Behaviour:
    BEHAVIOURS[function.__name__] = function
    return function


@dataclass
class Stub:
    """What the server has seen, and where it is."""

    url: str = ""
    calls: list[Call] = field(default_factory=list)
    num_connections: int = 0
    models: tuple[int, bytes] = (200, b'{"object": "list", "data": [{"id": "good"}, {"id": "other"}]}')
    one_at_a_time: asyncio.Lock | None = None

    def bodies(self, path: str = "/v1/chat/completions") -> list[dict[str, Any]]:
        return [call.body for call in self.calls if call.path == path]


@contextmanager
def running_stub() -> Iterator[Stub]:
    """A stub in a thread of its own."""
    stub, loop, ready = Stub(), asyncio.new_event_loop(), threading.Event()
    stopped = asyncio.Event()

    async def serve() -> None:
        stub.one_at_a_time = asyncio.Lock()
        connections: set[asyncio.Task[None]] = set()

        async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            connections.add(task)
            try:
                await _serve_connection(stub, reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass
            finally:
                connections.discard(task)
                writer.close()

        server = await asyncio.start_server(connect, "127.0.0.1", 0)
        stub.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        await stopped.wait()
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    ready.wait()
    try:
        yield stub
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join(10)
        loop.close()


async def _serve_connection(stub: Stub, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    stub.num_connections += 1
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        received = time.perf_counter()
        request, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        data = await reader.readexactly(int(headers.get("content-length", 0)))
        call = Call(request.split()[1], headers, json.loads(data) if data else {}, received, writer)
        stub.calls.append(call)
        if call.path == "/v1/models":
            await call.plain(*stub.models)
        else:
            await BEHAVIOURS[call.body["model"]](stub, call)
        if writer.is_closing():
            return


@behaviour
async def good(stub: Stub, call: Call) -> None:
    """max_tokens pieces at a known pace, then usage."""
    count = call.body["max_tokens"]
    await call.head()
    if "messages" in call.body:
        await call.event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
    await asyncio.sleep(FIRST_TOKEN_S)
    for i in range(count):
        await call.piece(f"w{i} ", "length" if i == count - 1 else None)
        await asyncio.sleep(GAP_S)
    await call.usage(count)
    await call.done()


@behaviour
async def slow(stub: Stub, call: Call) -> None:
    """Never ends while a test runs."""
    await call.head()
    await call.piece("a")
    await asyncio.sleep(30)


@behaviour
async def serial(stub: Stub, call: Call) -> None:
    """One request at a time, 50 ms each."""
    assert stub.one_at_a_time is not None
    async with stub.one_at_a_time:
        await call.head()
        await asyncio.sleep(0.05)
        await call.piece("a", "stop")
        await call.usage(1)
        await call.done()


@behaviour
async def every_second(stub: Stub, call: Call) -> None:
    """Refuses every second request."""
    if len(stub.bodies()) % 2 == 0:
        await call.plain(503, b"busy\n", "text/plain")
    else:
        await good(stub, call)


@behaviour
async def error_500(stub: Stub, call: Call) -> None:
    await call.plain(500, b'{"error": {"message": "kernel fell over", "type": "server_error"}}')


@behaviour
async def error_429(stub: Stub, call: Call) -> None:
    await call.plain(429, b'{"error": {"message": "queue is full"}}', more="Retry-After: 7\r\n")


@behaviour
async def refuses_ignore_eos(stub: Stub, call: Call) -> None:
    if "ignore_eos" in call.body:
        await call.plain(400, b'{"detail": "unknown field: ignore_eos"}')
    else:
        await good(stub, call)


@behaviour
async def truncated(stub: Stub, call: Call) -> None:
    """Ends its stream in order, but in the middle of the answer."""
    await call.head()
    await call.piece("a")
    await call.end()


@behaviour
async def dropped(stub: Stub, call: Call) -> None:
    """The connection is lost in the middle of the answer."""
    await call.head()
    await call.piece("a")
    call.writer.close()


@behaviour
async def silent(stub: Stub, call: Call) -> None:
    """The connection is lost before the answer."""
    call.writer.close()


@behaviour
async def split(stub: Stub, call: Call) -> None:
    """Every byte in a packet of its own, CRLF, comments, data over several lines, characters of several bytes."""
    chunk = '{"choices": [{"index": 0,\r\ndata: "delta": {"content": "汉字😀é"}, "finish_reason": null}]}'
    end = '{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}'
    text = f": keep-alive\r\n\r\nevent: message\r\ndata: {chunk}\r\n\r\n: more\r\n\r\ndata:{end}\r\n\r\ndata: [DONE]\r\n\r\n"
    await call.head()
    for byte in text.encode():
        await call.write(bytes([byte]))
    await call.end()


@behaviour
async def no_usage(stub: Stub, call: Call) -> None:
    await call.head()
    for i in range(5):
        await call.piece("a", "stop" if i == 4 else None)
    await call.done()


ODD_NAME = "汉字 $\\frac{$"
BEHAVIOURS[ODD_NAME] = no_usage


@behaviour
async def no_done(stub: Stub, call: Call) -> None:
    """Ends after the finish reason, without [DONE]."""
    await call.head()
    await call.piece("a", "stop")
    await call.end()


@behaviour
async def non_streaming(stub: Stub, call: Call) -> None:
    await call.plain(200, b'{"choices": [{"message": {"content": "all at once"}, "finish_reason": "stop"}]}')


@behaviour
async def error_event(stub: Stub, call: Call) -> None:
    """Says in the stream that it failed."""
    await call.head()
    await call.piece("a")
    await call.event({"error": {"message": "out of blocks", "code": 500}})
    await call.done()


@behaviour
async def named_error_event(stub: Stub, call: Call) -> None:
    await call.head()
    await call.write(b'event: error\ndata: {"message": "overloaded"}\n\n')
    await call.done()


@behaviour
async def no_json(stub: Stub, call: Call) -> None:
    await call.head()
    await call.event(b"{oops")
    await call.done()


@behaviour
async def odd_shapes(stub: Stub, call: Call) -> None:
    """Fields of the wrong types, which mean nothing, around a good answer."""
    await call.head()
    await call.event({"choices": None, "usage": None})
    await call.event({"choices": [{"delta": None, "text": None, "finish_reason": 3}], "usage": {"prompt_tokens": "many"}})
    await call.event({"choices": [{"delta": {"content": 0, "tool_calls": []}}], "usage": [1]})
    await call.piece("a", "stop")
    await call.done()


@behaviour
async def wrong_choices(stub: Stub, call: Call) -> None:
    await call.head()
    await call.event({"choices": "none today"})
    await call.done()


@behaviour
async def thinker(stub: Stub, call: Call) -> None:
    """Reasoning, an answer and a tool call, three tokens in a chunk."""
    await call.head()
    await call.piece("hmm", name="reasoning_content")
    await call.piece("so", name="content")
    await call.event({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"name": "f"}}]}}]})
    await call.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    tokens = {"prompt_tokens": 40, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 30}}
    await call.event({"choices": [], "usage": tokens})
    await call.done()


@behaviour
async def no_content(stub: Stub, call: Call) -> None:
    """The model's first token ended the answer."""
    await call.head()
    await call.event({"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": "stop"}]})
    await call.usage(1)
    await call.done()


@behaviour
async def stays_open(stub: Stub, call: Call) -> None:
    """Says [DONE] and does not end the response."""
    await call.head()
    await call.piece("a", "stop")
    await call.event(b"[DONE]")
    await asyncio.sleep(30)


@behaviour
async def late_answer(stub: Stub, call: Call) -> None:
    """Accepts the request and stays silent."""
    await asyncio.sleep(30)
