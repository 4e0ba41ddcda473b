# SPDX-License-Identifier: Apache-2.0
"""sample: filters, reproducibility and the distribution of what is drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from ascend_dsv4.accuracy.calls import same_bits
from ascend_dsv4.ops.cases import CaseInputs, f32, i32, normal
from tests.ops.harness import run

ROW = normal(np.random.default_rng(1), 1, 40, scale=1.2)
PROBABILITIES = np.exp(ROW[0].astype(float)) / np.exp(ROW[0].astype(float)).sum()
NUM_DRAWS = 4000
EVENLY = (np.arange(NUM_DRAWS) + 0.5) / NUM_DRAWS
"""One uniform per slice of [0, 1): counts then follow probabilities to within one."""


def draw(uniform: np.ndarray, logits: np.ndarray = ROW, /, **params: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and logprobs of one row of logits under many uniforms."""
    count = len(uniform)
    given: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **params}
    args = {name: (i32 if name == "top_k" else f32)([value] * count) for name, value in given.items()}
    rows = np.repeat(logits, count, axis=0)
    outs = run("sample", CaseInputs({"logits": rows, "uniform": uniform, **args}), "float32")
    return outs["ids"], outs["logprobs"]


def shares(**params: float) -> np.ndarray:
    """How often each token is drawn."""
    return np.bincount(draw(EVENLY, ROW, **params)[0].numpy(), minlength=40) / NUM_DRAWS


def renormalised(keep: np.ndarray, weights: np.ndarray = PROBABILITIES) -> np.ndarray:
    kept = np.where(keep, weights, 0.0)
    return np.asarray(kept / kept.sum())


def assert_shares(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() <= 1.5 / NUM_DRAWS
    assert set(np.flatnonzero(found)) <= set(np.flatnonzero(expected))


def test_distribution() -> None:
    assert_shares(shares(), PROBABILITIES)


@pytest.mark.parametrize("temperature", [0.25, 0.7, 2.0])
def test_temperature(temperature: float) -> None:
    powers = PROBABILITIES ** (1 / float(np.float32(temperature)))
    assert_shares(shares(temperature=temperature), powers / powers.sum())


@pytest.mark.parametrize("top_k", [1, 2, 7, 40, 1000])
def test_top_k(top_k: int) -> None:
    rank = np.argsort(np.argsort(-PROBABILITIES))
    assert_shares(shares(top_k=top_k), renormalised(rank < top_k))


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.8, 0.999])
def test_top_p(top_p: float) -> None:
    """The smallest set of best tokens that reaches it: the last one kept is the one that crosses."""
    order = np.argsort(-PROBABILITIES)
    count = next(n for n in range(1, 41) if PROBABILITIES[order[:n]].sum() >= top_p)
    keep = np.zeros(40, dtype=bool)
    keep[order[:count]] = True
    assert_shares(shares(top_p=top_p), renormalised(keep))


@pytest.mark.parametrize("min_p", [0.01, 0.2, 0.9, 1.0])
def test_min_p(min_p: float) -> None:
    assert_shares(shares(min_p=min_p), renormalised(min_p * PROBABILITIES.max() <= PROBABILITIES))


def test_filters_follow_each_other() -> None:
    """top_p counts what top_k has left, and min_p drops from what both have left."""
    order = np.argsort(-PROBABILITIES)
    first = renormalised(np.isin(np.arange(40), order[:10]))
    count = next(n for n in range(1, 11) if first[order[:n]].sum() >= 0.8)
    second = np.isin(np.arange(40), order[:count]) & (0.3 * PROBABILITIES.max() <= PROBABILITIES)
    assert 1 < second.sum() < count < 10, "each filter has something to do"
    assert_shares(shares(top_k=10, top_p=0.8, min_p=0.3), renormalised(second))


def test_the_same_uniform_gives_the_same_token() -> None:
    uniform = np.random.default_rng(2).random(200)
    once, again = draw(uniform), draw(uniform)
    assert same_bits(once[0], again[0]) and same_bits(once[1], again[1])
    shuffled = np.random.default_rng(3).permutation(200)
    assert torch.equal(draw(uniform[shuffled])[0], once[0][shuffled])


def test_the_draw_is_monotonous() -> None:
    """A larger uniform never gives a better ranked token."""
    rank = np.argsort(np.argsort(-PROBABILITIES, kind="stable"))
    assert (np.diff(rank[draw(EVENLY)[0].numpy()]) >= 0).all()


@pytest.mark.parametrize("uniform", [0.0, 0.5, np.nextafter(1.0, 0.0)])
def test_greedy(uniform: float) -> None:
    ids, logprobs = draw(np.array([uniform]), temperature=0.0, top_k=3, top_p=0.5, min_p=0.5)
    assert ids.tolist() == [int(PROBABILITIES.argmax())]
    assert logprobs.item() == pytest.approx(math.log(PROBABILITIES.max()), abs=1e-6)


def test_greedy_takes_the_lowest_of_equals() -> None:
    logits = f32([[1, 3, 0, 3, 3]])
    assert draw(np.array([0.9]), logits, temperature=0.0)[0].tolist() == [1]
    assert draw(np.array([0.0, 0.34, 0.67]), logits, top_k=3)[0].tolist() == [1, 3, 4]


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = f32([[-np.inf, 1, -np.inf, 0, -np.inf]])
    ids, logprobs = draw(EVENLY, logits)
    assert set(ids.tolist()) == {1, 3}
    assert bool(logprobs.isfinite().all())
    assert set(draw(EVENLY, f32([[-np.inf, -np.inf, 2]]))[0].tolist()) == {2}


def test_logprobs_ignore_temperature_and_filters() -> None:
    ids, logprobs = draw(EVENLY[::40], temperature=0.5, top_k=9, top_p=0.9, min_p=0.01)
    np.testing.assert_allclose(logprobs.numpy(), np.log(PROBABILITIES[ids.numpy()]), rtol=1e-5)


def test_extreme_uniforms_stay_in_range() -> None:
    """At both ends the draw is the first and the last token with any weight, whatever the filters."""
    ends = np.array([0.0, np.nextafter(1.0, 0.0)])
    order = np.argsort(-PROBABILITIES)
    assert draw(ends)[0].tolist() == [order[0], order[-1]]
    assert draw(ends, top_k=3)[0].tolist() == [order[0], order[2]]
    assert draw(ends, top_p=1e-9)[0].tolist() == [order[0], order[0]]
