# SPDX-License-Identifier: Apache-2.0
"""Drafts that are right up to a chosen position: the same tokens, the same bits in the caches, the promised number of steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ascend_dsv4 import LLM, SamplingParams
from ascend_dsv4.engine.engine import Engine
from ascend_dsv4.engine.request import Request
from tests.engine.harness import check_empty, check_invariants
from tests.spec_decode.harness import num_rounds, scripted, submit, visible

NUM_DRAFTS = 4
LENGTHS = (3, 119, 122, 249)
"""Outputs from there on cross the edges of windows (128 tokens, V4.1's 16), of entries of 2, 4 and 128 tokens, of n-grams that
begin in the prompt, and of blocks, from odd and even positions."""
FOLDERS = {"v41": "fp8_fp4", "v32": "fp8"}
CACHES = {
    "deepseek_v4": {"win_kv", "cmp_kv", "cmp_state", "idx_kv", "idx_state"},
    "deepseek_v41": {"win_kv", "cmp_kv", "idx_kv", "pair_state"},
    "deepseek_v32": {"mla_kv", "idx_kv"},
}
MAX_TOKENS = 14
GREEDY = SamplingParams(max_tokens=MAX_TOKENS, temperature=0, ignore_eos=True, logprobs=1)
DRAWN = SamplingParams(max_tokens=MAX_TOKENS, top_p=0.95, seed=3, ignore_eos=True, logprobs=0)
ADJUSTED = SamplingParams(
    max_tokens=MAX_TOKENS, temperature=0.8, seed=11, ignore_eos=True, logprobs=0, repetition_penalty=1.3, presence_penalty=0.4,
    frequency_penalty=0.7, logit_bias={17: 6.5, 40: 6, 41: 6}, min_tokens=6,
)  # fmt: skip


@dataclass
class Truth:
    """What a run that never drafts leaves."""

    prompt: list[int]
    request: Request
    caches: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    """By number of tokens: what is visible."""


def opened(folder: Path, **options: Any) -> LLM:
    return LLM(folder, weights="fp32", ops="reference", progress=False, **options)


def make(golden_v4: Path, **options: Any) -> LLM:
    return opened(golden_v4 / "fp8_fp4", **options)


@pytest.fixture(scope="module")
def plain(golden_v4: Path) -> LLM:
    return make(golden_v4)


@pytest.fixture(scope="module")
def drafting(golden_v4: Path) -> LLM:
    return make(golden_v4, speculative="ngram", num_speculative_tokens=NUM_DRAFTS)


@pytest.fixture(scope="module")
def truths(plain: LLM) -> list[Truth]:
    return never_drafted(plain)


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.goldens(f"golden_{name}")) for name in ("v4", *FOLDERS)]
)
def family(request: pytest.FixtureRequest) -> tuple[LLM, list[Truth]]:
    """An engine of a model with room for drafts, and what one without leaves."""
    if request.param == "v4":
        return request.getfixturevalue("drafting"), request.getfixturevalue("truths")
    folder = request.getfixturevalue(f"golden_{request.param}") / FOLDERS[request.param]
    return opened(folder, speculative="ngram", num_speculative_tokens=NUM_DRAFTS), never_drafted(opened(folder))


def never_drafted(plain: LLM) -> list[Truth]:
    rng = np.random.default_rng(0)
    params = [GREEDY, GREEDY, DRAWN, ADJUSTED]
    last = plain.config.image_token_id or plain.config.vocab_size
    prompts = [rng.integers(2, last, length).tolist() for length in LENGTHS]
    engine = plain.engine
    found = [Truth(p, engine.submit(p, one)) for p, one in zip(prompts, params, strict=True)]
    while engine.has_work:
        engine.step()
        for truth in found:
            if not truth.request.is_finished:
                number, length = truth.request.request_id, truth.request.num_computed
                truth.caches[length] = visible(plain, engine.manager, number, length)
    return found


def always(position: int) -> Callable[[int], int]:
    return lambda _: position


def mixed(number: int) -> int:
    return (2, 4, 0, 1, 3)[number % 5]


@pytest.mark.parametrize("wrong_at", [*map(always, range(NUM_DRAFTS + 1)), mixed], ids=[*"01234", "mixed"])
def test_rejected_drafts_leave_no_trace(family: tuple[LLM, list[Truth]], wrong_at: Callable[[int], int]) -> None:
    drafting, truths = family
    engine, drafter = scripted(drafting, wrong_at)
    requests = [submit(engine, drafter, t.prompt, t.request.params, t.request.output_ids) for t in truths]
    compared = 0
    while engine.has_work:
        engine.step()
        check_invariants(engine)
        for truth, request in zip(truths, requests, strict=True):
            if request.is_finished:
                continue
            length = request.num_computed
            assert length == request.num_tokens - 1
            now, then = visible(drafting, engine.manager, request.request_id, length), truth.caches[length]
            assert now.keys() == then.keys()
            for name, rows in now.items():
                assert np.array_equal(rows, then[name]), f"{name} after {length} tokens"
                compared += rows.size
    assert compared > 4e5
    assert {name.split(".")[1] for name in now} == CACHES[drafting.config.model_type]
    check_empty(engine)
    assert sorted(drafter.forgotten) == [request.request_id for request in requests]
    for truth, request in zip(truths, requests, strict=True):
        assert request.output_ids == truth.request.output_ids
        assert request.logprobs == truth.request.logprobs
    assert engine.stats.num_steps == num_rounds(MAX_TOKENS, NUM_DRAFTS, wrong_at)
    assert engine.stats.num_output_tokens == MAX_TOKENS * len(requests)


def test_counts(drafting: LLM, truths: list[Truth]) -> None:
    """Of a run worked out by hand: 14 tokens, four drafts, the third wrong: 1, 4, 7, 10, 13 tokens, and the last one alone."""
    engine, drafter = scripted(drafting, always(2))
    submit(engine, drafter, truths[1].prompt, GREEDY, truths[1].request.output_ids)
    while engine.has_work:
        engine.step()
    stats = engine.stats
    assert (stats.num_steps, stats.num_drafts) == (6, 4)
    assert (stats.num_draft_tokens, stats.num_accepted_tokens) == (4 + 4 + 4 + 3, 8)
    assert stats.num_accepted_at == [4, 4] + [0] * 14


@pytest.mark.parametrize("cut", range(6))
def test_an_end_token_among_the_drafts(drafting: LLM, truths: list[Truth], cut: int) -> None:
    """The output ends with it, wherever in an accepted run it stands."""
    output = truths[1].request.output_ids
    stop = output[cut]
    engine, drafter = scripted(drafting, always(NUM_DRAFTS))
    params = replace(GREEDY, stop_token_ids=(stop,))
    request = submit(engine, drafter, truths[1].prompt, params, output)
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    assert request.output_ids == output[: output.index(stop) + 1]
    assert request.finish_reason == "stop"
    assert request.logprobs == truths[1].request.logprobs[: len(request.output_ids)]
    assert [one.token_ids for one in outputs] == [(token,) for token in request.output_ids]
    assert [one.finish_reason for one in outputs] == [None] * (len(outputs) - 1) + ["stop"]
    check_empty(engine)


def test_an_end_token_before_min_tokens(plain: LLM, drafting: LLM, truths: list[Truth]) -> None:
    """Barred in the rows of drafts that come before the least length, and only there."""
    greedy = truths[1].request.output_ids
    params = replace(GREEDY, stop_token_ids=(greedy[3], greedy[7]), min_tokens=5)
    (alone,) = plain.generate(truths[1].prompt, params)
    assert alone.token_ids[:3] == greedy[:3] and alone.token_ids[3] != greedy[3]
    engine, drafter = scripted(drafting, always(NUM_DRAFTS))
    request = submit(engine, drafter, truths[1].prompt, params, alone.token_ids)
    while engine.has_work:
        engine.step()
    assert request.output_ids == alone.token_ids
    assert engine.stats.num_accepted_tokens > 3


@pytest.mark.parametrize("length", [2, 8, 9])
def test_an_end_token_right_after_min_tokens(drafting: LLM, truths: list[Truth], length: int) -> None:
    """The row that draws it stands in the middle of a step that began before the least length."""
    output = truths[1].request.output_ids
    assert output.index(output[length]) == length
    engine, drafter = scripted(drafting, always(NUM_DRAFTS))
    params = replace(GREEDY, stop_token_ids=(output[length],), min_tokens=length)
    request = submit(engine, drafter, truths[1].prompt, params, output)
    _finish(engine)
    assert (request.output_ids, request.finish_reason) == (output[: length + 1], "stop")


def test_a_stop_text_among_the_drafts(drafting: LLM, truths: list[Truth], monkeypatch: pytest.MonkeyPatch) -> None:
    output = truths[1].request.output_ids
    engine, drafter = scripted(drafting, always(NUM_DRAFTS))
    monkeypatch.setattr(drafting, "engine", engine)
    assert drafting.tokenizer is not None
    text = drafting.tokenizer.decode([output[3]])
    first = next(i for i in range(1, 9) if text in drafting.tokenizer.decode(output[:i]))
    drafter.texts[0] = [*truths[1].prompt, *output]
    (result,) = drafting.generate(truths[1].prompt, replace(GREEDY, stop=(text,)))
    assert result.token_ids == output[:first]
    assert result.finish_reason == "stop"
    assert result.logprobs is not None and len(result.logprobs) == first
    check_empty(engine)


@pytest.mark.parametrize("params", [GREEDY, ADJUSTED], ids=["greedy", "adjusted"])
def test_preemption(golden_v4: Path, plain: LLM, params: SamplingParams) -> None:
    """Both grow into the one block that is left; the younger one goes, drafts and all, and comes back."""
    llm = make(
        golden_v4, speculative="ngram", num_speculative_tokens=NUM_DRAFTS, max_num_seqs=2, max_model_len=256,
        max_total_tokens=256,
    )  # fmt: skip
    rng = np.random.default_rng(1)
    prompts = [rng.integers(2, 512, length).tolist() for length in (121, 125)]
    each = [replace(params, max_tokens=24, seed=seed) for seed in (11, 12)]
    expected = plain.generate(prompts, each)
    engine, drafter = scripted(llm, mixed)
    requests = [submit(engine, drafter, *one) for one in zip(prompts, each, (e.token_ids for e in expected), strict=True)]
    while engine.has_work:
        engine.step()
        check_invariants(engine)
    assert engine.stats.num_preemptions > 0
    assert engine.stats.num_accepted_tokens > MAX_TOKENS
    assert [request.output_ids for request in requests] == [one.token_ids for one in expected]
    assert [request.logprobs for request in requests] == [one.logprobs for one in expected]
    check_empty(engine)


def test_an_abort_between_drafts(drafting: LLM, truths: list[Truth]) -> None:
    engine, drafter = scripted(drafting, mixed)
    first, second = (submit(engine, drafter, t.prompt, t.request.params, t.request.output_ids) for t in truths[1:3])
    for _ in range(3):
        engine.step()
    assert first.draft is not None
    engine.finish(first)
    assert first.draft is None
    _finish(engine)
    assert second.output_ids == truths[2].request.output_ids


def test_a_grammar_is_not_drafted_for(drafting: LLM, truths: list[Truth]) -> None:
    """It cannot take tokens back."""

    class Anything:
        def __init__(self) -> None:
            self.accepted: list[int] = []

        def fill(self, bits: np.ndarray) -> bool:
            return False

        def accept(self, token_id: int) -> None:
            self.accepted.append(token_id)

    grammar = Anything()
    engine, drafter = scripted(drafting, always(NUM_DRAFTS))
    other = submit(engine, drafter, truths[1].prompt, GREEDY, truths[1].request.output_ids)
    held = engine.submit(truths[1].prompt, GREEDY, constraint=grammar)
    _finish(engine)
    assert held.output_ids == other.output_ids == truths[1].request.output_ids == grammar.accepted
    assert drafter.rounds.keys() == {other.request_id}


def _finish(engine: Engine) -> None:
    while engine.has_work:
        engine.step()
    check_empty(engine)
