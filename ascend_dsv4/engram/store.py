# SPDX-License-Identifier: Apache-2.0
"""The Engram tables of a model: ids of rows for a chunk of tokens, and rows fetched while the step before still computes.

    store.prefetch(request, ids)              # as soon as the tokens are known
    …                                         # the device computes
    rows = store.take(request, ids)           # waits for what is not there yet; reads what nobody asked for
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.engram.hashing import DEAD, EngramHash
from ascend_dsv4.engram.tiers import (
    CheckpointTable,
    DeviceTable,
    EngramTier,
    HostTable,
    MappedFile,
    PreadFile,
    TierMetrics,
)
from ascend_dsv4.errors import CheckpointError, ConfigError, RequestError

__all__ = [
    "CheckpointTable",
    "DeviceTable",
    "EngramMetrics",
    "EngramStore",
    "EngramTier",
    "HostTable",
    "MappedFile",
    "PreadFile",
    "TierMetrics",
]

Rows = NDArray[np.uint8]


@dataclass(slots=True)
class EngramMetrics:
    """Counters of a store since it was made. A layer's part of a `take` counts as one.

    taken_ready    prefetched, and there when asked for
    taken_late     prefetched, but waited for
    taken_unasked  never prefetched, or for other ids: read on the spot
    dropped        prefetches that nobody took, or that were refused for want of room
    wait_seconds   time spent in `take`, `take_layer` and `rows`
    tiers          counters of each layer's tier
    """

    taken_ready: int = 0
    taken_late: int = 0
    taken_unasked: int = 0
    dropped: int = 0
    wait_seconds: float = 0.0
    tiers: list[TierMetrics] = field(default_factory=list)


class _Prefetch:
    """Rows on their way: one future per layer, and the memory they fill."""

    def __init__(self, ids: NDArray[np.int64], rows: Rows) -> None:
        self.ids, self.rows = ids, rows  # rows [layers, n, columns, row_bytes]
        self.futures: list[Future[None]] = []
        self.untaken = set(range(len(rows)))


class EngramStore:
    """The tables of one model, in the order of `hash.layer_ids`. Threads may share it. Closes the tiers it was given.

    tables             a tier per Engram layer, all of one `format` and `head_dim`, which the store repeats
    token_map          int32 [vocab_size], see `hashing.compressed_token_map`
    threads            prefetches that run at the same time
    max_pending        prefetches that are kept until taken; the oldest go first
    max_pending_bytes  memory of all of them; one that is larger alone is refused, and read when taken
    raises             ConfigError if the token map does not fit the hash, CheckpointError if a table is of another size
    """

    def __init__(
        self,
        tables: Sequence[EngramTier],
        hash: EngramHash,
        token_map: NDArray[np.int32],
        *,
        threads: int = 2,
        max_pending: int = 64,
        max_pending_bytes: int = 1 << 30,
    ) -> None:
        _check_tables(tables, hash)
        _check_token_map(token_map, hash)
        self.tables, self.hash, self.token_map = tuple(tables), hash, token_map
        self.format, self.head_dim, self.row_bytes = tables[0].format, tables[0].head_dim, tables[0].row_bytes
        self.metrics = EngramMetrics(tiers=[table.metrics for table in tables])
        self._max_pending, self._max_pending_bytes = max_pending, max_pending_bytes
        self._pending: OrderedDict[Hashable, _Prefetch] = OrderedDict()
        self._lock = threading.Lock()  # of _pending and metrics
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="engram-prefetch")

    def ids_for(
        self, token_ids: NDArray[np.int32], history: NDArray[np.int32], is_image: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64]:
        """Rows that a chunk of one sequence reads.

        token_ids  int32 [n]
        history    int32 [max_ngram_size - 1], see `hashing.look_back`
        is_image   [n] non-zero where a token is part of an image; None: text throughout
        returns    int64 [n, layers, columns]
        raises     RequestError for a token outside the vocabulary
        """
        compressed = self._compress(token_ids)
        if is_image is not None:
            compressed[is_image != 0] = DEAD
        return self.hash.row_ids(compressed, self._compress(history))

    def rows(self, ids: NDArray[np.int64]) -> Rows:
        """Read rows now: int64 [n, layers, columns] → uint8 [n, layers, columns, row_bytes]. raises as the tiers.

        A layer's part, [:, layer], is contiguous in memory; the whole is not. `take` returns the same.
        """
        start = time.perf_counter()
        rows = self._empty(ids)
        for layer in range(len(self.tables)):
            self._read_layer(layer, ids, rows[layer])
        with self._lock:
            self.metrics.wait_seconds += time.perf_counter() - start
        return rows.swapaxes(0, 1)

    def prefetch(self, key: Hashable, ids: NDArray[np.int64]) -> None:
        """Begin to fetch rows, without waiting. A second prefetch under the same key replaces the first."""
        self.drop(key)
        num_bytes = ids.size * self.row_bytes
        with self._lock:
            if num_bytes > self._max_pending_bytes or self._max_pending < 1:
                self.metrics.dropped += 1
                return
            waiting = sum(job.rows.nbytes for job in self._pending.values())
            while self._pending and (len(self._pending) >= self._max_pending or waiting + num_bytes > self._max_pending_bytes):
                waiting -= self._cancel(self._pending.popitem(last=False)[1])
            job = _Prefetch(ids.copy(), self._empty(ids))
            job.futures = [self._pool.submit(self._fetch, job, layer) for layer in range(len(self.tables))]
            self._pending[key] = job

    def take(self, key: Hashable, ids: NDArray[np.int64]) -> Rows:
        """Rows of all layers, uint8 [n, layers, columns, row_bytes]: as prefetched under `key`, or read now.

        raises  what went wrong while fetching, a CheckpointError that names the file and the block
        """
        parts = [self.take_layer(key, ids, layer) for layer in range(len(self.tables))]
        owner = parts[0].base
        if owner is not None and all(part.base is owner for part in parts):
            return owner.swapaxes(0, 1)
        return np.stack(parts, axis=1)

    def take_layer(self, key: Hashable, ids: NDArray[np.int64], layer: int) -> Rows:
        """Rows of the layer with that index in `hash.layer_ids`, uint8 [n, columns, row_bytes]. As `take`, but layers that
        come later in the model may still be under way."""
        start = time.perf_counter()
        job = self._claim(key, ids, layer)
        rows: Rows | None = None
        if job is not None:
            kind = "taken_ready" if job.futures[layer].done() else "taken_late"
            try:
                job.futures[layer].result()
                rows = job.rows[layer]
            except CancelledError:  # another thread dropped it meanwhile
                rows = None
            except BaseException:
                self.drop(key)
                raise
        if rows is None:
            kind = "taken_unasked"
            rows = np.empty((len(ids), self.hash.num_columns, self.row_bytes), dtype=np.uint8)
            self._read_layer(layer, ids, rows)
        with self._lock:
            setattr(self.metrics, kind, getattr(self.metrics, kind) + 1)
            self.metrics.wait_seconds += time.perf_counter() - start
        return rows

    def drop(self, key: Hashable) -> None:
        """Forget a prefetch that nobody will take: a finished or preempted request. No-op for an unknown key."""
        with self._lock:
            job = self._pending.pop(key, None)
            if job is not None:
                self._cancel(job)

    def close(self) -> None:
        """Stop fetching and close the tables. Prefetches that are under way end first."""
        with self._lock:
            for job in self._pending.values():
                self._cancel(job)
            self._pending.clear()
        self._pool.shutdown(cancel_futures=True)
        for table in self.tables:
            table.close()

    def __enter__(self) -> EngramStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _claim(self, key: Hashable, ids: NDArray[np.int64], layer: int) -> _Prefetch | None:
        """The prefetch that holds a layer of these ids, or None. One for other ids, or taken before, is forgotten."""
        with self._lock:
            job = self._pending.get(key)
            if job is None:
                return None
            if layer not in job.untaken or not np.array_equal(job.ids, ids):
                self._cancel(self._pending.pop(key))
                return None
            job.untaken.discard(layer)
            if not job.untaken:
                del self._pending[key]
            return job

    def _compress(self, token_ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """Compressed ids; DEAD and ABSENT stay what they are."""
        if len(token_ids) and int(token_ids.max()) >= len(self.token_map):
            raise RequestError(
                f"token {int(token_ids.max())}: not in the vocabulary of {len(self.token_map)} tokens, because Engram rows are "
                "found by it. Send ids of this model's tokenizer."
            )
        return np.where(token_ids < 0, token_ids, self.token_map[np.maximum(token_ids, 0)]).astype(np.int32)

    def _empty(self, ids: NDArray[np.int64]) -> Rows:
        num_tokens, layers, columns = ids.shape
        return np.empty((layers, num_tokens, columns, self.row_bytes), dtype=np.uint8)

    def _read_layer(self, layer: int, ids: NDArray[np.int64], out: Rows) -> None:
        """ids [n, layers, columns] → out [n, columns, row_bytes]."""
        self.tables[layer].read(ids[:, layer].reshape(-1), out.reshape(-1, self.row_bytes))

    def _fetch(self, job: _Prefetch, layer: int) -> None:
        self._read_layer(layer, job.ids, job.rows[layer])

    def _cancel(self, job: _Prefetch) -> int:
        """Under the lock, for a job out of `_pending`. Returns the bytes it held."""
        for future in job.futures:
            future.cancel()  # no effect on one that runs: it ends, and whoever waits for it gets its rows
        self.metrics.dropped += 1
        return job.rows.nbytes


def _check_tables(tables: Sequence[EngramTier], hash: EngramHash) -> None:
    if len(tables) != len(hash.layer_ids) or not tables:
        raise ConfigError(
            f"Engram: {len(tables)} tables, expected {len(hash.layer_ids)} (one per layer of engram_layer_ids). Open one for "
            "each layer."
        )
    for table, layer, num_rows in zip(tables, hash.layer_ids, hash.num_rows, strict=True):
        if table.num_rows != num_rows:
            raise CheckpointError(
                f"{table.name}: a table of {table.num_rows:,} rows, expected {num_rows:,} for layer {layer}, because its hash "
                "columns have that many. Check that table and configuration belong to the same model."
            )
        if (table.format, table.head_dim) != (tables[0].format, tables[0].head_dim):
            raise CheckpointError(
                f"{table.name}: rows of {table.head_dim} channels in {table.format}, expected {tables[0].head_dim} in "
                f"{tables[0].format} as in {tables[0].name}, because the layers share one format. Convert both tables alike."
            )


def _check_token_map(token_map: NDArray[np.int32], hash: EngramHash) -> None:
    found = 1 + int(token_map.max(initial=-1))
    if found != hash.num_compressed:
        raise ConfigError(
            f"tokenizer.json: {found} compressed tokens, expected engram_compressed_vocab_size={hash.num_compressed} (every "
            "hash depends on their number). Use the tokenizer.json of the checkpoint."
        )
