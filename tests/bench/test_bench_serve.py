# SPDX-License-Identifier: Apache-2.0
"""`bench serve` against a foreign server that behaves well, badly, or not at all."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ascend_dsv4.bench import client
from ascend_dsv4.bench.config import Lengths, LoadConfig
from ascend_dsv4.bench.load import Progress, Run, measure
from ascend_dsv4.bench.record import Record
from ascend_dsv4.bench.summary import summarize
from ascend_dsv4.bench.workload import arrival_times
from ascend_dsv4.errors import AscendDsv4Error, ConfigError, UnsupportedError
from tests.bench.conftest import Serve
from tests.bench.stub import FIRST_TOKEN_S, GAP_S, ODD_NAME, OVERHEAD_TOKENS, Stub, count_tokens

SLACK_MS = 2.0  # clocks of timers and of perf_counter differ that much


def measured(stub: Stub, model: str, **options: Any) -> Run:
    """A measurement without the command line."""
    small: dict[str, Any] = {"input_len": Lengths(20, 20), "output_len": Lengths(4, 4), "num_prompts": 3, "warmup": 0}

    async def run() -> Run:
        return await measure(LoadConfig(url=stub.url, model=model, **(small | options)), asyncio.Event())

    return asyncio.run(run())


def only(stub: Stub, model: str, **options: Any) -> Record:
    """What became of one request."""
    records = measured(stub, model, num_prompts=1, **options).records
    assert len(records) == 1
    return records[0]


def document(serve: Serve, *args: object) -> dict[str, Any]:
    result = serve(*args, "--json")
    content: dict[str, Any] = json.loads(result.out)
    return content | {"code": result.code}


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_a_good_server(serve: Serve, stub: Stub, endpoint: str) -> None:
    content = document(serve, "--endpoint", endpoint, "--num-prompts", 6, "--concurrency", 2, "--input-len", "30:60")
    summary, requests = content["summary"], content["requests"]
    assert content["code"] == 0
    assert content["config"]["model"] == "good"  # the first of the list
    assert summary["requests"]["succeeded"] == 6
    assert summary["finish_reasons"] == {"length": 6}
    assert summary["concurrency"]["peak"] == 2
    assert summary["tokens"]["output"] == 24
    assert [request["index"] for request in requests] == list(range(6))
    for request in requests:
        assert request["ttft_ms"] >= 1e3 * FIRST_TOKEN_S - SLACK_MS
        assert request["tpot_ms"] >= 1e3 * GAP_S - SLACK_MS
        assert request["num_chunks"] == request["output_tokens"] == len(request["itl_ms"]) + 1 == 4
        assert request["e2e_ms"] >= request["ttft_ms"] + sum(request["itl_ms"]) - SLACK_MS
        assert request["output_tokens_from"] == "usage"
    assert summary["duration_s"] >= 3 * (FIRST_TOKEN_S + 4 * GAP_S) - SLACK_MS / 1e3
    assert summary["throughput"]["output_tokens_per_s"] == pytest.approx(24 / summary["duration_s"])
    assert stub.num_connections <= 2  # they are used again
    path = "/v1/chat/completions" if endpoint == "chat" else "/v1/completions"
    sent = [count_tokens(call.text) for call in stub.calls if call.path == path][2:]  # after two that count tokens
    assert sorted(sent) == sorted(request["input_tokens"] for request in requests)
    assert sum(sent) == summary["tokens"]["input"]


def test_the_request(serve: Serve, stub: Stub) -> None:
    extra = '{"top_p": 0.9, "temperature": null, "max_tokens": null, "max_completion_tokens": 4}'
    document(serve, "--model", "good", "--num-prompts", 1, "--seed", 3)
    assert stub.bodies()[-1].keys() == {
        "model", "messages", "max_tokens", "temperature", "stream", "stream_options", "ignore_eos",
    }  # fmt: skip
    assert stub.bodies()[-1]["stream_options"] == {"include_usage": True}
    assert stub.bodies()[-1]["ignore_eos"] is True
    assert stub.bodies()[-1]["temperature"] == 0
    assert stub.calls[-1].headers["accept-encoding"] == "identity"  # compression would hold chunks back
    first = stub.bodies()[-1]["messages"]
    document(serve, "--model", "no_usage", "--num-prompts", 1, "--seed", 3, "--no-ignore-eos", "--extra-body", extra)
    assert stub.bodies()[-1].keys() == {"model", "messages", "top_p", "max_completion_tokens", "stream", "stream_options"}
    document(serve, "--model", "good", "--num-prompts", 1, "--seed", 3)
    assert stub.bodies()[-1]["messages"] == first


@pytest.mark.parametrize("length", [40, 300])
def test_input_lengths_are_the_servers(stub: Stub, length: int) -> None:
    """The stub counts some words twice and adds a template; prompts still have the length that was asked for."""
    run = measured(stub, "good", input_len=Lengths(length, length), output_len=Lengths(1, 1), num_prompts=8, concurrency=8)
    counted = [record.input_tokens or 0 for record in run.records]
    assert run.word_count.is_measured
    assert run.word_count.overhead == OVERHEAD_TOKENS
    assert 0.9 * length < sum(counted) / len(counted) < 1.1 * length


def test_the_api_key_is_sent_and_not_told(serve: Serve, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_KEY", "sk-secret")
    result = serve("--api-key-env", "BENCH_KEY", "--num-prompts", 1, "--json")
    assert "sk-secret" not in result.out
    assert all(call.headers["authorization"] == "Bearer sk-secret" for call in stub.calls)
    stub.calls.clear()
    serve("--num-prompts", 1)
    assert all("authorization" not in call.headers for call in stub.calls)
    for value in ("", "two\nlines", "grüße"):
        monkeypatch.setenv("BENCH_KEY", value)
        with pytest.raises(ConfigError, match="--api-key-env BENCH_KEY") as caught:
            serve("--api-key-env", "BENCH_KEY")
        assert not value or value not in str(caught.value)


def test_proxies_are_not_asked(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert serve("--num-prompts", 1).code == 0


def test_warmup_is_not_counted(serve: Serve, stub: Stub) -> None:
    content = document(serve, "--warmup", 3)
    bodies = [json.dumps(body["messages"]) for body in stub.bodies()]
    assert content["summary"]["requests"]["total"] == 3
    assert len(bodies) == len(set(bodies)) == 2 + 3 + 3


@pytest.mark.parametrize(
    ("model", "kind", "reason"),
    [
        ("error_500", "http_500", "kernel fell over"),
        ("error_429", "http_429", "queue is full (Retry-After: 7)"),
        ("truncated", "truncated", "without a finish reason"),
        ("dropped", "truncated", "incomplete chunked read"),
        ("silent", "connection", "disconnected"),
        ("non_streaming", "not_a_stream", "application/json"),
        ("error_event", "error_event", "out of blocks"),
        ("named_error_event", "error_event", "overloaded"),
        ("no_json", "bad_stream", "{oops"),
        ("wrong_choices", "bad_stream", "none today"),
    ],
)
def test_failures(stub: Stub, tmp_path: Path, model: str, kind: str, reason: str) -> None:
    prompts = tmp_path / "prompts.jsonl"  # nothing is sent before the measurement
    prompts.write_text('{"prompt": "hello"}\n')
    record = only(stub, model, prompt_file=str(prompts))
    assert (record.status, record.error_kind) == ("failed", kind)
    assert reason in (record.error or "")
    assert len(stub.bodies()) == 1  # it was not tried again


@pytest.mark.parametrize(
    ("model", "chunks", "output", "reason"),
    [("split", 1, 1, "stop"), ("no_usage", 5, 5, "stop"), ("no_done", 1, 1, "stop"), ("odd_shapes", 1, 1, "stop"),
     ("thinker", 3, 9, "tool_calls"), ("no_content", 0, 1, "stop")],
)  # fmt: skip
def test_odd_but_complete_answers(stub: Stub, model: str, chunks: int, output: int, reason: str) -> None:
    record = only(stub, model)
    assert (record.status, record.error) == ("ok", None)
    assert (len(record.chunks), record.output_tokens, record.finish_reason) == (chunks, output, reason)
    assert (record.ttft_ms is None) == (chunks == 0)
    assert (record.e2e_ms or 0) >= (record.ttft_ms or 1e-3)


def test_counted_chunks_are_told(serve: Serve) -> None:
    content = document(serve, "--model", "no_usage")
    assert {request["output_tokens_from"] for request in content["requests"]} == {"chunks"}
    assert content["summary"]["throughput"]["input_tokens_per_s"] is None
    assert content["summary"]["tokens"]["output"] == 15
    assert any("3 of 3 answers came without usage" in remark for remark in content["summary"]["notes"])
    assert any("--input-len is a number of words" in remark for remark in content["summary"]["notes"])


def test_cached_tokens_are_told(stub: Stub) -> None:
    assert only(stub, "thinker").cached_tokens == 30


def test_a_response_that_stays_open(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is complete with [DONE]; the connection is given up."""
    monkeypatch.setattr(client, "_DRAIN_SECONDS", 0.2)
    run = measured(stub, "stays_open", num_prompts=2)
    assert [record.status for record in run.records] == ["ok", "ok"]
    assert run.duration_s >= 0.4 - SLACK_MS / 1e3
    assert all((record.e2e_ms or 0) < 200 for record in run.records)  # its end is [DONE], not the closed connection
    assert stub.num_connections == 3  # none is used again, nor is the one that counted tokens


@pytest.mark.parametrize(("model", "chunks"), [("late_answer", 0), ("slow", 1)])
def test_timeout(stub: Stub, model: str, chunks: int) -> None:
    record = only(stub, model, timeout=0.2)
    assert (record.error_kind, len(record.chunks)) == ("timeout", chunks)
    assert (record.e2e_ms or 0) >= 200 - SLACK_MS


def test_some_failures(serve: Serve) -> None:
    result = serve("--model", "every_second", "--num-prompts", 4)
    assert result.code == 1
    assert "2 succeeded, 2 failed" in result.out
    assert "http_503 × 2" in result.out
    assert "busy" in result.out


@pytest.mark.parametrize(
    ("model", "advice"),
    [("error_500", "server's log"), ("error_429", "Retry-After: 7"), ("refuses_ignore_eos", "--no-ignore-eos")],
)
def test_only_failures(serve: Serve, model: str, advice: str, tmp_path: Path) -> None:
    with pytest.raises(AscendDsv4Error, match="none of 3 requests succeeded") as caught:
        serve("--model", model, "--json", tmp_path / "out.json", "--plot", tmp_path / "out.svg")
    assert advice in str(caught.value)
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["summary"]["requests"]["failed"] == 3
    assert content["summary"]["latency_ms"]["ttft"]["p50"] is None


def test_a_server_that_refuses_a_field(serve: Serve) -> None:
    assert serve("--model", "refuses_ignore_eos", "--no-ignore-eos").code == 0


@pytest.mark.parametrize("model", [[], ["--model", "good"]], ids=["list models", "first request"])
def test_nobody_there(serve: Serve, model: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"--url http://127.0.0.1:9: no answer \(Connection refused\); expected"):
        serve(*model, url="http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("status", "content", "message"),
    [
        (200, b'{"data": []}', "expected a list with at least one model"),
        (200, b"[]", "expected a list with at least one model"),
        (200, b'{"data": [{"id": 3}]}', "expected a list with at least one model"),
        (200, b"<html>", "answered '<html>'"),
        (404, b'{"detail": "Not Found"}', r"answered 404 \(Not Found\).* --model"),
        (401, b"", r"answered 401 \(no message\).* --api-key-env"),
    ],
)
def test_a_server_without_models(serve: Serve, stub: Stub, status: int, content: bytes, message: str) -> None:
    stub.models = (status, content)
    with pytest.raises(ConfigError, match=message):
        serve()


def test_open_loop_sends_on_time(stub: Stub) -> None:
    """However slow the answers: the server sees requests at the times that the seed gives."""
    config = LoadConfig(request_rate=40.0, seed=2, num_prompts=12)
    run = measured(stub, "good", request_rate=40.0, seed=2, num_prompts=12, output_len=Lengths(20, 20))
    due = [record.due - run.started for record in run.records]
    assert due == pytest.approx(arrival_times(config, 12).tolist(), abs=1e-9)
    received = [call.received for call in stub.calls[-12:]]
    for record, moment in zip(run.records, received, strict=True):
        assert moment >= record.due - SLACK_MS / 1e3
    delays = summarize(run, config)["generator"]["send_delay_ms"]
    assert delays["count"] == 12
    assert 0 <= delays["p50"] < 1e3 * FIRST_TOKEN_S  # it does not wait for answers
    assert summarize(run, config)["concurrency"]["peak"] > 2


def test_latency_counts_from_when_a_request_was_due(stub: Stub) -> None:
    """Eight requests at once to a server that takes 50 ms for each, one at a time: the last waits for all others."""
    options: dict[str, Any] = {"request_rate": 1e5, "num_prompts": 8, "output_len": Lengths(1, 1)}
    run = measured(stub, "serial", **options)
    assert max(record.ttft_ms or 0 for record in run.records) >= 8 * 50 - 1 - SLACK_MS
    held = measured(stub, "serial", max_concurrency=1, **options)
    last = held.records[-1]
    assert last.e2e_ms is not None and last.e2e_from_send_ms is not None and last.slot_wait_ms is not None
    assert last.e2e_ms >= 8 * 50 - 1 - SLACK_MS
    assert last.slot_wait_ms >= 7 * 50 - 1 - SLACK_MS
    assert last.e2e_from_send_ms == pytest.approx(last.e2e_ms - last.slot_wait_ms - (last.send_delay_ms or 0), abs=0.01)
    summary = summarize(held, LoadConfig(max_concurrency=1, request_rate=1e5))
    assert summary["concurrency"]["peak"] == 1
    assert any("--max-concurrency held most requests back" in remark for remark in summary["notes"])


def test_a_late_generator_says_so(stub: Stub) -> None:
    """Something in the generator takes a long time, which looks like a slow server from the outside."""

    def block(progress: Progress) -> None:
        if progress.phase == "measuring":
            time.sleep(0.2)

    config = LoadConfig(
        url=stub.url, model="good", request_rate=50.0, num_prompts=20, input_len=Lengths(8, 8), output_len=Lengths(2, 2)
    )

    async def run() -> Run:
        return await measure(config, asyncio.Event(), block)

    summary = summarize(asyncio.run(run()), config)
    assert summary["generator"]["send_delay_ms"]["max"] > 100
    assert summary["generator"]["loop_lag_ms"]["max"] > 100
    assert any("the generator itself was late" in remark for remark in summary["notes"])


def test_stopping_early(stub: Stub) -> None:
    """Requests under way are neither successes nor failures."""

    async def run() -> Run:
        stop = asyncio.Event()

        def after_two(progress: Progress) -> None:
            if progress.succeeded >= 2:
                stop.set()

        config = LoadConfig(url=stub.url, model="good", concurrency=2, input_len=Lengths(8, 8), output_len=Lengths(60, 60))
        return await measure(config, stop, after_two)

    run_ = asyncio.run(run())
    summary = summarize(run_, LoadConfig())
    assert run_.is_interrupted
    assert summary["requests"]["succeeded"] >= 2
    assert summary["requests"]["failed"] == 0
    assert 0 < summary["requests"]["interrupted"] <= 2
    assert summary["requests"]["total"] < 100


@pytest.mark.parametrize("stage", ["measuring", "warming up"])
def test_ctrl_c(stub: Stub, tmp_path: Path, stage: str) -> None:
    """What was measured until then is reported; nothing is if there is nothing."""
    code = (
        "import argparse, sys; from ascend_dsv4.cli import bench; parser = argparse.ArgumentParser(); "
        "bench.add_parser(parser.add_subparsers()); args = parser.parse_args(); sys.exit(args.run(args))"
    )
    file = tmp_path / "out.json"
    model = "slow" if stage == "warming up" else "good"
    args = ["bench", "serve", "--url", stub.url, "--model", model, "--warmup", "1", "--output-len", "8", "--input-len", "8",
            "--num-prompts", "1000", "--json", str(file), "--timeout", "0.5" if model == "good" else "60"]  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", code, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 15
    while len(stub.bodies()) < (1 if stage == "warming up" else 6) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=15)
    assert process.returncode == 130
    if stage == "warming up":
        assert "interrupted before the measurement began" in err
        assert not file.exists()
        return
    assert "interrupted: figures are of what was measured until then" in " ".join(out.split())
    assert json.loads(file.read_text())["summary"]["requests"]["succeeded"] >= 1


@pytest.mark.parametrize("suffix", [".svg", ".PNG"])
def test_files(serve: Serve, stub: Stub, tmp_path: Path, suffix: str) -> None:
    """Tables on stdout, the document and the figure in files."""
    figure, file = tmp_path / f"figure{suffix}", tmp_path / "out.json"
    result = serve("--num-prompts", 5, "--concurrency", 2, "--json", file, "--plot", figure)
    content = json.loads(file.read_text(encoding="utf-8"))
    assert result.code == 0
    assert content.keys() == {"config", "environment", "word_count", "summary", "requests"}
    assert content["config"]["output_len"] == "4"
    assert content["environment"]["python"] == sys.version.split()[0]
    text = " ".join(result.out.split())
    for words in ("5 succeeded", "TTFT to the first token", "TPOT per token after it", "output tokens", "loop, 2 at a time"):
        assert words in text
    assert all(len(line) <= 80 for line in result.out.splitlines())
    data = figure.read_bytes()
    if suffix == ".svg":
        for words in ("Latency by percentile", "percentile (%)", "latency (ms, logarithmic)", "tokens/s", "TTFT", "ITL", "E2E",
                      "Requests under way", "time since the start (s)", f"good at {stub.url}"):  # fmt: skip
            assert words in data.decode()
    else:
        assert data.startswith(b"\x89PNG")


@pytest.mark.parametrize("model", ["no_content", ODD_NAME])
def test_figures_of_odd_runs(serve: Serve, tmp_path: Path, model: str) -> None:
    """One request, no chunk to show, a name that no font has and that could be taken for a formula."""
    figure = tmp_path / "figure.svg"
    assert serve("--model", model, "--num-prompts", 1, "--output-len", 1, "--plot", figure).code == 0
    assert f"{model} at http" in figure.read_text(encoding="utf-8")


def test_open_loop_on_the_command_line(serve: Serve) -> None:
    args = ("--request-rate", 100, "--burstiness", 2, "--max-concurrency", 2, "--slo-ttft-ms", 1e6, "--slo-tpot-ms", 1e6)
    result = serve(*args)
    text = " ".join(result.out.split())
    assert result.code == 0
    assert "open loop, 100 per second, burstiness 2, at most 2 at a time" in text
    assert "TTFT once sent" in text
    assert "3 requests met TTFT ≤ 1e+06 ms, TPOT ≤ 1e+06 ms (100.0%)" in text
    assert "goodput" in text


def test_prompts_of_a_file(serve: Serve, stub: Stub, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    lines = ['{"messages": [{"role": "user", "content": "grüße"}], "max_tokens": 2}', '{"prompt": "b"}']
    file.write_text("\n".join(lines), encoding="utf-8")
    content = document(serve, "--model", "good", "--prompt-file", file, "--num-prompts", 3)
    sent = [(body["messages"][0]["content"], body["max_tokens"]) for body in stub.bodies()]
    assert sent == [("grüße", 2), ("b", 4), ("grüße", 2)]
    assert content["summary"]["tokens"]["output"] == 8


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--json", "/nowhere/out.json"], "--json /nowhere/out.json: cannot be written"),
        (["--json", "/"], "--json /: cannot be written"),
        (["--plot", "/nowhere/out.svg"], "--plot /nowhere/out.svg: cannot be written"),
        (["--plot", "out.pdf"], "--plot out.pdf: expected a name that ends with .svg or .png"),
        (["--concurrency", "2", "--request-rate", "1"], "--concurrency 2: got it with --request-rate 1"),
        (["--prompt-file", "/nowhere/p.jsonl"], "--prompt-file /nowhere/p.jsonl: No such file"),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(serve: Serve, stub: Stub, args: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        serve("--model", "good", *args)
    assert not stub.calls


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--input-len", "9:1"], "'9:1' is no length"),
        (["--extra-body", "{"], "'{' is no JSON"),
        (["--num-prompts", "many"], "invalid int value: 'many'"),
        (["--request-rate", "fast"], "invalid float value: 'fast'"),
        (["--endpoint", "embeddings"], "invalid choice"),
    ],
)
def test_mistakes_of_the_command_line(serve: Serve, capsys: pytest.CaptureFixture[str], args: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        serve(*args)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("package", "args"), [("httpx", []), ("matplotlib", ["--plot", "figure.svg"])])
def test_a_missing_package(
    serve: Serve, stub: Stub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str, args: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UnsupportedError, match=rf"{package} is not installed.*pip install 'ascend-dsv4\[bench\]'"):
        serve(*args)
    assert not stub.calls


def test_help_needs_no_packages() -> None:
    """The flags come from a module that loads no optional package and no framework."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('httpx', 'anyio', 'matplotlib', 'torch')))\n"
        "import argparse; from ascend_dsv4.cli import bench\n"
        "parser = argparse.ArgumentParser(); bench.add_parser(parser.add_subparsers())\n"
        "parser.parse_args(['bench', 'serve', '--help'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0
    assert "--input-len" in result.stdout
    assert "(default: http://127.0.0.1:8000)" in " ".join(result.stdout.split())


def test_progress_on_a_terminal(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that is written over and wiped at the end; nothing where stderr is a file."""
    assert serve().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("os.get_terminal_size", lambda _: os.terminal_size((40, 24)))
    monkeypatch.setattr("sys.stderr.fileno", lambda: 2, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    result = serve("--output-len", 60, "--num-prompts", 1)
    lines = result.err.split("\r")[1:]
    assert any("0/1 requests, 1 running" in line for line in lines)
    assert all(len(line.removesuffix("\x1b[K")) < 40 for line in lines)
    assert lines[-1] == "\x1b[K"
