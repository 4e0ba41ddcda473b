# SPDX-License-Identifier: Apache-2.0
"""Figures at the end of two models against sums made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ascend_dsv4.accuracy.end_metrics import EndTally, kl_divergence, log_softmax

LN2, LN3 = math.log(2), math.log(3)
# (1/4, 3/4) against (1/2, 1/2): 1/4 ln 1/2 + 3/4 ln 3/2.
QUARTERS_AGAINST_HALVES = 0.13081203594113697


def f32(rows: list[list[float]]) -> np.ndarray:
    return np.asarray(rows, np.float32)


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_divergence(shift: float) -> None:
    """Also where the exponentials would overflow; 1e4 has a last place of 1e-3 in float32, so there the rows are float64."""
    reference, candidate = np.asarray([[0, LN3]]) + shift, np.asarray([[0.0, 0.0]]) + shift
    assert kl_divergence(reference, candidate) == pytest.approx([QUARTERS_AGAINST_HALVES], abs=1e-11)


def test_divergence_has_a_direction() -> None:
    """(1/2, 1/2) against (1/4, 3/4): 1/2 ln 2 + 1/2 ln 2/3."""
    assert kl_divergence(f32([[0, 0]]), np.asarray([[0, LN3]])) == pytest.approx([0.5 * LN2 + 0.5 * math.log(2 / 3)])


def test_divergence_of_close_rows_keeps_its_digits() -> None:
    """For a change d of one of two equal logits it is d²/8 to leading order, far below the last place of float32."""
    assert kl_divergence(np.asarray([[0.0, 0.0]]), np.asarray([[0.0, 1e-5]])) == pytest.approx([1.25e-11], rel=1e-4)


def test_barred_tokens() -> None:
    inf = math.inf
    assert kl_divergence(f32([[0, 0, -inf]]), f32([[0, 0, -inf]])) == [0]
    assert kl_divergence(f32([[0, 0, -inf]]), f32([[0, 0, 0]])) == pytest.approx([math.log(3 / 2)])
    assert kl_divergence(f32([[0, 0, 0]]), f32([[0, 0, -inf]])) == [inf]
    assert np.isnan(kl_divergence(f32([[0, math.nan]]), f32([[0, 0]]))).all()


def test_log_softmax() -> None:
    assert log_softmax(np.asarray([[1000.0, 1000.0 + LN3]])) == pytest.approx(np.log([[0.25, 0.75]]))


def test_tally() -> None:
    """Prompt of ids 1, 0, 1 over two tokens, then two greedy steps; in uneven portions."""
    reference = f32([[0, 0], [0, 0], [0, 1], [2, 0], [0, 3]])
    candidate = f32([[0, 0], [1, 0], [0, 2], [5, 0], [4, 3]])
    tally = EndTally("p", [1, 0, 1])
    for start, end in ((0, 2), (2, 3), (3, 5), (5, 5)):
        tally.take(reference[start:end], candidate[start:end])
    end = tally.result()
    divergence = [kl_divergence(reference[i : i + 1], candidate[i : i + 1])[0] for i in range(3)]
    assert (end.num_tokens, end.greedy_tokens) == (3, 3)
    assert end.kl_mean == pytest.approx(sum(divergence) / 3) and end.kl_max == max(divergence)
    assert end.top1_agreement == 1.0  # of two equal logits the lower id is taken, on both sides
    assert end.greedy_divergence == 2  # the last greedy token alone: 1 against 0
    # The prompt's second and third token: 1/2 · 1/2, and σ(1) · (1 − σ(1)) … by hand: P(0 | equal) = 1/2, P(1 | equal) = 1/2.
    assert end.perplexity_reference == pytest.approx(2.0)
    # 1/2, then P(1 | [1, 0]) = 1 / (1 + e).
    assert end.perplexity_candidate == pytest.approx(math.sqrt(2 * (1 + math.e)))
    assert end.max_abs == 4.0
    assert not tally.constant


def test_tally_of_one_token_and_of_a_dead_model() -> None:
    tally = EndTally("p", [1])
    tally.take(f32([[7, 7]]), f32([[0, 1]]))
    end = tally.result()
    assert tally.constant
    assert (end.num_tokens, end.greedy_divergence, end.greedy_tokens) == (1, 0, 1)
    assert math.isnan(end.perplexity_reference)
