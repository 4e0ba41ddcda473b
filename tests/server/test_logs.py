# SPDX-License-Identifier: Apache-2.0
"""Log lines: one each, whatever is in them, with the request they belong to, and without what the request said."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr
from datetime import datetime, timezone
from typing import Any

import pytest

from ascend_dsv4.config import ServerConfig
from ascend_dsv4.errors import ConfigError
from ascend_dsv4.server.logs import configure_logging, log_prompt, request_id, request_scope

LOGGERS = ("", "ascend_dsv4", "ascend_dsv4.prompts", "uvicorn", "uvicorn.error", "uvicorn.asgi", "uvicorn.access")
CONTROLS = "a\nb\rc\x1b[31md\x00e\u2028f\x85g\x0b\ud800h\\n"
log = logging.getLogger("ascend_dsv4.server.test")


@pytest.fixture(autouse=True)
def _logging_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("ASCEND_DSV4_LOG", raising=False)
    logging.captureWarnings(False)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    yield
    logging.captureWarnings(False)
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers[:] = handlers


class Log:
    """What is written after `configure_logging`."""

    def __init__(self, **options: Any) -> None:
        self._stream = io.StringIO()
        with redirect_stderr(self._stream):
            configure_logging(ServerConfig(**options))

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    @property
    def records(self) -> list[dict[str, Any]]:
        def refuse(name: str) -> None:
            raise AssertionError(f"{name} is not JSON")

        assert self.text == "" or self.text.endswith("\n")
        return [json.loads(line, parse_constant=refuse) for line in self.text.split("\n")[:-1]]


def test_json_lines() -> None:
    lines = Log()
    before = time.time()
    log.info("request %s", "finished", extra={"fields": {"status": 200, "duration_ms": 1.5, "client": None, "ok": True}})
    (record,) = lines.records
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record["time"])
    moment = datetime.strptime(record.pop("time"), "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc).timestamp()
    assert before - 0.001 <= moment <= time.time()
    assert record == {
        "level": "info", "logger": "ascend_dsv4.server.test", "message": "request finished",
        "status": 200, "duration_ms": 1.5, "client": None, "ok": True,
    }  # fmt: skip
    log.warning("no fields")
    assert list(lines.records[1]) == ["time", "level", "logger", "message"]


def test_whole_second_has_milliseconds() -> None:
    lines = Log()
    record = log.makeRecord(log.name, logging.INFO, "file", 1, "message", (), None)
    record.created = 1_700_000_000.0
    log.handle(record)
    assert lines.records[0]["time"] == "2023-11-14T22:13:20.000Z"


def test_text_lines() -> None:
    lines = Log(log_format="text")
    fields = {"status": 200, "path": "/v1/models", "agent": 'a "b" c', "empty": "", "eq": "a=b", "list": [1, "x"], "no": None}
    log.info("request finished", extra={"fields": fields})
    stamp, _, rest = lines.text.partition(" ")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{3}Z", stamp)
    assert rest == (
        "INFO    ascend_dsv4.server.test: request finished status=200 path=/v1/models "
        'agent="a \\"b\\" c" empty="" eq="a=b" list=[1, "x"] no=null\n'
    )


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_control_characters_break_no_line(log_format: str) -> None:
    lines = Log(log_format=log_format)
    log.info(CONTROLS, extra={"fields": {"key" + CONTROLS: CONTROLS, "nested": {CONTROLS: [CONTROLS]}}})
    logging.getLogger("other\nname").warning("%s", CONTROLS)
    assert lines.text.count("\n") == 2
    assert all(line.isprintable() for line in lines.text.removesuffix("\n").split("\n"))
    if log_format == "json":  # nothing is lost
        first = lines.records[0]
        assert first["message"] == CONTROLS == first["key" + CONTROLS] and first["nested"] == {CONTROLS: [CONTROLS]}
    else:
        assert "a\\nb\\rc\\x1b[31md\\x00e\\u2028f\\x85g\\x0b\\ud800h" in lines.text


def test_any_value_can_be_a_field() -> None:
    lines = Log()

    class Thing:
        def __str__(self) -> str:
            return "a\nthing"

    ring: list[Any] = []
    ring.append(ring)
    fields = {"nan": float("nan"), "inf": float("-inf"), "big": 10**5000, "thing": Thing(), "ring": ring, "tuple": (1, 2),
              "mapping": {1: {2}}, "bytes": b"\xff"}  # fmt: skip
    log.info("values", extra={"fields": fields})
    (record,) = lines.records
    assert (record["nan"], record["inf"], record["thing"], record["tuple"]) == ("nan", "-inf", "a\nthing", [1, 2])
    assert (record["mapping"], record["bytes"]) == ({"1": [2]}, "b'\\xff'")
    assert "bits" in record["big"] and "..." in json.dumps(record["ring"])


def test_a_field_never_passes_for_something_else() -> None:
    lines = Log()
    log.info("real", extra={"fields": {"message": "forged", "level": "x", "time": "x", "logger": "x", "exception": "x"}})
    (record,) = lines.records
    assert (record["message"], record["level"], record["logger"]) == ("real", "info", log.name)
    assert record["message_"] == "forged" and record["exception_"] == "x" and "exception" not in record


def test_exceptions() -> None:
    def fail() -> None:
        raise ValueError("first\n2030-01-01T00:00:00.000Z INFO    forged: line\r\x1b[2J")

    json_lines = Log()
    try:
        fail()
    except ValueError:
        log.exception("failed", extra={"fields": {"status": 500}})
    (record,) = json_lines.records
    assert (record["level"], record["status"]) == ("error", 500)
    assert record["exception"].startswith("Traceback (most recent call last):\n") and "in fail\n" in record["exception"]
    text_lines = Log(log_format="text")
    try:
        fail()
    except ValueError:
        log.exception("failed")
    assert len(json_lines.records) == 1  # the second call replaced the handler
    first, *rest = text_lines.text.removesuffix("\n").split("\n")
    assert first.endswith("ERROR   ascend_dsv4.server.test: failed")
    assert rest[0] == "    Traceback (most recent call last):"
    assert rest[-1] == "    2030-01-01T00:00:00.000Z INFO    forged: line\\r\\x1b[2J"
    assert all(line.startswith("    ") for line in rest)


def test_stack() -> None:
    lines = Log()
    log.info("where", stack_info=True)
    assert "in test_stack" in lines.records[0]["stack"]
    text = Log(log_format="text")
    log.info("where", stack_info=True)
    assert "\n    Stack (most recent call last):\n" in text.text


def test_request_id() -> None:
    lines = Log()
    other = logging.getLogger("library")
    log.info("before")
    with request_scope("r1"):
        log.info("inside")
        other.warning("inside too")
        with request_scope("r2"):
            log.info("nested")
        log.info("given", extra={"fields": {"request_id": "r9"}})
    with pytest.raises(KeyError), request_scope("r3"):
        raise KeyError
    log.info("after")
    found = [record.get("request_id") for record in lines.records]
    assert found == [None, "r1", "r1", "r2", "r9", None]
    assert request_id.get() is None and "request_id" not in lines.records[0]
    text = Log(log_format="text")
    with request_scope("r 4\n"):
        log.info("message")
    assert text.text.endswith(': message request_id="r 4\\n"\n')


def test_requests_that_run_at_the_same_time_keep_their_ids() -> None:
    lines = Log()

    async def serve(name: str) -> None:
        with request_scope(name):
            for _ in range(3):
                await asyncio.sleep(0)
                log.info(name)
            await asyncio.to_thread(log.info, name)  # work handed to a thread still belongs to the request

    async def both() -> None:
        await asyncio.gather(serve("a"), serve("b"))

    asyncio.run(both())
    thread = threading.Thread(target=log.info, args=("none",))
    with request_scope("c"):
        thread.start()
        thread.join()
    records = lines.records
    assert len(records) == 9 and records[-1]["message"] == "none" and "request_id" not in records[-1]
    assert all(record["request_id"] == record["message"] for record in records[:-1])


@pytest.mark.parametrize(
    ("option", "variable", "lowest"),
    [
        (None, None, "info"), (None, "", "info"), (None, "debug", "debug"), (None, " ERROR ", "error"),
        ("warning", "debug", "warning"), ("debug", "error", "debug"), ("info", "nonsense", "info"),
    ],
)  # fmt: skip
def test_level(option: str | None, variable: str | None, lowest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if variable is not None:
        monkeypatch.setenv("ASCEND_DSV4_LOG", variable)
    lines = Log(log_level=option)
    names = ["debug", "info", "warning", "error"]
    for name in names:
        getattr(log, name)("message")
        getattr(logging.getLogger("uvicorn.error"), name)("message")
    expected = names[names.index(lowest) :]
    assert [record["level"] for record in lines.records] == [name for name in expected for _ in range(2)]


def test_bad_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASCEND_DSV4_LOG", "verbose")
    before = logging.getLogger().handlers[:]
    with pytest.raises(ConfigError, match="ASCEND_DSV4_LOG='verbose'; expected one of debug, info, warning, error"):
        configure_logging(ServerConfig())
    assert logging.getLogger().handlers == before


def test_configured_twice_writes_once() -> None:
    Log()
    lines = Log(log_level="error")
    log.error("one")
    log.warning("none")
    assert [record["message"] for record in lines.records] == ["one"]
    assert len(logging.getLogger().handlers) == 1


def test_stderr_is_where_lines_go(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(ServerConfig())
    log.info("message")
    captured = capsys.readouterr()
    assert captured.out == "" and json.loads(captured.err)["message"] == "message"


def test_warnings_are_lines() -> None:
    lines = Log()
    warnings.simplefilter("always")
    warnings.warn("look\nout", stacklevel=1)
    (record,) = lines.records
    assert (record["logger"], record["level"]) == ("py.warnings", "warning") and "look\nout" in record["message"]


def test_uvicorn_writes_through_our_handler(capsys: pytest.CaptureFixture[str]) -> None:
    """Its real startup, request and shutdown, with the configuration the server is run with."""
    uvicorn = pytest.importorskip("uvicorn")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/fail":
            raise RuntimeError("the app failed")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):  # as if somebody had set it up before
        logging.getLogger(name).addHandler(logging.StreamHandler(sys.stdout))
        logging.getLogger(name).setLevel(logging.INFO)
    lines = Log()

    async def run() -> None:
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off", ws="none"))
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        for path in (b"/ok?secret=1", b"/fail"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert b"HTTP/1.1" in await reader.read()
            writer.close()
        server.should_exit = True
        await task

    asyncio.run(run())
    records = lines.records
    assert {record["logger"] for record in records} == {"uvicorn.error"}
    assert any("running on" in record["message"] for record in records)
    assert any("RuntimeError: the app failed" in record.get("exception", "") for record in records)
    assert "secret" not in lines.text
    assert capsys.readouterr().out == ""


def test_access_lines_are_never_written() -> None:
    earlier = io.StringIO()
    access = logging.getLogger("uvicorn.access")
    access.addHandler(logging.StreamHandler(earlier))
    lines = Log(log_level="debug")
    assert not access.hasHandlers()  # uvicorn asks that first
    access.setLevel(logging.INFO)
    access.info("GET /v1/models 200")
    assert lines.text == earlier.getvalue() == ""


PROMPT = "my secret question"


@pytest.mark.parametrize("level", ["debug", "error"])
def test_prompts_are_written_only_if_asked_for(level: str) -> None:
    lines = Log(log_level=level)
    log_prompt(PROMPT)
    assert lines.text == ""
    lines = Log(log_level=level, log_prompts=True)
    with request_scope("r1"):
        log_prompt(PROMPT)
        log_prompt([1, 2, 3])
    first, second = lines.records
    assert (first["prompt"], first["request_id"], first["message"]) == (PROMPT, "r1", "prompt")
    assert second["prompt"] == [1, 2, 3]
    lines = Log(log_level=level, log_prompts=False)  # and it can be taken back
    log_prompt(PROMPT)
    assert lines.text == ""


def test_others_who_configure_logging_get_no_prompts() -> None:
    code = (
        "import logging; logging.basicConfig(level=0)\n"
        "show = logging.Formatter('%(message)s %(fields)s', defaults={'fields': None})\n"
        "logging.getLogger().handlers[0].setFormatter(show)\n"
        "from ascend_dsv4.server.logs import log_prompt\n"
        f"log_prompt({PROMPT!r}); logging.getLogger('ascend_dsv4').info('x', extra={{'fields': 'seen'}})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "seen" in done.stderr and PROMPT not in done.stderr + done.stdout


def test_libraries_tell_nothing_below_warnings() -> None:
    """Parsers and HTTP libraries show bodies when they debug; our level is not theirs."""
    lines = Log(log_level="debug")
    for name in ("httpx", "asyncio", "python_multipart.multipart", "library"):
        logging.getLogger(name).debug("body: %s", PROMPT)
        logging.getLogger(name).info("body: %s", PROMPT)
        logging.getLogger(name).warning("slow")
    assert PROMPT not in lines.text and len(lines.records) == 4
