# SPDX-License-Identifier: Apache-2.0
"""The server on a thread of the test's own process: the engine can be looked into, slowed down, and made to fail."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import httpx

from ascend_dsv4 import LLM
from ascend_dsv4.config.server_config import ServerConfig
from ascend_dsv4.engine.request import Request
from ascend_dsv4.engine.stats import EngineStats
from ascend_dsv4.server.process import Connection, HttpServer
from ascend_dsv4.server.service import Service

PATIENCE_SECONDS = 30
"""For what takes milliseconds on a machine with nothing else to do."""
TALK = [{"role": "user", "content": "Hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "demo", "messages": TALK, "max_tokens": 4},
    "/v1/completions": {"model": "demo", "prompt": "Hello", "max_tokens": 4},
    "/v1/responses": {"model": "demo", "input": "Hello", "max_output_tokens": 4},
    "/v1/messages": {"model": "demo", "messages": TALK, "max_tokens": 4},
}
"""What is least, and right, of each route that generates."""
OTHER_BODIES: dict[str, dict[str, Any]] = {
    "/v1/messages/count_tokens": {"model": "demo", "messages": TALK},
    "/tokenize": {"prompt": "Hello"},
    "/detokenize": {"tokens": [5, 6]},
}


def body_of(path: str, prompt: str = "Hello", max_tokens: int = 4, **fields: Any) -> dict[str, Any]:
    """A body for a route that generates exactly `max_tokens` tokens."""
    body = {**BODIES[path], "ignore_eos": True, **fields}
    body["max_output_tokens" if path == "/v1/responses" else "max_tokens"] = max_tokens
    if path == "/v1/completions":
        return {**body, "prompt": prompt}
    return {**body, "input": prompt} if path == "/v1/responses" else {**body, "messages": [{"role": "user", "content": prompt}]}


def check_error(path: str, status: int, content: Any) -> str:
    """Hold an error against the protocol of its path; returns its message."""
    assert 400 <= status < 600
    if path.startswith("/v1/messages"):
        assert content.keys() == {"type", "error", "request_id"} and content["type"] == "error", content
        assert content["error"].keys() == {"type", "message"}, content
        kinds = {401: "authentication_error", 404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error",
                 408: "timeout_error", 500: "api_error", 503: "overloaded_error", 504: "timeout_error"}  # fmt: skip
        assert content["error"]["type"] == kinds.get(status, "invalid_request_error"), content
    else:
        assert content.keys() == {"error"} and content["error"].keys() == {"message", "type", "param", "code"}, content
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        expected = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
        assert content["error"]["type"] == expected, content
    message = content["error"]["message"]
    assert isinstance(message, str) and 10 < len(message) < 1500, message
    # After what is wrong comes what to do, in a sentence of its own; not in those of `deepseek_recipe`, which have no code.
    if status < 500 and content["error"].get("code") is not None:
        assert re.search(r"[.?;:] .+[.?]$", message, re.DOTALL), message
    return message


def wait_until(condition: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> None:
    """Return once it holds; fail if it does not come about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.002)


class Brake:
    """Holds the engine before a step's computation until it may go on. What is computed stays as it is."""

    def __init__(self, runner: Any) -> None:
        assert not self.is_on(runner), "this engine already belongs to a server"
        self._runner, self._run = runner, runner.run
        self._changed = threading.Condition()
        self._num_allowed: int | None = None
        self.is_holding = False
        self.failures: list[Exception] = []
        """Raised by the next steps in place of computing."""
        runner.run = self.run

    @staticmethod
    def is_on(runner: Any) -> bool:
        return "run" in vars(runner)

    def run(self, *args: Any) -> Any:
        with self._changed:
            self.is_holding = True
            self._changed.wait_for(lambda: self._num_allowed is None or self._num_allowed > 0)
            self.is_holding = False
            if self._num_allowed is not None:
                self._num_allowed -= 1
        if self.failures:
            raise self.failures.pop(0)
        return self._run(*args)

    def hold(self) -> None:
        with self._changed:
            self._num_allowed = 0

    def allow(self, steps: int | None = None) -> None:
        """Some steps more; None lets the engine run."""
        with self._changed:
            self._num_allowed = steps
            self._changed.notify()

    def remove(self) -> None:
        self.allow()
        del self._runner.run


@dataclasses.dataclass(slots=True)
class Ending:
    """What became of a request that was given up, in engine steps."""

    told_at: int
    freed_at: int | None = None


class InProcess:
    """A server that runs. `url` is where."""

    def __init__(self, llm: LLM, options: dict[str, Any], send_buffer: int | None = None) -> None:
        self.engine = llm.engine
        for name, value in dataclasses.asdict(EngineStats()).items():
            setattr(llm.engine.stats, name, value)
        self.server = ServerConfig(**{"drain_timeout_s": 0, **options})
        encoder = None if llm.config.vision is None else llm.vision_encoder
        self.service = Service(llm.engine, llm.tokenizer, "demo", self.server, encoder)
        self.http = HttpServer(self.service)
        self.brake = Brake(llm.engine.runner)
        self.brake.allow()
        self.endings: dict[Request, Ending] = {}
        self._watch()
        self.listener = socket.create_server(("127.0.0.1", 0))
        if send_buffer is not None:
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        self.address: tuple[str, int] = self.listener.getsockname()[:2]
        self.url = "http://{}:{}".format(*self.address)
        listens = threading.Event()
        self._thread = threading.Thread(target=self.http.run_on, args=(self.listener, listens.set), daemon=True)
        self._thread.start()
        assert listens.wait(PATIENCE_SECONDS)
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE_SECONDS)

    def post(self, path: str, body: dict[str, Any], **options: Any) -> httpx.Response:
        return self.client.post(path, json=body, **options)

    def get(self, path: str) -> httpx.Response:
        return self.client.get(path)

    def hang_up(self) -> None:
        """Close the connections of `post` and `get`."""
        self.client.close()
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE_SECONDS)

    def _watch(self) -> None:
        """Note when the loop is told to give up a request, and when nothing is left of it."""
        abort, finish = self.service.loop.abort, self.engine.finish

        def watched_abort(requests: Sequence[Request]) -> None:
            for request in requests:
                self.endings[request] = Ending(self.engine.stats.num_steps)
            abort(requests)

        def watched_finish(request: Request, *args: Any) -> None:
            finish(request, *args)
            if request in self.endings and not self.holds(request):
                self.endings[request].freed_at = self.engine.stats.num_steps

        self.service.loop.abort = watched_abort  # type: ignore[method-assign]
        self.engine.finish = watched_finish  # type: ignore[method-assign, assignment]

    def holds(self, request: Request) -> bool:
        """Whether a request has blocks, or a place in the batch or in the queue."""
        batch, queue = self.engine.scheduler.running, self.engine.scheduler.waiting
        return request.request_id in self.engine.manager.requests or request in batch or request in queue

    @property
    def is_idle(self) -> bool:
        """Nothing runs, nothing waits, every block is free."""
        pools = self.engine.manager.pools.values()
        all_free = all(pool.num_free == pool.num_blocks for pool in pools)
        return all_free and not self.engine.has_work and not self.engine.manager.requests and not self.service.num_unfinished

    @property
    def connections(self) -> set[Connection]:
        """That are open."""
        return cast("set[Connection]", set(self.http.server_state.connections))

    def step(self, steps: int = 1) -> None:
        """Let a held engine take steps, and wait until it is held again."""
        for _ in range(steps):
            before = self.engine.stats.num_steps
            wait_until(lambda: self.brake.is_holding)
            self.brake.allow(1)
            wait_until(lambda: self.engine.stats.num_steps > before)  # noqa: B023
            self.brake.hold()

    def reset(self) -> None:
        """Forget what earlier tests did. Fails if they left anything."""
        self.brake.allow()
        self.brake.failures.clear()
        wait_until(lambda: self.is_idle)
        self.endings.clear()
        self.service.metrics.num_finished.clear()

    def stop(self) -> None:
        """End it, with whatever still runs."""
        self.client.close()
        self.brake.remove()
        self.http.should_exit = True
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()
        del self.engine.finish


_LOADED: list[tuple[dict[str, Any], LLM]] = []


def demo_llm(model: Path, options: dict[str, Any]) -> LLM:
    """The demo model, with small steps, so that a prompt takes several; one that no server uses now."""
    for known, llm in _LOADED:
        if known == options and not Brake.is_on(llm.engine.runner):
            return llm
    small = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 2048, "max_total_tokens": 8192}
    _LOADED.append((options, LLM(model, weights="fp32", progress=False, **{**small, **options})))
    return _LOADED[-1][1]


@contextmanager
def in_process(
    model: Path, *, engine: dict[str, Any] | None = None, send_buffer: int | None = None, **options: Any
) -> Iterator[InProcess]:
    """A server on the demo model, with these options of `ServerConfig`; `engine` has those of `EngineConfig`."""
    server = InProcess(demo_llm(model, engine or {}), options, send_buffer)
    try:
        yield server
    finally:
        server.stop()


class RawClient:
    """A client that does as it likes on its socket."""

    def __init__(self, address: tuple[str, int], receive_buffer: int | None = None) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE_SECONDS)
        try:
            self.socket.connect(address)
        except OSError:
            self.socket.close()
            raise

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def post(self, path: str, body: dict[str, Any], *, close: bool = False) -> None:
        """Send a request, and ask for the connection to be closed after it or not."""
        data = json.dumps(body).encode()
        head = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {len(data)}"]
        self.send("\r\n".join([*head, *(["Connection: close"] if close else []), "", ""]).encode() + data)

    def read_all(self) -> bytes:
        """Everything until the server closes the connection."""
        parts = []
        try:
            while part := self.socket.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass
        return b"".join(parts)
