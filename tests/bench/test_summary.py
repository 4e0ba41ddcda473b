# SPDX-License-Identifier: Apache-2.0
"""Figures against values worked out by hand."""

from __future__ import annotations

import pytest

from ascend_dsv4.bench.config import LoadConfig
from ascend_dsv4.bench.load import Run
from ascend_dsv4.bench.plot import output_rate
from ascend_dsv4.bench.record import Record
from ascend_dsv4.bench.summary import concurrency_steps, distribution, summarize
from ascend_dsv4.bench.workload import WordCount

START = 1000.0  # of the clock, so that a time taken for a duration shows


def record(
    due: float, sent: float | None, chunks: list[float], end: float | None, *, output: int | None = None, **fields: object
) -> Record:
    """A request, with times in seconds since the start."""
    made = Record(0, 4, due=START + due, ready=START + due, admitted=START + due)
    made.sent = None if sent is None else START + sent
    made.chunks = [START + moment for moment in chunks]
    made.end = None if end is None else START + end
    made.usage_tokens, made.finish_reason = output, "length"
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def run_of(*records: Record, duration: float = 10.0) -> Run:
    return Run("m", WordCount(1, 0, True), list(records), START, duration, cpu_s=1.0, loop_lags_ms=[1.0, 3.0])


def test_percentiles() -> None:
    # Rank p/100 * (n - 1), linear between neighbours: of 10, 20, …, 110 the p90 is at rank 9.
    values = [110.0, 10.0, 100.0, 20.0, 90.0, 30.0, 80.0, 40.0, 70.0, 50.0, 60.0]
    figures = distribution([*values, None])
    assert figures == pytest.approx(
        {"count": 11, "mean": 60.0, "p50": 60.0, "p90": 100.0, "p95": 105.0, "p99": 109.0, "max": 110.0}
    )
    assert distribution([1.0, 2.0])["p50"] == 1.5
    assert distribution([1.0, 2.0])["p99"] == pytest.approx(1.99)
    assert set(distribution([7.0]).values()) == {1, 7.0}
    assert distribution([None]) == {"count": 0, "mean": None, "p50": None, "p90": None, "p95": None, "p99": None, "max": None}


def test_times_of_a_request() -> None:
    made = record(1.0, 1.5, [2.0, 2.1, 2.4], 2.5, output=5)
    assert made.status == "ok"
    assert (made.ttft_ms, made.ttft_from_send_ms) == pytest.approx((1000, 500))
    assert (made.e2e_ms, made.e2e_from_send_ms) == pytest.approx((1500, 1000))
    assert made.itl_ms == pytest.approx([100, 300])
    assert made.tpot_ms == pytest.approx(400 / 4)  # five tokens have four gaps, however many chunks brought them
    assert (made.send_delay_ms, made.slot_wait_ms) == pytest.approx((500, 0))


def test_waiting_for_a_slot_is_no_delay_of_the_generator() -> None:
    made = record(1.0, 1.8, [2.0], 2.0, ready=START + 1.1, admitted=START + 1.7)
    assert (made.send_delay_ms, made.slot_wait_ms) == pytest.approx((200, 600))


@pytest.mark.parametrize(("chunks", "output"), [([2.0], 1), ([2.0], 8), ([], None), ([2.0, 2.1], 1)])
def test_no_time_per_output_token(chunks: list[float], output: int | None) -> None:
    assert record(0.0, 0.0, chunks, 3.0, output=output).tpot_ms is None


def test_output_tokens() -> None:
    assert record(0, 0, [1, 2, 3], 4, output=9).output_tokens == 9
    assert record(0, 0, [1, 2, 3], 4, output=None).output_tokens == 3
    zeros = record(0, 0, [1, 2, 3], 4, output=0)  # a server that does not count
    assert (zeros.output_tokens, zeros.has_usage) == (3, False)
    empty = record(0, 0, [], 4, output=0)
    assert (empty.output_tokens, empty.has_usage) == (0, True)


def test_summary() -> None:
    run = run_of(
        record(0.0, 0.0, [1.0, 1.5, 2.0], 2.0, output=3, input_tokens=100, cached_tokens=40),
        record(0.0, 0.0, [3.0, 4.0], 4.0, output=5, input_tokens=60, cached_tokens=0),
        record(2.0, 2.0, [2.5, 3.0], 3.0, error_kind="truncated", error="first", output=50, input_tokens=999),
        record(4.0, 4.0, [], 5.0, error_kind="http_500", error="fell over"),
        record(5.0, 5.0, [], 6.0, error_kind="truncated", error="second"),
        record(5.0, 5.0, [6.0], None),
    )
    summary = summarize(run, LoadConfig())
    assert summary["requests"] == {"total": 6, "succeeded": 2, "failed": 3, "interrupted": 1, "without_content": 0}
    assert summary["errors"] == {
        "truncated": {"count": 2, "example": "first"},
        "http_500": {"count": 1, "example": "fell over"},
    }
    assert summary["finish_reasons"] == {"length": 2}
    assert summary["tokens"]["output"] == 8
    assert summary["tokens"]["output_per_chunk"] == 8 / 5
    assert summary["throughput"] == {
        "requests_per_s": 0.2, "input_tokens_per_s": 16.0, "output_tokens_per_s": 0.8, "total_tokens_per_s": 16.8,
    }  # fmt: skip
    latency = summary["latency_ms"]
    assert set(latency) == {"ttft", "tpot", "itl", "e2e"}
    assert [latency["ttft"][name] for name in ("count", "mean", "max")] == pytest.approx([2, 2000, 3000])
    assert [latency["tpot"][name] for name in ("count", "mean")] == pytest.approx([2, (500 + 250) / 2])
    assert [latency["itl"][name] for name in ("count", "mean", "p50")] == pytest.approx([3, 2000 / 3, 500])
    assert latency["e2e"]["max"] == pytest.approx(4000)
    assert summary["generator"]["cpu"] == 0.1
    assert summary["generator"]["loop_lag_ms"]["mean"] == 2.0
    assert any("25% of the input tokens" in remark for remark in summary["notes"])
    assert any("1.60 tokens" in remark for remark in summary["notes"])


def test_open_loop_reports_both_latencies() -> None:
    run = run_of(record(1.0, 3.0, [4.0], 5.0, output=1, input_tokens=1))
    summary = summarize(run, LoadConfig(request_rate=1.0))
    assert [summary["latency_ms"][name]["p50"] for name in ("ttft", "ttft_from_send", "e2e", "e2e_from_send")] == pytest.approx(
        [3000, 1000, 4000, 2000]
    )
    assert summary["generator"]["send_delay_ms"]["max"] == pytest.approx(2000)
    assert any("generator itself was late" in remark for remark in summary["notes"])


def test_concurrency() -> None:
    run = run_of(
        record(0, 0.0, [], 4.0),
        record(0, 1.0, [], 3.0),
        record(0, 3.0, [], 5.0),  # begins when the one before ends: never three at a time
        record(0, 6.0, [], None),  # interrupted, so until the end
        record(0, None, [], None),  # never sent
    )
    times, running = concurrency_steps(run)
    steps = list(zip(times.tolist(), running.tolist(), strict=True))
    assert steps == [(0, 0), (0, 1), (1, 2), (3, 1), (3, 2), (4, 1), (5, 0), (6, 1), (10, 0)]
    assert summarize(run, LoadConfig())["concurrency"] == {"peak": 2, "mean": pytest.approx((4 + 2 + 2 + 4) / 10)}


def test_goodput() -> None:
    run = run_of(
        record(0, 0, [0.1, 0.2], 0.2, output=2),  # 100 ms and 100 ms
        record(0, 0, [0.3, 0.35], 0.4, output=2),  # 300 ms and 50 ms
        record(0, 0, [0.1, 0.4], 0.5, output=2),  # 100 ms and 300 ms
        record(0, 0, [0.1], 0.5, output=1),  # 100 ms and nothing after it
        record(0, 0, [], 0.5, error_kind="timeout", error="late"),
        record(0, 0, [0.1], None),
    )
    both = summarize(run, LoadConfig(slo_ttft_ms=200, slo_tpot_ms=100.5))["goodput"]
    assert (both["met"], both["fraction"], both["requests_per_s"]) == (2, 2 / 5, 0.2)
    assert summarize(run, LoadConfig(slo_ttft_ms=200))["goodput"]["met"] == 3
    assert summarize(run, LoadConfig(slo_tpot_ms=100.5))["goodput"]["met"] == 3
    assert "goodput" not in summarize(run, LoadConfig())


def test_unknown_input_tokens() -> None:
    summary = summarize(run_of(record(0, 0, [1, 2], 2)), LoadConfig())
    assert summary["throughput"]["input_tokens_per_s"] is None
    assert summary["throughput"]["total_tokens_per_s"] is None
    assert any("without usage" in remark for remark in summary["notes"])
    assert any("did not tell their input tokens" in remark for remark in summary["notes"])


def test_short_answers_are_told() -> None:
    run = run_of(record(0, 0, [1, 2], 2, output=2))  # of 4
    told = "answers were shorter than asked"
    assert any(told in remark for remark in summarize(run, LoadConfig())["notes"])
    assert not any(told in remark for remark in summarize(run, LoadConfig(ignore_eos=False))["notes"])


def test_nothing_measured() -> None:
    summary = summarize(run_of(duration=0.0), LoadConfig(request_rate=1.0))
    assert summary["requests"]["total"] == 0
    assert summary["concurrency"] == {"peak": 0, "mean": 0.0}


def test_output_rate() -> None:
    run = run_of(record(0, 0, [0.5, 0.6, 3.5], 4, output=6), record(0, 0, [9.9], 10, output=None), duration=10.0)
    edges, rates = output_rate(run)
    width = 0.2
    assert edges[1] - edges[0] == pytest.approx(width)
    assert (rates * (edges[1:] - edges[:-1])).sum() == pytest.approx(7)  # no token is lost
    assert rates[2] == pytest.approx(2 / width)  # 0.4 … 0.6 has one chunk of two tokens
    assert rates[-1] == pytest.approx(1 / width)


@pytest.mark.parametrize("duration", [0.0, 0.001, 0.04, 0.07, 3.333, 16.1, 1e4, 1e6])
def test_bins_cover_the_run(duration: float) -> None:
    edges, rates = output_rate(run_of(record(0, 0, [0.0, duration], duration), duration=duration))
    assert (edges[1:] > edges[:-1]).all()
    assert len(rates) <= 81
    assert edges[-1] == max(duration, 1e-3)
    assert (rates * (edges[1:] - edges[:-1])).sum() == pytest.approx(2)
