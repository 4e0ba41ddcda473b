# SPDX-License-Identifier: Apache-2.0
"""Which tokens the next step processes: running requests first, then new ones in order of arrival, under a token budget."""

from __future__ import annotations

from collections import deque
from typing import Literal

from ascend_dsv4.engine.request import Request
from ascend_dsv4.kv_cache.manager import CacheManager
from ascend_dsv4.runner.batch import StepRequest


def _logits(request: Request, end: int) -> Literal["none", "last", "all"]:
    """Rows of which a step that ends at this position must return logits."""
    if request.keep_logits:
        return "all"
    return "last" if request.max_tokens and end == request.num_tokens else "none"


def _urgency(request: Request) -> tuple[bool, int]:
    """Decodes before prefills; among decodes the one served least recently, among prefills the first come."""
    is_prefill = request.num_tokens - request.num_computed > 1
    return is_prefill, 0 if is_prefill else request.last_step


class Scheduler:
    """A request is admitted when everything it may ever need is free, so an admitted request always finishes."""

    def __init__(self, manager: CacheManager, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.manager = manager
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._num_steps = 0

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def schedule(self) -> list[tuple[Request, StepRequest]]:
        """The next step. Decodes come first, one token each, so that prefills never stall them; if the budget does not even
        cover those, the ones that waited longest go first."""
        self._admit()
        self._num_steps += 1
        budget = self.max_num_batched_tokens
        step = []
        for request in sorted(self.running, key=_urgency):
            start = request.num_computed
            count = min(request.num_tokens - start, budget, request.chunk_size or budget)
            if count == 0:
                continue
            budget -= count
            request.last_step = self._num_steps
            end = start + count
            self.manager.begin_step(request.request_id, start, end)
            step.append((request, StepRequest(request.request_id, start, request.tokens(start, end), _logits(request, end))))
        return step

    def commit(self, request: Request, num_tokens: int) -> None:
        """`num_tokens` more tokens of the request are in the caches."""
        request.num_computed += num_tokens
        self.manager.commit(request.request_id, request.num_computed)
        if request.is_finished:
            self.running.remove(request)
            self.manager.free(request.request_id)

    def abort(self, request: Request) -> None:
        """Take a request out of the queue, or out of the batch with everything it holds."""
        if not request.is_finished:
            request.finish_reason = "abort"
        if request in self.waiting:
            self.waiting.remove(request)
        elif request in self.running:
            self.running.remove(request)
            self.manager.free(request.request_id)

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.max_num_seqs and self.manager.can_admit(self.waiting[0].max_len):
            request = self.waiting.popleft()
            self.manager.admit(request.request_id, request.max_len)
            self.running.append(request)
