# SPDX-License-Identifier: Apache-2.0
"""A preempted request goes on as if nothing had happened: the same bits, wherever it was interrupted and however often."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ascend_dsv4 import LLM, SamplingParams
from ascend_dsv4.engine.engine import Engine, Output
from ascend_dsv4.engine.request import Request
from ascend_dsv4.runner.runner import LayerTap

GREEDY = SamplingParams(max_tokens=14, temperature=0, ignore_eos=True, logprobs=2, prompt_logprobs=1)
DRAWN = SamplingParams(
    max_tokens=14, top_p=0.97, seed=11, ignore_eos=True, logprobs=0, prompt_logprobs=0, repetition_penalty=1.3,
    presence_penalty=0.4, frequency_penalty=0.7, logit_bias={17: 3.5, 40: -100}, min_tokens=2,
)  # fmt: skip


def make(golden_v4: Path, **options: Any) -> LLM:
    return LLM(golden_v4 / "fp8_fp4", weights="fp32", cache_rounding="released", progress=False, **options)


def prompt(length: int) -> list[int]:
    return np.random.randint(2, 512, length).tolist()  # type: ignore[no-any-return]


def finish(engine: Engine, *requests: Request) -> None:
    while not all(request.is_finished for request in requests):
        engine.step()


def undisturbed(engine: Engine, request: Request) -> Request:
    """The same request, processed alone."""
    before = engine.stats.num_preemptions
    alone = engine.submit(request.prompt_ids, request.params, keep_logits=request.keep_logits)
    finish(engine, alone)
    assert engine.stats.num_preemptions == before
    return alone


def assert_same(request: Request, alone: Request) -> None:
    """Equality of floats and arrays here is equality of bits: there are neither NaNs nor zeros in them."""
    assert request.output_ids == alone.output_ids
    assert request.finish_reason == alone.finish_reason == "length"
    assert request.logprobs == alone.logprobs
    assert request.prompt_logprobs == alone.prompt_logprobs
    if alone.keep_logits:
        assert np.array_equal(np.concatenate(request.logits), np.concatenate(alone.logits))


def step_without_spare_blocks(
    engine: Engine, step: Callable[..., list[Output]] | None = None, tap: LayerTap | None = None
) -> list[Output]:
    """`step`, else that of the engine, with all free blocks taken away unless somebody waits for them.

    So the youngest request goes whenever an older one needs a block, and is back in the step after.
    """
    pools = {} if engine.scheduler.waiting else {g: pool for g, pool in engine.manager.pools.items() if g.startswith("cmp")}
    held = {group: pool.allocate(pool.num_free) for group, pool in pools.items()}
    try:
        return (step or engine.step)(tap)
    finally:
        for group, blocks in held.items():
            engine.manager.pools[group].free(blocks)


@pytest.mark.parametrize("params", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_caches_too_small_for_both(golden_v4: Path, params: SamplingParams) -> None:
    """Both grow into the one block that is left: the younger one loses what it has, in the middle of its output."""
    engine = make(golden_v4, max_num_seqs=2, max_model_len=256, max_total_tokens=256).engine
    older = engine.submit(prompt(121), params)
    younger = engine.submit(prompt(125), replace(params, seed=12))
    num_tokens = 0
    while not engine.stats.num_preemptions:
        num_tokens = len(younger.output_ids)
        engine.step()
    assert list(engine.scheduler.waiting) == [younger] and num_tokens > 2
    finish(engine, older, younger)
    for request in (older, younger):
        assert_same(request, undisturbed(engine, request))


def test_again_and_again(golden_v4: Path) -> None:
    """In the middle of the prompt, while the prompt is processed again, and in the middle of the output."""
    engine = make(golden_v4, max_num_seqs=4, max_model_len=384, max_total_tokens=1024).engine
    # Prompts that come to the end of a block in their 5th, 8th and 18th step.
    older = [engine.submit(prompt(130 - step), replace(GREEDY, max_tokens=20)) for step in (5, 8, 18)]
    engine.step()
    youngest = engine.submit(prompt(200), DRAWN, chunk_size=48, keep_logits=True)
    moments = []
    while not youngest.is_finished:
        before = engine.stats.num_preemptions, youngest.num_computed, youngest.num_prefilled, len(youngest.output_ids)
        step_without_spare_blocks(engine)
        if engine.stats.num_preemptions > before[0]:
            moments.append(before[1:])
    finish(engine, *older)
    in_prompt, in_prompt_again, in_output = moments
    assert 0 < in_prompt[0] == in_prompt[1] < 200
    assert 0 < in_prompt_again[0] < in_prompt_again[1]
    assert in_output[0] > 200 and in_output[2] > 2
    assert_same(youngest, undisturbed(engine, youngest))


def test_logits_of_a_prompt(golden_v4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens of a stream come to the end of a block while a long prompt is processed."""
    llm = make(golden_v4, max_num_seqs=2, max_model_len=384, max_total_tokens=512)
    token_ids, stream_ids = prompt(200), prompt(124)
    expected, expected_tokens = llm.logits(token_ids), llm.generate(stream_ids, GREEDY)[0].token_ids
    monkeypatch.setattr(llm.engine, "step", partial(step_without_spare_blocks, llm.engine, llm.engine.step))
    stream = llm.stream(stream_ids, GREEDY)
    tokens = [next(stream).token_id]
    assert llm.engine.stats.num_preemptions == 0
    assert np.array_equal(llm.logits(token_ids, chunk_size=24), expected)
    assert llm.engine.stats.num_preemptions == 1
    assert 24 <= llm.engine.stats.num_dropped_tokens < 200, "it was to happen in the middle of the prompt"
    assert tokens + [token.token_id for token in stream] == expected_tokens
