# SPDX-License-Identifier: Apache-2.0
"""Every tier gives the same rows: ids in any order, repeated, none; from several threads; with a cache that is too small."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ascend_dsv4.engram.row_cache import RowCache
from ascend_dsv4.engram.rows import RowFormat
from ascend_dsv4.engram.store import CheckpointTable, EngramTier, HostTable, MappedFile, PreadFile
from ascend_dsv4.engram.table_file import TableHeader, TableWriter
from ascend_dsv4.errors import CapacityError, CheckpointError
from ascend_dsv4.model.checkpoint import Checkpoint

Rows = NDArray[np.uint8]


@pytest.fixture
def path(tmp_path: Path, rows: Rows) -> Path:
    file = tmp_path / "table"
    with TableWriter(file, TableHeader.make(layer=0, num_rows=1000, head_dim=32, format="fp8")) as writer:
        writer.append(rows)
    return file


def shared(path: Path) -> HostTable:
    return HostTable.share(MappedFile(path), f"ascend-dsv4-test-{path.parent.name}-{id(path)}")


TIERS: dict[str, Callable[[Path], EngramTier]] = {
    "host": lambda path: HostTable.copy_of(MappedFile(path)),
    "shared": shared,
    "mapped": MappedFile,
    "pread": PreadFile,
    "pread-no-cache": lambda path: PreadFile(path, cache_rows=0),
    "pread-small-cache": lambda path: PreadFile(path, cache_rows=7, threads=1),
    "pread-many-threads": lambda path: PreadFile(path, cache_rows=200, threads=9),
}


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest, path: Path) -> Iterator[EngramTier]:
    made = TIERS[request.param](path)
    yield made
    made.close()


def read(tier: EngramTier, ids: object) -> Rows:
    wanted = np.array(ids, dtype=np.int64)
    out = np.full((len(wanted), tier.row_bytes), 99, dtype=np.uint8)
    tier.read(wanted, out)
    return out


def test_same_rows(tier: EngramTier, rows: Rows) -> None:
    rng = np.random.default_rng(5)
    assert (tier.num_rows, tier.format, tier.head_dim, tier.row_bytes) == (1000, "fp8", 32, 33)
    selections = [[], [0], [999], [5, 5, 5], [999, 0, 500, 0], range(1000), range(999, -1, -1)]
    selections += [rng.integers(0, 1000, size) for size in (3, 64, 65, 700, 5000)]
    for ids in selections:
        assert np.array_equal(read(tier, ids), rows[np.array(ids, dtype=np.int64)])
    assert tier.metrics.rows_read == sum(len(ids) for ids in selections)


def test_ids_outside_the_table(tier: EngramTier) -> None:
    for ids, shown in (([0, 1000], "row 1,000"), ([-1, 5], "row -1")):
        with pytest.raises(CheckpointError, match=f"{shown} asked for, expected rows from 0 to 999"):
            read(tier, ids)


def test_threads(tier: EngramTier, rows: Rows) -> None:
    def work(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        ids = [rng.integers(0, 1000, 300) for _ in range(20)]
        return all(np.array_equal(read(tier, part), rows[part]) for part in ids)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_pread_reads_each_row_once(path: Path) -> None:
    """Repeated ids, and ids of the last call, cost nothing; rows of one block are read together."""
    tier = PreadFile(path)
    read(tier, [1, 3, 1, 3, 3, 130])
    assert (tier.metrics.disk_rows, tier.metrics.disk_bytes, tier.metrics.cache_hits) == (3, 2 * 4096, 0)
    read(tier, [130, 3, 4])
    assert (tier.metrics.disk_rows, tier.metrics.disk_bytes, tier.metrics.cache_hits) == (4, 3 * 4096, 2)
    assert tier.metrics.rows_read == 9
    tier.close()


def test_a_file_cut_while_open(path: Path) -> None:
    tier = PreadFile(path)
    with path.open("r+b") as file:
        file.truncate(4096 * 3)
    with pytest.raises(CheckpointError, match=r"table: block 8 \(rows from 992\) cannot be read: got 0 of 4096 bytes"):
        read(tier, [0, 999])
    tier.close()


def test_blocks_are_verified_once(path: Path, rows: Rows) -> None:
    """Damage after the first read of a block goes unnoticed, damage before it never does."""
    for tier in (MappedFile(path), PreadFile(path, cache_rows=0)):
        assert np.array_equal(read(tier, [0]), rows[:1])
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(bytes([rows[0, 0] ^ 1]))
        assert read(tier, [0])[0, 0] == rows[0, 0] ^ 1
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(bytes([rows[0, 0]]))
        tier.close()


class TestSharing:
    def test_another_process_reads_it(self, path: Path, rows: Rows) -> None:
        name = f"ascend-dsv4-test-process-{path.parent.name}"
        owner = HostTable.share(MappedFile(path), name)
        code = (
            "import sys, numpy as np; from ascend_dsv4.engram.store import HostTable\n"
            f"t = HostTable.attach({name!r}, 1000, 'fp8', 32); out = np.empty((1000, 33), np.uint8)\n"
            "t.read(np.arange(1000)[::-1].copy(), out); sys.stdout.buffer.write(out.tobytes())"
        )
        for _ in range(2):  # the first process ending takes nothing away
            result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
            assert result.stdout == rows[::-1].tobytes()
            assert result.stderr == b""
        with pytest.raises(CheckpointError, match="exists already"):
            HostTable.share(MappedFile(path), name)
        owner.close()
        with pytest.raises(CheckpointError, match="cannot be opened"):
            HostTable.attach(name, 1000, "fp8", 32)

    def test_unfilled_or_of_another_size(self, path: Path) -> None:
        name = f"ascend-dsv4-test-size-{path.parent.name}"
        owner = HostTable.share(MappedFile(path), name)
        shapes: list[tuple[int, RowFormat]] = [(1000, "int4"), (999, "fp8"), (1001, "fp8")]
        for num_rows, format in shapes:
            with pytest.raises(CheckpointError, match="the mark of a filled"):
                HostTable.attach(name, num_rows, format, 32)
        owner._shared.buf[-8:] = bytes(8)  # type: ignore[union-attr, index]
        with pytest.raises(CheckpointError, match="Wait until its owner has filled it"):
            HostTable.attach(name, 1000, "fp8", 32)
        owner.close()

    def test_no_room(self, path: Path) -> None:
        tier = MappedFile(path)
        tier.num_rows = 1 << 50
        with pytest.raises(CapacityError, match="bytes free, expected"):
            HostTable.share(tier, "ascend-dsv4-test-room")

    def test_a_damaged_table_is_not_shared(self, path: Path) -> None:
        name = f"ascend-dsv4-test-damaged-{path.parent.name}"
        with path.open("r+b") as file:
            file.seek(4096 * 9)
            file.write(b"\1\2\3\4")
        with pytest.raises(CheckpointError, match="block 8"):
            HostTable.share(MappedFile(path), name)
        assert not (Path("/dev/shm") / name).exists()


class TestCheckpointTable:
    @pytest.mark.parametrize(("variant", "format", "row_bytes"), [("bf16", "bf16", 64), ("fp8_fp4", "fp8", 33)])
    def test_joins_what_is_stored(self, golden_v41: Path, variant: str, format: str, row_bytes: int) -> None:
        checkpoint = Checkpoint.open(golden_v41 / variant)
        table = CheckpointTable(checkpoint, 4)
        assert (table.num_rows, table.row_bytes, table.format, table.head_dim) == (1552, row_bytes, format, 32)
        got = read(table, [1551, 0, 7, 7])
        codes = checkpoint.bytes("layers.4.engram.embed.weight").reshape(1552, -1)
        assert np.array_equal(got[:, : codes.shape[1]], codes[[1551, 0, 7, 7]])
        if format == "fp8":
            assert np.array_equal(got[:, 32:], checkpoint.array("layers.4.engram.embed.scale")[[1551, 0, 7, 7]])
        table.close()

    def test_missing(self, golden_v41: Path) -> None:
        with pytest.raises(CheckpointError, match="no tensor 'layers.2.engram.embed.weight'"):
            CheckpointTable(Checkpoint.open(golden_v41 / "bf16"), 2)


class TestRowCache:
    def rows_of(self, ids: list[int]) -> Rows:
        return np.array([[i % 256, i // 256] for i in ids], dtype=np.uint8).reshape(-1, 2)

    def held(self, cache: RowCache, ids: range) -> list[int]:
        """Which of these ids are here, without using them."""
        return [i for i in ids if i in cache._slot_of]

    def test_least_recently_used_goes_first(self) -> None:
        cache = RowCache(3, 2)
        for i in (1, 2, 3):
            cache.put(np.array([i]), self.rows_of([i]))
        out = np.zeros((2, 2), dtype=np.uint8)
        assert cache.get(np.array([1, 9]), out).tolist() == [True, False]
        assert out.tolist() == [[1, 0], [0, 0]]
        cache.put(np.array([4]), self.rows_of([4]))
        assert self.held(cache, range(10)) == [1, 3, 4]
        assert len(cache) == 3

    def test_against_a_dictionary(self) -> None:
        """Whatever is found is right, nothing exceeds the capacity, and what was just added is there."""
        rng = np.random.default_rng(6)
        cache = RowCache(50, 2)
        for _ in range(300):
            ids = np.unique(rng.integers(0, 400, rng.integers(1, 80)))
            out = np.zeros((len(ids), 2), dtype=np.uint8)
            found = cache.get(ids, out)
            assert np.array_equal(out[found], self.rows_of(ids.tolist())[found])
            cache.put(ids, self.rows_of(ids.tolist()))
            assert len(cache) <= 50
            assert set(ids[~found][-50:].tolist()) <= set(cache._slot_of)
            assert len(set(cache._slot_of.values())) == len(cache)

    def test_no_capacity(self) -> None:
        cache = RowCache(0, 2)
        cache.put(np.array([1]), self.rows_of([1]))
        assert cache.get(np.array([1]), np.zeros((1, 2), dtype=np.uint8)).tolist() == [False]
