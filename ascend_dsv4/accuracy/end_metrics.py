# SPDX-License-Identifier: Apache-2.0
"""Two models at the end of the same tokens: divergence of their distributions, agreement, perplexity. Numpy only.

All sums are in float64. The figures grow row by row, so nothing of the size of the vocabulary is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.accuracy.results import EndMetrics

Array = NDArray[Any]


def log_softmax(logits: Array) -> NDArray[np.float64]:
    """Log-probabilities over the last axis in float64."""
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def kl_divergence(reference: Array, candidate: Array) -> NDArray[np.float64]:
    """KL(reference ‖ candidate) of each row of logits, in nats; what the reference bars (-∞) adds nothing.

    ∞ where the candidate bars what the reference does not; NaN for a row that is no distribution.
    """
    p, q = log_softmax(reference), log_softmax(candidate)
    with np.errstate(invalid="ignore"):
        terms = np.where(np.isneginf(p), 0.0, np.exp(p) * (p - q))
    # Rounding may leave a sum of terms that cancel a little below zero.
    divergence: NDArray[np.float64] = np.maximum(terms.sum(-1), 0.0)
    return divergence


class EndTally:
    """Takes the logits of a prompt's tokens and of greedy tokens after it, in order of position, on both sides.

    `take` may be called with any number of rows. The last row of the prompt draws the first greedy token.
    """

    def __init__(self, name: str, prompt: Sequence[int]) -> None:
        self._name = name
        self._prompt = np.asarray(prompt)
        self._count = 0
        self._kl: list[float] = []
        self._top: list[tuple[int, int]] = []
        self._losses: list[tuple[float, float]] = []
        self._max_abs = 0.0
        self.constant = True
        """Whether every row of the reference's logits held a single value."""

    def take(self, reference: Array, candidate: Array) -> None:
        """Rows of logits, float32 [num_rows, vocab_size]."""
        if not len(reference):
            return
        self._kl += kl_divergence(reference, candidate).tolist()
        self._top += zip(reference.argmax(-1).tolist(), candidate.argmax(-1).tolist(), strict=True)
        with np.errstate(invalid="ignore"):
            difference = np.abs(reference.astype(np.float64) - candidate.astype(np.float64))
        self._max_abs = float(np.maximum(self._max_abs, difference.max()))
        self.constant &= bool((reference == reference[:, :1]).all())
        followers = self._prompt[self._count + 1 : self._count + 1 + len(reference)]
        at = (np.arange(len(followers)), followers)
        self._losses += zip((-log_softmax(reference)[at]).tolist(), (-log_softmax(candidate)[at]).tolist(), strict=True)
        self._count += len(reference)

    @property
    def kl(self) -> NDArray[np.float64]:
        """KL(reference ‖ candidate) at each position of the prompt, nats."""
        return np.asarray(self._kl[: len(self._prompt)])

    def result(self) -> EndMetrics:
        """The figures: of the prompt's positions, and how far greedy tokens agree after it.

        The candidate is teacher-forced on the reference's greedy tokens, so its first different choice is exactly where its
        own greedy text would part from the reference's. Perplexities are those of the prompt's tokens but the first; NaN for
        a prompt of one.
        """
        count = len(self._prompt)
        greedy = self._top[count - 1 :]
        losses = np.asarray(self._losses).reshape(-1, 2)
        perplexity = np.exp(losses.mean(0)) if len(losses) else np.full(2, np.nan)
        return EndMetrics(
            name=self._name,
            num_tokens=count,
            kl_mean=float(self.kl.mean()),
            kl_max=float(self.kl.max()),
            top1_agreement=float(np.mean([a == b for a, b in self._top[:count]])),
            greedy_divergence=next((i for i, (a, b) in enumerate(greedy) if a != b), None),
            greedy_tokens=len(greedy),
            perplexity_reference=float(perplexity[0]),
            perplexity_candidate=float(perplexity[1]),
            max_abs=self._max_abs,
        )
