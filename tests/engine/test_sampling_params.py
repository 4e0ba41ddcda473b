# SPDX-License-Identifier: Apache-2.0
"""Sampling parameters: what is refused, and what seeds, n, min_tokens and the like do to the tokens of a real model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ascend_dsv4 import LLM, SamplingParams
from ascend_dsv4.config import ModelConfig
from ascend_dsv4.errors import RequestError
from ascend_dsv4.runner.sampler import uniform
from tests.engine.harness import make_engine, run

PROMPT = [5, 60, 7, 310, 9]
DRAWN = SamplingParams(max_tokens=12, seed=3, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(golden_v4: Path) -> LLM:
    return LLM(golden_v4 / "fp8_fp4", weights="fp32", max_model_len=128, max_num_seqs=32, max_total_tokens=4096, progress=False)


def tokens(llm: LLM, params: SamplingParams, prompt: list[int] = PROMPT) -> list[list[int]]:
    return [output.token_ids for output in llm.generate([prompt], params)]


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("n", [0, -1, 129, 1.5, None]),
        ("min_tokens", [-1, 1.5, None]),
        ("prompt_logprobs", [-1, 21, True]),
        ("repetition_penalty", [0, -1, 101, float("nan"), float("inf"), 1e-46]),
        ("presence_penalty", [-2.1, 2.1, float("nan"), None]),
        ("frequency_penalty", [-2.1, 2.1, "1"]),
        ("logit_bias", [{5: 101}, {5: float("nan")}, {"5": 1}, {5.0: 1}, {5: None}, [5], None, dict.fromkeys(range(1025), 1)]),
        ("stop", ["text", ("",), ("a" * 1025,), (5,), None, tuple(map(str, range(17)))]),
        ("stop_token_ids", [("5",), (5.0,), (True,), None, 5, tuple(range(129))]),
    ],
)
def test_out_of_range(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(RequestError, match=f"sampling parameter {field}="):
            SamplingParams(**{field: value})


def test_limits_are_inside() -> None:
    SamplingParams(n=128, min_tokens=0, prompt_logprobs=20, repetition_penalty=100, presence_penalty=-2, frequency_penalty=2,
                   logit_bias={0: -100, 1: 100.0}, stop=("a" * 1024,) * 16, stop_token_ids=(5,) * 128)  # fmt: skip
    SamplingParams(n=1, prompt_logprobs=0, presence_penalty=2, frequency_penalty=-2, repetition_penalty=0.01, max_tokens=0)


@pytest.mark.parametrize("params", [SamplingParams(logit_bias={512: 1}), SamplingParams(stop_token_ids=(-1,))])
def test_ids_that_no_token_has(config: ModelConfig, params: SamplingParams) -> None:
    engine = make_engine(config)
    with pytest.raises(RequestError, match="outside the vocabulary of 512"):
        engine.submit([5], params)
    assert not engine.has_work


def test_the_first_of_n_is_the_only_one_of_one(llm: LLM) -> None:
    (single,) = tokens(llm, DRAWN)
    several = tokens(llm, replace(DRAWN, n=5))
    assert several[0] == single
    assert len({tuple(ids) for ids in several}) == 5
    assert tokens(llm, replace(DRAWN, n=3)) == several[:3], "a completion does not depend on how many there are"


def test_n_greedy_completions_are_one_and_the_same(llm: LLM) -> None:
    first, second = tokens(llm, replace(DRAWN, temperature=0, n=2))
    assert first == second


def test_a_seed_gives_the_same_text_in_company(llm: LLM) -> None:
    """Alone, and first, last and in the middle of 32 that run together."""
    (alone,) = tokens(llm, DRAWN)
    prompts = [np.random.randint(2, 512, np.random.randint(1, 12)).tolist() for _ in range(32)]
    params = [replace(DRAWN, seed=None, max_tokens=int(np.random.randint(1, 14))) for _ in range(32)]
    for place in (0, 15, 31):
        prompts[place], params[place] = PROMPT, DRAWN
    together = llm.generate(prompts, params)
    assert [together[place].token_ids for place in (0, 15, 31)] == [alone] * 3


def test_requests_without_a_seed_differ_and_the_engine_s_seed_repeats_them(golden_v4: Path) -> None:
    unseeded = replace(DRAWN, seed=None, max_tokens=6)

    def draw(seed: int) -> list[list[int]]:
        llm = LLM(golden_v4 / "fp8_fp4", weights="fp32", max_model_len=128, seed=seed, progress=False)
        return tokens(llm, replace(unseeded, n=2)) + tokens(llm, unseeded)

    first, again, other = draw(1), draw(1), draw(2)
    assert first == again
    assert len({tuple(ids) for ids in first + other}) == 6


def test_completions_follow_the_distribution(llm: LLM) -> None:
    """Half of the drawn tokens, give or take, are among those that have half of the probability."""
    drawn = [ids[0] for seed in (1, 2) for ids in tokens(llm, SamplingParams(max_tokens=1, n=100, seed=seed))]
    logits = llm.logits(PROMPT)[-1].astype(np.float64)
    weights = np.exp(logits) / np.exp(logits).sum()
    order = np.argsort(-weights)
    likely = order[: np.searchsorted(weights[order].cumsum(), 0.5) + 1]
    share = weights[likely].sum()
    hits = np.isin(drawn, likely).sum()
    assert abs(hits - share * len(drawn)) < 4 * np.sqrt(len(drawn) * share * (1 - share))


def test_random_numbers_are_those_of_seed_and_position() -> None:
    keys = [((seed, word), position) for seed in (0, 1, (1 << 64) - 1) for word in (0, 1, 1 << 32) for position in range(300)]
    numbers = [uniform(*key) for key in keys]
    assert numbers == [uniform(*key) for key in keys]
    assert len(set(numbers)) == len(numbers)
    assert min(numbers) >= 0 and max(numbers) < 1
    counts, _ = np.histogram(numbers, bins=10, range=(0, 1))
    expected = len(numbers) / 10
    assert ((counts - expected) ** 2 / expected).sum() < 27.9, "chi-squared, 9 degrees of freedom, one in a thousand"


@pytest.mark.parametrize("end", ["eos", "stop id"])
def test_min_tokens(config: ModelConfig, end: str) -> None:
    """The null backend wants the end token at once; barred, it falls back to token 0, whose successor is the end token."""
    eos = config.eos_token_id[0]
    assert eos == 1
    params = SamplingParams(min_tokens=3, temperature=0, stop_token_ids=() if end == "eos" else (1,), ignore_eos=end != "eos")
    engine = make_engine(config)
    request = engine.submit([0], params)
    run(engine)
    assert (request.output_ids, request.finish_reason) == ([0, 0, 0, 1], "stop")


def test_min_tokens_do_not_lengthen(config: ModelConfig) -> None:
    engine = make_engine(config)
    request = engine.submit([5], SamplingParams(min_tokens=10, max_tokens=4, temperature=0))
    run(engine)
    assert (request.output_ids, request.finish_reason) == ([6, 7, 8, 9], "length")


def test_ignored_ends_are_tokens_like_others(config: ModelConfig) -> None:
    engine = make_engine(config)
    request = engine.submit([511], SamplingParams(ignore_eos=True, min_tokens=5, max_tokens=6, temperature=0))
    run(engine)
    assert request.output_ids == [0, 1, 2, 3, 4, 5]


def test_a_bias_decides(llm: LLM) -> None:
    """+100 forces a token, -100 keeps the best one out; log-probabilities stay the model's own."""
    greedy = replace(DRAWN, temperature=0, max_tokens=1, logprobs=1)
    (plain,) = llm.generate([PROMPT], greedy)
    (best,) = plain.token_ids
    forced = llm.generate([PROMPT], replace(greedy, logit_bias={33: 100}))[0]
    barred = llm.generate([PROMPT], replace(greedy, logit_bias={best: -100}))[0]
    assert forced.token_ids == [33] and barred.token_ids != [best]
    assert plain.logprobs is not None and forced.logprobs is not None
    assert list(forced.logprobs[0]) == [33, best]
    assert forced.logprobs[0][best] == plain.logprobs[0][best]
