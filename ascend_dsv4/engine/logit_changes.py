# SPDX-License-Identifier: Apache-2.0
"""Penalties, biases, barred tokens and grammars of a step's requests, as arrays for the operator `adjust_logits`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ascend_dsv4.engine.request import Request
from ascend_dsv4.runner.sampler import LogitChanges


def logit_changes(
    requests: Sequence[Request],
    vocab_size: int,
    ahead: Sequence[Sequence[int]] | None = None,
    barred: int | None = None,
) -> LogitChanges | None:
    """What these requests, one per row of logits, change before the draw; None if nothing.

    ahead    per row, tokens that count as drawn already; none for a request with a constraint, which knows its output only
    barred   an id that no request may draw, whatever else it allows
    """
    if barred is None and all(_is_plain(request) for request in requests):
        return None
    allowed = np.full((len(requests), -(-vocab_size // 32)), -1, np.int32)
    is_masked = [request.constraint is not None and request.constraint.fill(allowed[i]) for i, request in enumerate(requests)]
    if barred is not None:
        allowed[:, barred // 32] &= np.array([~(1 << barred % 32)]).astype(np.int32)
    drawn = [()] * len(requests) if ahead is None else ahead
    pairs = enumerate(zip(requests, drawn, strict=True))
    parts = [(i, *part) for i, (request, ids) in pairs if (part := _of_request(request, ids)) is not None]
    if barred is None and not parts and not any(is_masked):
        return None
    return LogitChanges(
        rows=np.concatenate([np.zeros(0, np.int32), *(np.full(len(ids), i, np.int32) for i, ids, _, _ in parts)]),
        ids=np.concatenate([np.zeros(0, np.int32), *(ids for _, ids, _, _ in parts)]),
        repetition=np.concatenate([np.zeros(0, np.float32), *(repetition for _, _, repetition, _ in parts)]),
        bias=np.concatenate([np.zeros(0, np.float32), *(bias for _, _, _, bias in parts)]),
        allowed=allowed,
    )


def _is_plain(request: Request) -> bool:
    """Whether nothing can change the request's logits, now or later."""
    params = request.params
    penalties = (params.repetition_penalty != 1, params.presence_penalty, params.frequency_penalty)
    return not (any(penalties) or params.logit_bias or params.min_tokens or request.constraint is not None)


def _of_request(request: Request, ahead: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Token ids (ascending), the factor against repetition and the bias of each; None if nothing changes."""
    params = request.params
    counts = request.output_counts + Counter(ahead) if ahead else request.output_counts
    bias = {int(token): float(value) for token, value in params.logit_bias.items()}
    if params.presence_penalty or params.frequency_penalty:
        for token, count in counts.items():
            bias[token] = bias.get(token, 0.0) - params.presence_penalty - params.frequency_penalty * count
    # A grammar that has come to its end allows an end token and nothing else, so it overrides min_tokens.
    if len(request.output_ids) + len(ahead) < params.min_tokens and request.constraint is None:
        bias |= dict.fromkeys(request.end_ids, -np.inf)
    seen = np.zeros(0, np.int32)
    if params.repetition_penalty != 1:
        if request.prompt_set is None:
            request.prompt_set = np.unique(np.asarray(request.prompt_ids, np.int32))
        seen = np.union1d(request.prompt_set, np.fromiter(counts, np.int32))
    if not bias and not len(seen):
        return None
    biased = np.fromiter(sorted(bias), np.int32, len(bias))
    ids = np.union1d(seen, biased).astype(np.int32)
    repetition, biases = np.ones(len(ids), np.float32), np.zeros(len(ids), np.float32)
    repetition[np.searchsorted(ids, seen)] = params.repetition_penalty
    biases[np.searchsorted(ids, biased)] = [bias[token] for token in sorted(bias)]
    return ids, repetition, biases
