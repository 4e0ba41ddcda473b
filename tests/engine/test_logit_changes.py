# SPDX-License-Identifier: Apache-2.0
"""Penalties, biases, bans and constraints: against dense arithmetic over the whole vocabulary, and in a running engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from ascend_dsv4 import LLM, SamplingParams
from ascend_dsv4.backend.null import NullBackend
from ascend_dsv4.config import ModelConfig
from ascend_dsv4.engine.engine import Engine
from ascend_dsv4.engine.logit_changes import logit_changes
from ascend_dsv4.engine.request import Request
from tests.engine.harness import check_empty, make_engine, run


class Allowed:
    """A constraint that allows, after n tokens, the tokens `rule(n)`; None allows all."""

    def __init__(self, rule: Callable[[int], list[int] | None]) -> None:
        self.rule = rule
        self.accepted: list[int] = []

    def fill(self, bits: np.ndarray) -> bool:
        tokens = self.rule(len(self.accepted))
        if tokens is None:
            return False
        bits[:] = 0
        for token in tokens:
            bits[token // 32] |= np.array(1 << token % 32, np.uint32).astype(np.int32)
        return True

    def accept(self, token_id: int) -> None:
        self.accepted.append(token_id)


def adjusted(requests: list[Request], logits: np.ndarray) -> np.ndarray:
    """The logits after what the requests change about them."""
    changes = logit_changes(requests, logits.shape[1])
    if changes is None:
        return logits
    columns = [getattr(changes, field.name) for field in fields(changes)]
    assert [column.dtype for column in columns] == [np.int32, np.int32, np.float32, np.float32, np.int32]
    pairs = list(zip(changes.rows.tolist(), changes.ids.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs), "the operator takes no pair twice"
    return np.asarray(NullBackend().bound_ops().adjust_logits(logits, *columns))


def dense(request: Request, logits: np.ndarray) -> np.ndarray:
    """The definition, token by token in float64."""
    params, y = request.params, logits.astype(np.float64)
    for token in range(len(y)):
        if token in request.prompt_ids or token in request.output_ids:
            y[token] = y[token] / params.repetition_penalty if y[token] > 0 else y[token] * params.repetition_penalty
        y[token] += params.logit_bias.get(token, 0)
        y[token] -= params.frequency_penalty * request.output_ids.count(token)
        y[token] -= params.presence_penalty * (token in request.output_ids)
        if token in request.end_ids and len(request.output_ids) < params.min_tokens:
            y[token] = -np.inf
    return y


def random_request(engine: Engine, rng: np.random.Generator) -> Request:
    """One in the middle of its output, whose history has repetitions; some parameters are off."""
    few = rng.integers(0, 512, 12)

    def maybe(value: float, off: float) -> float:
        return value if rng.random() < 0.6 else off

    params = SamplingParams(
        repetition_penalty=maybe(float(rng.uniform(0.5, 2)), 1.0),
        presence_penalty=maybe(float(rng.uniform(-2, 2)), 0.0),
        frequency_penalty=maybe(float(rng.uniform(-2, 2)), 0.0),
        logit_bias={int(i): float(rng.uniform(-100, 100)) for i in rng.choice(few, rng.integers(0, 5))},
        min_tokens=int(rng.integers(0, 20)),
        stop_token_ids=tuple(int(i) for i in rng.choice(few, rng.integers(0, 3))),
        ignore_eos=bool(rng.random() < 0.5),
    )
    request = engine.make_request(rng.choice(few, rng.integers(1, 30)), params)
    for token in rng.choice(few, rng.integers(0, 30)).tolist():
        request.output_ids.append(token)
        request.output_counts[token] += 1
    return request


def test_random_histories(config: ModelConfig) -> None:
    rng, engine = np.random.default_rng(np.random.randint(1 << 30)), make_engine(config)
    for _ in range(60):
        requests = [random_request(engine, rng) for _ in range(rng.integers(1, 5))]
        logits = (3 * rng.standard_normal((len(requests), 512))).astype(np.float32)
        got = adjusted(requests, logits)
        for request, row, before in zip(requests, got, logits, strict=True):
            expected = dense(request, before)
            np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-5)
            untouched = expected == before
            assert np.array_equal(row[untouched], before[untouched]), "a logit that nothing applies to keeps its bits"


def test_histories_grow(config: ModelConfig) -> None:
    """The same request again and again: what is remembered of its prompt stays right."""
    rng, engine = np.random.default_rng(5), make_engine(config)
    request = engine.make_request([5, 6, 7, 6], SamplingParams(repetition_penalty=1.5, frequency_penalty=0.25))
    for token in [9, 5, 9, 300, 9]:
        logits = rng.standard_normal((1, 512)).astype(np.float32)
        np.testing.assert_allclose(adjusted([request], logits)[0], dense(request, logits[0]), rtol=1e-5)
        request.output_ids.append(token)
        request.output_counts[token] += 1


def test_nothing_to_change_costs_nothing(config: ModelConfig) -> None:
    engine = make_engine(config)
    requests = [
        engine.make_request([5], SamplingParams()),
        engine.make_request([5], SamplingParams(presence_penalty=1, frequency_penalty=1)),
        engine.make_request([5], SamplingParams(min_tokens=2, ignore_eos=True)),
        engine.make_request([5], SamplingParams(), constraint=Allowed(lambda _: None)),
    ]
    assert logit_changes(requests, 512) is None


def test_rows_are_those_of_the_requests(config: ModelConfig) -> None:
    """Requests with and without changes side by side."""
    engine = make_engine(config)
    requests = [
        engine.make_request([5], SamplingParams()),
        engine.make_request([5], SamplingParams(logit_bias={7: 2.0})),
        engine.make_request([5], SamplingParams(), constraint=Allowed(lambda _: [31, 32, 511])),
        engine.make_request([5], SamplingParams(logit_bias={0: -3.0}), constraint=Allowed(lambda _: None)),
    ]
    expected = np.zeros((4, 512), np.float32)
    expected[1, 7], expected[3, 0] = 2, -3
    expected[2] = -np.inf
    expected[2, [31, 32, 511]] = 0
    assert np.array_equal(adjusted(requests, np.zeros((4, 512), np.float32)), expected)


def test_a_constraint_sees_every_token_once_and_in_order(config: ModelConfig) -> None:
    """Although requests are preempted and processed again."""
    engine = make_engine(config, max_num_seqs=4, max_num_batched_tokens=16, max_model_len=64, tokens_per_block=4)
    rules: list[Callable[[int], list[int] | None]] = [
        lambda n: [3 * n % 512, 511],
        lambda n: None if n % 2 else [40],
        lambda n: [n + 100],
        lambda n: None,
    ]
    constraints = [Allowed(rule) for rule in rules * 2]
    params = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
    requests = [engine.submit([7] * 10, params, constraint=constraint) for constraint in constraints]
    plain = engine.submit([7] * 10, params)
    run(engine)
    assert engine.stats.num_preemptions
    for request, constraint in zip(requests, constraints, strict=True):
        assert constraint.accepted == request.output_ids
        assert len(request.output_ids) == 40
        for count, token in enumerate(request.output_ids):
            allowed = constraint.rule(count)
            assert allowed is None or token in allowed
    assert requests[1].output_ids == requests[5].output_ids == [40, 41] * 20
    assert requests[3].output_ids == plain.output_ids == list(range(8, 48))


def test_a_constraint_that_ends_overrides_min_tokens(config: ModelConfig) -> None:
    end = config.eos_token_id[0]
    engine = make_engine(config)
    request = engine.submit([7], SamplingParams(min_tokens=10), constraint=Allowed(lambda n: [20] if n < 2 else [end]))
    run(engine)
    assert (request.output_ids, request.finish_reason) == ([20, 20, end], "stop")


def test_a_constraint_that_allows_nothing_ends_its_request_alone(golden_v4: Path) -> None:
    llm = LLM(golden_v4 / "fp8_fp4", weights="fp32", max_model_len=64, progress=False)
    params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
    (expected,) = llm.generate([5, 6], params)
    dead = llm.engine.submit([5, 6], params, constraint=Allowed(lambda n: [] if n == 2 else None))
    other = llm.engine.submit([5, 6], params)
    run(llm.engine)
    assert (dead.finish_reason, dead.output_ids) == ("error", expected.token_ids[:2])
    assert (other.finish_reason, other.output_ids) == ("length", expected.token_ids)
    check_empty(llm.engine)


PENALTIES = SamplingParams(
    max_tokens=16, temperature=0, ignore_eos=True, repetition_penalty=0.7, presence_penalty=-0.8, frequency_penalty=-0.6,
    logit_bias={3: 1.5, 77: -2.0}, logprobs=1,
)  # fmt: skip


@pytest.mark.parametrize("length", [1, 40])
def test_a_penalised_text_is_the_greedy_one_of_the_penalised_logits(golden_v4: Path, length: int) -> None:
    """Token by token against the model's teacher-forced logits; log-probabilities are those before the changes.

    The penalties favour repetitions, which this model does not make by itself.
    """
    llm = LLM(golden_v4 / "fp8_fp4", weights="fp32", max_model_len=64, progress=False)
    prompt = np.random.randint(2, 30, length).tolist()
    (output,) = llm.generate([prompt], PENALTIES)
    (plain,) = llm.generate([prompt], SamplingParams(max_tokens=16, temperature=0, ignore_eos=True))
    repeated = len(output.token_ids) - len({*output.token_ids} - {*prompt})
    assert output.token_ids != plain.token_ids and repeated > 2, "the penalties are to matter"
    assert output.logprobs is not None
    rows = llm.logits([*prompt, *output.token_ids])[length - 1 :]
    history = llm.engine.make_request(prompt, PENALTIES)
    for row, token, reported in zip(rows, output.token_ids, output.logprobs, strict=False):
        assert dense(history, row).argmax() == token
        history.output_ids.append(token)
        wide = row.astype(np.float64)
        assert reported[token] == pytest.approx(wide[token] - np.log(np.exp(wide).sum()), abs=1e-9)
        assert int(wide.argmax()) in reported
