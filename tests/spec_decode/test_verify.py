# SPDX-License-Identifier: Apache-2.0
"""Acceptance: exact where drafts are compared, the right distribution where they are drawn from one of their own."""

from __future__ import annotations

import numpy as np
import pytest

from ascend_dsv4 import SamplingParams
from ascend_dsv4.backend.cpu import CpuBackend
from ascend_dsv4.runner.sampler import sample, uniform, uniforms
from ascend_dsv4.spec_decode.verify import DRAFT, TOKEN, accept_by_rejection, accept_equal, distribution, pick

NUM_DRAWS = 20_000
VOCAB = 6
LIMIT = {5: 20.5, 29: 58.3, 35: 66.6}
"""0.999 quantiles of chi-square by degrees of freedom, from a table."""


@pytest.mark.parametrize(
    ("drafts", "drawn", "tokens"),
    [
        ([], [4], [4]),
        ([4], [4, 9], [4, 9]),
        ([4], [5, 9], [5]),
        ([4, 5, 6], [4, 7, 6, 1], [4, 7]),
        ([4, 5, 6], [4, 5, 6, 1], [4, 5, 6, 1]),
        ([4, 5], [-1, 5, 6], [-1]),
    ],
)
def test_equal_tokens_are_accepted(drafts: list[int], drawn: list[int], tokens: list[int]) -> None:
    assert accept_equal(drafts, drawn) == tokens


def test_a_rejection_by_hand() -> None:
    """p / q is 0.5 for the draft: accepted below a half, else drawn from what is left, which is token 1 or 2 as 1 : 3."""
    q, p = np.array([[0.8, 0.2, 0.0]]), np.array([[0.4, 0.3, 0.3]])

    def tokens(accept: float, residual: float) -> list[int]:
        return accept_by_rejection([0], q, p, np.array([[0.9, accept, residual, 0.9]]), 7)

    assert tokens(0.49, 0.0) == [0, 7]
    assert tokens(0.51, 0.24) == [1]
    assert tokens(0.51, 0.26) == [2]


def chi_square(counts: np.ndarray, probs: np.ndarray) -> float:
    expected = probs * counts.sum()
    assert (counts[expected == 0] == 0).all()
    kept = expected > 0
    return float((((counts - expected) ** 2)[kept] / expected[kept]).sum())


def random_probs(rng: np.random.Generator, *shape: int) -> np.ndarray:
    logits = rng.normal(0, 1.5, (*shape, VOCAB))
    weights = np.exp(logits)
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def pairs(p: np.ndarray, follow: np.ndarray, q: np.ndarray, seed: int) -> tuple[np.ndarray, float]:
    """Counts of the first two tokens of many outputs, [VOCAB, VOCAB], and drafts accepted per round.

    p [VOCAB] is the model's distribution of the first token, follow [VOCAB, VOCAB] that of the second; q [2, VOCAB] the
    drafter's, which knows nothing of the first token when it drafts the second.
    """
    counts = np.zeros((VOCAB, VOCAB))
    accepted = 0
    for number in range(NUM_DRAWS):
        numbers = np.stack([uniforms((seed, number), position) for position in (8, 9, 10)])
        drafts = [pick(q[j], numbers[j, DRAFT]) for j in (0, 1)]
        rows = np.stack([p, follow[drafts[0]]])
        tokens = accept_by_rejection(drafts, q, rows, numbers[:2], 0)
        accepted += len(tokens) - 1
        if len(tokens) == 1:  # the next step draws the second
            tokens.append(pick(follow[tokens[0]], numbers[1, TOKEN]))
        counts[tokens[0], tokens[1]] += 1
    return counts, accepted / NUM_DRAWS


def test_rejection_sampling_keeps_the_distribution() -> None:
    rng = np.random.default_rng(4)
    p, follow, q = random_probs(rng), random_probs(rng, VOCAB), random_probs(rng, 2)
    q[0, 2], p[4] = 0, 0  # what only one of them can say
    p, q = p / p.sum(), q / q.sum(-1, keepdims=True)
    counts, accepted = pairs(p, follow, q, 1)
    assert chi_square(counts, p[:, None] * follow) < LIMIT[29]
    first = np.minimum(p, q[0])
    assert abs(accepted - (first.sum() + (first @ np.minimum(follow, q[1])).sum())) < 0.02, "sum(min(p, q)) are accepted"


def test_a_wrong_rule_is_noticed() -> None:
    """The statistic rejects drafts that are taken as they come, so it can tell."""
    rng = np.random.default_rng(5)
    p, q = random_probs(rng), random_probs(rng)
    counts = np.bincount([pick(q, x) for x in rng.random(NUM_DRAWS)], minlength=VOCAB)
    assert chi_square(counts, p) > 10 * LIMIT[5]


def test_the_model_s_own_drafts_are_all_accepted() -> None:
    rng = np.random.default_rng(6)
    p = random_probs(rng)
    q = np.stack([p, p])
    counts, accepted = pairs(p, np.broadcast_to(p, (VOCAB, VOCAB)), q, 2)
    assert accepted == 2
    assert chi_square(counts, p[:, None] * p) < LIMIT[35]


def test_a_greedy_draft_is_a_point() -> None:
    """Rejection then accepts with the model's probability of the draft, as comparing does."""
    p = np.array([[0.5, 0.3, 0.2]])
    q = np.array([[1.0, 0.0, 0.0]])
    accepted = sum(len(accept_by_rejection([0], q, p, uniforms((7, i), 3)[None], 0)) - 1 for i in range(4000))
    assert abs(accepted / 4000 - 0.5) < 0.03


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0), SamplingParams(), SamplingParams(temperature=0.3), SamplingParams(top_k=5),
        SamplingParams(top_p=0.6), SamplingParams(min_p=0.2), SamplingParams(temperature=1.7, top_k=9, top_p=0.8, min_p=0.05),
    ],
)  # fmt: skip
def test_the_distribution_is_the_one_that_is_drawn_from(params: SamplingParams) -> None:
    """Inverting it at a random number gives the operator's token."""
    rng = np.random.default_rng(8)
    backend = CpuBackend("reference")
    for trial in range(40):
        logits = (3 * rng.standard_normal(50)).astype(np.float32)
        logits[rng.integers(0, 50, 5)] = -np.inf
        probs = distribution(logits, params)
        assert abs(probs.sum() - 1) < 1e-12
        order = np.argsort(-logits, kind="stable")
        token = order[pick(probs[order], uniform((3, trial), 5))]
        assert sample(backend, backend.to_device(logits[None]), [params], [(3, trial)], [5]).tolist() == [token]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_no_distribution(bad: float) -> None:
    assert np.isnan(distribution(np.array([1.0, bad, 2.0], np.float32), SamplingParams())).all()


def test_random_numbers_of_a_position_are_its_own() -> None:
    """The first is the one that draws the token; none occurs twice, whatever the positions."""
    seen = [x for position in range(200) for x in uniforms((5, 6), position).tolist()]
    assert len(set(seen)) == len(seen) == 800
    assert all(uniforms((5, 6), position)[TOKEN] == uniform((5, 6), position) for position in range(20))


def test_without_drafts_the_model_s_draw_stands() -> None:
    none = np.zeros((0, VOCAB))
    assert accept_by_rejection([], none, none, np.zeros((0, 4)), 3) == [3]
