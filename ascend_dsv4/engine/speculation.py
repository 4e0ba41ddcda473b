# SPDX-License-Identifier: Apache-2.0
"""Speculation as the engine sees it: who gets drafts, and what became of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ascend_dsv4.engine.request import Request
from ascend_dsv4.engine.stats import EngineStats
from ascend_dsv4.kv_cache.manager import CacheManager
from ascend_dsv4.runner.batch import StepRequest
from ascend_dsv4.runner.runner import Forward
from ascend_dsv4.runner.sampler import uniforms
from ascend_dsv4.spec_decode.drafter import Committed, Drafter, Draw, Wanted
from ascend_dsv4.spec_decode.pace import Pace
from ascend_dsv4.spec_decode.verify import accept_by_rejection, accept_equal, distribution


class Speculation:
    """Drafts of all requests of an engine."""

    def __init__(self, drafter: Drafter, num_drafts: int, stats: EngineStats) -> None:
        self._drafter = drafter
        self._num_drafts = num_drafts
        self._stats = stats

    def observe(
        self, forward: Forward, plan: Sequence[tuple[Request, StepRequest]], counts: Sequence[int], manager: CacheManager
    ) -> None:
        """Tell the drafter which rows of a step are final: the first `counts[i]` of the i-th request."""
        rows = []
        first_row = 0
        for (request, step), count in zip(plan, counts, strict=True):
            if _may_draft(request) and not request.is_finished:
                rows.append(Committed(request, first_row, step.start, count))
            first_row += len(step.token_ids)
        self._drafter.observe(forward, rows, manager)

    def propose(self, requests: Sequence[Request], manager: CacheManager, draw: Draw) -> None:
        """Draft for those of the requests, each with a new token, that are to have drafts."""
        drafting, wanted = [], []
        for request in requests:
            request.draft = None
            num_output = len(request.output_ids)
            count = min(self._num_drafts, request.max_tokens - num_output - 1)  # the model's own token comes on top
            if count > 0 and _may_draft(request) and not request.is_finished:
                if request.pace is None:
                    request.pace = Pace(self._drafter.cost)
                if request.pace.allows(num_output):
                    drafting.append(request)
                    wanted.append(Wanted(request, count))
        if wanted:
            for request, draft in zip(drafting, self._drafter.propose(wanted, manager, draw), strict=True):
                request.draft = draft if draft.ids else None

    def record(self, request: Request, num_drafted: int, num_accepted: int) -> None:
        """What became of the drafts of a step, whose tokens the request has."""
        assert request.pace is not None
        request.pace.record(num_drafted, num_accepted, len(request.output_ids))
        self._stats.num_drafts += 1
        self._stats.num_draft_tokens += num_drafted
        self._stats.num_accepted_tokens += num_accepted
        for position in range(num_accepted):
            self._stats.num_accepted_at[position] += 1

    def forget(self, request: Request) -> None:
        """The request has ended."""
        request.draft = None
        self._drafter.forget(request.request_id)


def accepted(request: Request, num_drafts: int, drawn: Sequence[int], logits: np.ndarray | None) -> list[int]:
    """The tokens that a step has brought a request: accepted drafts and one more.

    drawn    the model's draw in each of the num_drafts + 1 rows, taking the drafts before it for granted; -1 for a row that is
             no distribution, where the list ends
    logits   of those rows, as they are drawn from; needed for drafts with distributions only
    """
    if request.draft is None or num_drafts == 0:
        return list(drawn[:1])
    ids, probs = request.draft.ids[:num_drafts], request.draft.probs
    if probs is None or logits is None or request.params.temperature == 0:
        return accept_equal(ids, drawn)
    sound = drawn.index(-1) if -1 in drawn else num_drafts
    model = np.stack([distribution(row, request.params) for row in logits[:sound]]) if sound else np.zeros((0, 0))
    numbers = np.stack([uniforms(request.seed, request.num_tokens + j) for j in range(num_drafts)])
    return accept_by_rejection(ids[:sound], probs, model, numbers, drawn[sound])


def _may_draft(request: Request) -> bool:
    """A grammar cannot take tokens back, so its request is drafted for as little as one that draws nothing."""
    return request.max_tokens > 0 and request.constraint is None
