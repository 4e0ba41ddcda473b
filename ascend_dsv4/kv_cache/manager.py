# SPDX-License-Identifier: Apache-2.0
"""Block tables of the running requests, and the slots where a step writes.

A request takes blocks for its known tokens and its state slot when it is admitted, further compressed blocks as it grows, and
its window blocks step by step; a window block goes back once its last row can no longer be seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ascend_dsv4.kv_cache.block_pool import BlockPool
from ascend_dsv4.kv_cache.layout import CachePlan


@dataclass(slots=True)
class RequestBlocks:
    """What one request holds."""

    tables: dict[int, np.ndarray]
    """By ratio: block ids in order of tokens."""
    state_slot: int
    window: dict[int, int] = field(default_factory=dict)
    """Index of the block in the sequence → block id, for live blocks."""


class CacheManager:
    """Owner of all blocks. Requests are named by an integer id."""

    def __init__(self, plan: CachePlan) -> None:
        self.plan = plan
        self.pools = {group: BlockPool(group, count) for group, count in plan.num_blocks.items()}
        self.requests: dict[int, RequestBlocks] = {}

    def can_admit(self, num_tokens: int, spare_blocks: int = 0) -> bool:
        """Whether a request of `num_tokens` can be taken on now, with `spare_blocks` of every group left to those that run."""
        blocks = self._num_blocks(num_tokens) + spare_blocks
        fits = all(self.pools[f"cmp{ratio}"].num_free >= blocks for ratio in self.plan.ratios)
        return fits and self.pools["state"].num_free > 0

    def admit(self, request_id: int, num_tokens: int) -> None:
        """Take on a request, with room for `num_tokens`. Raises CapacityError if it does not fit."""
        blocks = self._num_blocks(num_tokens)
        tables = {}
        for ratio in self.plan.ratios:
            tables[ratio] = np.asarray(self.pools[f"cmp{ratio}"].allocate(blocks), dtype=np.int32)
        self.requests[request_id] = RequestBlocks(tables, self.pools["state"].allocate(1)[0])

    def can_grow(self, request_id: int, num_tokens: int) -> bool:
        """Whether there are blocks for the request to have `num_tokens`."""
        missing = self._missing(request_id, num_tokens)
        return all(self.pools[f"cmp{ratio}"].num_free >= count for ratio, count in missing.items())

    def begin_step(self, request_id: int, start: int, end: int) -> None:
        """Make room for positions start … end − 1. Raises CapacityError if there is none (see `can_grow`)."""
        blocks, size = self.requests[request_id], self.plan.window_block_size
        for ratio, count in self._missing(request_id, end).items():
            if count:
                grown = np.asarray(self.pools[f"cmp{ratio}"].allocate(count), dtype=np.int32)
                blocks.tables[ratio] = np.concatenate([blocks.tables[ratio], grown])
        if not self.plan.window:
            return
        new = [index for index in range(start // size, -(-end // size)) if index not in blocks.window]
        blocks.window.update(zip(new, self.pools["window"].allocate(len(new)), strict=True))

    def commit(self, request_id: int, num_tokens: int) -> None:
        """The request now has `num_tokens` tokens in its caches: return window blocks that no later query sees."""
        held, size = self.requests[request_id].window, self.plan.window_block_size
        first_visible = num_tokens - self.plan.window + 1
        past = [index for index in held if (index + 1) * size <= first_visible]
        if not past:
            return
        self.pools["window"].free([held.pop(index) for index in past])

    def free(self, request_id: int) -> None:
        """Return everything the request holds."""
        blocks = self.requests.pop(request_id)
        for ratio, table in blocks.tables.items():
            self.pools[f"cmp{ratio}"].free(table.tolist())
        self.pools["state"].free([blocks.state_slot])
        if blocks.window:
            self.pools["window"].free(list(blocks.window.values()))

    def window_slots(self, request_id: int, positions: np.ndarray) -> np.ndarray:
        """Slots of these positions in window caches, int32."""
        held, size = self.requests[request_id].window, self.plan.window_block_size
        blocks = np.asarray([held[index] for index in (positions // size).tolist()], dtype=np.int32)
        return np.asarray(blocks * size + positions % size, dtype=np.int32)

    def entry_slots(self, request_id: int, positions: np.ndarray, ratio: int) -> np.ndarray:
        """Slot of the entry that each position closes, -1 where it closes none. int32."""
        rows = self.plan.block_size // ratio
        entries = positions // ratio
        blocks = self.requests[request_id].tables[ratio][positions // self.plan.block_size]
        return np.where((positions + 1) % ratio == 0, blocks * rows + entries % rows, -1).astype(np.int32)

    def window_table(self, request_id: int) -> np.ndarray:
        """Row of the window block table: block index mod columns → block id, -1 where none is live."""
        row = np.full(self.plan.table_columns["window"], -1, dtype=np.int32)
        for index, block in self.requests[request_id].window.items():
            row[index % len(row)] = block
        return row

    def entry_table(self, request_id: int, ratio: int) -> np.ndarray:
        """Row of the block table of a compressed group, -1 past its end."""
        row = np.full(self.plan.table_columns[f"cmp{ratio}"], -1, dtype=np.int32)
        table = self.requests[request_id].tables[ratio]
        row[: len(table)] = table
        return row

    def state_slot(self, request_id: int) -> int:
        """The request's slot in state caches."""
        return self.requests[request_id].state_slot

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.plan.block_size)

    def _missing(self, request_id: int, num_tokens: int) -> dict[int, int]:
        """By ratio: blocks the request lacks to have `num_tokens`."""
        wanted = self._num_blocks(num_tokens)
        return {ratio: max(wanted - len(table), 0) for ratio, table in self.requests[request_id].tables.items()}
