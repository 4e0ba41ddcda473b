# SPDX-License-Identifier: Apache-2.0
"""What a server grants, to whom, and what it writes down about it."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ascend_dsv4 import __version__
from tests.server.conftest import LiveServer
from tests.server.in_process import (
    BODIES,
    OTHER_BODIES,
    PATIENCE_SECONDS,
    TALK,
    InProcess,
    RawClient,
    body_of,
    check_error,
    in_process,
    wait_until,
)

PATHS = tuple(BODIES)
ALL_BODIES = {**BODIES, **OTHER_BODIES}
CHAT = "/v1/chat/completions"
KEY = "a-key-of-8-or-more"
JSON = {"Content-Type": "application/json"}


# --- keys and origins -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"# for tests\nanother-key-of-them\n{KEY}   # the one\n", encoding="utf-8")
    with in_process(demo_checkpoint, api_keys_file=str(keys), cors_origins="https://chat.example.org") as server:
        yield server


WRONG_KEYS: tuple[dict[str, str], ...] = (
    {},
    {"Authorization": "Bearer wrong-key"},
    {"Authorization": f"Basic {KEY}"},
    {"Authorization": KEY},
    {"Authorization": f"Bearer {KEY[:-1]}"},
    {"Authorization": f"Bearer {KEY}x"},
    {"x-api-key": KEY.upper()},
    {"x-api-key": "# for tests"},
    {"Authorization": "Bearer wrong-key", "x-api-key": "wrong-too"},
    {"Cookie": f"x-api-key={KEY}"},
)


@pytest.mark.parametrize("headers", WRONG_KEYS, ids=lambda headers: " ".join(headers.values()) or "none")
def test_a_key_is_needed(locked: InProcess, headers: dict[str, str]) -> None:
    """Before anything else is looked at: neither bodies nor paths tell a stranger anything."""
    tried = [*ALL_BODIES, "/v1/models", "/v1/models/demo", "/nothing", "/v1/messages/nothing", "//health", "/page/../v1/models"]
    for path in tried:
        for method in ("GET", "POST"):
            answer = locked.client.request(method, locked.url + path, content=b"{", headers={**JSON, **headers})
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "key" in check_error(path, 401, answer.json())
            assert KEY not in answer.text


RIGHT_KEYS = (("Authorization", f"Bearer {KEY}"), ("authorization", f"bearer  {KEY}"), ("X-Api-Key", KEY))


@pytest.mark.parametrize("name, value", RIGHT_KEYS)
def test_keys_open(locked: InProcess, name: str, value: str) -> None:
    for path, body in ALL_BODIES.items():
        assert locked.post(path, body, headers={name: value}).status_code == 200
    assert locked.client.get("/v1/models", headers={name: value}).status_code == 200


def test_public_paths_need_no_key(locked: InProcess) -> None:
    for path in ("/", "/health", "/metrics", "/version", "/status", "/docs", "/openapi.json", "/page/status.js"):
        assert locked.client.get(path).status_code == 200, path


def test_web_pages_of_allowed_origins(locked: InProcess) -> None:
    """Browsers ask first, without the key; and show no answer, not even an error, that does not name the origin."""
    origin = "https://chat.example.org"
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    answer = locked.client.options(CHAT, headers={"Origin": origin, **asked})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "authorization" in answer.headers["access-control-allow-headers"].lower()
    for headers, status in (({}, 401), ({"x-api-key": KEY}, 200)):
        answer = locked.post(CHAT, BODIES[CHAT], headers={"Origin": origin, **headers})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == origin
        assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()


def test_web_pages_of_other_origins(locked: InProcess, server: InProcess) -> None:
    headers = {"Origin": "https://elsewhere.example.org", "Access-Control-Request-Method": "POST"}
    for one in (locked, server):
        answer = one.client.options(CHAT, headers=headers)
        assert answer.status_code in (400, 401, 405)
        assert "access-control-allow-origin" not in answer.headers


# --- limits ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(demo_checkpoint: Path) -> Iterator[InProcess]:
    options: dict[str, Any] = {"max_n": 2, "max_body_bytes": 2048, "max_num_connections": 16, "retry_after_s": 7}
    with in_process(demo_checkpoint, engine={"max_num_seqs": 2, "max_num_waiting": 1}, **options) as running:
        yield running


@pytest.fixture
def server(shared: InProcess) -> Iterator[InProcess]:
    shared.reset()
    yield shared
    shared.reset()


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", PATHS)
def test_a_full_queue(server: InProcess, path: str, is_stream: bool) -> None:
    """Two have seats and one waits. The next is told when to come back, and then is served."""
    server.brake.hold()
    with ThreadPoolExecutor() as pool:
        taken = [pool.submit(server.post, path, body_of(path)) for _ in range(3)]
        wait_until(lambda: len(server.engine.scheduler.running) + server.service.loop.num_waiting == 3)
        answer = server.post(path, body_of(path, stream=is_stream))
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
        assert "try again" in check_error(path, 429, answer.json()).lower()
        assert server.client.get("/health").status_code == 200, "a full server is not a broken one"
        server.brake.allow()
        assert [one.result().status_code for one in taken] == [200] * 3
    assert server.post(path, body_of(path, stream=is_stream)).status_code == 200
    assert server.service.metrics.num_finished == {"length": 4}, "one that was refused never ran"


def test_choices_count_as_requests(server: InProcess) -> None:
    """All of them are taken, or none; and more than ever fit are not told to try again."""
    body = {"model": "demo", "prompt": ["a", "b", "c"], "max_tokens": 1}
    server.brake.hold()
    with ThreadPoolExecutor() as pool:
        taken = pool.submit(server.post, "/v1/completions", BODIES["/v1/completions"])
        wait_until(lambda: server.brake.is_holding)
        assert server.post("/v1/completions", body).status_code == 429
        assert (len(server.engine.scheduler.running), server.service.loop.num_waiting) == (1, 0)
        server.brake.allow()
        assert taken.result().status_code == 200
    assert server.post("/v1/completions", body).status_code == 200
    answer = server.post("/v1/completions", {**body, "n": 2})
    assert answer.status_code == 400
    assert "several requests" in check_error("/v1/completions", 400, answer.json())


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_number_of_choices(server: InProcess, path: str) -> None:
    assert len(server.post(path, {**BODIES[path], "n": 2}).json()["choices"]) == 2
    answer = server.post(path, {**BODIES[path], "n": 3})
    assert answer.status_code == 400
    assert "max_n" in check_error(path, 400, answer.json()) and answer.json()["error"]["param"] == "n"


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("path", ALL_BODIES)
def test_length_of_a_body(server: InProcess, path: str, is_chunked: bool) -> None:
    """As many bytes as allowed pass, one more does not, however they are announced; the connection can be used again."""
    exact = json.dumps(ALL_BODIES[path]).encode().ljust(2048)

    def send(data: bytes) -> httpx.Response:
        parts = (data[i : i + 500] for i in range(0, len(data), 500))
        return server.client.post(path, content=parts if is_chunked else data, headers=JSON)

    assert send(exact).status_code == 200
    connections = server.connections
    for too_long in (exact + b" ", exact * 200):
        answer = send(too_long)
        assert answer.status_code == 413
        assert "max_body_bytes" in check_error(path, 413, answer.json())
    assert send(exact).status_code == 200
    assert server.connections <= connections  # no new one; idle ones of others may have ended


def test_number_of_connections(server: InProcess) -> None:
    """One more than allowed is refused; those that are open go on as before."""
    with ExitStack() as stack:
        server.hang_up()
        wait_until(lambda: not server.connections)
        clients = [stack.enter_context(httpx.Client(base_url=server.url)) for _ in range(16)]
        assert [client.get("/version").status_code for client in clients] == [200] * 16
        for path in ("/version", "/v1/messages"):
            answer = server.client.get(path)
            assert (answer.status_code, answer.headers["connection"]) == (503, "close")
            assert int(answer.headers["retry-after"]) >= 1
            assert "max_num_connections" in check_error(path, 503, answer.json())
        assert [client.get("/version").status_code for client in clients] == [200] * 16
        clients[0].close()
        wait_until(lambda: len(server.connections) == 15)
        assert server.client.get("/version").status_code == 200


@pytest.mark.parametrize("path", PATHS)
def test_time_of_a_request(demo_checkpoint: Path, path: str) -> None:
    """Whether it runs or waits, it ends with an error of its protocol."""
    with in_process(demo_checkpoint, engine={"max_num_seqs": 2, "max_num_waiting": 1}, request_timeout_s=0.4) as server:
        with ThreadPoolExecutor() as pool:
            long = body_of(path, max_tokens=1900)
            running = pool.submit(server.post, path, long)
            wait_until(lambda: len(server.engine.scheduler.running) == 1)
            stream = pool.submit(server.post, path, {**long, "stream": True})
            wait_until(lambda: len(server.engine.scheduler.running) == 2)
            waiting = pool.submit(server.post, path, long)
            for one in (running, waiting):
                answer = one.result()
                assert answer.status_code == 504
                assert "deadline passed after" in check_error(path, 504, answer.json())
            assert stream.result().status_code == 200
            events = [json.loads(data) for data in re.findall(r"data: (\{.*\})\n", stream.result().text)]
            error = events[-1] if path == "/v1/responses" else events[-1]["error"]
            assert "deadline passed after" in error["message"]
        assert server.service.metrics.num_finished == {"timeout": 3}
        wait_until(lambda: server.is_idle)
        assert server.post(path, BODIES[path]).status_code == 200


def test_clients_that_send_slowly(server: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head, a body and the rest of a refused body may each take only so long; others are served meanwhile."""
    monkeypatch.setattr("ascend_dsv4.server.process.READ_SECONDS", 0.4)
    monkeypatch.setattr("ascend_dsv4.server.transport.READ_SECONDS", 0.4)
    head = b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    refused = b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 1000\r\n\r\n"
    used = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\nGET"
    starts = {"nothing": b"", "half a head": head[:40], "no body": head, "a refused body": refused, "a second head": used}
    answers: dict[str, bytes] = {}

    def dawdle(name: str) -> None:
        with RawClient(server.address) as client:
            client.send(starts[name])
            client.socket.settimeout(0.1)
            end = time.monotonic() + 5
            answers[name] = b""
            while time.monotonic() < end:
                try:
                    if not (part := client.socket.recv(4096)):
                        break
                    answers[name] += part
                except TimeoutError:
                    client.send(b"x" if starts[name] else b"")
                except ConnectionError:
                    break
            else:
                raise AssertionError(f"{name}: the connection is still open")

    with ThreadPoolExecutor() as pool:
        started = [pool.submit(dawdle, name) for name in starts]
        for _ in range(10):
            assert server.post("/tokenize", OTHER_BODIES["/tokenize"]).status_code == 200
        for one in started:
            one.result()
    assert answers["nothing"] == answers["half a head"] == b""
    head, _, content = answers["no body"].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ") and b"connection: close" in head.lower()
    assert "at once" in check_error("/v1/messages", 408, json.loads(content))
    assert answers["a refused body"].startswith(b"HTTP/1.1 415 ")
    assert answers["a second head"].startswith(b"HTTP/1.1 200 ") and answers["a second head"].count(b"HTTP/1.1") == 1


# --- what is written down -------------------------------------------------------------------------------------------

GOOD_IDS = ("a", "req_0123:ABC.d-e", "x" * 128)
BAD_IDS = ("", "x" * 129, "a b", "ä", "a\tb", '{"a":1}', "a\\nb", "<script>", "a,b")


@pytest.mark.parametrize("path", [*ALL_BODIES, "/v1/models", "/nothing"])
def test_request_ids(server: InProcess, path: str) -> None:
    """One's own is echoed; what could break a log line or a page is replaced."""
    method, body = ("POST", OTHER_BODIES.get(path) or body_of(path, max_tokens=1)) if path in ALL_BODIES else ("GET", None)
    for given in (*GOOD_IDS, *BAD_IDS):
        headers = [(b"x-request-id", given.encode())]
        answer = server.client.request(method, path, json=body, headers=headers)
        echoed = answer.headers["x-request-id"]
        assert (echoed == given) == (given in GOOD_IDS)
        assert given in GOOD_IDS or re.fullmatch(r"req_[0-9a-f]{24}", echoed)
        if answer.status_code != 200 and path.startswith("/v1/messages"):
            assert answer.json()["request_id"] == echoed


def metrics_of(server: InProcess) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Sample → labels → value."""
    text = server.client.get("/metrics")
    assert text.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text.text):
        assert family.documentation, family.name
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_metrics_agree_with_what_was_done(demo_checkpoint: Path) -> None:
    with in_process(demo_checkpoint) as server:
        assert server.post("/v1/completions", body_of("/v1/completions", max_tokens=7, n=3)).status_code == 200
        assert server.post(CHAT, body_of(CHAT, max_tokens=5, stream=True)).status_code == 200
        assert server.post(CHAT, {"model": "x", "messages": TALK}).status_code == 404
        assert server.post(CHAT, {**BODIES[CHAT], "temperature": 9}).status_code == 400
        for i in range(3):
            assert server.client.request(f"INVENTED{i}", f"/invented/{i}").status_code == 404
        server.brake.hold()
        with RawClient(server.address) as client:
            client.post(CHAT, body_of(CHAT, max_tokens=99))
            server.step(2)
            wait_until(lambda: server.brake.is_holding)
        wait_until(lambda: server.endings)
        server.brake.allow()
        wait_until(lambda: server.is_idle)
        found, status = metrics_of(server), server.client.get("/status").json()
        stats = server.engine.stats
    ended = {labels[0][1]: value for labels, value in found["ascend_dsv4_requests_finished_total"].items()}
    assert ended == {"length": 4, "abort": 1, "stop": 0, "timeout": 0, "error": 0} == status["requests"]["finished"]
    http = {
        (labels["method"], labels["path"], labels["status"]): value
        for labels, value in ((dict(key), value) for key, value in found["ascend_dsv4_http_requests_total"].items())
    }
    assert http == {
        ("POST", "/v1/completions", "200"): 1, ("POST", CHAT, "200"): 1, ("POST", CHAT, "404"): 1, ("POST", CHAT, "400"): 1,
        ("POST", CHAT, "499"): 1, ("unknown", "unknown", "404"): 3,
    }  # fmt: skip
    # The step that was under way when the client left drew a third token.
    assert found["ascend_dsv4_generation_tokens_total"][()] == 3 * 7 + 5 + 3 == status["tokens"]["generation"]
    assert found["ascend_dsv4_prompt_tokens_total"][()] == stats.num_prompt_tokens == status["tokens"]["prompt"]
    assert found["ascend_dsv4_engine_steps_total"][()] == stats.num_steps
    assert found["ascend_dsv4_request_generation_tokens_count"][()] == 5
    assert found["ascend_dsv4_time_to_first_token_seconds_count"][()] == 5
    assert found["ascend_dsv4_e2e_request_latency_seconds_count"][()] == 5
    assert found["ascend_dsv4_inter_token_latency_seconds_count"][()] == 3 * 6 + 4 + 1
    for gauge in ("running", "waiting"):
        assert found[f"ascend_dsv4_num_requests_{gauge}"][()] == 0
    assert set(found["ascend_dsv4_cache_usage_ratio"].values()) == {0}
    assert found["process_open_fds"][()] > 3


def test_health_and_version(server: InProcess) -> None:
    answer = server.client.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "serving"})
    assert server.client.get("/version").json() == {"version": __version__}
    server.service.is_draining = True
    try:
        answer = server.client.get("/health")
        assert (answer.status_code, answer.json()) == (503, {"status": "draining"})
        assert server.client.get("/status").json()["state"] == "draining"
    finally:
        server.service.is_draining = False


# --- the log --------------------------------------------------------------------------------------------------------

MARKER = "Zanzibar7"
"""In everything a client may write, and then nowhere in the log."""


def marked_requests() -> list[tuple[str, Any, int]]:
    """Path, body and status: answers and errors of every layer that has seen the text."""
    talk = [{"role": "user", "content": MARKER}]
    tool = {"type": "function", "function": {"name": MARKER, "description": MARKER, "parameters": {"type": MARKER}}}
    schema = {"type": "json_schema", "json_schema": {"name": MARKER, "schema": {"$ref": f"#/{MARKER}"}}}
    return [
        *((path, body_of(path, MARKER, 2), 200) for path in PATHS),
        *((path, body_of(path, MARKER, 2, stream=True), 200) for path in PATHS),
        ("/v1/messages/count_tokens", {"model": "demo", "messages": talk}, 200),
        ("/tokenize", {"prompt": MARKER, "return_token_strs": True}, 200),
        *((path, body_of(path, MARKER, 9999), 400) for path in PATHS),
        *((path, body_of(path, MARKER, 1, model=MARKER), 404) for path in PATHS),
        *((path, body_of(path, MARKER, 1, temperature=MARKER), 400) for path in PATHS),
        *((path, {**body_of(path, MARKER, 1), MARKER: MARKER}, 400) for path in PATHS),
        (CHAT, {"model": "demo", "messages": [{"role": MARKER, "content": MARKER}]}, 400),
        (CHAT, {"model": "demo", "messages": [{"role": "user", "content": [{"type": MARKER}]}]}, 400),
        (CHAT, {"model": "demo", "messages": talk, "tools": [tool]}, 400),
        (CHAT, {"model": "demo", "messages": talk, "response_format": schema}, 400),
        (CHAT, {"model": "demo", "messages": talk, "response_format": {"type": "regex", "regex": f"({MARKER}"}}, 400),
        (CHAT, {"model": "demo", "messages": talk, "stop": [MARKER] * 99}, 400),
        (CHAT, f'{{"{MARKER}": {MARKER}'.encode(), 400),
        (f"/{MARKER}", {}, 404),
        (f"/v1/models/{MARKER}", {}, 405),
    ]


def records_of(server: LiveServer, start: int, num_requests: int) -> list[dict[str, Any]]:
    """The log's lines about requests from `start` on, once there are so many."""

    def found() -> list[dict[str, Any]]:
        records = [json.loads(line) for line in server.log[start:] if line.startswith("{")]
        return [record for record in records if record["message"] == "request"]

    wait_until(lambda: len(found()) >= num_requests)
    return found()


def test_the_log_has_one_line_per_request_and_no_word_of_it(live: LiveServer) -> None:
    start, asked = len(live.log), marked_requests()
    with httpx.Client(base_url=live.url, timeout=PATIENCE_SECONDS) as client:
        for i, (path, body, status) in enumerate(asked):
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            answer = client.post(path, content=content, headers={**JSON, "X-Request-Id": f"marked-{i}", "User-Agent": MARKER})
            assert answer.status_code == status, answer.text
        client.request(MARKER, f"/x?{MARKER}", headers={"Cookie": MARKER, "X-Request-Id": f"marked-{len(asked)}"})
    with RawClient(address_of(live)) as raw:
        raw.send(f"{MARKER} {MARKER} {MARKER}\r\n\r\n".encode())
        raw.read_all()
    with RawClient(address_of(live)) as raw:  # and one who leaves
        raw.post(CHAT, body_of(CHAT, MARKER, 3000, stream=True))
        raw.socket.recv(100)
    records = records_of(live, start, len(asked) + 2)
    by_id = {record["request_id"]: record for record in records}
    assert len(by_id) == len(records) == len(asked) + 2
    for i, (path, body, status) in enumerate(asked):
        record = by_id[f"marked-{i}"]
        assert (record["status"], record["method"], record["level"]) == (status, "POST", "info")
        assert record["path"] == (path if path in ALL_BODIES else "/v1/models/{model:path}" if "models" in path else "unknown")
        assert record["duration_ms"] > 0 and record["client"] == "127.0.0.1"
        if status == 200 and path in PATHS:
            assert record["prompt_tokens"] > 0 and record["stream"] is bool(body.get("stream"))
    assert by_id[f"marked-{len(asked)}"]["method"] == "unknown"
    assert MARKER not in "".join(live.log)
    assert not [line for line in live.log[start:] if "Traceback" in line]


@pytest.mark.parametrize("path", PATHS)
def test_prompts_are_logged_if_asked_for(server: InProcess, path: str, caplog: pytest.LogCaptureFixture) -> None:
    """By the one logger that `--log-prompts` lets speak."""
    ids = server.post("/tokenize", {"prompt": MARKER}).json()["tokens"]
    with caplog.at_level(logging.INFO, logger="ascend_dsv4.prompts"):
        assert server.post(path, body_of(path, MARKER, 1)).status_code == 200
    (record,) = (record for record in caplog.records if record.name == "ascend_dsv4.prompts")
    assert str(ids)[1:-1] in str(record.fields["prompt"])  # type: ignore[attr-defined]
    caplog.clear()
    assert server.post(path, body_of(path, MARKER, 1)).status_code == 200
    assert not [record for record in caplog.records if record.name == "ascend_dsv4.prompts"]


def address_of(server: LiveServer) -> tuple[str, int]:
    host, port = server.url.removeprefix("http://").split(":")
    return host, int(port)
