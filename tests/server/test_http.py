# SPDX-License-Identifier: Apache-2.0
"""HTTP that is wrong, unusual or none at all: it is answered or refused soon, in JSON, and leaves no trace."""

from __future__ import annotations

import json
import random
import re
import socket
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.server.conftest import LiveServer
from tests.server.in_process import BODIES, OTHER_BODIES, RawClient, check_error

PATHS = (*BODIES, *OTHER_BODIES)
JSON = {"Content-Type": "application/json"}
Connect = Callable[[], RawClient]
SECONDS = 10
"""That an answer may take on a busy machine; usual are milliseconds."""


@pytest.fixture(scope="module")
def client(live: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url, timeout=SECONDS) as client:
        yield client


@pytest.fixture(autouse=True)
def _unharmed(live: LiveServer, client: httpx.Client) -> Iterator[None]:
    """The same process goes on, and had nothing to complain about."""
    start = len(live.log)
    yield
    assert client.get("/health").status_code == 200
    assert live.process.poll() is None
    assert not [line for line in live.log[start:] if "Traceback" in line]


@pytest.fixture
def connect(live: LiveServer) -> Connect:
    """Opens connections."""
    host, port = live.url.removeprefix("http://").split(":")

    def open_one() -> RawClient:
        client = RawClient((host, int(port)))
        client.socket.settimeout(SECONDS)
        return client

    return open_one


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "INVENTED"])
def test_methods(client: httpx.Client, method: str) -> None:
    for path in PATHS:
        answer = client.request(method, path, content=b"{}", headers=JSON)
        assert answer.headers["allow"] == "POST"
        assert answer.status_code == 405 and "/docs" in check_error(path, 405, answer.json())
    for path in ("/v1/models", "/health", "/status"):
        if method != "GET":
            assert client.request(method, path).headers["allow"] == "GET"


PLACES = (
    "/v1", "/v1/", "/v1/chat", "/v1/chat/completions/", "/v1/messages/", "/v1/messages/batches", "/v1/embeddings", "/V1/status",
    "/v1/chat/completions/x", "/v1/models/nothing", "/v1/models/%00", "/v1/models/" + "x" * 5000, "/page", "/page/",
    "/page/x.js",
    "/page/../status", "/page/..%2f..%2fetc%2fpasswd", "/page/%2e%2e/app.py", "/page/status.js/", "/redoc", "/%ff%fe", "/%00",
    "/openapi.json/", "/.env", "/robots.txt", "/v1/models/..%2fdemo", "/status?x=" + "y" * 5000 + "/..", "*",
)  # fmt: skip


def test_places_where_nothing_is(connect: Connect) -> None:
    for place in PLACES:
        for method in ("GET", "POST"):
            with connect() as client:
                client.send(f"{method} {place} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode())
                head, _, content = client.read_all().partition(b"\r\n\r\n")
            if place.startswith("/status?"):
                continue
            status = int(head.split()[1])
            assert status in ((404,) if method == "GET" else (404, 405)), place
            assert len(check_error(place, status, json.loads(content))) < 500


def raw(*lines: str, body: bytes = b"") -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


POST_HEAD = ("POST /v1/completions HTTP/1.1", "Host: x", "Content-Type: application/json")
CHUNKED_HEAD = (*POST_HEAD, "Connection: close", "Transfer-Encoding: chunked")
NO_HTTP: dict[str, bytes] = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2 + b"\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "HTTP of letters": raw("GET / HTTP/x.y", "Host: x"),
    "HTTP 0.9": b"GET /\r\n\r\n",
    "one word": b"GET\r\n\r\n",
    "null bytes": b"\0" * 100 + b"\r\n\r\n",
    "long line": b"GET /" + b"a" * 100_000,
    "long header": raw("GET / HTTP/1.1", "Host: x", "X: " + "y" * 1_000_000),
    "many headers": raw("GET / HTTP/1.1", "Host: x", *(f"X{i}: y" for i in range(100_000))),
    "no colon": raw("GET / HTTP/1.1", "Host x"),
    "space in a name": raw("GET / HTTP/1.1", "Ho st: x"),
    "null in a header": raw("GET / HTTP/1.1", "Host: x", "X: a\0b"),
    "no host": raw("GET / HTTP/1.1"),
    "two hosts": raw("GET / HTTP/1.1", "Host: x", "Host: y"),
    "space in the target": raw("GET /a b HTTP/1.1", "Host: x"),
    "eight bits in the target": raw("GET /\xe4 HTTP/1.1", "Host: x"),
    "negative length": raw(*POST_HEAD, "Content-Length: -1"),
    "length of a word": raw(*POST_HEAD, "Content-Length: many"),
    "length of 5000 digits": raw(*POST_HEAD, "Content-Length: " + "9" * 5000),
    "two lengths": raw(*POST_HEAD, "Content-Length: 5", "Content-Length: 6", body=b"{}   "),
    "unknown coding": raw(*POST_HEAD, "Transfer-Encoding: gzip", body=b"{}"),
    "chunk of a bad size": raw(*POST_HEAD, "Transfer-Encoding: chunked", body=b"zz\r\n{}\r\n0\r\n\r\n"),
    "chunk of a huge size": raw(*POST_HEAD, "Transfer-Encoding: chunked", body=b"F" * 40 + b"\r\n{}\r\n0\r\n\r\n"),
    "chunk that is too long": raw(*POST_HEAD, "Transfer-Encoding: chunked", body=b"1\r\n{}{}{}{}\r\n0\r\n\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_HTTP)
def test_what_is_no_http(connect: Connect, name: str) -> None:
    """It is told so in JSON, and its connection is closed."""
    with connect() as client:
        try:
            client.send(NO_HTTP[name])
        except ConnectionError:
            assert len(NO_HTTP[name]) > 100_000, "refused before all of it was sent"
        answer = client.read_all()
    head, _, content = answer.partition(b"\r\n\r\n")
    if answer or len(NO_HTTP[name]) < 50_000:  # what was unread when the connection closed may have reset it
        assert head.startswith(b"HTTP/1.1 400 ") and b"connection: close" in head.lower()
        check_error("", 400, json.loads(content))


UNUSUAL: dict[str, tuple[bytes, int]] = {
    "HTTP 1.0": (raw("GET /version HTTP/1.0"), 200),
    "HTTP 2": (raw("PRI * HTTP/2.0", "Connection: close", body=b"SM\r\n\r\n"), 404),
    "HTTP 9": (raw("GET /version HTTP/9.9", "Host: x", "Connection: close"), 200),
    "method in small letters": (raw("post /tokenize HTTP/1.1", "Host: x", "Connection: close"), 405),
    "whole address": (raw("GET http://example.org/version HTTP/1.1", "Host: x", "Connection: close"), 404),
    "asterisk": (raw("OPTIONS * HTTP/1.1", "Host: x", "Connection: close"), 404),
    "tunnel": (raw("CONNECT example.org:443 HTTP/1.1", "Host: x", "Connection: close"), 404),
    "web socket": (raw("GET /version HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade, close",
                       "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13"), 200),
    "HTTP 2 offered": (raw("GET /version HTTP/1.1", "Host: x", "Upgrade: h2c", "Connection: Upgrade, close"), 200),
    "strange host": (raw("GET /nothing HTTP/1.1", "Host: [", "Connection: close"), 404),
    "stranger host": (raw("GET /nothing HTTP/1.1", "Host: a]b@c/d?e#f", "Connection: close"), 404),
    "eight bits in a header": (raw("GET /version HTTP/1.1", "Host: x", "X-Request-Id: \xff", "Connection: close"), 200),
    "asks before it sends": (raw(*CHUNKED_HEAD, "Expect: 100-continue", body=b"2\r\n{}\r\n0\r\n\r\n"), 400),
    "chunks with extensions": (raw(*CHUNKED_HEAD, body=b"2;a=b\r\n{}\r\n0\r\n\r\n"), 400),
    "trailer": (raw(*CHUNKED_HEAD, body=b"2\r\n{}\r\n0\r\nX: y\r\n\r\n"), 400),
    "body of a GET": (raw("GET /version HTTP/1.1", "Host: x", "Content-Length: 2", "Connection: close", body=b"{}"), 200),
    "head": (raw("HEAD /version HTTP/1.1", "Host: x", "Connection: close"), 405),
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_http(connect: Connect, name: str) -> None:
    with connect() as client:
        client.send(UNUSUAL[name][0])
        answer = client.read_all().replace(b"HTTP/1.1 100 \r\n\r\n", b"", 1).replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"", 1)
    assert int(answer.split()[1]) == UNUSUAL[name][1]


def test_requests_one_behind_the_other(connect: Connect) -> None:
    """Sent without waiting, they are answered in turn; one that is no HTTP ends it."""
    body = json.dumps({**BODIES["/v1/completions"], "max_tokens": 1}).encode()
    good = raw(*POST_HEAD, f"Content-Length: {len(body)}", body=body)
    with connect() as client:
        client.send(good * 5 + b"garbage\r\n\r\n")
        answers = re.findall(rb"HTTP/1\.1 (\d+) ", client.read_all())
    assert answers == [b"200"] * 5 + [b"400"]


def test_bytes_at_random(connect: Connect) -> None:
    for i in range(50):
        with connect() as client:
            client.send(random.randbytes(1 << (i % 15)))
            client.socket.shutdown(socket.SHUT_WR)
            answer = client.read_all()
            assert not answer or answer.startswith(b"HTTP/1.1 400 ")
