# SPDX-License-Identifier: Apache-2.0
"""Soak test of the server: clients of every kind for minutes, and then nothing may be left of them.

    python tools/soak_serve.py                                            # the demo model, 64 streams, 300 s
    python tools/soak_serve.py --url http://127.0.0.1:8000 --pid 4711     # a server that runs already

Clients stream or wait, leave before the first byte or in the middle, stop reading for a while, or send nonsense. What each of
them asks follows from --seed, how often from the speed. Processes are looked into through /proc, which Linux has.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

from ascend_dsv4.bench.sse import Event, EventDecoder

MAX_RSS_GROWTH = 48 << 20  # bytes: allocators keep what the busiest moment took, and that may come after the warm-up
MAX_LATER_RSS_GROWTH, MIN_SAMPLES = 16 << 20, 20  # of the peak, from the first half of the curve to the second, if it is long
MAX_MORE_FDS = 2  # opened late and kept; one lost per client that leaves would be dozens
MAX_MORE_THREADS = 2  # workers start when first needed: two compile grammars
SAMPLE_SECONDS, QUIET_SECONDS, SETTLE_SECONDS, START_SECONDS, STOP_SECONDS = 2.0, 1.5, 60.0, 120.0, 60.0
POOL_THREADS, POOL_TEXT = 32, "fill the pool " * 2000  # asyncio's pool makes a thread when all of its up to 32 are busy
BURST = {"prompt": list(range(3, 127)), "max_tokens": 12, "ignore_eos": True, "stream": False}
# Each phase begins with one of these per seat. They end just before a block of the caches does, and all want another at once.
MALFORMED_SHARE, EARLY_SHARE, AMID_SHARE, STALL_SHARE, WHOLE_SHARE, LONG_SHARE = 0.08, 0.08, 0.1, 0.05, 0.2, 0.2
MAX_FAILURES = 20  # that are reported in full
GOOD, BAD = ("finished", "left", "rejected", "refused"), ("5xx", "status", "broken", "stuck", "connection")
REASONS = {"stop", "length", "tool_calls", "completed", "incomplete", "end_turn", "max_tokens", "tool_use", "stop_sequence"}
CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
ENDS = {"response.completed", "response.incomplete", "message_stop", "[DONE]"}
WORDS = ["the", "weather", "in", "Lisbon", "is", "fine", "today;", "nobody", "knows", "12", "três", "навсегда", "天气", "sea."]
FIELDS = {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer"}}
SCHEMA = {"type": "object", "properties": FIELDS, "required": ["city", "days"], "additionalProperties": False}
FORMAT = {"type": "json_schema", "name": "report", "schema": SCHEMA, "strict": True}
FORECAST = {"name": "forecast", "parameters": SCHEMA}
OFF, ON, SAY = {"type": "disabled"}, {"type": "enabled"}, {"messages": [{"role": "user", "content": "Hello"}]}
KINDS: dict[str, dict[str, dict[str, Any]]] = {
    CHAT: {
        "plain": {"thinking": OFF}, "thinks": {"thinking": ON},
        "schema": {"thinking": OFF, "response_format": {"type": "json_schema", "json_schema": FORMAT}},
        "calls": {"tools": [{"type": "function", "function": FORECAST}], "tool_choice": "required"},
    },
    RESPONSES: {
        "plain": {"reasoning": {"effort": "none"}}, "thinks": {"reasoning": {"effort": "high"}},
        "schema": {"reasoning": {"effort": "none"}, "text": {"format": FORMAT}},
        "calls": {"tools": [{"type": "function", **FORECAST}], "tool_choice": "required"},
    },
    MESSAGES: {
        "plain": {"thinking": OFF}, "thinks": {"thinking": {**ON, "budget_tokens": 1024}},
        "schema": {"thinking": OFF, "output_config": {"effort": "low"}},
        "calls": {"tools": [{"name": "forecast", "input_schema": SCHEMA}], "tool_choice": {"type": "any"}},
    },
    COMPLETIONS: {"plain": {}, "thinks": {"stop": ["the", ";"]}, "schema": {"logprobs": 5, "echo": True}, "calls": {"n": 3}},
}  # fmt: skip
MALFORMED: tuple[tuple[str, bytes | dict[str, Any], int], ...] = (
    (CHAT, b"{", 400), (CHAT, b"[]", 400), (MESSAGES, b"\xff", 400), (RESPONSES, b'{"a":' * 90, 400), ("/v1/none", SAY, 404),
    (COMPLETIONS, b'{"prompt": NaN}', 400), (CHAT, {**SAY, "model": "another"}, 404), (CHAT, {"messages": []}, 400),
    (CHAT, {**SAY, "temperatur": 1}, 400), (CHAT, {**SAY, "temperature": 9}, 400), (CHAT, {**SAY, "n": 1000}, 400),
    (CHAT, {**SAY, "max_tokens": 1 << 30}, 400), (MESSAGES, {**SAY, "max_tokens": "2"}, 400), (RESPONSES, {"input": 3}, 400),
    (COMPLETIONS, {"prompt": [1 << 30]}, 400), (COMPLETIONS, {"prompt": "x " * 50_000, "max_tokens": 1 << 30}, 400),
    (CHAT, {**SAY, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}}, 400),
)  # fmt: skip


class Wrong(Exception):
    """What a server must not do: (outcome, what happened)."""


@dataclass(frozen=True)
class Plan:
    """One request, and how its client behaves."""

    path: str
    body: Any
    status: int = 200
    leaves_after_s: float | None = None
    leaves_after_events: int = sys.maxsize
    stalls_s: float = 0
    sends_half: bool = False


@dataclass
class Tally:
    """What became of requests; times in seconds."""

    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    times: dict[str, list[float]] = field(default_factory=lambda: {"ttft": [], "itl": [], "e2e": []})


def draw(rng: random.Random, model: str, max_tokens: int, max_prompt: int) -> Plan:
    """The next request of a stream."""
    if rng.random() < MALFORMED_SHARE:
        path, wrong, status = rng.choice(MALFORMED)
        return Plan(path, {"model": model, **wrong} if isinstance(wrong, dict) else wrong, status)
    path, kind = rng.choice(list(KINDS)), rng.choices(["plain", "thinks", "schema", "calls"], [6, 3, 2, 1])[0]
    # Small vocabularies take some three tokens for a word. The description of a tool is long enough by itself.
    length = rng.randint(max_prompt // 4, max_prompt) if rng.random() < LONG_SHARE and kind != "calls" else rng.randint(1, 16)
    text, limit = " ".join(rng.choices(WORDS, k=1 + length // 3)), max_tokens if rng.random() < LONG_SHARE else max_tokens // 4
    said, num_tokens, n = [{"role": "user", "content": text}], rng.randint(1, max(limit, 1)), rng.choice([1, 1, 1, 2, 3])
    options = {
        "temperature": rng.choice([0, 0.6, 1.5]), "top_p": rng.choice([0.5, 0.95]), "top_k": rng.choice([-1, 1, 20]),
        "min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": num_tokens // 2, "seed": rng.randrange(9), "ignore_eos": True,
    }  # fmt: skip
    asked: dict[str, dict[str, Any]] = {
        CHAT: {"messages": said, "max_tokens": num_tokens, "n": n},
        RESPONSES: {"input": said, "max_output_tokens": num_tokens},
        MESSAGES: {"messages": said, "max_tokens": num_tokens},
        COMPLETIONS: {"prompt": rng.choice([text, [3 + i % 400 for i in range(length)]]), "max_tokens": num_tokens, "n": n},
    }
    is_stream = rng.random() >= WHOLE_SHARE
    body = {"model": model, "stream": is_stream, **asked[path], **KINDS[path][kind]}
    # A reply that is held to a form ends where the form does, and the server refuses what would contradict that.
    chosen = {name: value for name, value in options.items() if rng.random() < 0.4}
    free = kind in ("plain", "thinks")
    body |= {name: value for name, value in chosen.items() if free or name not in ("min_tokens", "ignore_eos")}
    manner, moment = rng.random(), rng.random()
    if manner < EARLY_SHARE:
        return Plan(path, body, leaves_after_s=moment / 2, sends_half=rng.random() < 0.3)
    if manner < EARLY_SHARE + AMID_SHARE:
        events, seconds = (1 + int(20 * moment), None) if is_stream else (sys.maxsize, 5 * moment)
        return Plan(path, body, leaves_after_events=events, leaves_after_s=seconds)
    if manner < EARLY_SHARE + AMID_SHARE + STALL_SHARE:  # many bytes, so that something comes to a standstill
        body |= {CHAT: {"logprobs": True, "top_logprobs": 20}, COMPLETIONS: {"logprobs": 20}}.get(path, {})
        return Plan(path, body, stalls_s=1 + 4 * moment)
    return Plan(path, body)


async def send(http: httpx.AsyncClient, plan: Plan, tally: Tally, limit_s: float) -> None:
    """One request, whatever becomes of it."""
    try:
        outcome, reason = await asyncio.wait_for(_exchange(http, plan, tally), plan.leaves_after_s or limit_s), ""
    except asyncio.TimeoutError:
        outcome, reason = ("stuck", f"no end after {limit_s:g} s") if plan.leaves_after_s is None else ("left", "")
    except Wrong as wrong:
        outcome, reason = wrong.args
    except (LookupError, TypeError, ValueError) as error:  # JSON of another shape
        outcome, reason = "broken", repr(error)
    except httpx.HTTPError as error:
        outcome, reason = "connection", repr(error)
        await asyncio.sleep(1)  # a server that is gone must not make the clients spin
    tally.outcomes[outcome] += 1
    if reason and len(tally.failures) < MAX_FAILURES:
        tally.failures.append(f"{outcome}: POST {plan.path}: {reason[:300]}; sent {str(plan.body)[:300]}")


async def _exchange(http: httpx.AsyncClient, plan: Plan, tally: Tally) -> str:
    data = plan.body if isinstance(plan.body, bytes) else json.dumps(plan.body).encode()
    began, events, decoder = time.perf_counter(), list[tuple[float, Event]](), EventDecoder()
    content, headers = _half(data) if plan.sends_half else data, {"Content-Type": "application/json"}
    async with http.stream("POST", plan.path, content=content, headers=headers) as response:
        if plan.status != 200 or response.status_code != 200:
            return await _refusal(plan, response)
        await asyncio.sleep(plan.stalls_s)
        if plan.body["stream"]:
            async for piece in response.aiter_raw():
                events += [(time.perf_counter(), event) for event in decoder.feed(piece)]
                if len(events) >= plan.leaves_after_events and not set(events[-1][1]) & ENDS:
                    return "left"
            reasons, grown = read_stream(events)
        else:
            body, grown = json.loads(await response.aread()), {}
            last = [{"index": 0, "finish_reason": body.get("stop_reason") or body.get("status")}]
            reasons = {choice["index"]: choice["finish_reason"] for choice in body.get("choices", last)}
    if reasons.keys() != set(range(plan.body.get("n", 1))) or not REASONS.issuperset(reasons.values()):
        raise Wrong("broken", f"finish reasons {reasons}")
    tally.reasons.update(reasons.values())
    if not plan.stalls_s:
        tally.times["e2e"].append(time.perf_counter() - began)
        tally.times["ttft"] += [min(times[0] for times in grown.values()) - began] if grown else []
        tally.times["itl"] += [float(gap) for times in grown.values() for gap in np.diff(times)]
    return "finished"


async def _half(data: bytes) -> AsyncIterator[bytes]:
    yield data[: len(data) // 2]
    await asyncio.Event().wait()  # until the client leaves


async def _refusal(plan: Plan, response: httpx.Response) -> str:
    status, text = response.status_code, (await response.aread()).decode()
    if status == 429:
        await asyncio.sleep(float(response.headers["Retry-After"]))
        return "refused"
    if status != plan.status or "error" not in json.loads(text):
        raise Wrong("5xx" if status >= 500 else "status", f"got {status}, expected {plan.status}: {text}")
    return "rejected"


def read_stream(events: Sequence[tuple[float, Event]]) -> tuple[dict[int, str], dict[int, list[float]]]:
    """Finish reasons, and the moments of new text, by choice. Raises Wrong, or what wrong JSON raises."""
    reasons, grown = dict[int, str](), dict[int, list[float]]()
    for number, (now, (name, data)) in enumerate(events):
        is_last = name in ENDS or data in ENDS
        chunk = {} if data == "[DONE]" else json.loads(data)
        kind, is_new = chunk.get("type", "message"), chunk.get("sequence_number", number) == number
        if chunk.get("error") or kind != name or not is_new or is_last != (number == len(events) - 1):
            raise Wrong("broken", f"event {number} of {len(events)}: {name} {data}")
        for choice in chunk.get("choices", ()):
            index, delta = choice["index"], choice.get("delta", choice)
            if index in reasons:
                raise Wrong("broken", f"choice {index} goes on behind its end: {data}")
            if any(delta.get(part) for part in ("text", "content", "reasoning_content", "tool_calls")):
                grown.setdefault(index, []).append(now)
            if choice["finish_reason"] is not None:
                reasons[index] = choice["finish_reason"]
        if kind.endswith((".delta", "block_delta")):
            grown.setdefault(0, []).append(now)
        elif kind == "message_delta" or (is_last and "response" in chunk):
            reasons[0] = chunk["delta"]["stop_reason"] if kind == "message_delta" else chunk["response"]["status"]
    return reasons, grown


async def snapshot(http: httpx.AsyncClient, pid: int | None) -> dict[str, Any]:
    """What the server holds now, by its own account and the kernel's."""
    began = time.perf_counter()
    status = (await http.get("/status")).raise_for_status().json()
    found = {name: status["requests"][name] for name in ("running", "waiting", "finished", "preemptions")}
    found["blocks"] = {cache["group"]: cache["used_blocks"] for cache in status["caches"]}
    found |= {"status_ms": 1e3 * (time.perf_counter() - began), "tokens": status["tokens"]}
    if pid is not None:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines())
        found |= {"rss_bytes": int(lines["VmRSS"].split()[0]) << 10, "threads": int(lines["Threads"])}
        found["fds"] = len(os.listdir(f"/proc/{pid}/fd"))
    return found


async def settle(http: httpx.AsyncClient, pid: int | None) -> dict[str, Any]:
    """What is left once nothing has changed for a while."""
    varying = {"status_ms", "rss_bytes"}
    end = time.perf_counter() + SETTLE_SECONDS
    found, since = await snapshot(http, pid), time.perf_counter()
    while time.perf_counter() < min(since + QUIET_SECONDS, end):
        await asyncio.sleep(QUIET_SECONDS / 8)
        now = await snapshot(http, pid)
        since = since if all(now[name] == found[name] for name in now.keys() - varying) else time.perf_counter()
        found = now
    return found


async def watch(http: httpx.AsyncClient, options: argparse.Namespace, curve: list[dict[str, Any]]) -> None:
    """Sample the server until cancelled; a sample that it does not answer has an error in it."""
    began = time.perf_counter()
    while True:
        try:
            sample = await snapshot(http, options.pid)
        except (httpx.HTTPError, OSError) as error:
            sample = {"error": repr(error)}
        curve.append({"at_s": time.perf_counter() - began, **sample})
        if not options.json:
            shown = {name: curve[-1][name] for name in ("running", "waiting", "rss_bytes", "fds", "error") if name in curve[-1]}
            print(f"{curve[-1]['at_s']:6.0f} s  {shown}", file=sys.stderr)
        await asyncio.sleep(SAMPLE_SECONDS)


async def load(options: argparse.Namespace, phase: str, seconds: float, model: str, max_prompt: int, seats: int) -> Tally:
    """All streams for so long, and until the last request has ended."""
    tally = Tally()
    # A small receive buffer, or the kernel would take everything for clients that do not read.
    buffers = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)]
    transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=None), socket_options=buffers)
    async with httpx.AsyncClient(base_url=options.url, transport=transport, trust_env=False, timeout=None) as http:

        async def stream(number: int) -> None:
            rng = random.Random(f"{options.seed} {phase} {number}")
            while time.perf_counter() < end:
                await send(http, draw(rng, model, options.max_tokens, max_prompt), tally, options.timeout)

        if phase == "warm-up":  # everything that the server makes when it is first needed
            await asyncio.gather(*(http.post("/tokenize", json={"prompt": POOL_TEXT}) for _ in range(POOL_THREADS)))
            for kind in ("thinks", "schema"):
                body = {"model": model, "stream": False, "max_tokens": 2, **SAY, **KINDS[CHAT][kind]}
                await send(http, Plan(CHAT, body), tally, options.timeout)
        burst = Plan(COMPLETIONS, {"model": model, **BURST})
        await asyncio.gather(*(send(http, burst, tally, options.timeout) for _ in range(seats)))
        end = time.perf_counter() + seconds
        await asyncio.gather(*(stream(number) for number in range(options.streams)))
    return tally


async def soak(options: argparse.Namespace) -> dict[str, Any]:
    """Warm up, soak, wait for quiet. Everything that was seen, without verdicts."""
    curve: list[dict[str, Any]] = []
    # Connections are direct: proxies of the environment are not asked.
    async with httpx.AsyncClient(base_url=options.url, trust_env=False, timeout=options.timeout) as http:
        status = (await http.get("/status")).raise_for_status().json()
        shape = status["model"]["name"], status["model"]["max_model_len"] // 4, status["requests"]["max_running"]
        fresh = await snapshot(http, options.pid)
        await load(options, "warm-up", options.warm_up, *shape)
        warm, began = await settle(http, options.pid), time.perf_counter()
        watching = asyncio.create_task(watch(http, options, curve))
        tally = await load(options, "soak", options.seconds, *shape)
        seconds = time.perf_counter() - began
        watching.cancel()
        await asyncio.wait([watching])
        end = await settle(http, options.pid)
    latency = {
        name: {**{f"p{p}": 1e3 * float(np.percentile(values, p)) for p in (50, 90, 99)}, "max": 1e3 * max(values)}
        for name, values in tally.times.items() if values
    }  # fmt: skip
    return {
        "seconds": seconds, "outcomes": dict(tally.outcomes), "finish_reasons": dict(tally.reasons), "latency_ms": latency,
        "tokens_per_s": {name: (end["tokens"][name] - warm["tokens"][name]) / seconds for name in end["tokens"]},
        "failures": tally.failures,
        "fresh": fresh, "warm": warm, "end": end, "curve": curve,
    }  # fmt: skip


def verdicts(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What must hold: name, got, expected, ok."""
    fresh, warm, end, outcomes = report["fresh"], report["warm"], report["end"], report["outcomes"]
    rows: list[tuple[str, Any, Any, bool]] = [(f"requests: {name}", n := outcomes.get(name, 0), 0, n == 0) for name in BAD]
    rows += [("requests: finished", n := outcomes.get("finished", 0), "some", n > 0)]
    failed = {name: end["finished"][name] - fresh["finished"][name] for name in ("error", "timeout")}
    rows += [("requests that failed in the engine", failed, "none", not any(failed.values()))]
    rows += [("blocks in use", end["blocks"], fresh["blocks"], end["blocks"] == fresh["blocks"])]
    rows += [(name, end[name], 0, end[name] == 0) for name in ("running", "waiting")]
    unanswered = [sample["error"] for sample in report["curve"] if "error" in sample]
    rows += [("status not answered", unanswered, [], not unanswered)]
    for name, more in (("rss_bytes", MAX_RSS_GROWTH), ("fds", MAX_MORE_FDS), ("threads", MAX_MORE_THREADS)):
        if name in end:
            rows.append((name, end[name], f"at most {warm[name]} + {more}", end[name] <= warm[name] + more))
    peaks = [sample["rss_bytes"] for sample in report["curve"] if "rss_bytes" in sample]
    if (half := len(peaks) // 2) * 2 >= MIN_SAMPLES:
        most = max(peaks[:half]) + MAX_LATER_RSS_GROWTH
        rows += [("peak rss_bytes, second half", max(peaks[half:]), f"at most {most}", max(peaks[half:]) <= most)]
    if "exit_code" in report:  # our own server, whose caches are small enough
        rows += [("preemptions", n := end["preemptions"] - warm["preemptions"], "some", n > 0)]
        rows += [("exit code", report["exit_code"], 0, report["exit_code"] == 0)]
        rows += [("warnings and errors in the log", report["log_errors"], [], not report["log_errors"])]
    return [dict(zip(("name", "got", "expected", "ok"), row, strict=True)) for row in rows]


@contextlib.contextmanager
def own_server(options: argparse.Namespace, ending: dict[str, Any]) -> Iterator[None]:
    """A server on the demo model; `ending` gets its exit code and the warnings and errors of its log."""
    from ascend_dsv4.demo import demo_model

    seats = max(8, options.streams // 4)  # each gets a block of 128 tokens, and they have one too few for a second each
    limits = {"max-num-seqs": seats, "max-model-len": 1024, "max-total-tokens": 128 * seats, "max-num-waiting": options.streams}
    command = [sys.executable, "-m", "ascend_dsv4", "serve", "--model", str(demo_model()), "--weights", "fp32", "--port", "0"]
    command += [word for name, value in limits.items() for word in (f"--{name}", str(value))]
    # So small a model gains nothing by a second thread, which the clients can use.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    with tempfile.TemporaryDirectory() as folder, open(log := Path(folder, "log"), "w", encoding="utf-8") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, env=environment)
        try:
            deadline = time.perf_counter() + START_SECONDS
            while not (found := re.search(r"serving \S+ on (http://\S+);", log.read_text(encoding="utf-8"))):
                if process.poll() is not None or time.perf_counter() > deadline:
                    sys.exit(f"the server did not start:\n{log.read_text(encoding='utf-8')}")
                time.sleep(0.1)
            options.url, options.pid = found[1], process.pid
            yield
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            ending["exit_code"] = process.returncode
            lines = log.read_text(encoding="utf-8").partition(found[0])[2].splitlines()[1:]
            ending["log_errors"] = [line[:2000] for line in lines if '"level": "info"' not in line][:MAX_FAILURES]
        except (httpx.HTTPError, OSError):
            print(log.read_text(encoding="utf-8")[-4000:], file=sys.stderr)
            raise
        finally:
            process.kill()
            process.wait()


def show(report: Mapping[str, Any]) -> None:
    """The report as tables."""
    console = Console(highlight=False)

    def table(*rows: Sequence[Any]) -> None:
        drawn = Table(*(str(cell) for cell in rows[0]))
        for row in rows[1:]:
            drawn.add_row(*(f"{cell:,.1f}" if isinstance(cell, float) else str(cell)[:120] for cell in row))
        console.print(drawn)

    speed = ", ".join(f"{value:.0f} {name} tokens/s" for name, value in report["tokens_per_s"].items())
    console.print(f"{report['setup']}: {report['seconds']:.0f} s, {speed}")
    table(("requests", "number"), *report["outcomes"].items(), *report["finish_reasons"].items())
    table(("ms", "p50", "p90", "p99", "max"), *((name, *values.values()) for name, values in report["latency_ms"].items()))
    table(("server", "fresh", "warm", "end"), *((name, *(report[at].get(name) for at in ("fresh", "warm", "end")))
          for name in report["end"]))  # fmt: skip
    table(("check", "got", "expected", "verdict"), *((*list(row.values())[:3], "ok" if row["ok"] else "FAILED")
          for row in report["checks"]))  # fmt: skip
    for line in (*report["failures"], *report.get("log_errors", ())):
        console.print(line, markup=False)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running server (default: one of our own on the demo model)")
    parser.add_argument("--pid", type=int, help="its process, to look into (default: not looked into)")
    parser.add_argument("--streams", type=int, default=64, help="requests at once (default 64)")
    parser.add_argument("--seconds", type=float, default=300, help="how long to soak (default 300)")
    parser.add_argument("--warm-up", type=float, default=30, help="seconds of the same before that (default 30)")
    parser.add_argument("--max-tokens", type=int, default=160, help="longest output (default 160)")
    parser.add_argument("--timeout", type=float, default=300, help="seconds after which a request is stuck (default 300)")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default 0)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if min(options.streams, options.max_tokens) < 1 or min(options.seconds, options.warm_up) < 0 or options.timeout <= 0:
        parser.error("--streams and --max-tokens start at 1; times are not negative")
    if options.pid is not None and options.url is None:
        parser.error("--pid belongs to the server of --url")
    return options


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The report without verdicts, on a server of our own unless one is given. Raises HTTPError, OSError if it is gone."""
    setup = {name: getattr(options, name) for name in ("url", "streams", "warm_up", "max_tokens", "timeout", "seed")}
    ending: dict[str, Any] = {}
    with contextlib.nullcontext() if options.url else own_server(options, ending):
        report = asyncio.run(soak(options))
    return {"setup": setup, **report, **ending}


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        report = run(options)
    except (httpx.HTTPError, OSError) as error:
        print(f"{options.url}: the server does not answer ({error!r}); expected one that stays alive", file=sys.stderr)
        return 1
    report["checks"] = verdicts(report)
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)
    return 0 if all(row["ok"] for row in report["checks"]) else 1


if __name__ == "__main__":
    sys.exit(main())
