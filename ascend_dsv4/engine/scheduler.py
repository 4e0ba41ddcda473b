# SPDX-License-Identifier: Apache-2.0
"""Which tokens the next step processes, and who makes room when the caches are full."""

from __future__ import annotations

from collections import deque

from ascend_dsv4.engine.request import Request
from ascend_dsv4.engine.stats import EngineStats
from ascend_dsv4.kv_cache.manager import CacheManager
from ascend_dsv4.runner.batch import StepRequest

PREFILL_SHARE = 4
"""Decodes leave one token in this many of a step's budget to prefills, so that neither can starve the other."""
MAX_SCORED_TOKENS = 128
RUNNING_PER_SPARE = 4
"""Running requests for which one block is kept free when another is admitted: they need a new one every block_size steps."""


def _is_prefill(request: Request) -> bool:
    return request.num_tokens - request.num_computed > 1


def _prefill_count(request: Request, budget: int) -> int:
    """Tokens of a prefill that fit into a step."""
    # A row of logits is as wide as the vocabulary: requests that want one per token get them in smaller steps.
    limit = MAX_SCORED_TOKENS if request.is_scored else budget
    # Drafts that survived a preemption and must be verified whole follow the last token in a step of its own.
    left = request.num_tokens - request.num_computed - (1 if request.num_whole_drafts else 0)
    return min(left, budget, limit, request.chunk_size or budget)


def _share_decodes(decodes: list[Request], room: int) -> dict[Request, int]:
    """Rows of these decodes, in this order: one each and drafts that must not be shortened; then other drafts."""
    counts: dict[Request, int] = {}
    for request in decodes:
        count = 1 + request.num_whole_drafts
        if count > room:
            break
        counts[request] = count
        room -= count
    for request in counts:
        if request.draft is not None and not request.num_whole_drafts:
            count = min(len(request.draft.ids), room)
            counts[request] += count
            room -= count
    return counts


class Scheduler:
    """First come, first served. A request is admitted when there is room for the tokens it has. If it later needs a block and
    none is free, the youngest request is preempted: it gives everything back, waits first in the queue, and recomputes its
    tokens. The oldest one always finds room, because a sequence of max_model_len fits whole."""

    def __init__(self, manager: CacheManager, max_num_seqs: int, max_num_batched_tokens: int, stats: EngineStats) -> None:
        self.manager = manager
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        """In order of arrival."""
        self._stats = stats
        self._num_steps = 0

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def schedule(self) -> list[tuple[Request, StepRequest]]:
        """The next step; empty if no request is left, or if the ones chosen had to make room for older ones."""
        self._admit()
        self._num_steps += 1
        counts = self._share_budget()
        step = []
        num_seen = 0
        while num_seen < len(self.running):  # which becomes shorter when the last ones are preempted
            request = self.running[num_seen]
            num_seen += 1
            start = request.num_computed
            end = start + counts.get(request, 0)
            may_shorten = end > request.num_tokens and not request.num_whole_drafts
            if may_shorten and not self.manager.can_grow(request.request_id, end):
                end = request.num_tokens  # nobody is preempted for a guess
            if end == start or not self._make_room(request, end):
                continue
            self.manager.begin_step(request.request_id, start, end)
            request.last_step = self._num_steps
            step.append((request, self.chunk(request, start, end)))
        return step

    def chunk(self, request: Request, start: int, end: int) -> StepRequest:
        """Positions start … end − 1 of a request, those beyond its tokens taken out of its draft."""
        num_drafts = max(end - request.num_tokens, 0)
        drafts = request.draft.ids[:num_drafts] if request.draft is not None else ()
        return StepRequest(
            request.request_id,
            start,
            [*request.tokens(start, end), *drafts],
            request.logits_from,
            num_drafts=num_drafts,
            history=request.tokens(max(0, start - self.manager.plan.history), start),
            images=request.images,
        )

    def commit(self, request: Request, num_tokens: int) -> None:
        """`num_tokens` more tokens of the request are in the caches."""
        request.num_computed += num_tokens
        self.manager.commit(request.request_id, request.num_computed)
        if request.is_finished:
            self.remove(request)

    def remove(self, request: Request) -> None:
        """Take a request out of the queue, or out of the batch with everything it holds."""
        if request in self.running:
            self.running.remove(request)
            self.manager.free(request.request_id)
        elif request in self.waiting:
            self.waiting.remove(request)

    def _share_budget(self) -> dict[Request, int]:
        """Rows of the step by request. Decodes come first, those served least recently before others, then prefills in
        order of arrival."""
        budget = room = self.max_num_batched_tokens
        prefills = [request for request in self.running if _is_prefill(request)]
        decodes = sorted((request for request in self.running if not _is_prefill(request)), key=lambda r: r.last_step)
        if prefills:
            kept = min(budget // PREFILL_SHARE, sum(_prefill_count(request, budget) for request in prefills))
            if budget < PREFILL_SHARE and len(decodes) >= budget and prefills[0].last_step <= decodes[0].last_step:
                kept = 1  # too few to share: take turns
            room -= kept
        counts = _share_decodes(decodes, room)
        budget -= sum(counts.values())
        for request in prefills:
            if budget > 0:
                counts[request] = _prefill_count(request, budget)
                budget -= counts[request]
        return counts

    def _make_room(self, request: Request, num_tokens: int) -> bool:
        """Preempt younger requests until there are blocks for `num_tokens` of this one; it may have to go itself."""
        while not self.manager.can_grow(request.request_id, num_tokens):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self.manager.free(request.request_id)
        self._stats.num_preemptions += 1
        self._stats.num_dropped_tokens += request.num_computed
        request.num_computed = 0
        self.waiting.appendleft(request)

    def _admit(self) -> None:
        """Take on waiting requests. Some blocks stay in reserve for those that run, or newcomers would soon be preempted."""
        while self.waiting and len(self.running) < self.max_num_seqs:
            request = self.waiting[0]
            if not self.manager.can_admit(request.num_tokens, spare_blocks=-(-len(self.running) // RUNNING_PER_SPARE)):
                return
            self.manager.admit(request.request_id, request.num_tokens)
            request.last_step = self._num_steps  # or those that come and go would always be served before the others
            self.running.append(self.waiting.popleft())
