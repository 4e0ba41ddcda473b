# SPDX-License-Identifier: Apache-2.0
"""A bounded cache of rows by id: those used longest ago make room. Works on arrays of ids, not on single rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class RowCache:
    """Not thread-safe. `capacity` rows of `row_bytes` bytes; memory is touched as it fills; 0 keeps nothing."""

    def __init__(self, capacity: int, row_bytes: int) -> None:
        self.capacity = capacity
        self._slot_of: dict[int, int] = {}
        self._free = list(range(capacity - 1, -1, -1))  # taken from the end
        self._rows = np.empty((capacity, row_bytes), dtype=np.uint8)
        self._ids = np.full(capacity, -1, dtype=np.int64)  # by slot; -1 in a free one
        self._last_use = np.zeros(capacity, dtype=np.int64)  # by slot, number of the call
        self._clock = 0

    def __len__(self) -> int:
        return len(self._slot_of)

    def get(self, ids: NDArray[np.int64], out: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Copy the rows that are here. ids [n]; out uint8 [n, row_bytes], other rows untouched. Returns [n]: which are."""
        slots = np.fromiter((self._slot_of.get(row, -1) for row in ids.tolist()), dtype=np.int64, count=len(ids))
        found: NDArray[np.bool_] = slots >= 0
        self._clock += 1
        self._last_use[slots[found]] = self._clock
        out[found] = self._rows[slots[found]]
        return found

    def put(self, ids: NDArray[np.int64], rows: NDArray[np.uint8]) -> None:
        """Keep rows. ids [n] distinct; rows uint8 [n, row_bytes]. Of more than `capacity`, the last stay."""
        absent = np.fromiter((row not in self._slot_of for row in ids.tolist()), dtype=np.bool_, count=len(ids))
        chosen = np.flatnonzero(absent)[-self.capacity :] if self.capacity else np.empty(0, dtype=np.int64)
        if not len(chosen):
            return
        if len(self._free) < len(chosen):
            self._evict(len(chosen) - len(self._free))
        slots = self._free[-len(chosen) :]
        del self._free[-len(chosen) :]
        self._clock += 1
        self._rows[slots], self._ids[slots], self._last_use[slots] = rows[chosen], ids[chosen], self._clock
        self._slot_of.update(zip(ids[chosen].tolist(), slots, strict=True))

    def _evict(self, count: int) -> None:
        """Free `count` slots at least; a sixteenth of them all, so that a full cache is not searched on every call."""
        used = np.flatnonzero(self._ids >= 0)
        count = min(len(used), max(count, self.capacity // 16))
        oldest = used[np.argpartition(self._last_use[used], count - 1)[:count]]
        for row in self._ids[oldest].tolist():
            del self._slot_of[row]
        self._ids[oldest] = -1
        self._free.extend(oldest.tolist())
