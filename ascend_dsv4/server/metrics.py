# SPDX-License-Identifier: Apache-2.0
"""What the server measures: for Prometheus at /metrics, and for the status page."""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ascend_dsv4.engine.engine import Engine, Output
from ascend_dsv4.engine.loop import EngineLoop
from ascend_dsv4.engine.request import Request

FINISH_REASONS: Final = ("stop", "length", "abort", "timeout", "error")
HISTORY_SECONDS: Final = 120
THROUGHPUT_SECONDS: Final = 10
NUM_RECENT: Final = 1000
"""Requests, and gaps between tokens, that the percentiles of the status page look back on."""

_SECONDS: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)


@dataclass(slots=True)
class _Times:
    """When a request came, and when its last token did, in seconds."""

    arrived: float
    last_token: float | None = None


@dataclass(frozen=True, slots=True)
class _Sample:
    """Totals at one moment."""

    at: float
    num_prompt_tokens: int
    num_output_tokens: int
    num_running: int
    num_waiting: int


class _EngineCollector(Collector):
    """Reads the engine when Prometheus asks."""

    def __init__(self, engine: Engine, loop: EngineLoop) -> None:
        self._engine = engine
        self._loop = loop

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats
        yield GaugeMetricFamily(
            "ascend_dsv4_num_requests_running", "Requests in the batch.", len(self._engine.scheduler.running)
        )
        yield GaugeMetricFamily("ascend_dsv4_num_requests_waiting", "Requests in the queue.", self._loop.num_waiting)
        usage = GaugeMetricFamily("ascend_dsv4_cache_usage_ratio", "Share of the blocks in use.", labels=["group"])
        for group, used, total in cache_use(self._engine):
            usage.add_metric([group], used / total)
        yield usage
        totals = {
            "engine_steps": ("Steps of the engine.", stats.num_steps),
            "prompt_tokens": ("Prompt tokens processed; a recomputation does not count again.", stats.num_prompt_tokens),
            "generation_tokens": ("Tokens generated.", stats.num_output_tokens),
            "dropped_tokens": ("Tokens of preempted requests, to be computed again.", stats.num_dropped_tokens),
            "preemptions": ("Requests that gave up their blocks to older ones.", stats.num_preemptions),
            "spec_decode_num_drafts": ("Times that drafts of a request were verified.", stats.num_drafts),
            "spec_decode_num_draft_tokens": ("Tokens drafted ahead.", stats.num_draft_tokens),
            "spec_decode_num_accepted_tokens": ("Drafted tokens that the model accepted.", stats.num_accepted_tokens),
        }
        for name, (text, value) in totals.items():
            yield CounterMetricFamily(f"ascend_dsv4_{name}", text, value)
        accepted = CounterMetricFamily(
            "ascend_dsv4_spec_decode_num_accepted_tokens_per_pos", "How often the draft of a position was accepted.",
            labels=["position"],
        )  # fmt: skip
        for position in range(self._engine.engine.num_drafts):
            accepted.add_metric([str(position)], stats.num_accepted_at[position])
        yield accepted
        yield from _memory_metrics(self._engine)


def _memory_metrics(engine: Engine) -> Iterator[Metric]:
    """Counters of n-gram tables; none for a model without."""
    memory = engine.runner.memory
    if memory is None:
        return
    texts = {
        "rows_read": "Rows asked of a table, repetitions included.",
        "cache_hits": "Rows that the row cache of a table had.",
        "disk_rows": "Rows of a table fetched from a file.",
        "disk_bytes": "Bytes asked of the file of a table.",
    }
    for name, text in texts.items():
        family = CounterMetricFamily(f"ascend_dsv4_engram_{name}", text, labels=["layer"])
        for layer, tier in zip(memory.hash.layer_ids, memory.metrics.tiers, strict=True):
            family.add_metric([str(layer)], getattr(tier, name))
        yield family
    fetches = CounterMetricFamily(
        "ascend_dsv4_engram_fetches", "Reads of a step's rows: there when asked for, waited for, or not fetched ahead.",
        labels=["outcome"],
    )  # fmt: skip
    for outcome in ("ready", "late", "unasked"):
        fetches.add_metric([outcome], getattr(memory.metrics, f"taken_{outcome}"))
    yield fetches
    yield CounterMetricFamily(
        "ascend_dsv4_engram_wait_seconds", "Time that steps waited for rows.", memory.metrics.wait_seconds
    )


def cache_use(engine: Engine) -> list[tuple[str, int, int]]:
    """Group, blocks in use and blocks in all."""
    pools = engine.manager.pools
    return [(group, pool.num_blocks - pool.num_free, pool.num_blocks) for group, pool in pools.items()]


class Metrics:
    """Counts and times. Everything but `render` runs on the event loop's thread."""

    def __init__(self, engine: Engine, loop: EngineLoop) -> None:
        self._engine = engine
        self._loop = loop
        self._times: dict[Request, _Times] = {}
        self._history: deque[_Sample] = deque(maxlen=HISTORY_SECONDS + 1)
        self._ttft: deque[float] = deque(maxlen=NUM_RECENT)
        self._itl: deque[float] = deque(maxlen=NUM_RECENT)
        self.num_finished: Tally[str] = Tally()
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(_EngineCollector(engine, loop))

        def histogram(name: str, text: str, buckets: Sequence[float] = _SECONDS) -> Histogram:
            return Histogram(f"ascend_dsv4_{name}", text, buckets=buckets, registry=self.registry)

        self._finished = Counter(
            "ascend_dsv4_requests_finished", "Requests by how they ended.", ["finish_reason"], registry=self.registry
        )
        for reason in FINISH_REASONS:
            self._finished.labels(reason)
        self._http = Counter(
            "ascend_dsv4_http_requests", "HTTP requests.", ["method", "path", "status"], registry=self.registry
        )
        lengths = tuple(float(1 << power) for power in range(0, 21, 2))
        self._prompt_lengths = histogram("request_prompt_tokens", "Prompt tokens of a request.", lengths)
        self._output_lengths = histogram("request_generation_tokens", "Generated tokens of a request.", lengths)
        self._first = histogram("time_to_first_token_seconds", "From arrival to the first token.")
        self._gaps = histogram("inter_token_latency_seconds", "Between two tokens of a request.")
        self._images = Counter("ascend_dsv4_images", "Images taken into prompts.", registry=self.registry)
        self._refused_images = Counter(
            "ascend_dsv4_images_refused", "Images that could not be had, read or served.", registry=self.registry
        )
        self._encoding = histogram("image_encode_seconds", "Vision tower, of one image; next to nothing if it was seen lately.")
        self._whole = histogram("e2e_request_latency_seconds", "From arrival to the end of a request.")

    def submitted(self, requests: Iterable[Request], now: float) -> None:
        """Requests were queued at `now` (perf_counter seconds)."""
        for request in requests:
            self._times[request] = _Times(now)

    def refused(self, requests: Iterable[Request]) -> None:
        """They were not queued after all."""
        for request in requests:
            self._times.pop(request, None)

    def produced(self, output: Output, now: float) -> None:
        """The engine did something for a request at `now`."""
        times = self._times.get(output.request)
        if times is None:
            return
        if output.token_ids:
            if times.last_token is None:
                self._first.observe(now - times.arrived)
                self._ttft.append(now - times.arrived)
            else:
                self._gaps.observe(now - times.last_token)
                self._itl.append(now - times.last_token)
            times.last_token = now
        if output.finish_reason is not None:
            self._ended(output.request, output.finish_reason, now)

    def stopped(self, request: Request) -> None:
        """A stop text ended a request."""
        self._ended(request, "stop", time.perf_counter())

    def aborted(self, requests: Iterable[Request]) -> None:
        """Requests were given up."""
        for request in requests:
            self._ended(request, "abort", time.perf_counter())

    def image_encoded(self, seconds: float) -> None:
        """An image went through the vision tower. On any thread."""
        self._images.inc()
        self._encoding.observe(seconds)

    def image_refused(self) -> None:
        """A request was turned away for one of its images."""
        self._refused_images.inc()

    def http_request(self, method: str, path: str, status: int) -> None:
        """An HTTP request was answered; `path` is the route's, not the client's."""
        self._http.labels(method, path, str(status)).inc()

    def _ended(self, request: Request, reason: str, now: float) -> None:
        times = self._times.pop(request, None)
        if times is None:
            return
        self.num_finished[reason] += 1
        self._finished.labels(reason).inc()
        self._whole.observe(now - times.arrived)
        self._prompt_lengths.observe(len(request.prompt_ids))
        self._output_lengths.observe(len(request.output_ids))

    def tick(self) -> None:
        """Take a sample; called once a second."""
        stats, scheduler = self._engine.stats, self._engine.scheduler
        self._history.append(
            _Sample(
                time.perf_counter(), stats.num_prompt_tokens, stats.num_output_tokens, len(scheduler.running),
                self._loop.num_waiting,
            )
        )  # fmt: skip

    def history(self) -> list[dict[str, float]]:
        """Throughput and load per second, oldest first."""
        samples = list(self._history)
        return [
            {**_rates(before, after), "running": after.num_running, "waiting": after.num_waiting}
            for before, after in zip(samples, samples[1:], strict=False)
        ]

    def throughput(self) -> dict[str, float]:
        """Tokens per second over the last seconds."""
        samples = list(self._history)[-THROUGHPUT_SECONDS - 1 :]
        if len(samples) < 2:
            return {"prompt_tokens_per_second": 0.0, "generation_tokens_per_second": 0.0, "window_seconds": 0.0}
        return {**_rates(samples[0], samples[-1]), "window_seconds": samples[-1].at - samples[0].at}

    def latency_ms(self) -> dict[str, dict[str, float | None]]:
        """Percentiles over recent requests and tokens."""
        return {"ttft": _percentiles_ms(self._ttft), "itl": _percentiles_ms(self._itl)}

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)


def _rates(before: _Sample, after: _Sample) -> dict[str, float]:
    seconds = max(after.at - before.at, 1e-9)
    return {
        "prompt_tokens_per_second": (after.num_prompt_tokens - before.num_prompt_tokens) / seconds,
        "generation_tokens_per_second": (after.num_output_tokens - before.num_output_tokens) / seconds,
    }


def _percentiles_ms(seconds: Iterable[float]) -> dict[str, Any]:
    values = np.asarray(list(seconds)) * 1000
    return {f"p{p}": float(np.percentile(values, p)) if len(values) else None for p in (50, 90, 99)}
