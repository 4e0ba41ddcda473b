# SPDX-License-Identifier: Apache-2.0
"""Which drafted tokens the model accepts. Neither way changes what it would have said.

`accept_equal` compares drafts with the tokens the model draws at their positions, with the random numbers it always uses there:
the output is bit for bit the one without drafts, greedy or not. A draft d is accepted with the model's probability of d.

`accept_by_rejection` is for drafts with a distribution q. A draft is accepted with probability min(1, p(d) / q(d)), else the
token is drawn from max(p - q, 0), normalised, which together is the model's distribution p exactly (Leviathan et al., Chen et
al., both 2023). It accepts sum(min(p, q)), the most any rule can, but the output for a seed is another one than without drafts.

A position has four random numbers (`runner.sampler.uniforms`), which have these uses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ascend_dsv4.runner.sampler import Sampling

TOKEN, ACCEPT, RESIDUAL, DRAFT = range(4)
"""The model's own draw; whether a draft is accepted; the draw after one was not; a drafter's draw from its q."""


def accept_equal(drafts: Sequence[int], drawn: Sequence[int]) -> list[int]:
    """The tokens of a step: drafts up to the first that differs from the model's draw, then that draw.

    drawn   len(drafts) + 1 ids; the last follows all drafts
    """
    count = 0
    while count < len(drafts) and drafts[count] == drawn[count]:
        count += 1
    return list(drawn[: count + 1])


def accept_by_rejection(drafts: Sequence[int], q: np.ndarray, p: np.ndarray, uniforms: np.ndarray, bonus: int) -> list[int]:
    """The tokens of a step: accepted drafts, then a token drawn from what the model has left.

    q, p       float64 [len(drafts), vocab_size], the distributions of drafter and model, as `distribution` makes them
    uniforms   float64 [len(drafts), 4], the random numbers of the drafted positions
    bonus      the model's draw behind the last draft
    """
    tokens: list[int] = []
    for j, token in enumerate(drafts):
        if uniforms[j, ACCEPT] * q[j, token] < p[j, token]:
            tokens.append(token)
            continue
        rest = np.maximum(p[j] - q[j], 0)
        return [*tokens, pick(rest if rest.any() else p[j], uniforms[j, RESIDUAL])]
    return [*tokens, bonus]


def pick(weights: np.ndarray, uniform: float) -> int:
    """The first index whose running sum exceeds uniform · total. float64 [n], none negative, some positive."""
    sums = np.cumsum(weights)
    last = int(np.flatnonzero(weights)[-1])
    return min(int(np.searchsorted(sums, uniform * sums[-1], side="right")), last)


def distribution(logits: np.ndarray, params: Sampling) -> np.ndarray:
    """What the operator `sample` draws from, float64 [vocab_size]; NaN throughout if the row is no distribution.

    logits   [vocab_size], with penalties and biases applied
    """
    wide = logits.astype(np.float64)
    probs = np.zeros(len(wide))
    if not np.isfinite(wide.max()):
        return np.full(len(wide), np.nan)
    if params.temperature == 0:
        probs[wide.argmax()] = 1
        return probs
    wide = wide / np.float32(params.temperature)  # the operator gets float32 parameters
    order = np.argsort(-wide, kind="stable")[: params.top_k or len(wide)]
    ranked = wide[order]
    weights = np.exp(ranked - ranked[0])
    running = np.cumsum(weights)
    kept = (running - weights < np.float32(params.top_p) * running[-1]) & (weights >= np.float32(params.min_p))
    kept[0] = True
    probs[order[kept]] = weights[kept] / weights[kept].sum()
    return probs
