# SPDX-License-Identifier: Apache-2.0
"""Drafts among many requests: budgets, blocks, preemption; and drafts with distributions, which are verified whole."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ascend_dsv4 import LLM, SamplingParams
from ascend_dsv4.config import EngineConfig, ModelConfig
from ascend_dsv4.engine.engine import Engine
from ascend_dsv4.engine.request import Request
from ascend_dsv4.kv_cache.layout import plan_caches
from ascend_dsv4.kv_cache.manager import CacheManager
from ascend_dsv4.runner.batch import StepRequest
from ascend_dsv4.runner.runner import Forward
from ascend_dsv4.runner.sampler import uniforms
from ascend_dsv4.spec_decode.draft import Draft
from ascend_dsv4.spec_decode.drafter import Committed, Draw, Wanted
from ascend_dsv4.spec_decode.verify import DRAFT, pick
from tests.engine.harness import alone, check_empty, check_invariants, make_engine

FEW = (17, 40, 300)
DRAWN = SamplingParams(max_tokens=20, seed=5, ignore_eos=True, logit_bias=dict.fromkeys(FEW, 60.0), presence_penalty=0.3)


class Counting:
    """Drafts for the null backend, whose model counts up; some are wrong. With `whole`, they carry a distribution."""

    cost = 0.0

    def __init__(self, rng: random.Random, vocab_size: int, *, whole: bool) -> None:
        self._rng = rng
        self._vocab_size = vocab_size
        self._whole = whole
        self.proposed: dict[int, Draft] = {}

    def observe(self, forward: Forward, rows: Sequence[Committed], manager: CacheManager) -> None:
        for one in rows:
            assert one.end < one.request.num_tokens

    def propose(self, wanted: Sequence[Wanted], manager: CacheManager, draw: Draw) -> list[Draft]:
        return [self._draft(one) for one in wanted]

    def forget(self, request_id: int) -> None:
        self.proposed.pop(request_id, None)

    def _draft(self, one: Wanted) -> Draft:
        last = one.request.tokens(one.request.num_tokens - 1, one.request.num_tokens)[0]
        ids = [(last + 1 + i) % self._vocab_size for i in range(self._rng.randint(0, one.num_drafts))]
        if ids and self._rng.random() < 0.5:
            ids[self._rng.randrange(len(ids))] = 1
        probs = np.zeros((len(ids), self._vocab_size)) if self._whole else None
        if probs is not None:
            probs[range(len(ids)), ids] = 1
        draft = Draft(tuple(ids), probs)
        self.proposed[one.request.request_id] = draft
        return draft


class Stubborn(Counting):
    """As many wrong drafts as it may."""

    def _draft(self, one: Wanted) -> Draft:
        return Draft((1,) * one.num_drafts)


@pytest.mark.parametrize("whole", [False, True], ids=["plain", "whole"])
@pytest.mark.parametrize("budget", [10, 33])
def test_random_schedules(config: ModelConfig, budget: int, whole: bool) -> None:
    """Requests come, are preempted, aborted and finish: each has its own tokens, and no block is lost."""
    rng = random.Random(budget + whole)
    drafter = Counting(rng, config.vocab_size, whole=whole)
    engine = make_engine(
        config, tokens_per_block=8, drafter=drafter, speculative="ngram", num_speculative_tokens=4, max_num_seqs=5,
        max_num_batched_tokens=budget, max_model_len=96, max_total_tokens=128, window_block_size=4,
    )  # fmt: skip
    run, num_partial = engine.runner.run, 0

    def checked(steps: list[StepRequest], *args: Any) -> Forward:
        nonlocal num_partial
        assert 0 < sum(len(step.token_ids) for step in steps) <= budget
        for step in steps:
            draft = drafter.proposed.get(step.request_id)
            if step.num_drafts:
                assert draft is not None
                assert tuple(step.token_ids[-step.num_drafts :]) == draft.ids[: step.num_drafts]
                assert step.num_logits == step.num_drafts + 1
                num_partial += step.num_drafts < len(draft.ids)
        return run(steps, *args)

    engine.runner.run = checked  # type: ignore[method-assign]
    requests: list[Request] = []
    aborted = set()
    while engine.has_work or len(requests) < 60:
        while len(requests) < 60 and (not engine.has_work or rng.random() < 0.3):
            length = rng.randint(1, 60)
            params = SamplingParams(
                max_tokens=rng.randint(1, 96 - length), temperature=0, ignore_eos=rng.random() < 0.5,
                stop_token_ids=tuple(rng.randrange(500) for _ in range(rng.choice((0, 60)))),
            )  # fmt: skip
            requests.append(engine.submit([rng.randrange(500) for _ in range(length)], params))
        if engine.scheduler.running and rng.random() < 0.03:
            request = rng.choice(engine.scheduler.running)
            engine.finish(request)
            aborted.add(request)
        engine.step()
        check_invariants(engine)
    check_empty(engine)
    assert engine.stats.num_preemptions > 0 and aborted
    assert 0 < engine.stats.num_accepted_tokens < engine.stats.num_draft_tokens
    assert not (whole and num_partial), "drafts with distributions are never shortened"
    assert whole or budget > 10 or num_partial > 0, "others are, where the budget is small"
    assert not drafter.proposed, "every end is told"
    for request in requests:
        tokens, reason = alone(request, config.vocab_size)
        if request in aborted:
            assert request.output_ids == tokens[: len(request.output_ids)]
        else:
            assert (request.output_ids, request.finish_reason) == (tokens, reason)


def test_decodes_come_before_drafts_and_drafts_before_prompts(config: ModelConfig) -> None:
    """Budget 16, of which a waiting prompt keeps 4: three tokens, then drafts of the three requests, 4 + 4 + 1."""
    engine = make_engine(
        config, drafter=Stubborn(random.Random(0), config.vocab_size, whole=False), speculative="ngram",
        num_speculative_tokens=4, max_num_seqs=4, max_num_batched_tokens=16, max_model_len=256, max_total_tokens=1024,
    )  # fmt: skip
    params = SamplingParams(max_tokens=30, temperature=0, ignore_eos=True)
    requests = [engine.submit([5], params) for _ in range(3)]
    engine.step()
    assert all(request.draft for request in requests)
    waiting = engine.submit([5] * 60, params)
    seen: list[StepRequest] = []
    run = engine.runner.run

    def spy(steps: list[StepRequest], *args: Any) -> Forward:
        seen.extend(steps)
        return run(steps, *args)

    engine.runner.run = spy  # type: ignore[method-assign]
    engine.step()
    rows = sorted(len(step.token_ids) for step in seen if step.request_id != waiting.request_id)
    assert rows == [2, 5, 5]
    assert [len(step.token_ids) for step in seen if step.request_id == waiting.request_id] == [4]


def test_drafts_that_do_not_pay_pause(config: ModelConfig) -> None:
    """0.75 ** 6 is below 0.2: six steps with drafts after the first token, one more attempt 32 tokens later, for each alone."""
    drafter = Stubborn(random.Random(0), config.vocab_size, whole=False)
    drafter.cost = 0.2
    engine = make_engine(config, drafter=drafter, speculative="ngram", num_speculative_tokens=4)
    params = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
    requests = [engine.submit([token], params) for token in (5, 90)]
    finish(engine)
    assert [request.output_ids for request in requests] == [alone(request, config.vocab_size)[0] for request in requests]
    assert (engine.stats.num_drafts, engine.stats.num_draft_tokens) == (2 * 7, 2 * 28)


def test_nobody_is_preempted_for_a_guess(config: ModelConfig) -> None:
    """Without a block for them, drafts are left out of the step."""
    engine = make_engine(
        config, tokens_per_block=8, drafter=Stubborn(random.Random(0), config.vocab_size, whole=False), speculative="ngram",
        num_speculative_tokens=4, max_num_seqs=2, max_model_len=64, max_total_tokens=64,
    )  # fmt: skip
    params = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
    older, younger = engine.submit([5] * 4, params), engine.submit([6] * 4, params)
    engine.step()
    pool = engine.manager.pools["cmp4"]
    held = pool.allocate(pool.num_free)
    for length in (2, 3, 4, 5):
        engine.step()
        assert len(older.output_ids) == len(younger.output_ids) == length
    assert engine.stats.num_preemptions == 0
    assert engine.stats.num_draft_tokens == 0
    pool.free(held)
    finish(engine)


def finish(engine: Engine) -> None:
    while engine.has_work:
        engine.step()
        check_invariants(engine)
    check_empty(engine)


def test_blocks_cover_windows_with_drafts(config: ModelConfig) -> None:
    """Rows of the states and of the window table grow by the drafts, and by nothing without speculation."""
    options = {"max_num_seqs": 3, "max_model_len": 512, "window_block_size": 8, "max_num_batched_tokens": 40}
    off = plan_caches(config, EngineConfig.from_dict({**options, "num_speculative_tokens": 9}))
    assert off == plan_caches(config, EngineConfig.from_dict(options))
    on = plan_caches(config, EngineConfig.from_dict({**options, "speculative": "ngram", "num_speculative_tokens": 9}))
    pairs = [pair for layers in zip(off.layers, on.layers, strict=True) for pair in zip(*layers, strict=True)]
    grown = {one.name: other.block_rows - one.block_rows for one, other in pairs}
    assert grown == {"win_kv": 0, "cmp_kv": 0, "idx_kv": 0, "cmp_state": 9, "idx_state": 9}
    assert on.num_blocks["window"] - off.num_blocks["window"] == 3 * 2  # 16 rows and 9 more are two blocks of 8 more each
    assert {group: count for group, count in on.num_blocks.items() if group != "window"} == {
        group: count for group, count in off.num_blocks.items() if group != "window"
    }


class Sampled:
    """Drafts from a fixed distribution over a few tokens, with the random numbers that are there for it."""

    cost = 0.0

    def __init__(self, vocab_size: int) -> None:
        self._q = np.zeros(vocab_size)
        self._q[list(FEW)] = 0.5, 0.25, 0.25
        self.counts: list[int] = []

    def observe(self, forward: Forward, rows: Sequence[Committed], manager: CacheManager) -> None:
        """Depends on nothing."""

    def propose(self, wanted: Sequence[Wanted], manager: CacheManager, draw: Draw) -> list[Draft]:
        return [self._draft(one.request, one.num_drafts) for one in wanted]

    def forget(self, request_id: int) -> None:
        """Keeps nothing."""

    def _draft(self, request: Any, count: int) -> Draft:
        numbers = [uniforms(request.seed, request.num_tokens + j)[DRAFT] for j in range(count)]
        return Draft(tuple(pick(self._q, number) for number in numbers), np.stack([self._q] * count))


@pytest.fixture(scope="module")
def llm(golden_v4: Path) -> LLM:
    return LLM(
        golden_v4 / "fp8_fp4", weights="fp32", ops="reference", progress=False, speculative="ngram", num_speculative_tokens=3,
        max_num_seqs=4, max_model_len=256, max_total_tokens=256,
    )  # fmt: skip


def sampling_engine(llm: LLM, **options: int) -> Engine:
    return Engine(llm.config, llm.engine_config.replace(**options), llm.runner, drafter=Sampled(llm.config.vocab_size))


def test_drawn_drafts_do_not_depend_on_the_schedule(llm: LLM) -> None:
    """Alone; in small steps beside prompts of others; preempted in the middle of the output."""
    prompt = np.random.default_rng(1).integers(2, 512, 119).tolist()
    engine = sampling_engine(llm)
    request = engine.submit(prompt, DRAWN)
    finish(engine)
    assert 4 < engine.stats.num_accepted_tokens < engine.stats.num_draft_tokens
    tokens = request.output_ids
    assert set(tokens) <= set(FEW) and len(set(tokens)) > 1

    busy = sampling_engine(llm, max_num_batched_tokens=8)
    others = [busy.submit([5] * 20, replace(DRAWN, seed=9, max_tokens=9)) for _ in range(2)]
    again = busy.submit(prompt, DRAWN)
    for _ in range(2):
        busy.submit([6] * 9, replace(DRAWN, seed=8))
    finish(busy)
    assert again.output_ids == tokens
    assert others[0].output_ids == others[1].output_ids

    restless = sampling_engine(llm)
    again = restless.submit(prompt, DRAWN)
    while not again.is_finished:
        before = len(again.output_ids)
        restless.step()
        if before < len(again.output_ids) and not again.is_finished:
            restless.scheduler._preempt(again)
    assert again.output_ids == tokens
    check_empty(restless)


def test_drawn_drafts_wait_for_blocks(llm: LLM) -> None:
    """Where others would be dropped, the request gives up its blocks and comes back with its drafts."""
    prompt = np.random.default_rng(2).integers(2, 512, 123).tolist()
    engine = sampling_engine(llm)
    alone = engine.submit(prompt, DRAWN)
    finish(engine)
    again = engine.submit(prompt, DRAWN)
    engine.step()
    held = [(pool, pool.allocate(pool.num_free)) for group, pool in engine.manager.pools.items() if group.startswith("cmp")]
    while not engine.stats.num_preemptions:
        engine.step()
    assert again.num_tokens < 128, "there was a block for its tokens, and none for its drafts"
    for pool, blocks in held:
        pool.free(blocks)
    finish(engine)
    assert again.output_ids == alone.output_ids


def test_drawn_drafts_follow_the_model(llm: LLM) -> None:
    """First tokens after the prompt and the second ones have the frequencies of runs without drafts."""
    plain = Engine(llm.config, llm.engine_config, llm.runner)
    counts = []
    for engine in (plain, sampling_engine(llm)):
        requests = [engine.submit([5, 6], replace(DRAWN, max_tokens=3, seed=seed)) for seed in range(40)]
        finish(engine)
        counts.append([[request.output_ids[at] for request in requests].count(token) for at in (1, 2) for token in FEW])
    assert engine.stats.num_accepted_tokens > 10
    assert counts[0] != counts[1], "another rule, other tokens"
    table = np.asarray(counts, float).reshape(2, 2, 3)
    for one, other in table.transpose(1, 0, 2):
        statistic = ((one - other) ** 2 / np.maximum(one + other, 1)).sum()
        assert statistic < 13.8, "0.999 quantile of chi-square with 2 degrees of freedom"
