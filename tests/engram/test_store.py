# SPDX-License-Identifier: Apache-2.0
"""The store: ids of chunks, rows ahead of time, and what happens when nobody asked, nobody takes, or a read fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ascend_dsv4.engram.hashing import ABSENT, DEAD, EngramHash, look_back
from ascend_dsv4.engram.store import CheckpointTable, EngramStore, EngramTier, HostTable, PreadFile
from ascend_dsv4.engram.table_file import TableHeader, TableWriter
from ascend_dsv4.errors import CheckpointError, ConfigError, RequestError
from ascend_dsv4.model.checkpoint import Checkpoint

HASH = EngramHash.make(layer_ids=(1, 4), max_ngram_size=3, num_heads=2, vocab_size=40, num_compressed=50, pad=2)
TOKEN_MAP = (np.arange(80, dtype=np.int32) * 7) % 50
START = np.full(2, ABSENT, dtype=np.int32)


def tables() -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(7)
    return [rng.integers(0, 256, (count, 33)).astype(np.uint8) for count in HASH.num_rows]


def ids_of(*tokens: int) -> NDArray[np.int64]:
    return HASH.row_ids(np.array(tokens, dtype=np.int32), START)


def expected(ids: NDArray[np.int64]) -> NDArray[np.uint8]:
    return np.stack([table[ids[:, i]] for i, table in enumerate(tables())], axis=1)


class Gated(HostTable):
    """Reads only while its gate is open, and fails when told to."""

    def __init__(self, rows: NDArray[np.uint8]) -> None:
        super().__init__(rows, "fp8", 32)
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Semaphore(0)
        self.error: CheckpointError | None = None
        self.reads = 0

    def _gather(self, ids: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        self.reads += 1
        self.started.release()
        assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        super()._gather(ids, out)


@pytest.fixture
def gated() -> list[Gated]:
    return [Gated(table) for table in tables()]


@pytest.fixture
def store(gated: list[Gated]) -> Iterator[EngramStore]:
    with EngramStore(gated, HASH, TOKEN_MAP, max_pending=3) as made:
        yield made
        for table in gated:
            table.gate.set()


class TestIds:
    def test_tokens_are_compressed(self, store: EngramStore) -> None:
        tokens = np.array([70, 3, 12], dtype=np.int32)
        assert np.array_equal(store.ids_for(tokens, START), HASH.row_ids(TOKEN_MAP[tokens], START))

    def test_history_and_images(self, store: EngramStore) -> None:
        tokens, image = np.array([70, 3, 12, 9, 33], dtype=np.int32), np.array([0, 0, 1, 0, 0], dtype=np.bool_)
        whole = store.ids_for(tokens, START, image)
        compressed = np.where(image, DEAD, TOKEN_MAP[tokens]).astype(np.int32)
        assert np.array_equal(whole, HASH.row_ids(compressed, START))
        for cut in range(6):
            history = look_back(tokens.tolist(), cut, 2, image.tolist())
            assert np.array_equal(store.ids_for(tokens[cut:], history, image[cut:]), whole[cut:])

    def test_other_vocabularies(self, store: EngramStore) -> None:
        with pytest.raises(RequestError, match="token 80: not in the vocabulary of 80 tokens"):
            store.ids_for(np.array([1, 80], dtype=np.int32), START)


class TestPrefetch:
    def test_rows(self, store: EngramStore) -> None:
        for ids in (ids_of(5, 6, 7), ids_of(1), ids_of()):
            assert np.array_equal(store.rows(ids), expected(ids))
            assert np.array_equal(store.take("nobody", ids), expected(ids))
            store.prefetch("a", ids)
            assert np.array_equal(store.take("a", ids), expected(ids))
        assert store.metrics.taken_unasked == 6
        assert store.metrics.taken_ready + store.metrics.taken_late == 6

    def test_fetches_in_the_background(self, store: EngramStore, gated: list[Gated]) -> None:
        ids = ids_of(5, 6, 7)
        gated[1].gate.clear()
        store.prefetch("a", ids)
        assert np.array_equal(store.take_layer("a", ids, 0), expected(ids)[:, 0]), "while the other layer is under way"
        results: list[Any] = []
        taker = threading.Thread(target=lambda: results.append(store.take_layer("a", ids, 1)))
        taker.start()
        assert gated[1].started.acquire(timeout=10)
        taker.join(0.05)
        assert taker.is_alive()
        gated[1].gate.set()
        taker.join(10)
        assert np.array_equal(results[0], expected(ids)[:, 1])
        assert [table.reads for table in gated] == [1, 1]
        assert store.metrics.taken_late >= 1
        assert store.metrics.wait_seconds > 0.04
        assert not store._pending

    def test_other_ids_are_read_on_the_spot(self, store: EngramStore) -> None:
        store.prefetch("a", ids_of(1, 2, 3))
        assert np.array_equal(store.take("a", ids_of(1, 2, 4)), expected(ids_of(1, 2, 4)))
        assert (store.metrics.taken_unasked, store.metrics.dropped) == (2, 1)
        assert not store._pending

    def test_the_ids_may_be_reused(self, store: EngramStore, gated: list[Gated]) -> None:
        gated[0].gate.clear()
        ids = ids_of(1, 2, 3)
        store.prefetch("a", ids)
        kept = ids.copy()
        ids[:] = 0
        gated[0].gate.set()
        assert np.array_equal(store.take("a", kept), expected(kept))
        assert store.metrics.taken_unasked == 0

    def test_taken_twice(self, store: EngramStore) -> None:
        ids = ids_of(1, 2)
        store.prefetch("a", ids)
        for _ in range(2):
            assert np.array_equal(store.take("a", ids), expected(ids))
        store.prefetch("b", ids)
        for _ in range(2):
            assert np.array_equal(store.take_layer("b", ids, 0), expected(ids)[:, 0])

    def test_the_oldest_go_first(self, store: EngramStore, gated: list[Gated]) -> None:
        for key in range(5):
            store.prefetch(key, ids_of(key, key))
        assert list(store._pending) == [2, 3, 4]
        assert store.metrics.dropped == 2
        for key in range(5):
            assert np.array_equal(store.take(key, ids_of(key, key)), expected(ids_of(key, key)))

    def test_dropped_ones_are_not_read(self, store: EngramStore, gated: list[Gated]) -> None:
        for table in gated:
            table.gate.clear()
        for key in ("a", "b", "c"):
            store.prefetch(key, ids_of(1))
        for table in gated:
            assert table.started.acquire(timeout=10)
        for key in ("b", "c", "unknown"):
            store.drop(key)
        for table in gated:
            table.gate.set()
        assert np.array_equal(store.take("a", ids_of(1)), expected(ids_of(1)))
        store._pool.shutdown()
        assert [table.reads for table in gated] == [1, 1]

    def test_memory_is_bounded(self, gated: list[Gated]) -> None:
        ids = ids_of(1, 2, 3)
        with EngramStore(gated, HASH, TOKEN_MAP, max_pending_bytes=ids.size * 33 * 2) as store:
            store.prefetch("large", np.concatenate([ids] * 3))
            assert not store._pending
            for key in range(3):
                store.prefetch(key, ids)
            assert list(store._pending) == [1, 2]
            assert np.array_equal(store.take(0, ids), expected(ids))

    def test_a_drop_while_somebody_waits(self, store: EngramStore, gated: list[Gated]) -> None:
        """The waiting thread reads on its own; it never sees memory that nobody filled."""
        ids = ids_of(3, 1, 4)
        for table in gated:
            table.gate.clear()
        for key in ("x", "a"):  # "x" occupies both threads, so "a" is queued
            store.prefetch(key, ids)
        results: list[Any] = []
        taker = threading.Thread(target=lambda: results.append(store.take_layer("a", ids, 0)))
        taker.start()
        taker.join(0.05)
        store.drop("a")
        for table in gated:
            table.gate.set()
        taker.join(10)
        assert np.array_equal(results[0], expected(ids)[:, 0])
        assert store.metrics.taken_unasked == 1

    def test_many_threads(self, store: EngramStore) -> None:
        wrong = []

        def work(number: int) -> None:
            rng = np.random.default_rng(number)
            for i in range(50):
                ids = ids_of(*rng.integers(0, 50, 4).tolist())
                store.prefetch((number, i), ids)
                if not np.array_equal(store.take((number, i), ids), expected(ids)):
                    wrong.append((number, i))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not wrong
        assert not store._pending


class TestErrors:
    def test_a_failed_fetch_is_raised_where_it_is_taken(self, store: EngramStore, gated: list[Gated]) -> None:
        ids = ids_of(1, 2)
        gated[1].error = CheckpointError("some file: block 3 is damaged")
        store.prefetch("a", ids)
        with pytest.raises(CheckpointError, match="some file: block 3 is damaged"):
            store.take("a", ids)
        gated[1].error = None
        assert np.array_equal(store.take("a", ids), expected(ids))

    def test_a_damaged_file(self, tmp_path: Path) -> None:
        paths = []
        for i, table in enumerate(tables()):
            paths.append(tmp_path / f"layer{i}")
            with TableWriter(paths[-1], TableHeader.make(layer=i, num_rows=len(table), head_dim=32, format="fp8")) as writer:
                writer.append(table)
        with paths[1].open("r+b") as file:
            file.seek(4096 + 50)
            file.write(b"\0\1\2\3")
        ids = ids_of(1, 2, 3)
        with EngramStore([PreadFile(path) for path in paths], HASH, TOKEN_MAP) as store:
            store.prefetch("a", ids)
            assert np.array_equal(store.take_layer("a", ids, 0), expected(ids)[:, 0])
            with pytest.raises(CheckpointError, match=r"layer1: block \d \(rows .*is damaged"):
                store.take("a", ids)

    def test_tables_of_another_size(self) -> None:
        first, second = tables()
        good = HostTable(first, "fp8", 32)
        for wrong, message in (
            ([good, HostTable(second[1:], "fp8", 32)], "expected .* for layer 4"),
            ([HostTable(second, "fp8", 32), good], "for layer 1"),
            ([good, HostTable(second, "int8", 32)], "rows of 32 channels in int8, expected 32 in fp8"),
        ):
            with pytest.raises(CheckpointError, match=message):
                EngramStore(wrong, HASH, TOKEN_MAP)
        with pytest.raises(ConfigError, match="1 tables, expected 2"):
            EngramStore([good], HASH, TOKEN_MAP)

    def test_another_tokenizer(self, gated: list[Gated]) -> None:
        with pytest.raises(ConfigError, match="49 compressed tokens, expected engram_compressed_vocab_size=50"):
            EngramStore(gated, HASH, TOKEN_MAP[TOKEN_MAP < 49])

    def test_closing_ends_what_is_under_way(self, gated: list[Gated]) -> None:
        others = set(threading.enumerate())
        store = EngramStore(gated, HASH, TOKEN_MAP)
        for key in range(20):
            store.prefetch(key, ids_of(key))
        store.close()
        assert not [thread for thread in set(threading.enumerate()) - others if thread.name.startswith("engram-")]


def test_goldens_by_token_ids(golden_v41: Path, golden_engram: dict[str, NDArray[Any]], golden_hash: EngramHash) -> None:
    """From token ids to rows with the golden checkpoint, in chunks, prefetched."""
    checkpoint = Checkpoint.open(golden_v41 / "fp8_fp4")
    tiers: list[EngramTier] = [CheckpointTable(checkpoint, layer) for layer in golden_hash.layer_ids]
    tokens = golden_engram["len130.input_ids"]
    with EngramStore(tiers, golden_hash, golden_engram["token_map"]) as store:
        for start, stop in ((0, 1), (1, 3), (3, 100), (100, 130)):
            ids = store.ids_for(tokens[start:stop], look_back(tokens.tolist(), start, 3))
            assert np.array_equal(ids, golden_engram["len130.hash_ids"][start:stop])
            store.prefetch(0, ids)
            rows = store.take(0, ids)
            for i, layer in enumerate(golden_hash.layer_ids):
                codes = checkpoint.array(f"layers.{layer}.engram.embed.weight")
                assert np.array_equal(rows[:, i, :, :32], codes[ids[:, i]])
