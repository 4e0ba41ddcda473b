# SPDX-License-Identifier: Apache-2.0
"""Drafts from the text itself: what followed the last time these tokens stood there. Needs no weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ascend_dsv4.kv_cache.manager import CacheManager
from ascend_dsv4.runner.runner import Forward
from ascend_dsv4.spec_decode.draft import Draft
from ascend_dsv4.spec_decode.drafter import Committed, DraftRequest, Draw, Wanted
from ascend_dsv4.spec_decode.pace import ROW_COST

MIN_MATCH = 2
MAX_MATCH = 4
"""Tokens at the end of the text that must have stood there before; the longest match counts, then the most recent one."""


class NgramDrafter:
    """Prompt lookup. See `drafter.Drafter`."""

    def __init__(self) -> None:
        self.cost = ROW_COST
        self._texts: dict[int, np.ndarray] = {}
        """Token ids by request, in an array with room to grow."""
        self._lengths: dict[int, int] = {}

    def observe(self, forward: Forward, rows: Sequence[Committed], manager: CacheManager) -> None:
        """Nothing but the tokens matters."""

    def propose(self, wanted: Sequence[Wanted], manager: CacheManager, draw: Draw) -> list[Draft]:
        """What followed the most recent match."""
        return [Draft(tuple(lookup(self._text(one.request), one.num_drafts))) for one in wanted]

    def forget(self, request_id: int) -> None:
        """Drop the text."""
        self._texts.pop(request_id, None)
        self._lengths.pop(request_id, None)

    def _text(self, request: DraftRequest) -> np.ndarray:
        """All tokens of a request; only new ones are copied."""
        known, length = self._lengths.get(request.request_id, 0), request.num_tokens
        text = self._texts.get(request.request_id, np.zeros(0, np.int32))
        if length > len(text):
            text = np.concatenate([text[:known], np.zeros(2 * length - known, np.int32)])
        text[known:length] = request.tokens(known, length)
        self._texts[request.request_id], self._lengths[request.request_id] = text, length
        return text[:length]


def lookup(text: np.ndarray, count: int) -> list[int]:
    """`count` ids that follow the text if it goes on as after the match; none without one. text int32 [num_tokens]."""
    ends = np.arange(len(text) - 1)  # where a match may end
    best = None
    for length in range(1, min(MAX_MATCH, len(text) - 1) + 1):
        ends = ends[ends >= length - 1]
        ends = ends[text[ends - length + 1] == text[-length]]
        if not len(ends):
            break
        best = int(ends[-1]) if length >= MIN_MATCH else None
    if best is None:
        return []
    start = best + 1
    ids: list[int] = text[start : start + count].tolist()
    while len(ids) < count:  # the match reaches the end of the text: what it repeats goes on repeating
        ids.append(ids[start + len(ids) - len(text)])
    return ids
