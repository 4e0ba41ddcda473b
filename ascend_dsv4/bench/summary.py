# SPDX-License-Identifier: Apache-2.0
"""Figures of a measurement. Latencies are of requests that succeeded; failed ones are counted, never averaged in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ascend_dsv4.bench.config import LoadConfig
from ascend_dsv4.bench.load import Run
from ascend_dsv4.bench.record import Record

PERCENTILES: Final = (50, 90, 95, 99)
_LATE_MS: Final = 50.0  # beyond this the generator's own delays are no longer small beside latencies of a model
_BUSY_CPU: Final = 0.9


def distribution(values: Iterable[float | None]) -> dict[str, float | None]:
    """count, mean, p50, p90, p95, p99, max. Percentiles interpolate linearly between neighbours; None is left out."""
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    names = [f"p{percent}" for percent in PERCENTILES]
    if not known.size:
        return {"count": 0, "mean": None, **dict.fromkeys(names), "max": None}
    cuts = np.percentile(known, PERCENTILES).tolist()
    return {"count": known.size, "mean": float(known.mean()), **dict(zip(names, cuts, strict=True)), "max": float(known.max())}


def summarize(run: Run, config: LoadConfig) -> dict[str, Any]:
    """Plain values for JSON and tables. Times in milliseconds, rates per second of the whole measurement."""
    good = [record for record in run.records if record.status == "ok"]
    summary = {
        "duration_s": run.duration_s,
        "is_interrupted": run.is_interrupted,
        "requests": _requests(run.records),
        "finish_reasons": dict(Counter(record.finish_reason or "unknown" for record in good).most_common()),
        "errors": _errors(run.records),
        "tokens": _tokens(good),
        "throughput": _throughput(good, run.duration_s),
        "concurrency": _concurrency(run),
        "latency_ms": _latencies(good, is_open=config.request_rate is not None),
        "generator": _generator(run, config),
    }
    if config.slo_ttft_ms is not None or config.slo_tpot_ms is not None:
        summary["goodput"] = _goodput(good, run, config)
    summary["notes"] = notes(summary, run, config)
    return summary


def _requests(records: Sequence[Record]) -> dict[str, int]:
    counts = Counter(record.status for record in records)
    return {
        "total": len(records),
        "succeeded": counts["ok"],
        "failed": counts["failed"],
        "interrupted": counts["interrupted"],
        "without_content": sum(record.status == "ok" and not record.chunks for record in records),
    }


def _errors(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Kind → how many, and what the first one said; most frequent first."""
    counts = Counter(record.error_kind for record in records if record.error_kind is not None)
    first = {record.error_kind: record.error for record in reversed(records)}
    return {kind: {"count": count, "example": first[kind]} for kind, count in counts.most_common()}


def _tokens(good: Sequence[Record]) -> dict[str, Any]:
    """Token counts. `input` is None if the server never told."""
    inputs = [record.input_tokens for record in good if record.input_tokens is not None]
    cached = [record.cached_tokens for record in good if record.cached_tokens is not None]
    output, chunks = sum(record.output_tokens for record in good), sum(len(record.chunks) for record in good)
    return {
        "input": sum(inputs) if inputs else None,
        "output": output,
        "cached_input": sum(cached) if cached else None,
        "output_per_chunk": output / chunks if chunks else None,
        "requests_without_input_count": len(good) - len(inputs),
        "requests_counted_by_chunks": sum(not record.has_usage for record in good),
    }


def _throughput(good: Sequence[Record], duration_s: float) -> dict[str, float | None]:
    tokens = _tokens(good)
    seconds = max(duration_s, 1e-9)
    return {
        "requests_per_s": len(good) / seconds,
        "input_tokens_per_s": None if tokens["input"] is None else tokens["input"] / seconds,
        "output_tokens_per_s": tokens["output"] / seconds,
        "total_tokens_per_s": None if tokens["input"] is None else (tokens["input"] + tokens["output"]) / seconds,
    }


def concurrency_steps(run: Run) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Requests under way as a step function: seconds since the start, and the number from there on. [num_steps] each

    A request that was interrupted counts until the end of the measurement.
    """
    end = run.started + run.duration_s
    events = [(0.0, 0)]
    for record in run.records:
        if record.sent is not None:
            events.append((record.sent - run.started, 1))
            events.append(((end if record.end is None else min(record.end, end)) - run.started, -1))
    events.sort()  # at equal times a request that ends makes room first
    times = np.array([moment for moment, _ in events])
    return times, np.cumsum([change for _, change in events])


def _concurrency(run: Run) -> dict[str, float]:
    times, running = concurrency_steps(run)
    lengths = np.diff(times, append=max(run.duration_s, times[-1]))
    return {"peak": int(running.max()), "mean": float((running * lengths).sum() / max(lengths.sum(), 1e-9))}


def _latencies(good: Sequence[Record], *, is_open: bool) -> dict[str, dict[str, float | None]]:
    """Time to first token, per output token, between tokens (all gaps of all requests), and of the whole request.

    In an open loop a request is late from the moment it was due; the times from when it was sent are there as well.
    """
    rows: dict[str, Iterable[float | None]] = {
        "ttft": [record.ttft_ms for record in good],
        "tpot": [record.tpot_ms for record in good],
        "itl": [gap for record in good for gap in record.itl_ms],
        "e2e": [record.e2e_ms for record in good],
    }
    if is_open:
        rows["ttft_from_send"] = [record.ttft_from_send_ms for record in good]
        rows["e2e_from_send"] = [record.e2e_from_send_ms for record in good]
    return {name: distribution(values) for name, values in rows.items()}


def _generator(run: Run, config: LoadConfig) -> dict[str, Any]:
    """Whether the generator kept up: delays of its own, and the share of one processor it used."""
    generator: dict[str, Any] = {
        "cpu": run.cpu_s / max(run.duration_s, 1e-9),
        "loop_lag_ms": distribution(run.loop_lags_ms),
    }
    if config.request_rate is not None:
        generator["send_delay_ms"] = distribution(record.send_delay_ms for record in run.records)
        generator["slot_wait_ms"] = distribution(record.slot_wait_ms for record in run.records)
    return generator


def _goodput(good: Sequence[Record], run: Run, config: LoadConfig) -> dict[str, float | None]:
    """Requests that met the objectives; failed ones did not. An answer of one token has no time per output token."""

    def meets(record: Record) -> bool:
        if config.slo_ttft_ms is not None and (record.ttft_ms is None or record.ttft_ms > config.slo_ttft_ms):
            return False
        return config.slo_tpot_ms is None or record.tpot_ms is None or record.tpot_ms <= config.slo_tpot_ms

    met = sum(meets(record) for record in good)
    finished = sum(record.status != "interrupted" for record in run.records)
    return {
        "slo_ttft_ms": config.slo_ttft_ms,
        "slo_tpot_ms": config.slo_tpot_ms,
        "met": met,
        "fraction": met / finished if finished else None,
        "requests_per_s": met / max(run.duration_s, 1e-9),
    }


def notes(summary: dict[str, Any], run: Run, config: LoadConfig) -> list[str]:
    """What a reader must know before believing the figures."""
    found = [*_token_notes(summary, run, config), *_length_notes(summary, run, config)]
    generator = summary["generator"]
    delays = [generator["loop_lag_ms"]["p99"], generator.get("send_delay_ms", {}).get("p99")]
    if generator["cpu"] > _BUSY_CPU or any(delay is not None and delay > _LATE_MS for delay in delays):
        found.append(
            f"the generator itself was late (event loop p99 {delays[0] or 0:.0f} ms, {generator['cpu']:.0%} of a processor): "
            "latencies are partly its own; use fewer requests at a time, or another machine"
        )
    if (generator.get("slot_wait_ms", {}).get("p50") or 0) > _LATE_MS:
        found.append("--max-concurrency held most requests back; their latencies contain that wait")
    if run.num_warmup_failed:
        found.append(f"{run.num_warmup_failed} of {config.warmup} warm-up requests failed")
    if run.is_interrupted:
        found.append("interrupted: figures are of what was measured until then")
    return found


def _token_notes(summary: dict[str, Any], run: Run, config: LoadConfig) -> Iterable[str]:
    tokens, num_good = summary["tokens"], summary["requests"]["succeeded"]
    if guessed := tokens["requests_counted_by_chunks"]:
        yield f"{guessed} of {num_good} answers came without usage: their output tokens are counted as chunks"
    if unknown := tokens["requests_without_input_count"]:
        yield f"{unknown} of {num_good} answers did not tell their input tokens, which are missing in the totals"
    if tokens["cached_input"] and tokens["input"]:
        yield f"{tokens['cached_input'] / tokens['input']:.0%} of the input tokens came from the server's prefix cache"
    if (tokens["output_per_chunk"] or 0) > 1.05:
        yield f"a chunk carried {tokens['output_per_chunk']:.2f} tokens on average: ITL is between chunks, TPOT per token"
    if config.prompt_file is None and not run.word_count.is_measured and num_good:
        yield "the server did not count tokens for us: --input-len is a number of words"
    if empty := summary["requests"]["without_content"]:
        yield f"{empty} of {num_good} answers had no content, so no time to first token"


def _length_notes(summary: dict[str, Any], run: Run, config: LoadConfig) -> Iterable[str]:
    if not config.ignore_eos or summary["tokens"]["requests_counted_by_chunks"]:
        return
    short = sum(record.status == "ok" and record.output_tokens < record.max_tokens for record in run.records)
    if short:
        num_good = summary["requests"]["succeeded"]
        yield f"{short} of {num_good} answers were shorter than asked: the server seems not to know ignore_eos"
