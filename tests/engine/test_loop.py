# SPDX-License-Identifier: Apache-2.0
"""The engine's thread: requests from many threads, a bounded queue, steps that fail, and an end that leaves nobody waiting.

Every wait has a limit, so that a deadlock is a failure and not a hang.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ascend_dsv4.config import ModelConfig
from ascend_dsv4.engine.engine import Engine, Output
from ascend_dsv4.engine.loop import MAX_FAILED_STEPS, EngineLoop
from ascend_dsv4.engine.request import FinishReason, Request
from ascend_dsv4.engine.sampling_params import SamplingParams
from ascend_dsv4.errors import CapacityError
from tests.engine.harness import alone, check_empty, make_engine

LIMIT = 10.0
"""Seconds after which a thread that still waits is stuck."""


class Recorder:
    """The `deliver` of a loop: what came, by request, and a way to wait for it."""

    def __init__(self) -> None:
        self.tokens: dict[Request, list[int]] = defaultdict(list)
        self.endings: dict[Request, FinishReason] = {}
        self.late: list[Request] = []
        """Requests of outputs that came after the request's last."""
        self.threads: set[str] = set()
        self.then: Callable[[Output], None] = lambda _: None
        """Called with each output, on the engine's thread."""
        self._news = threading.Condition()

    def __call__(self, outputs: list[Output]) -> None:
        with self._news:
            self.threads.add(threading.current_thread().name)
            for output in outputs:
                if output.request in self.endings:
                    self.late.append(output.request)
                self.tokens[output.request] += output.token_ids
                if output.finish_reason is not None:
                    self.endings[output.request] = output.finish_reason
            self._news.notify_all()
        for output in outputs:
            self.then(output)

    def wait(self, reached: Callable[[], object]) -> None:
        deadline = time.monotonic() + LIMIT
        with self._news:
            while not reached():
                assert time.monotonic() < deadline, "waited in vain"
                self._news.wait(0.02)  # not everything that is waited for comes with an output

    def wait_for_ends(self, requests: list[Request]) -> None:
        self.wait(lambda: all(request in self.endings for request in requests))


class Gate:
    """Stands before the runner: steps stop there while it is closed, and fail while they shall."""

    def __init__(self, engine: Engine) -> None:
        self._run, engine.runner.run = engine.runner.run, self  # type: ignore[method-assign, assignment]
        self._open = threading.Event()
        self._open.set()
        self.arrived = threading.Semaphore(0)
        """Released whenever a step comes to the gate."""
        self.failures = 0
        """Steps that will fail from now on."""
        self.opened = self._open.set
        self.closed = self._open.clear

    def __call__(self, *args: Any) -> Any:
        self.arrived.release()
        assert self._open.wait(LIMIT), "nobody opened the gate"
        if self.failures:
            self.failures -= 1
            raise RuntimeError("boom")
        return self._run(*args)

    def wait_for_step(self) -> None:
        assert self.arrived.acquire(timeout=LIMIT), "no step came"


@contextmanager
def running(engine: Engine) -> Iterator[tuple[EngineLoop, Recorder]]:
    recorder = Recorder()
    loop = EngineLoop(engine, recorder)
    loop.start()
    try:
        yield loop, recorder
    finally:
        stop(loop)


def stop(loop: EngineLoop) -> None:
    """`loop.stop` on a thread of its own, so that it can be given up."""
    join(threading.Thread(target=loop.stop, daemon=True))


def join(*threads: threading.Thread) -> None:
    """Start threads that are not started yet, and wait for them."""
    for thread in threads:
        if not thread.ident:
            thread.start()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive(), "a thread is stuck"


def endless(engine: Engine, max_tokens: int = 100_000, **options: Any) -> Request:
    return engine.make_request([5], SamplingParams(max_tokens=max_tokens, ignore_eos=True), **options)


@pytest.fixture
def engine(config: ModelConfig) -> Engine:
    return make_engine(config, max_num_seqs=2, max_model_len=1024, max_total_tokens=2048)


def test_requests_from_many_threads(config: ModelConfig) -> None:
    """Each gets its own tokens and one end, or was aborted and gets none; then everything is free."""
    engine = make_engine(config, max_num_seqs=3, max_num_batched_tokens=8, max_model_len=128, tokens_per_block=8)
    kept: list[Request] = []
    aborted: list[Request] = []

    def client(number: int) -> None:
        rng = random.Random(number)
        for _ in range(25):
            params = SamplingParams(max_tokens=rng.randint(0, 30), ignore_eos=True)
            prompts = [[rng.randrange(400)] * rng.randint(1, 40) for _ in range(rng.randint(1, 3))]
            requests = [engine.make_request(prompt, params) for prompt in prompts]
            loop.submit(requests)
            kept.extend(requests[1:])
            if rng.random() < 0.5:
                kept.append(requests[0])
            else:
                loop.abort(requests[:1])
                aborted.append(requests[0])

    with running(engine) as (loop, recorder):
        join(*(threading.Thread(target=client, args=(i,), daemon=True) for i in range(4)))
        recorder.wait_for_ends(kept)
    check_empty(engine)
    for request in kept:
        assert (recorder.tokens[request], recorder.endings[request]) == alone(request, config.vocab_size)
    assert all(request.is_finished for request in aborted)
    assert not recorder.late
    assert recorder.threads == {"engine"}


def test_an_idle_loop_wakes_up_for_every_request(engine: Engine) -> None:
    with running(engine) as (loop, recorder):
        for _ in range(300):
            request = endless(engine, max_tokens=1)
            loop.submit([request])
            recorder.wait_for_ends([request])


def test_nothing_comes_after_an_abort(engine: Engine) -> None:
    """Aborted where outputs are delivered, a request gets no further one, nor an end."""
    aborted, other = endless(engine), endless(engine, max_tokens=20)
    with running(engine) as (loop, recorder):
        recorder.then = lambda output: loop.abort([aborted]) if output.request is aborted else None
        loop.submit([aborted, other])
        recorder.wait_for_ends([other])
        assert recorder.tokens[aborted] == [6]
        assert aborted not in recorder.endings
        assert aborted.finish_reason == "abort"


def test_an_abort_from_another_thread_takes_effect_before_the_next_step(engine: Engine) -> None:
    gate = Gate(engine)
    aborted, other = endless(engine), endless(engine, max_tokens=20)
    with running(engine) as (loop, recorder):
        gate.closed()
        loop.submit([aborted, other])
        gate.wait_for_step()
        loop.abort([aborted])
        gate.opened()
        recorder.wait_for_ends([other])
    assert recorder.tokens[aborted] == [6], "the step under way was the last"
    assert aborted not in recorder.endings


def test_aborts_of_requests_that_do_not_run(engine: Engine) -> None:
    """Waiting ones, ones that ended, and ones that were aborted before they came."""
    gate = Gate(engine)
    done, early, waiting = endless(engine, max_tokens=1), endless(engine), endless(engine)
    first, second = endless(engine, max_tokens=30), endless(engine, max_tokens=30)
    with running(engine) as (loop, recorder):
        loop.abort([early])
        loop.submit([early, done])
        recorder.wait_for_ends([done])
        gate.closed()
        loop.submit([first, second, waiting])
        loop.abort([waiting, done, early])
        gate.opened()
        recorder.wait_for_ends([first, second])
    assert (done.finish_reason, early.finish_reason, waiting.finish_reason) == ("length", "abort", "abort")
    assert recorder.tokens.keys() == recorder.endings.keys() == {done, first, second}
    check_empty(engine)


def full(config: ModelConfig, max_num_waiting: int) -> Engine:
    return make_engine(config, max_num_seqs=2, max_model_len=1024, max_total_tokens=2048, max_num_waiting=max_num_waiting)


def test_the_queue_is_bounded(config: ModelConfig) -> None:
    engine = full(config, max_num_waiting=3)
    gate = Gate(engine)
    with running(engine) as (loop, recorder):
        gate.closed()
        taken = [endless(engine, max_tokens=2) for _ in range(2)]
        loop.submit(taken)
        gate.wait_for_step()
        assert (loop.num_waiting, len(engine.scheduler.running)) == (0, 2)
        queued = [endless(engine, max_tokens=2) for _ in range(2)]
        loop.submit(queued)
        assert loop.num_waiting == 2
        refused = [endless(engine, max_tokens=2) for _ in range(2)]
        with pytest.raises(CapacityError, match=r"no room for 2 more, because at most 3 may wait"):
            loop.submit(refused)
        last = [endless(engine, max_tokens=2)]
        loop.submit(last)  # all or none: the refused two left the third seat free
        with pytest.raises(CapacityError):
            loop.submit(refused[:1])
        gate.opened()
        recorder.wait_for_ends([*taken, *queued, *last])
        loop.submit(refused)
        recorder.wait_for_ends(refused)


def test_without_a_queue_as_many_are_taken_as_can_run(config: ModelConfig) -> None:
    engine = full(config, max_num_waiting=0)
    gate = Gate(engine)
    with running(engine) as (loop, recorder):
        gate.closed()
        first, second, third = (endless(engine, max_tokens=2) for _ in range(3))
        loop.submit([first])
        gate.wait_for_step()
        loop.submit([second])
        with pytest.raises(CapacityError):
            loop.submit([third])
        gate.opened()
        recorder.wait_for_ends([first, second])


def test_threads_that_submit_at_once_do_not_overfill_the_queue(config: ModelConfig) -> None:
    engine = full(config, max_num_waiting=5)
    gate = Gate(engine)
    accepted: list[Request] = []
    start = threading.Barrier(8)

    def client() -> None:
        start.wait(LIMIT)
        for _ in range(5):
            request = endless(engine, max_tokens=1)
            try:
                loop.submit([request])
            except CapacityError:
                continue
            accepted.append(request)

    with running(engine) as (loop, recorder):
        gate.closed()
        join(*(threading.Thread(target=client, daemon=True) for _ in range(8)))
        assert len(accepted) == 5 + 2
        gate.opened()
        recorder.wait_for_ends(accepted)


def test_a_step_that_fails_ends_its_requests_and_the_loop_goes_on(config: ModelConfig) -> None:
    engine = full(config, max_num_waiting=10)
    gate = Gate(engine)
    with running(engine) as (loop, recorder):
        gate.closed()
        gate.failures = 1
        failed = [endless(engine, max_tokens=5) for _ in range(4)]
        loop.submit(failed)
        gate.wait_for_step()
        late = endless(engine, max_tokens=5)
        loop.submit([late])
        gate.opened()
        recorder.wait_for_ends([*failed, late])
        assert all((recorder.endings[request], recorder.tokens[request]) == ("error", []) for request in failed)
        assert all("RuntimeError: boom" in str(request.error) for request in failed)
        assert (late.output_ids, recorder.endings[late]) == ([6, 7, 8, 9, 10], "length"), "it came after the failed step"
        assert loop.is_running
    check_empty(engine)


def test_tokens_before_a_failure_were_delivered(engine: Engine) -> None:
    gate = Gate(engine)

    def fail_later(output: Output) -> None:
        gate.failures = int(len(output.request.output_ids) == 3)

    with running(engine) as (loop, recorder):
        recorder.then = fail_later
        request = endless(engine)
        loop.submit([request])
        recorder.wait_for_ends([request])
    assert (recorder.tokens[request], recorder.endings[request]) == ([6, 7, 8], "error")


def test_failures_in_a_row_stop_the_loop(engine: Engine) -> None:
    gate = Gate(engine)
    gate.failures = 1 << 30
    with running(engine) as (loop, recorder):
        for count in range(MAX_FAILED_STEPS):
            assert loop.is_running, f"gave up after {count} failures"
            request = endless(engine)
            loop.submit([request])
            recorder.wait_for_ends([request])
            assert recorder.endings[request] == "error"
        recorder.wait(lambda: not loop.is_running)
        with pytest.raises(CapacityError, match="the engine has stopped"):
            loop.submit([endless(engine)])


def test_a_step_that_works_forgives_those_that_failed(engine: Engine) -> None:
    gate = Gate(engine)
    with running(engine) as (loop, recorder):
        for _ in range(3):
            gate.failures = MAX_FAILED_STEPS - 1
            for _ in range(MAX_FAILED_STEPS):
                request = endless(engine, max_tokens=1)
                loop.submit([request])
                recorder.wait_for_ends([request])
            assert recorder.endings[request] == "length"
        assert loop.is_running


def test_clients_that_hang_up_do_not_hide_that_every_step_fails(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An abort wakes the loop, which has nothing to do then: that is no step that works."""
    gate = Gate(engine)
    gate.failures = 1 << 30
    aborted = threading.Semaphore(0)
    monkeypatch.setattr(engine, "finish", lambda _: aborted.release())
    with running(engine) as (loop, recorder):
        for count in range(MAX_FAILED_STEPS):
            request = endless(engine)
            loop.submit([request])
            recorder.wait_for_ends([request])
            if count < MAX_FAILED_STEPS - 1:
                loop.abort([request])
                assert aborted.acquire(timeout=LIMIT), "nobody heeds the abort"
        recorder.wait(lambda: not loop.is_running)


def test_requests_that_come_with_the_last_failure_end_with_an_error(engine: Engine) -> None:
    """The server does not shut down: it has failed, and says so."""
    gate = Gate(engine)
    gate.failures = 1 << 30
    with running(engine) as (loop, recorder):
        for _ in range(MAX_FAILED_STEPS - 1):
            request = endless(engine)
            loop.submit([request])
            recorder.wait_for_ends([request])
        gate.closed()
        loop.submit([endless(engine)])
        for _ in range(MAX_FAILED_STEPS):
            gate.wait_for_step()
        late = endless(engine)
        loop.submit([late])
        gate.opened()
        recorder.wait_for_ends([late])
        assert recorder.endings[late] == "error"


def test_stop_aborts_what_is_left(config: ModelConfig) -> None:
    """Requests that run, that wait, and that came while the last step was under way."""
    engine = full(config, max_num_waiting=10)
    gate = Gate(engine)
    with running(engine) as (loop, recorder):
        gate.closed()
        requests = [endless(engine) for _ in range(4)]
        loop.submit(requests)
        gate.wait_for_step()
        late, aborted = endless(engine), endless(engine)
        loop.submit([late, aborted])
        loop.abort([aborted])
        stopping = threading.Thread(target=loop.stop, daemon=True)
        stopping.start()
        recorder.wait(lambda: not loop.is_running)
        with pytest.raises(CapacityError, match="the engine has stopped"):
            loop.submit([endless(engine)])
        gate.opened()
        join(stopping)
    assert {request: recorder.endings[request] for request in [*requests, late]} == dict.fromkeys([*requests, late], "abort")
    assert aborted.finish_reason == "abort" and aborted not in recorder.endings
    assert all(request.error for request in requests)
    assert recorder.tokens[requests[0]] == [6], "the step under way ended as usual"
    check_empty(engine)
    stop(loop)  # again, and nothing happens


def test_stopping_an_idle_loop(engine: Engine) -> None:
    with running(engine) as (loop, recorder):
        stop(loop)
    assert not recorder.endings
    assert not loop.is_running


@pytest.mark.parametrize("trial", range(15))
def test_everybody_gets_one_end_whenever_the_loop_stops(config: ModelConfig, trial: int) -> None:
    """Threads submit and abort, steps fail now and then, and somewhere in between the loop is stopped."""
    engine = make_engine(config, max_num_seqs=3, max_num_batched_tokens=16, max_model_len=64, max_num_waiting=20,
                         tokens_per_block=8)  # fmt: skip
    gate = Gate(engine)
    accepted: list[Request] = []
    aborted: set[Request] = set()

    def client(number: int) -> None:
        rng = random.Random(number)
        while loop.is_running:
            requests = [endless(engine, max_tokens=rng.randint(1, 20)) for _ in range(rng.randint(1, 3))]
            try:
                loop.submit(requests)
            except CapacityError:
                continue
            accepted.extend(requests)
            if rng.random() < 0.2:
                aborted.update(requests[:1])
                loop.abort(requests[:1])
            if rng.random() < 0.02:
                gate.failures = 1

    def stop_later() -> None:
        # Enough failures in a row end the loop by themselves, and then no further ending comes.
        recorder.wait(lambda: len(recorder.endings) > 10 * trial or not loop.is_running)
        loop.stop()

    with running(engine) as (loop, recorder):
        join(*(threading.Thread(target=client, args=(10 * trial + i,), daemon=True) for i in range(3)),
             threading.Thread(target=stop_later, daemon=True))  # fmt: skip
    assert not recorder.late
    for request in accepted:
        assert request.is_finished, "somebody waits forever"
        assert request in recorder.endings or request in aborted
        assert recorder.tokens[request] == request.output_ids == list(range(6, 6 + len(request.output_ids)))
    check_empty(engine)


def test_a_full_loop_does_not_keep_a_deadline_waiting(config: ModelConfig) -> None:
    now = 0.0
    engine = make_engine(config, lambda: now, max_num_seqs=1, max_model_len=1024)
    with running(engine) as (loop, recorder):
        runs, waits = endless(engine, max_tokens=1000), endless(engine, deadline=1.0)
        recorder.then = lambda output: tick()

        def tick() -> None:
            nonlocal now
            now += 0.1

        loop.submit([runs, waits])
        recorder.wait_for_ends([waits])
        assert recorder.endings[waits] == "timeout"
        assert 9 <= len(runs.output_ids) < 1000
