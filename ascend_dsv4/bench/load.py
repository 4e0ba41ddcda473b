# SPDX-License-Identifier: Apache-2.0
"""The measurement: prepare prompts, warm the server up, send requests on time, keep what happened."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Final

from ascend_dsv4.bench.client import Client, unreachable
from ascend_dsv4.bench.config import LoadConfig
from ascend_dsv4.bench.record import Record
from ascend_dsv4.bench.workload import (
    Prompt,
    WordCount,
    arrival_times,
    make_prompts,
    sample_prompts,
    warmup_prompts,
)

_LAG_PERIOD: Final = 0.02
_REPORT_PERIOD: Final = 0.25


@dataclass(slots=True)
class Progress:
    """Where the measurement is."""

    phase: str = "connecting"
    total: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    chunks: int = 0
    started: float = 0.0  # time.perf_counter()

    def count_chunk(self) -> None:
        """Something of an answer came."""
        self.chunks += 1


@dataclass(slots=True)
class Run:
    """One measurement."""

    model: str = ""
    word_count: WordCount = WordCount()
    records: list[Record] = field(default_factory=list)
    started: float = 0.0  # time.perf_counter()
    duration_s: float = 0.0
    cpu_s: float = 0.0  # of this process
    loop_lags_ms: list[float] = field(default_factory=list)  # how late the generator's event loop woke up
    num_warmup_failed: int = 0
    is_interrupted: bool = False


async def measure(config: LoadConfig, stop: asyncio.Event, on_progress: Callable[[Progress], None] = lambda _: None) -> Run:
    """Measure a server. `stop` ends it early, with what there is so far.

    raises   ConfigError for prompts that cannot be made, and for a server that does not answer at all
    """
    run, progress = Run(), Progress()
    async with Client(config) as client:
        work = asyncio.create_task(_measure(_Load(client, run, progress)))
        stopped = asyncio.create_task(stop.wait())
        reporter = asyncio.create_task(_report(progress, on_progress))
        try:
            await asyncio.wait({work, stopped, reporter}, return_when=asyncio.FIRST_COMPLETED)
            run.is_interrupted = stopped.done() and not work.done()
        finally:
            await _cancel([work, stopped, reporter])
        for task in (work, reporter):
            if not task.cancelled():
                task.result()
    return run


async def _measure(load: _Load) -> None:
    client, run, progress = load.client, load.run, load.progress
    config = client.config
    run.model = await client.model()
    if config.prompt_file is None:
        progress.phase = "counting tokens"
        run.word_count = await _count_words(client, run.model)
    prompts = make_prompts(config, run.word_count)
    progress.phase = "warming up"
    run.num_warmup_failed = await _warm_up(client, run)
    progress.phase, progress.total = "measuring", len(prompts)
    bodies = load.bodies(prompts)
    lag = asyncio.create_task(_watch_lag(run.loop_lags_ms))
    cpu = time.process_time()
    run.started = progress.started = time.perf_counter()
    try:
        if config.in_flight is not None:
            await _closed_loop(load, prompts, bodies, config.in_flight)
        else:
            await _open_loop(load, prompts, bodies)
    finally:
        run.duration_s, run.cpu_s = time.perf_counter() - run.started, time.process_time() - cpu
        await _cancel([lag])


async def _count_words(client: Client, model: str) -> WordCount:
    """How the server counts tokens of random words, from two short requests. The default if it does not say.

    raises   ConfigError if nobody is there
    """
    samples = []
    for num_words, prompt in sample_prompts(client.config):
        record = Record(0, prompt.max_tokens, due=time.perf_counter())
        await client.send(client.body(prompt, model), record)
        if record.error_kind == "connection":
            raise unreachable(client.config, record.error or "")
        if record.status != "ok" or record.input_tokens is None:
            return WordCount()
        samples.append((num_words, record.input_tokens))
    return WordCount.from_samples(samples[0], samples[1])


async def _warm_up(client: Client, run: Run) -> int:
    """Send the requests that do not count; returns how many failed."""
    config = client.config
    load = _Load(client, Run(run.model), Progress())
    prompts = warmup_prompts(config, run.word_count)
    await _closed_loop(load, prompts, load.bodies(prompts), config.in_flight or config.max_concurrency or 1)
    return load.progress.failed


@dataclass(slots=True)
class _Load:
    """What the loops share."""

    client: Client
    run: Run
    progress: Progress

    async def send(self, body: bytes, record: Record) -> None:
        """One request, from the moment it may be sent."""
        self.progress.running += 1
        try:
            await self.client.send(body, record, self.progress.count_chunk)
        finally:
            self.progress.running -= 1
        self.progress.succeeded += record.status == "ok"
        self.progress.failed += record.status == "failed"

    def bodies(self, prompts: Sequence[Prompt]) -> list[bytes]:
        """Made before anything is sent, so that making them delays no request."""
        return [self.client.body(prompt, self.run.model) for prompt in prompts]


async def _closed_loop(load: _Load, prompts: Sequence[Prompt], bodies: Sequence[bytes], concurrency: int) -> None:
    """`concurrency` requests at a time."""
    waiting = iter(enumerate(zip(prompts, bodies, strict=True)))

    async def worker() -> None:
        for index, (prompt, body) in waiting:
            now = time.perf_counter()
            record = Record(index, prompt.max_tokens, due=now, ready=now, admitted=now)
            load.run.records.append(record)
            await load.send(body, record)

    await _gather([worker() for _ in range(min(concurrency, len(prompts)))])


async def _open_loop(load: _Load, prompts: Sequence[Prompt], bodies: Sequence[bytes]) -> None:
    """Each request at its time, whatever became of those before it."""
    config = load.client.config
    due_times = (load.run.started + arrival_times(config, len(prompts))).tolist()
    slots = asyncio.Semaphore(config.max_concurrency) if config.max_concurrency is not None else None
    requests = []

    async def request(body: bytes, record: Record) -> None:
        async with slots or nullcontext():
            if slots is not None:
                record.admitted = time.perf_counter()
            await load.send(body, record)

    try:
        for index, (prompt, body, due) in enumerate(zip(prompts, bodies, due_times, strict=True)):
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            now = time.perf_counter()
            record = Record(index, prompt.max_tokens, due=due, ready=now, admitted=now)
            load.run.records.append(record)
            requests.append(asyncio.create_task(request(body, record)))
        await asyncio.gather(*requests)
    finally:
        await _cancel(requests)


async def _gather(coroutines: Sequence[Coroutine[Any, Any, None]]) -> None:
    """All of them; when one fails or this is cancelled, none stays behind."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        await _cancel(tasks)


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _watch_lag(lags_ms: list[float]) -> None:
    """Note how late timers come: a loop that has too much to do measures itself instead of the server."""
    while True:
        due = time.perf_counter() + _LAG_PERIOD
        await asyncio.sleep(_LAG_PERIOD)
        lags_ms.append(1e3 * (time.perf_counter() - due))


async def _report(progress: Progress, on_progress: Callable[[Progress], None]) -> None:
    while True:
        on_progress(progress)
        await asyncio.sleep(_REPORT_PERIOD)
