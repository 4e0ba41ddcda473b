# SPDX-License-Identifier: Apache-2.0
"""The scheduler under random load, and what it promises in particular, on the null backend and a clock that tests move."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ascend_dsv4.config import ModelConfig
from ascend_dsv4.engine.engine import Engine
from ascend_dsv4.engine.request import FinishReason, Request
from ascend_dsv4.engine.sampling_params import SamplingParams
from ascend_dsv4.runner.batch import StepRequest
from tests.engine.harness import alone, check_empty, check_invariants, make_engine, run

MAX_LOGITS_ROWS = 128
"""Rows of logits one request may get in a step, whatever it asks for."""


def endless(max_tokens: int = 200, **params: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, ignore_eos=True, **params)


def rounds(engine: Engine) -> int:
    """Steps in which everybody whose turn comes is served at least once: prefills keep a quarter of the budget at most."""
    budget = engine.engine.max_num_batched_tokens
    return -(-engine.engine.max_num_seqs // (budget - budget // 4)) + 1


class Simulation:
    """Random requests, aborts and deadlines; every step and every output is checked."""

    def __init__(self, config: ModelConfig, rng: random.Random, **options: int) -> None:
        self.rng = rng
        self.now = 0.0
        self.engine = make_engine(config, clock=lambda: self.now, **options)
        self.requests: list[Request] = []
        self.aborted: set[Request] = set()
        self.tokens: dict[Request, list[int]] = defaultdict(list)
        self.endings: dict[Request, FinishReason] = {}
        self.processed: dict[int, int] = {}
        """By request id, of the last step: tokens."""
        self.total: Counter[str] = Counter()
        self._idle: Counter[Request] = Counter()
        self._num_preemptions = 0
        self._run, self.engine.runner.run = self.engine.runner.run, self._checked_run  # type: ignore[assignment]
        self._free, self.engine.manager.free = self.engine.manager.free, self._counted_free  # type: ignore[method-assign]

    def drive(self, num_requests: int, arrival: float, abort: float) -> None:
        """Run `num_requests` requests; `arrival` and `abort` are probabilities per step."""
        while self.engine.has_work or len(self.requests) < num_requests:
            while len(self.requests) < num_requests and (not self.engine.has_work or self.rng.random() < arrival):
                self._submit()
            if (live := self._live()) and self.rng.random() < abort:
                request = self.rng.choice(live)
                self.engine.finish(request)
                self.aborted.add(request)
                assert request.request_id not in self.engine.manager.requests, "an aborted request holds blocks"
                check_invariants(self.engine)
            self._step()
        check_empty(self.engine)
        self._check_results()

    def _live(self) -> list[Request]:
        return [*self.engine.scheduler.running, *self.engine.scheduler.waiting]

    def _submit(self) -> None:
        rng, vocab, longest = self.rng, self.engine.config.vocab_size, self.engine.runner.plan.max_model_len
        max_tokens = rng.choice([0, 1, rng.randint(2, longest), longest])
        length = rng.choice([1, rng.randint(2, 20), rng.randint(2, 20), rng.randint(1, longest)])
        prompt = [rng.randrange(vocab) for _ in range(min(length, longest - (max_tokens > 0)))]
        params = SamplingParams(
            max_tokens=max_tokens,
            ignore_eos=rng.random() < 0.8,
            stop_token_ids=((prompt[-1] + rng.randint(1, 200)) % vocab,) if rng.random() < 0.2 else (),
            logprobs=rng.choice([None, None, None, 1]),
            prompt_logprobs=rng.choice([None, None, None, 0, 2]),
        )
        self.requests.append(
            self.engine.submit(
                prompt,
                params,
                deadline=self.now + rng.uniform(0, 60) if rng.random() < 0.2 else None,
                chunk_size=rng.choice([None, None, 1, 2, 7, 64]),
                keep_logits=rng.random() < 0.2,
            )
        )

    def _step(self) -> None:
        self.now += self.rng.random()
        late = [r for r in self._live() if r.deadline is not None and r.deadline <= self.now]
        oldest = next((request for request in self._live() if request not in late), None)
        self.processed = {}
        self._num_preemptions = self.total["preemptions"]
        for output in self.engine.step():
            assert output.request not in self.endings, "an output after the last"
            assert output.request not in self.aborted, "an output after the abort"
            assert output.token_ids or output.finish_reason, "an output that says nothing"
            assert len(output.logprobs) == (len(output.token_ids) if output.request.params.logprobs is not None else 0)
            self.tokens[output.request] += output.token_ids
            if output.finish_reason is not None:
                self.endings[output.request] = output.finish_reason
        check_invariants(self.engine)
        for request in late:
            assert request.finish_reason == "timeout"
            assert request.request_id not in self.processed
        if oldest is not None:
            self._idle[oldest] = 0 if oldest.request_id in self.processed else self._idle[oldest] + 1
            assert self._idle[oldest] <= 2 * rounds(self.engine), "the oldest starves"

    def _checked_run(self, steps: list[StepRequest], *args: Any) -> Any:
        """Stands before the runner: what the scheduler asked for."""
        running = {request.request_id: request for request in self.engine.scheduler.running}
        self.processed = {step.request_id: len(step.token_ids) for step in steps}
        assert len(self.processed) == len(steps), "a request occurs twice"
        assert 0 < sum(self.processed.values()) <= self.engine.engine.max_num_batched_tokens
        for step in steps:
            request = running[step.request_id]
            assert step.start == request.num_computed
            assert list(step.token_ids) == [*request.prompt_ids, *request.output_ids][step.start : step.end]
            assert 0 < len(step.token_ids) <= (request.chunk_size or 1 << 20)
            assert step.num_logits <= MAX_LOGITS_ROWS
        if self.total["preemptions"] == self._num_preemptions:
            wanted = sum(self._wanted(request) for request in running.values())
            assert sum(self.processed.values()) == min(wanted, self.engine.engine.max_num_batched_tokens), "budget is left over"
        self.total["steps"] += 1
        self.total["tokens"] += sum(self.processed.values())
        return self._run(steps, *args)

    @staticmethod
    def _wanted(request: Request) -> int:
        """Tokens of the request that a step with a large budget takes."""
        left = request.num_tokens - request.num_computed
        return min(left, request.chunk_size or left, MAX_LOGITS_ROWS if request.is_scored else left)

    def _counted_free(self, request_id: int) -> None:
        """Stands before the cache manager: one who gives back blocks and goes on was preempted."""
        (request,) = (request for request in self.requests if request.request_id == request_id)
        if not request.is_finished:
            self.total["preemptions"] += 1
            self.total["dropped"] += request.num_computed
            assert any(r.request_id < request_id for r in self.engine.scheduler.running), "the oldest was preempted"
        self._free(request_id)

    def _check_results(self) -> None:
        for request in self.requests:
            self.total["aborts" if request in self.aborted else str(request.finish_reason)] += 1
            expected = alone(request, self.engine.config.vocab_size)
            assert self.tokens[request] == request.output_ids
            if request in self.aborted:
                assert (request.finish_reason, request.error) == ("abort", None)
                assert request.output_ids == expected[0][: len(request.output_ids)]
            elif request.finish_reason == "timeout":
                assert request.error is not None and self.endings[request] == "timeout"
                assert request.output_ids == expected[0][: len(request.output_ids)]
            else:
                assert (request.output_ids, request.finish_reason) == expected
                assert self.endings[request] == request.finish_reason
            self._check_scores(request)
        stats = self.engine.stats
        assert stats.num_steps == self.total["steps"]
        assert stats.num_prompt_tokens == sum(request.num_prefilled for request in self.requests)
        assert stats.num_output_tokens == sum(len(request.output_ids) for request in self.requests)
        assert stats.num_preemptions == self.total["preemptions"]
        assert stats.num_dropped_tokens == self.total["dropped"]
        kept = sum(request.num_computed for request in self.requests)
        assert self.total["tokens"] == kept + stats.num_dropped_tokens, "tokens were processed that are accounted for nowhere"

    def _check_scores(self, request: Request) -> None:
        """One row per processed prompt token, however often it was processed; `prompt_logprobs` one step behind."""
        vocab = self.engine.config.vocab_size
        prompt, done = request.prompt_ids, request.num_prefilled
        if request.keep_logits and done:
            asked = np.concatenate(request.logits).argmax(-1).tolist()
            assert asked == [(token + 1) % vocab for token in prompt[:done]]
        if request.params.prompt_logprobs is not None and done:
            normal = np.log(np.e + vocab - 1)
            first, *others = request.prompt_logprobs
            assert first is None
            assert len(others) == min(done, len(prompt) - 1)
            for token, follower, reported in zip(prompt, prompt[1:], others, strict=False):
                assert reported is not None
                assert reported[follower] == pytest.approx((follower == (token + 1) % vocab) - normal, abs=1e-9)
                assert next(iter(reported)) == follower


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5, 6, 7, 8, 32, 300])
def test_random_schedules(config: ModelConfig, budget: int) -> None:
    """Whatever the schedule, each request gets the tokens it gets alone, and nothing is lost, overtaken or starved."""
    total: Counter[str] = Counter()
    for trial in range(12):
        max_model_len = random.choice([30, 64, 90]) if trial else 300
        simulation = Simulation(
            config,
            random.Random(random.random()),
            tokens_per_block=random.choice([4, 8, 16]) if trial else 128,
            max_num_seqs=random.choice([1, 2, 3, 4, 6, 12]),
            max_num_batched_tokens=budget,
            max_model_len=max_model_len,
            max_total_tokens=max_model_len + random.choice([0, 0, 20]),
            window_block_size=random.choice([1, 5, 16, 32]),
        )
        simulation.drive(20, arrival=random.choice([0.02, 0.2, 1.0]), abort=random.choice([0.0, 0.003, 0.03]))
        total += simulation.total
    for happened in ("preemptions", "aborts", "timeout", "stop", "length"):
        assert total[happened], f"nothing of this kind happened: {happened}"


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5, 6, 7, 8, 12, 40])
def test_decodes_and_prefills_share_the_budget(config: ModelConfig, budget: int) -> None:
    """Neither starves, whatever the number of decodes; from a budget of 4 on a quarter is there for prefills."""
    steps = 60
    for num_decodes in range(14):
        engine = make_engine(
            config, max_num_seqs=16, max_num_batched_tokens=budget, max_model_len=1024, max_total_tokens=8192
        )
        decodes = [engine.submit([5], endless(1000)) for _ in range(num_decodes)]
        while any(not request.output_ids for request in decodes):
            engine.step()
        before = [len(request.output_ids) for request in decodes]
        prefills = [engine.submit([5] * 1000, endless()) for _ in range(2)]
        for _ in range(steps):
            engine.step()
        gained = [len(request.output_ids) - count for request, count in zip(decodes, before, strict=True)]
        share = min(1.0, (budget - budget // 4) / (num_decodes + 1))
        assert min(gained, default=steps) >= int(share * steps) // 2, f"{num_decodes} decodes starve"
        least = steps * (budget // 4) if budget >= 4 else int(steps * budget / (num_decodes + 1)) // 2
        assert prefills[0].num_computed >= min(least, 1000), f"a prefill starves beside {num_decodes} decodes"


@pytest.mark.parametrize("chunk_size", [1, 2, 3, None])
def test_budget_that_prefills_leave_is_for_decodes(config: ModelConfig, chunk_size: int | None) -> None:
    engine = make_engine(config, max_num_seqs=16, max_num_batched_tokens=12, max_model_len=1024, max_total_tokens=8192)
    for _ in range(14):
        engine.submit([5], endless(1000))
    prefill = engine.submit([5] * 100, endless(), chunk_size=chunk_size)
    for _ in range(4):
        engine.step()
    for _ in range(10):
        before = prefill.num_computed
        tokens = engine.stats.num_output_tokens
        engine.step()
        assert prefill.num_computed - before == min(chunk_size or 3, 3)
        assert engine.stats.num_output_tokens - tokens == 12 - (prefill.num_computed - before)


def test_requests_that_come_and_go_do_not_hold_up_the_oldest(config: ModelConfig) -> None:
    """One-token prompts that are served at once keep arriving."""
    engine = make_engine(config, max_num_seqs=2, max_num_batched_tokens=1, max_model_len=256, max_total_tokens=512)
    oldest = engine.submit([5], endless(100))
    for _ in range(60):
        engine.submit([7], SamplingParams(max_tokens=1))
        engine.step()
    assert len(oldest.output_ids) >= 60 // 3


def test_prefills_are_served_in_order_of_arrival(config: ModelConfig) -> None:
    engine = make_engine(config, max_num_seqs=3, max_num_batched_tokens=16, max_model_len=256, max_total_tokens=1024)
    first, second, third = (engine.submit([5] * 100, endless()) for _ in range(3))
    while not first.output_ids:
        engine.step()
        if first.num_computed < 96:
            assert second.num_computed == third.num_computed == 0
    while not second.output_ids:
        engine.step()
        assert third.num_computed == 0 or second.num_computed >= 96


def test_a_chunk_size_leaves_the_rest_to_others(config: ModelConfig) -> None:
    engine = make_engine(config, max_num_seqs=3, max_num_batched_tokens=32, max_model_len=256, max_total_tokens=1024)
    slow = engine.submit([5] * 100, endless(), chunk_size=3)
    fast = engine.submit([5] * 100, endless())
    engine.step()
    assert (slow.num_computed, fast.num_computed) == (3, 29)


def test_preempted_requests_resume_before_newcomers(config: ModelConfig) -> None:
    """The newcomer would fit beside the oldest, the preempted one does not: it comes first all the same."""
    engine = make_engine(config, max_num_seqs=2, max_model_len=384, max_total_tokens=384)
    oldest, preempted = engine.submit([5] * 127, endless(30)), engine.submit([6] * 255, endless(30))
    while not engine.stats.num_preemptions:
        engine.step()
    newcomer = engine.submit([7] * 5, endless(3))
    assert engine.manager.can_admit(5, spare_blocks=1), "the newcomer is to fit"
    assert not engine.manager.can_admit(preempted.num_tokens, spare_blocks=1)
    while not preempted.is_finished:
        assert preempted.num_computed or not newcomer.num_computed
        engine.step()
        check_invariants(engine)
    run(engine)
    assert [r.output_ids for r in (oldest, preempted, newcomer)] == [
        alone(r, config.vocab_size)[0] for r in (oldest, preempted, newcomer)
    ]


def test_preemption_takes_the_youngest(config: ModelConfig) -> None:
    """And leaves the others what they have computed."""
    engine = make_engine(config, max_num_seqs=3, max_model_len=384, max_total_tokens=256 + 128)
    requests = [engine.submit([5] * length, endless(100)) for length in (125, 100, 110)]
    assert engine.manager.pools["cmp4"].num_blocks == 5
    while not engine.stats.num_preemptions:
        before = [request.num_computed for request in requests]
        engine.step()
    oldest, middle, youngest = requests
    assert list(engine.scheduler.waiting) == [youngest]
    assert youngest.num_computed == 0 and engine.stats.num_dropped_tokens == before[2]
    assert oldest.num_computed > before[0] and middle.num_computed > before[1]
    run(engine)


def test_a_request_that_runs_is_not_preempted_by_a_younger_one(config: ModelConfig) -> None:
    """The younger one needs a block first: it waits for the older one to end, although that has less to do."""
    engine = make_engine(config, max_num_seqs=2, max_model_len=256, max_total_tokens=256)
    older, younger = engine.submit([5] * 120, endless(60)), engine.submit([5] * 126, endless(60))
    held = engine.manager.pools["cmp128"].allocate(1)  # the block in reserve
    for _ in range(6):
        engine.step()
    assert list(engine.scheduler.running) == [older] and list(engine.scheduler.waiting) == [younger]
    assert older.num_computed > 120
    engine.manager.pools["cmp128"].free(held)
    run(engine)
    assert engine.stats.num_preemptions >= 1


def test_newcomers_leave_a_block_to_those_that_run(config: ModelConfig) -> None:
    """Or they would be preempted as soon as one of those grows."""
    engine = make_engine(config, max_num_seqs=2, max_model_len=256, max_total_tokens=256)
    older, newcomer = engine.submit([5] * 120, endless(20)), engine.submit([6] * 200, endless(20))
    engine.step()
    assert engine.manager.can_admit(newcomer.num_tokens), "the newcomer alone would fit"
    while not older.is_finished:
        assert newcomer in engine.scheduler.waiting
        engine.step()
    run(engine)
    assert engine.stats.num_preemptions == 0


def test_prompts_that_are_scored_take_smaller_steps(config: ModelConfig) -> None:
    """A row of logits per token is as wide as the vocabulary."""
    engine = make_engine(config, max_num_seqs=2, max_num_batched_tokens=512, max_model_len=512, max_total_tokens=1024)
    scored = engine.submit([5] * 300, endless(prompt_logprobs=0))
    other = engine.submit([5] * 300, endless())
    engine.step()
    assert (scored.num_computed, other.num_computed) == (MAX_LOGITS_ROWS, 300)


@pytest.mark.parametrize("moment", ["waiting", "prefill", "decode", "preempted"])
@pytest.mark.parametrize("how", ["abort", "deadline"])
def test_a_request_that_ends_early_frees_at_once(config: ModelConfig, moment: str, how: str) -> None:
    now = 0.0
    engine = make_engine(
        config, lambda: now, max_num_seqs=2, max_num_batched_tokens=64, max_model_len=384, max_total_tokens=384
    )
    older = engine.submit([5] * 127, endless(200))
    if moment == "waiting":
        engine.submit([5] * 100, endless(200))
    request = engine.submit([6] * 255, endless(100), deadline=10.0)
    reached: Callable[[], object] = {
        "waiting": lambda: older.output_ids,
        "prefill": lambda: 0 < request.num_computed < 255,
        "decode": lambda: len(request.output_ids) == 1,
        "preempted": lambda: engine.stats.num_preemptions == 1,
    }[moment]
    while not reached():
        engine.step()
    held = moment in ("prefill", "decode")
    assert (request in engine.scheduler.running) == held
    free = {group: pool.num_free for group, pool in engine.manager.pools.items()}
    if how == "abort":
        engine.finish(request)
        assert {g: pool.num_free > free[g] for g, pool in engine.manager.pools.items()} == dict.fromkeys(free, held)
        engine.finish(request, "error", "too late")  # an end is final
        assert (request.finish_reason, request.error) == ("abort", None)
    else:
        now = 9.9
        engine.step()
        assert not request.is_finished
        count, now = len(request.output_ids), 10.0
        (output,) = (output for output in engine.step() if output.request is request)
        assert (output.finish_reason, output.token_ids, len(request.output_ids)) == ("timeout", (), count)
        assert request.error is not None and f"after {count} tokens" in request.error
    check_invariants(engine)
    assert request not in (*engine.scheduler.running, *engine.scheduler.waiting)
    while not older.is_finished:
        assert all(output.request is not request for output in engine.step())
    assert older.output_ids == alone(older, config.vocab_size)[0]


def test_an_expired_request_is_reported_even_if_the_step_fails(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    engine = make_engine(config, lambda: now)
    late, other = engine.submit([5], endless(), deadline=1.0), engine.submit([5], endless())
    engine.step()
    now = 1.0

    def broken(*_: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(engine.runner, "run", broken)
    outputs = []
    with pytest.raises(RuntimeError, match="broken"):
        while True:
            outputs += engine.step()
    outputs += engine.reset("error", "broken")
    assert [(output.request, output.finish_reason) for output in outputs] == [(late, "timeout"), (other, "error")]


def test_reset_ends_everybody_and_forgets_half_written_tables(config: ModelConfig) -> None:
    engine = make_engine(config, max_num_seqs=2, max_num_batched_tokens=64, max_model_len=256, max_total_tokens=512)
    requests = [engine.submit([5] * 100, endless()) for _ in range(3)]
    engine.step()
    engine.scheduler.schedule()  # blocks are taken, the step never runs
    outputs = engine.reset("error", "why")
    assert [output.request for output in outputs] == requests
    assert all((r.finish_reason, r.error) == ("error", "why") for r in requests)
    assert all(output.token_ids == () and output.finish_reason == "error" for output in outputs)
    check_empty(engine)
    again = engine.submit([5] * 100, endless())
    run(engine)
    assert (again.output_ids, again.finish_reason) == alone(again, config.vocab_size)


def test_logits_are_kept_for_prompt_tokens_alone(config: ModelConfig) -> None:
    """Also if the request is preempted while it generates, and processes its prompt again."""
    engine = make_engine(config, max_num_seqs=2, max_model_len=256, max_total_tokens=256)
    engine.submit([5] * 120, endless(100))
    scored = engine.submit([6] * 120, endless(100), keep_logits=True)
    run(engine)
    assert engine.stats.num_preemptions
    assert sum(len(rows) for rows in scored.logits) == 120
