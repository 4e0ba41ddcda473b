# SPDX-License-Identifier: Apache-2.0
"""The soak test's tool: a short run against a real server, and proof that its verdicts can be bad."""

from __future__ import annotations

import asyncio
import copy
import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from ascend_dsv4.bench.sse import EventDecoder
from tools import soak_serve
from tools.soak_serve import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Plan, Tally, Wrong, draw, read_stream, verdicts

Report = dict[str, Any]
STREAMS = 8


@pytest.fixture(scope="module")
def report() -> Report:
    """What a run on a server of its own reports, just before the verdicts."""
    options = soak_serve.parse(["--streams", str(STREAMS), "--seconds", "3", "--warm-up", "0", "--max-tokens", "16", "--json"])
    return soak_serve.run(options)


def failed(report: Report) -> list[str]:
    return [row["name"] for row in verdicts(report) if not row["ok"]]


def test_a_short_soak_leaves_nothing(report: Report) -> None:
    assert failed(report) == [], report["failures"]
    assert sum(report["outcomes"].values()) >= STREAMS
    assert report["end"]["tokens"]["generation"] > report["warm"]["tokens"]["generation"] > 0
    assert report["end"]["preemptions"] > report["warm"]["preemptions"] > 0
    assert report["end"]["blocks"].keys() == {"window", "state", "cmp4", "cmp128"}
    assert report["curve"] and all(sample["rss_bytes"] > 1 << 20 and sample["fds"] > 3 for sample in report["curve"])
    assert 0 < report["latency_ms"]["ttft"]["p50"] <= report["latency_ms"]["e2e"]["max"]
    json.dumps(report)


def leak_block(report: Report) -> None:
    report["end"]["blocks"]["cmp4"] += 1


def stop_answering(report: Report) -> None:
    report["curve"].append({"at_s": 1.0, "error": "ReadTimeout"})


def fail_in_engine(report: Report) -> None:
    report["end"]["finished"]["error"] += 1


def finish_nothing(report: Report) -> None:
    report["outcomes"] = {"left": 3}


def climb(report: Report) -> None:
    limit = soak_serve.MAX_LATER_RSS_GROWTH
    report["curve"] = [{"rss_bytes": 100 * limit}] * soak_serve.MIN_SAMPLES + [{"rss_bytes": 101 * limit + 1}]


def put(*path: str, value: Any) -> Callable[[Report], None]:
    def change(report: Report) -> None:
        for name in path[:-1]:
            report = report[name]
        report[path[-1]] = value

    return change


def grow(name: str, limit: int) -> Callable[[Report], None]:
    def change(report: Report) -> None:
        report["end"][name] = report["warm"][name] + limit + 1

    return change


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (leak_block, "blocks in use"),
        (put("end", "running", value=1), "running"),
        (put("end", "waiting", value=1), "waiting"),
        (grow("rss_bytes", soak_serve.MAX_RSS_GROWTH), "rss_bytes"),
        (climb, "peak rss_bytes, second half"),
        (grow("fds", soak_serve.MAX_MORE_FDS), "fds"),
        (grow("threads", soak_serve.MAX_MORE_THREADS), "threads"),
        *((put("outcomes", bad, value=1), f"requests: {bad}") for bad in soak_serve.BAD),
        (finish_nothing, "requests: finished"),
        (fail_in_engine, "requests that failed in the engine"),
        (stop_answering, "status not answered"),
        (put("warm", "preemptions", value=9999), "preemptions"),
        (put("exit_code", value=-9), "exit code"),
        (put("exit_code", value=None), "exit code"),
        (put("log_errors", value=["Traceback"]), "warnings and errors in the log"),
    ],
)
def test_each_verdict_can_be_bad(report: Report, change: Callable[[Report], None], name: str) -> None:
    bad = copy.deepcopy(report)
    change(bad)
    assert failed(bad) == [name]


def test_a_server_of_somebody_else_is_not_looked_into(report: Report) -> None:
    outside = {name: value for name, value in report.items() if name not in ("exit_code", "log_errors")}
    for at in ("fresh", "warm", "end"):
        outside[at] = {name: value for name, value in report[at].items() if name not in ("rss_bytes", "fds", "threads")}
    names = {row["name"] for row in verdicts(outside)}
    assert failed(outside) == [] and "blocks in use" in names
    assert not names & {"rss_bytes", "fds", "threads", "exit code", "warnings and errors in the log"}


def test_requests_follow_from_the_seed() -> None:
    def plans(seed: int) -> list[Plan]:
        rng = random.Random(seed)
        return [draw(rng, "m", 100, 200) for _ in range(400)]

    drawn = plans(1)
    assert drawn == plans(1) != plans(2)
    valid = [plan for plan in drawn if plan.status == 200]
    assert {plan.path for plan in valid} == {CHAT, COMPLETIONS, RESPONSES, MESSAGES}
    assert Counter(plan.body.get("n", 1) for plan in valid).keys() == {1, 2, 3}
    manners: list[Callable[[Plan], object]] = [
        lambda plan: plan.status != 200,
        lambda plan: plan.leaves_after_s is not None and plan.body["stream"],
        lambda plan: plan.leaves_after_s is not None and not plan.body["stream"],
        lambda plan: plan.leaves_after_events < 100,
        lambda plan: plan.stalls_s > 0,
        lambda plan: plan.sends_half,
        lambda plan: plan.status == 200 and "tool_choice" in plan.body,
        lambda plan: plan.status == 200 and "response_format" in plan.body,
    ]
    assert all(1 < sum(bool(manner(plan)) for plan in drawn) < len(drawn) / 2 for manner in manners)


def chunk(text: str | None, reason: str | None = None, index: int = 0) -> str:
    return f"data: {json.dumps({'choices': [{'index': index, 'delta': {'content': text}, 'finish_reason': reason}]})}\n\n"


def typed(kind: str, **fields: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"


DONE = "data: [DONE]\n\n"
COMPLETED = {"response": {"status": "completed"}}


def read(stream: str) -> tuple[dict[int, str], list[int]]:
    """Finish reasons, and the numbers of the events that brought text."""
    events = EventDecoder().feed(stream.encode())
    reasons, grown = read_stream([(float(number), event) for number, event in enumerate(events)])
    return reasons, sorted(int(moment) for moments in grown.values() for moment in moments)


@pytest.mark.parametrize(
    ("stream", "reason", "grown"),
    [
        (chunk("") + chunk("a") + chunk("b") + chunk(None, "stop") + DONE, "stop", [1, 2]),
        (typed("message_start") + typed("content_block_delta") + typed("message_delta", delta={"stop_reason": "end_turn"})
         + typed("message_stop"), "end_turn", [1]),
        (typed("response.created", sequence_number=0) + typed("response.output_text.delta", sequence_number=1)
         + typed("response.completed", sequence_number=2, **COMPLETED), "completed", [1]),
    ],
)  # fmt: skip
def test_whole_streams(stream: str, reason: str, grown: list[int]) -> None:
    assert read(stream) == ({0: reason}, grown)


@pytest.mark.parametrize(
    "stream",
    [
        chunk("a", "stop"),
        chunk("a", "stop") + chunk("b") + DONE,
        chunk("a", "stop") + DONE + DONE,
        chunk("a") + 'data: {"error": {"message": "x"}}\n\n' + DONE,
        typed("message_start") + typed("error", error={"message": "x"}),
        typed("message_start") + typed("message_stop") + typed("ping"),
        typed("response.created", sequence_number=0) + typed("response.completed", sequence_number=2, **COMPLETED),
        'event: ping\ndata: {"type": "message_stop"}\n\n',
    ],
)
def test_broken_streams(stream: str) -> None:
    with pytest.raises(Wrong):
        read(stream)


def answer(status: str, content: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nRetry-After: 0\r\nContent-Length: {len(content)}\r\n\r\n{content}".encode()


ASKED = Plan(CHAT, {"stream": False})
LEAVES = Plan(CHAT, {"stream": True}, leaves_after_events=1)
ENDED = '{"choices": [{"index": 0, "finish_reason": "stop"}]}'


@pytest.mark.parametrize(
    ("plan", "bytes_back", "outcome"),
    [
        (ASKED, answer("200 OK", ENDED), "finished"),
        (ASKED, answer("200 OK", ENDED.replace('"stop"', "null")), "broken"),
        (ASKED, answer("200 OK", "no JSON"), "broken"),
        (Plan(CHAT, {"stream": False, "n": 2}), answer("200 OK", ENDED), "broken"),
        (Plan(CHAT, {"stream": True}), answer("200 OK", chunk("a")), "broken"),
        (ASKED, answer("500 Oh", '{"error": {}}'), "5xx"),
        (ASKED, answer("400 Bad", '{"error": {}}'), "status"),
        (ASKED, answer("429 Full", '{"error": {}}'), "refused"),
        (ASKED, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "connection"),
        (ASKED, None, "stuck"),
        (LEAVES, answer("200 OK", chunk("a") + chunk("b", "stop") + DONE), "finished"),
        (LEAVES, answer("200 OK", chunk("a") + chunk("b")), "left"),
        (Plan(CHAT, {"stream": True}, leaves_after_s=0.1), None, "left"),
        (Plan(CHAT, {"stream": True}, leaves_after_s=0.1, sends_half=True), None, "left"),
        (Plan(CHAT, b"{", 400), answer("400 Bad", '{"error": {}}'), "rejected"),
        (Plan(CHAT, b"{", 400), answer("200 OK", ENDED), "status"),
    ],
)  # fmt: skip
def test_outcomes(plan: Plan, bytes_back: bytes | None, outcome: str) -> None:
    """Against a socket that says these bytes, or nothing."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if bytes_back is None:
            await reader.read()
        writer.write(bytes_back or b"")
        writer.close()

    async def ask() -> Tally:
        tally = Tally()
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            async with httpx.AsyncClient(base_url=f"http://{host}:{port}", trust_env=False) as http:
                await soak_serve.send(http, plan, tally, 0.5)
        return tally

    tally = asyncio.run(ask())
    assert tally.outcomes == {outcome: 1}
    assert bool(tally.failures) == (outcome in soak_serve.BAD)


def test_options() -> None:
    for wrong in (["--streams", "0"], ["--pid", "1"], ["--seconds", "-1"]):
        with pytest.raises(SystemExit):
            soak_serve.parse(wrong)


def test_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert soak_serve.main(["--url", "http://127.0.0.1:9", "--seconds", "0"]) == 1
    assert "http://127.0.0.1:9: the server does not answer" in capsys.readouterr().err
