# SPDX-License-Identifier: Apache-2.0
"""Clients that go away, steps that fail, signals: what ends leaves nothing behind, and everything else goes on."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.server.conftest import LiveServer
from tests.server.in_process import (
    BODIES,
    InProcess,
    RawClient,
    body_of,
    check_error,
    in_process,
    wait_until,
)

PATHS = tuple(BODIES)
LONG = "one two three four " * 50
"""A prompt of several steps."""
MAX_STEPS = 2
"""That a request whose client is gone may live on."""
CHAT = "/v1/chat/completions"
MANY = {"max_num_seqs": 32}


@pytest.fixture(scope="module")
def shared(demo_checkpoint: Path) -> Iterator[InProcess]:
    with in_process(demo_checkpoint) as running:
        yield running


@pytest.fixture
def server(shared: InProcess) -> Iterator[InProcess]:
    """A server that nobody uses, and that is left so."""
    shared.reset()
    yield shared
    shared.reset()


def assert_frees(server: InProcess, leave: Callable[[], None], num_requests: int = 1) -> None:
    """The requests of a client are gone soon after it has left, and count as aborted."""
    before = server.service.metrics.num_finished["abort"]
    leave()
    wait_until(lambda: len(server.endings) == num_requests)
    told_at = server.engine.stats.num_steps
    while not all(ending.freed_at is not None for ending in server.endings.values()):
        assert server.engine.stats.num_steps - told_at < MAX_STEPS, "a request outlives its client"
        if server.brake.is_holding:
            server.step()
        time.sleep(0.001)
    for request, ending in server.endings.items():
        assert ending.freed_at is not None and ending.freed_at - ending.told_at <= MAX_STEPS
        assert not server.holds(request)
    assert server.service.metrics.num_finished["abort"] == before + num_requests
    server.endings.clear()


def assert_serves(server: InProcess) -> None:
    server.brake.allow()
    wait_until(lambda: server.is_idle)
    answer = server.post(CHAT, BODIES[CHAT])
    assert answer.status_code == 200
    wait_until(lambda: server.is_idle)


def wait_for_work(server: InProcess, num_requests: int = 1) -> None:
    scheduler = server.engine.scheduler
    wait_until(lambda: server.brake.is_holding and len(scheduler.running) + server.service.loop.num_waiting >= num_requests)


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", PATHS)
def test_a_client_leaves_while_its_prompt_is_read(server: InProcess, path: str, is_stream: bool) -> None:
    server.brake.hold()
    with RawClient(server.address) as client:
        client.post(path, body_of(path, LONG, stream=is_stream))
        server.step(2)
        wait_for_work(server)
        request = server.engine.scheduler.running[0]
        assert 0 < request.num_prefilled < len(request.prompt_ids)
        assert_frees(server, client.socket.close)
    assert_serves(server)


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", PATHS)
def test_a_client_leaves_while_tokens_come(server: InProcess, path: str, is_stream: bool) -> None:
    server.brake.hold()
    with RawClient(server.address) as client:
        client.post(path, body_of(path, max_tokens=500, stream=is_stream))
        server.step(5)
        assert len(server.engine.scheduler.running[0].output_ids) > 2
        assert_frees(server, client.socket.close)
    assert_serves(server)


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", PATHS)
def test_a_client_leaves_while_it_waits(server: InProcess, path: str, is_stream: bool) -> None:
    """It never got a place in the batch, and those that have one keep it."""
    server.brake.hold()
    with RawClient(server.address) as others, RawClient(server.address) as client:
        others.post("/v1/completions", body_of("/v1/completions", max_tokens=30, n=4))
        wait_for_work(server, 4)
        client.post(path, body_of(path, stream=is_stream))
        wait_until(lambda: server.service.loop.num_waiting == 1)
        server.step()
        wait_until(lambda: len(server.engine.scheduler.waiting) == 1)
        assert_frees(server, client.socket.close)
        assert len(server.engine.scheduler.running) == 4
        server.brake.allow()
        wait_until(lambda: server.service.metrics.num_finished["length"] == 4)
    assert_serves(server)


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_client_leaves_its_choices(server: InProcess, path: str, is_stream: bool) -> None:
    """Four run, two wait."""
    server.brake.hold()
    with RawClient(server.address) as client:
        client.post(path, body_of(path, max_tokens=500, stream=is_stream, n=6))
        wait_for_work(server, 6)
        server.step(4)
        assert len(server.engine.manager.requests) == 4
        assert_frees(server, client.socket.close, num_requests=6)
    assert_serves(server)


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
def test_a_client_closes_half_of_its_connection(server: InProcess, is_stream: bool) -> None:
    """Nobody can tell whether it still reads, so it counts as gone."""
    server.brake.hold()
    with RawClient(server.address) as client:
        client.post(CHAT, body_of(CHAT, max_tokens=500, stream=is_stream))
        server.step(3)
        assert_frees(server, lambda: client.socket.shutdown(socket.SHUT_WR))
    assert_serves(server)


def test_a_client_resets_its_connection(server: InProcess) -> None:
    server.brake.hold()
    with RawClient(server.address) as client:
        client.post(CHAT, body_of(CHAT, max_tokens=500, stream=True))
        server.step(3)
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        assert_frees(server, client.socket.close)
    assert_serves(server)


@pytest.mark.parametrize("path", PATHS)
def test_clients_that_do_not_stay_for_an_answer(server: InProcess, path: str) -> None:
    """Gone before the request was read, or as it was."""
    for i in range(20):
        with RawClient(server.address) as client:
            client.post(path, body_of(path, max_tokens=500, stream=i % 2 == 0))
            time.sleep(0.001 * (i // 2))
    assert_serves(server)
    wait_until(lambda: not server.http.server_state.tasks)


def test_a_body_that_breaks_off(server: InProcess) -> None:
    with RawClient(server.address) as client:
        client.send(b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{")
        wait_until(lambda: server.http.server_state.tasks)
    wait_until(lambda: not server.http.server_state.tasks)
    assert_serves(server)


def test_a_client_that_never_reads_holds_up_nobody(demo_checkpoint: Path) -> None:
    """Its own stream waits for it, in little memory; the engine and the others do not."""
    with in_process(demo_checkpoint, engine=MANY, send_buffer=4096, max_n=32) as server:
        with RawClient(server.address, receive_buffer=4096) as sleeper:
            body = body_of(CHAT, max_tokens=40, stream=True, n=16, logprobs=True, top_logprobs=20, temperature=1)
            sleeper.post(CHAT, body)
            wait_until(lambda: len(server.engine.scheduler.running) == 16)
            start = server.engine.stats.num_steps
            with server.client.stream("POST", CHAT, json=body_of(CHAT, max_tokens=10, stream=True)) as answer:
                assert answer.read().endswith(b"data: [DONE]\n\n")
            assert server.engine.stats.num_steps - start < 10 + 5
            assert len(server.engine.manager.requests) == 16, "the sleeper's requests should have been running all the time"
            wait_until(lambda: not server.engine.has_work)
            pools = server.engine.manager.pools.values()
            assert all(pool.num_free == pool.num_blocks for pool in pools)
            (connection,) = (one for one in server.connections if not one.cycle.response_complete)
            assert connection.flow.write_paused, "the stream is too short to fill the buffers"
            assert connection.transport.get_write_buffer_size() < 128 << 10
            # It was only asleep: all of it is still there.
            stream = b""
            while not stream.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") and (part := sleeper.socket.recv(1 << 16)):
                stream += part
            assert len(re.findall(rb'"finish_reason":"length"', stream)) == 16 and len(stream) > 512 << 10
        wait_until(lambda: not server.http.server_state.tasks)
        assert_serves(server)


def test_a_client_that_never_reads_and_leaves(demo_checkpoint: Path) -> None:
    with in_process(demo_checkpoint, engine=MANY, send_buffer=4096, max_n=32) as server:
        with RawClient(server.address, receive_buffer=4096) as sleeper:
            sleeper.post(CHAT, body_of(CHAT, max_tokens=500, stream=True, n=16, logprobs=True, top_logprobs=20))
            wait_until(lambda: any(connection.flow.write_paused for connection in server.connections))
            server.brake.hold()
            assert_frees(server, sleeper.socket.close, num_requests=16)
        assert_serves(server)
        wait_until(lambda: not server.http.server_state.tasks)


def test_clients_cannot_prevent_the_end(demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by never reading, and not by never sending."""
    monkeypatch.setattr("ascend_dsv4.server.process._AFTER_DRAIN_SECONDS", 0.3)
    with ExitStack() as stack:
        with in_process(demo_checkpoint, engine=MANY, send_buffer=4096, max_n=32) as server:
            sleeper, writer = (stack.enter_context(RawClient(server.address, receive_buffer=4096)) for _ in range(2))
            sleeper.post(CHAT, body_of(CHAT, max_tokens=500, stream=True, n=16, logprobs=True, top_logprobs=20))
            writer.send(b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{")
            wait_until(lambda: len(server.connections) == 2 and any(one.flow.write_paused for one in server.connections))
            start = time.monotonic()
        assert time.monotonic() - start < 3
        assert server.is_idle and not server.http.server_state.tasks
        assert writer.read_all() == b""


@pytest.mark.parametrize("path", PATHS)
def test_a_step_that_fails(server: InProcess, path: str) -> None:
    """Those under way are told, in their protocol's way; those who come later notice nothing."""
    server.brake.failures = [RuntimeError("no such luck")]
    answer = server.post(path, BODIES[path])
    assert answer.status_code == 500
    message = check_error(path, 500, answer.json())
    assert "RuntimeError: no such luck" in message
    assert server.post(path, BODIES[path]).status_code == 200
    assert server.service.metrics.num_finished == {"error": 1, "length": 1}
    assert_serves(server)


@pytest.mark.parametrize("path", PATHS)
def test_a_step_that_fails_in_the_middle_of_a_stream(server: InProcess, path: str) -> None:
    server.brake.hold()
    with RawClient(server.address) as client:
        client.post(path, body_of(path, max_tokens=50, stream=True), close=True)
        server.step(3)
        server.brake.failures = [RuntimeError("no such luck")]
        server.brake.allow()
        stream = client.read_all()
    assert stream.startswith(b"HTTP/1.1 200 ")
    check_error_event(path, stream, 500, "no such luck")


def check_error_event(path: str, stream: bytes, status: int, reason: str) -> None:
    """The last event of a stream but [DONE] is an error of this kind."""
    events = [json.loads(data) for data in re.findall(rb"data: (\{.*\})\n", stream)]
    assert len(events) > 1
    assert stream.count(b"data: [DONE]\n\n") == (path in (CHAT, "/v1/completions"))
    if path == "/v1/responses":
        assert events[-1].keys() == {"type", "code", "message", "param", "sequence_number"}
        assert events[-1]["sequence_number"] == events[-2]["sequence_number"] + 1
        assert events[-1]["type"] == "error" and reason in events[-1]["message"]
    else:
        assert reason in check_error(path, status, events[-1])
    if path in ("/v1/messages", "/v1/responses"):
        assert re.findall(rb"event: (\S+)\n", stream)[-1] == b"error"


def test_an_engine_that_fails_for_good(demo_checkpoint: Path) -> None:
    """It says so and gives up, rather than fail each request anew."""
    with in_process(demo_checkpoint, engine=MANY) as server:
        server.brake.failures = [RuntimeError(str(i)) for i in range(3)]
        for _ in range(3):
            assert server.post(CHAT, BODIES[CHAT]).status_code == 500
        wait_until(lambda: not server.service.loop.is_running)
        for path in PATHS:
            for is_stream in (False, True):
                answer = server.post(path, {**BODIES[path], "stream": is_stream})
                assert answer.status_code == 503
                assert "restart" in check_error(path, 503, answer.json()).lower()
        assert server.get("/health").status_code == 503
        assert server.get("/status").json()["state"] == "failed"
        assert server.service.num_unfinished == 0


# --- signals --------------------------------------------------------------------------------------------------------

SMALL = ("--max-num-seqs", "16", "--max-model-len", "2048", "--max-total-tokens", "32768")


def address_of(server: LiveServer) -> tuple[str, int]:
    host, port = server.url.removeprefix("http://").split(":")
    return host, int(port)


def num_running(server: LiveServer) -> int:
    return int(httpx.get(f"{server.url}/status").json()["requests"]["running"])


def is_refused(server: LiveServer) -> bool:
    try:
        RawClient(address_of(server)).socket.close()
    except ConnectionRefusedError:
        return True
    return False


def tracebacks(server: LiveServer) -> list[str]:
    return [line for line in server.log if "Traceback" in line or "Exception" in line]


def test_a_server_that_is_told_to_stop_finishes_what_it_does(start_server: Callable[..., LiveServer]) -> None:
    """All that runs or waits gets its whole answer; who comes later finds the door closed."""
    server = start_server(*SMALL, "--max-num-seqs", "6")
    with ExitStack() as stack:
        kinds = [(path, is_stream) for path in PATHS for is_stream in (False, True)]
        clients = [(*kind, stack.enter_context(RawClient(address_of(server)))) for kind in kinds]
        for path, is_stream, client in clients:
            client.post(path, body_of(path, max_tokens=40, stream=is_stream))
        wait_until(lambda: num_running(server) == 6)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: is_refused(server))
        assert server.process.poll() is None, "it should still be at work"
        for path, is_stream, client in clients:
            answer = client.read_all()
            assert answer.startswith(b"HTTP/1.1 200 OK")
            if is_stream:
                assert answer.endswith(b"\r\n0\r\n\r\n") and b'"error":{' not in answer
                ending = {"/v1/responses": b"event: response.incomplete\n", "/v1/messages": b"event: message_stop\n"}
                assert ending.get(path, b"data: [DONE]\n") in answer
            else:
                usage = json.loads(answer.partition(b"\r\n\r\n")[2])["usage"]
                assert usage.get("completion_tokens", usage.get("output_tokens")) == 40
        assert server.stop(timeout=10) == 0
    assert tracebacks(server) == []


def test_time_to_finish_is_limited(start_server: Callable[..., LiveServer]) -> None:
    """Then every request is told, and the end is the same."""
    server = start_server(*SMALL, "--drain-timeout-s", "0.5")
    with ExitStack() as stack:
        kinds = [(path, is_stream) for path in PATHS for is_stream in (False, True)]
        clients = [(*kind, stack.enter_context(RawClient(address_of(server)))) for kind in kinds]
        for path, is_stream, client in clients:
            client.post(path, body_of(path, max_tokens=1900, stream=is_stream))
        wait_until(lambda: num_running(server) == len(clients))
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        for path, is_stream, client in clients:
            answer = client.read_all()
            if is_stream:
                check_error_event(path, answer, 503, "shutting down")
            else:
                head, _, content = answer.partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1" in head.lower()
                assert "shutting down" in check_error(path, 503, json.loads(content))
        assert server.stop(timeout=10) == 0
        assert time.monotonic() - start < 5
    assert tracebacks(server) == []


def test_a_second_interrupt_ends_at_once(start_server: Callable[..., LiveServer]) -> None:
    server = start_server(*SMALL)
    with RawClient(address_of(server)) as client:
        client.post(CHAT, body_of(CHAT, max_tokens=1900, stream=True))
        wait_until(lambda: num_running(server) == 1)
        server.process.send_signal(signal.SIGINT)
        wait_until(lambda: is_refused(server))
        time.sleep(0.5)
        assert server.process.poll() is None, "the first interrupt waits"
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(2) == 128 + signal.SIGINT
    server.stop()
    assert tracebacks(server) == []


def test_a_killed_server_leaves_its_port_and_an_idle_one_stops_quickly(start_server: Callable[..., LiveServer]) -> None:
    killed = start_server(*SMALL)
    port = address_of(killed)[1]
    with RawClient(address_of(killed)) as client:
        client.post(CHAT, body_of(CHAT, max_tokens=1900, stream=True))
        wait_until(lambda: num_running(killed) == 1)
        assert killed.stop(signal.SIGKILL) == -signal.SIGKILL
        client.read_all()
    server = start_server(*SMALL, "--port", str(port))
    assert address_of(server)[1] == port
    check_that_the_port_is_taken(server)
    with RawClient(address_of(server)) as idle, RawClient(address_of(server)) as silent:
        idle.send(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += idle.socket.recv(4096)
        start = time.monotonic()
        assert server.stop(signal.SIGTERM) == 0
        assert time.monotonic() - start < 3
        assert silent.read_all() == idle.read_all() == b""
    assert tracebacks(server) == []


def check_that_the_port_is_taken(server: LiveServer) -> None:
    """A second server says so before it reads any weights."""
    port = str(address_of(server)[1])
    model = str(server.process.args[5])  # type: ignore[index]
    command = [sys.executable, "-m", "ascend_dsv4", "serve", "--model", model, "--port", port]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert second.returncode == 2
    assert f"--port {port}" in second.stderr and "Choose another" in second.stderr and "Traceback" not in second.stderr
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_server_that_starts_can_be_stopped(demo_checkpoint: Path) -> None:
    """At any moment; clients that were early are let go."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "ascend_dsv4", "serve", "--model", str(demo_checkpoint), "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: is_open(port))
        with RawClient(("127.0.0.1", port)) as early:
            early.send(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=10)
            assert process.returncode in (-signal.SIGTERM, 0)
            assert early.read_all() == b""
        assert not is_open(port)
        assert "Traceback" not in log
    finally:
        process.kill()
        process.communicate()


def is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True
