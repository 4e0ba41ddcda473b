# SPDX-License-Identifier: Apache-2.0
"""Drafters that know the future, and what can be seen in the caches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ascend_dsv4 import LLM, SamplingParams
from ascend_dsv4.config.layers import compressor_roles
from ascend_dsv4.engine.engine import Engine
from ascend_dsv4.engine.request import Request
from ascend_dsv4.kv_cache.manager import CacheManager
from ascend_dsv4.runner.runner import Forward
from ascend_dsv4.spec_decode.draft import Draft
from ascend_dsv4.spec_decode.drafter import Committed, DraftRequest, Draw, Wanted


class ScriptedDrafter:
    """Drafts what will come, but for one position: `wrong_at(number of the round)` tells which, a large number for none."""

    cost = 0.0

    def __init__(self, wrong_at: Callable[[int], int], vocab_size: int) -> None:
        self._wrong_at = wrong_at
        self._vocab_size = vocab_size
        self.texts: dict[int, list[int]] = {}
        """By request id: prompt and the whole output to come."""
        self.rounds: dict[int, int] = {}
        self.observed: dict[int, int] = {}
        """By request id: final tokens."""
        self.forgotten: list[int] = []

    def observe(self, forward: Forward, rows: Sequence[Committed], manager: CacheManager) -> None:
        for one in rows:
            number = one.request.request_id
            assert one.start in (self.observed.get(number, 0), 0), "positions become final in order, or again after preemption"
            assert one.count > 0
            self.observed[number] = one.end
            assert one.request.num_tokens > one.end, "the token after a final one is known"

    def propose(self, wanted: Sequence[Wanted], manager: CacheManager, draw: Draw) -> list[Draft]:
        return [self._draft(one.request, one.num_drafts) for one in wanted]

    def forget(self, request_id: int) -> None:
        self.forgotten.append(request_id)

    def _draft(self, request: DraftRequest, count: int) -> Draft:
        number = request.request_id
        assert self.observed[number] == request.num_tokens - 1
        ids = self.texts[number][request.num_tokens : request.num_tokens + count]
        at = self._wrong_at(self.rounds.get(number, 0))
        self.rounds[number] = self.rounds.get(number, 0) + 1
        if at < len(ids):
            ids[at] = (ids[at] + 1) % self._vocab_size
        return Draft(tuple(ids))


def scripted(llm: LLM, wrong_at: Callable[[int], int]) -> tuple[Engine, ScriptedDrafter]:
    """An engine on the same weights and caches whose drafts are scripted."""
    drafter = ScriptedDrafter(wrong_at, llm.config.vocab_size)
    return Engine(llm.config, llm.engine_config, llm.runner, drafter=drafter), drafter


def submit(
    engine: Engine, drafter: ScriptedDrafter, prompt: Sequence[int], params: SamplingParams, output: Sequence[int]
) -> Request:
    request = engine.submit(prompt, params)
    drafter.texts[request.request_id] = [*prompt, *output]
    return request


def num_rounds(max_tokens: int, num_drafts: int, wrong_at: Callable[[int], int]) -> int:
    """Forward passes that an undisturbed request takes, its whole prompt being the first."""
    done, rounds = 1, 0
    while done < max_tokens:
        drafted = min(num_drafts, max_tokens - done - 1)
        done += min(drafted, wrong_at(rounds)) + 1
        rounds += 1
    return rounds + 1


def visible(llm: LLM, manager: CacheManager, request_id: int, num_tokens: int) -> dict[str, np.ndarray]:
    """All cache rows that the tokens after `num_tokens` can still see, read through the block tables.

    State rows are those of open entries and, where windows overlap, of the last closed one, by position.
    """
    plan, blocks = manager.plan, manager.requests[request_id]
    window = np.arange(max(num_tokens - plan.window + 1, 0), num_tokens)
    found = {}
    for i, caches in enumerate(plan.layers):
        for cache in caches:
            rows = llm.backend.to_host(llm.runner.caches[i][cache.name])
            rows = rows.reshape(-1, *rows.shape[2:])
            ratio = llm.config.compress_ratios[i]
            if cache.group == "window":
                slots = manager.window_slots(request_id, window)
            elif cache.group == "state":
                first = max(num_tokens // ratio - (compressor_roles(ratio) - 1), 0) * ratio
                positions = np.arange(first, num_tokens)
                slots = blocks.state_slot * cache.block_rows + positions % cache.block_rows
            else:
                entries = np.arange(num_tokens // ratio)
                slots = blocks.tables[ratio][entries // cache.block_rows] * cache.block_rows + entries % cache.block_rows
            found[f"{i}.{cache.name}"] = rows[slots].copy()
    return found
