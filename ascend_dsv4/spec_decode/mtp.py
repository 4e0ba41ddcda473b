# SPDX-License-Identifier: Apache-2.0
"""Drafts of the checkpoint's multi-token-prediction stage. Further drafts feed the stage its own streams."""

from __future__ import annotations

from collections.abc import Sequence

from ascend_dsv4.backend.base import Tensor
from ascend_dsv4.kv_cache.manager import CacheManager
from ascend_dsv4.runner.batch import StepRequest
from ascend_dsv4.runner.runner import Forward, ModelRunner
from ascend_dsv4.spec_decode.draft import Draft
from ascend_dsv4.spec_decode.drafter import Committed, Draw, Wanted
from ascend_dsv4.spec_decode.pace import ROW_COST


class MtpDrafter:
    """See `drafter.Drafter`. The runner has its MTP stage attached.

    Position t of the stage reads the backbone's streams at t and token t + 1, so it runs over every final position once, which
    writes its window keys there; the last of them drafts. Keys that later drafts leave behind the last final position are
    overwritten before anything final sees them.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self.cost = ROW_COST + 1 / runner.config.num_hidden_layers
        self._runner = runner
        self._logits: Tensor = None
        self._streams: Tensor = None
        self._last_rows: dict[int, tuple[int, int]] = {}
        """By request: rows of `_logits` and `_streams`, which the last `observe` left, at its last position."""

    def observe(self, forward: Forward, rows: Sequence[Committed], manager: CacheManager) -> None:
        """Run the stage over the final positions."""
        self._last_rows = {}
        steps: list[StepRequest] = []
        sources: list[int] = []
        for one in rows:
            follower = one.request.tokens(one.start + 1, one.end + 1)
            has_last = one.end == one.request.num_tokens - 1
            steps.append(StepRequest(one.request.request_id, one.start, follower, one.end - has_last))
            sources += range(one.first_row, one.first_row + one.count)
            if has_last:
                self._last_rows[one.request.request_id] = (len(self._last_rows), len(sources) - 1)
        if steps:
            own = self._runner.run_mtp(steps, self._runner.mtp_input(forward), sources, manager)
            self._logits, self._streams = own.logits, own.streams

    def propose(self, wanted: Sequence[Wanted], manager: CacheManager, draw: Draw) -> list[Draft]:
        """As many drafts as each wants, one step of the stage for each further one."""
        drafts: list[list[int]] = [[] for _ in wanted]
        rows = [self._last_rows[one.request.request_id] for one in wanted]
        going = list(range(len(wanted)))
        logits, streams = self._logits[[row for row, _ in rows]], self._streams
        sources = [row for _, row in rows]
        while going:
            ids = draw(logits, [wanted[i].request for i in going], [drafts[i] for i in going]).tolist()
            kept = []
            for row, (i, token) in enumerate(zip(going, ids, strict=True)):
                if token >= 0:
                    drafts[i].append(token)
                    if len(drafts[i]) < wanted[i].num_drafts and self._make_room(wanted[i], len(drafts[i]), manager):
                        kept.append(row)
            if not kept:
                break
            sources, going = [sources[row] for row in kept], [going[row] for row in kept]
            steps = [self._next_step(wanted[i], drafts[i]) for i in going]
            own = self._runner.run_mtp(steps, streams, sources, manager)
            logits, streams, sources = own.logits, own.streams, list(range(len(going)))
        return [Draft(tuple(ids)) for ids in drafts]

    def forget(self, request_id: int) -> None:
        """What is kept per request lives until the next `observe`."""

    @staticmethod
    def _next_step(one: Wanted, ids: list[int]) -> StepRequest:
        """The position behind the last one the stage has seen, with the draft that follows it."""
        position = one.request.num_tokens - 2 + len(ids)
        return StepRequest(one.request.request_id, position, ids[-1:], position)

    @staticmethod
    def _make_room(one: Wanted, num_drafted: int, manager: CacheManager) -> bool:
        """Take blocks for the stage's next position; False if there are none, and nobody is preempted for a draft."""
        position = one.request.num_tokens - 2 + num_drafted
        has_room = manager.can_grow(one.request.request_id, position + 1)
        if has_room:
            manager.begin_step(one.request.request_id, position, position + 1)
        return has_room
