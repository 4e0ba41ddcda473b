# SPDX-License-Identifier: Apache-2.0
"""Where a table's rows can live: in memory, in memory shared by processes, in a mapped file, in a file read on demand, or in
the checkpoint itself. All give the same bytes for the same ids.
"""

from __future__ import annotations

import mmap
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.engram.row_cache import RowCache
from ascend_dsv4.engram.rows import SCALE_GROUP, RowFormat, row_bytes
from ascend_dsv4.engram.table_file import read_header, verify_block
from ascend_dsv4.errors import CapacityError, CheckpointError
from ascend_dsv4.model.checkpoint import Checkpoint

_COPY_ROWS: Final = 1 << 14
_HINTED_ROWS: Final = 1 << 12  # rows whose pages are asked for before the first is read: 16 MB of pages
_SHARED_FOLDER: Final = Path("/dev/shm")
_MARK_BYTES: Final = 8


@dataclass(slots=True)
class TierMetrics:
    """Counters of one tier since it was opened.

    rows_read      rows asked for, repetitions included
    cache_hits     distinct rows of a read that the row cache had
    disk_rows      distinct rows of a read that were fetched from a file
    disk_bytes     bytes asked of the file for them; the system may have had some in memory
    """

    rows_read: int = 0
    cache_hits: int = 0
    disk_rows: int = 0
    disk_bytes: int = 0


class DeviceTable(Protocol):
    """A table in device memory, provided by a backend: row ids go to the device, and rows never pass through the host."""

    num_rows: int
    row_bytes: int

    def __call__(self, row_ids: Any) -> Any:
        """row_ids int32 [num_tokens, columns] on the device → rows uint8 [num_tokens, columns, row_bytes]."""


class EngramTier(ABC):
    """Rows of one layer's table. Threads may read at the same time.

    name      what errors and reports call it: the file, where there is one
    num_rows  rows of the table
    format    how rows are packed, and head_dim, how many channels they have; row_bytes follows
    """

    def __init__(self, name: str, num_rows: int, format: RowFormat, head_dim: int) -> None:
        self.name, self.num_rows, self.format, self.head_dim = name, num_rows, format, head_dim
        self.row_bytes = row_bytes(format, head_dim)
        self.metrics = TierMetrics()
        self._counting = threading.Lock()

    def read(self, ids: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Copy rows. ids int64 [n] in any order, repetitions allowed; out uint8 [n, row_bytes] is filled.

        raises  CheckpointError for ids outside the table, and for damaged or unreadable blocks, naming file and rows
        """
        assert out.shape == (len(ids), self.row_bytes) and out.dtype == np.uint8
        if not len(ids):
            return
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.num_rows:
            raise CheckpointError(
                f"{self.name}: row {low if low < 0 else high:,} asked for, expected rows from 0 to {self.num_rows - 1:,}, "
                "because the table has no more. Check that table and configuration belong to the same model."
            )
        self._gather(ids, out)
        self._count(rows_read=len(ids))

    @abstractmethod
    def close(self) -> None:
        """Give back files and memory. Nothing may be read afterwards."""

    @abstractmethod
    def _gather(self, ids: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """`read` after its checks; n is at least 1."""

    def _count(self, **counts: int) -> None:
        with self._counting:
            for name, count in counts.items():
                setattr(self.metrics, name, getattr(self.metrics, name) + count)


class HostTable(EngramTier):
    """A table in memory: uint8 [num_rows, row_bytes], of this process or shared with others on the host."""

    def __init__(self, rows: NDArray[np.uint8], format: RowFormat, head_dim: int, name: str = "host table") -> None:
        super().__init__(name, len(rows), format, head_dim)
        assert rows.shape == (self.num_rows, self.row_bytes) and rows.dtype == np.uint8
        self._rows: NDArray[np.uint8] | None = rows
        self._shared: shared_memory.SharedMemory | None = None

    @classmethod
    def copy_of(cls, tier: EngramTier) -> HostTable:
        """Read a whole tier into memory of this process."""
        rows = np.empty((tier.num_rows, tier.row_bytes), dtype=np.uint8)
        _copy_rows(tier, rows)
        return cls(rows, tier.format, tier.head_dim, f"{tier.name} in memory")

    @classmethod
    def share(cls, tier: EngramTier, shared_name: str) -> HostTable:
        """Read a whole tier into memory that other processes open with `attach`. It vanishes when this table is closed.

        raises  CapacityError if shared memory has no room, CheckpointError if the name is taken
        """
        size = tier.num_rows * tier.row_bytes
        free = os.statvfs(_SHARED_FOLDER).f_bavail * os.statvfs(_SHARED_FOLDER).f_frsize
        if size + _MARK_BYTES > free:
            raise CapacityError(
                f"{_SHARED_FOLDER}: {free:,} bytes free, expected {size:,} for {tier.name}, because processes share the copy "
                "there. Enlarge it (mount option size=), or read the table from its file."
            )
        try:
            shared = shared_memory.SharedMemory(shared_name, create=True, size=size + _MARK_BYTES)
        except FileExistsError:
            raise CheckpointError(
                f"shared table {shared_name!r}: exists already, expected a new name, because another process owns it. Attach "
                f"to it, or remove {_SHARED_FOLDER / shared_name} if its owner is gone."
            ) from None
        whole = np.ndarray(size + _MARK_BYTES, dtype=np.uint8, buffer=shared.buf)
        rows = whole[:size].reshape(tier.num_rows, tier.row_bytes)
        table = cls(rows, tier.format, tier.head_dim, f"shared table {shared_name!r}")
        table._shared = shared
        try:
            _copy_rows(tier, rows)
        except BaseException:
            del rows, whole
            table.close()
            raise
        whole[size : size + _MARK_BYTES].view("<u8")[0] = tier.num_rows  # last: who sees it sees every row
        return table

    @classmethod
    def attach(cls, shared_name: str, num_rows: int, format: RowFormat, head_dim: int) -> HostTable:
        """Open the table that another process shares; it cannot be written here.

        raises  CheckpointError if there is none, it is of another size, or its owner has not filled it yet
        """
        # Mapped directly: before Python 3.13 `SharedMemory` would remove the segment when this process ends.
        size = num_rows * row_bytes(format, head_dim)
        path = _SHARED_FOLDER / shared_name
        try:
            with path.open("rb") as file:
                found = os.fstat(file.fileno()).st_size
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if found else None
        except OSError as error:
            raise CheckpointError(
                f"shared table {shared_name!r}: cannot be opened ({error.strerror}), expected {path}, because one process of "
                "the host shares its copy there. Start that process first."
            ) from error
        whole = np.frombuffer(mapped, dtype=np.uint8) if mapped is not None else np.empty(0, dtype=np.uint8)
        if found != size + _MARK_BYTES or whole[size:].view("<u8")[0] != num_rows:
            raise CheckpointError(
                f"shared table {shared_name!r}: got {found:,} bytes, expected {size + _MARK_BYTES:,} and the mark of a filled "
                f"table, because {num_rows:,} rows in {format} are read from it. Wait until its owner has filled it, "
                "and use the same model."
            )
        return cls(whole[:size].reshape(num_rows, -1), format, head_dim, f"shared table {shared_name!r}")

    def close(self) -> None:
        self._rows = None
        if self._shared is not None:
            with suppress(BufferError):  # somebody still holds a view; the memory goes with it
                self._shared.close()
            self._shared.unlink()
            self._shared = None

    def _gather(self, ids: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        assert self._rows is not None, "closed"
        # mode="clip" only because "raise" copies through a buffer; the ids are checked.
        np.take(self._rows, ids, axis=0, out=out, mode="clip")


class MappedFile(EngramTier):
    """A table file mapped into memory: pages come on first use, and the system drops them when it needs room."""

    def __init__(self, path: Path | str) -> None:
        self.header = read_header(path)
        super().__init__(str(path), self.header.num_rows, self.header.format, self.header.head_dim)
        self._map, data = _map_random(Path(path))
        blocks = data[self.header.data_start :].reshape(self.header.num_blocks, self.header.block_bytes)
        self._blocks: NDArray[np.uint8] | None = blocks
        self._is_verified = np.zeros(self.header.num_blocks, dtype=np.bool_)

    def close(self) -> None:
        self._blocks = None
        _unmap(self._map)

    def _gather(self, ids: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        assert self._blocks is not None, "closed"
        header = self.header
        for start in range(0, len(ids), _HINTED_ROWS):
            part = ids[start : start + _HINTED_ROWS]
            blocks = np.unique(part // header.block_rows)
            fresh = blocks[~self._is_verified[blocks]]
            _ask_for(self._map, header.data_start + blocks * header.block_bytes, header.block_bytes)
            for block in fresh.tolist():
                verify_block(self.name, header, block, self._blocks[block])
            self._is_verified[fresh] = True
            _take_rows(self._blocks, part // header.block_rows, part % header.block_rows, out[start : start + _HINTED_ROWS])
            self._count(disk_rows=len(part), disk_bytes=len(blocks) * header.block_bytes)


class PreadFile(EngramTier):
    """A table file read on demand into a bounded row cache: for tables larger than memory.

    cache_rows  rows kept
    threads     how many read at the same time. Each asks for the pages of all its rows before it waits for the first, so
                a few keep the queue of the device full

    Ids are sorted and read once each, in file order. A block is verified whenever it is read for the first time.
    """

    def __init__(self, path: Path | str, *, cache_rows: int = 1 << 16, threads: int = 4) -> None:
        self.header = read_header(path)
        super().__init__(str(path), self.header.num_rows, self.header.format, self.header.head_dim)
        self._file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_RANDOM)
        self._is_verified = np.zeros(self.header.num_blocks, dtype=np.bool_)
        self._cache = RowCache(min(cache_rows, self.num_rows), self.row_bytes)
        self._cache_lock = threading.Lock()
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="engram-read")

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def _gather(self, ids: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        unique, inverse = np.unique(ids, return_inverse=True)
        rows = np.empty((len(unique), self.row_bytes), dtype=np.uint8)
        with self._cache_lock:
            found = self._cache.get(unique, rows)
        missing = np.flatnonzero(~found)
        if len(missing):
            fetched = np.empty((len(missing), self.row_bytes), dtype=np.uint8)
            self._fetch(unique[missing], fetched)
            rows[missing] = fetched
            with self._cache_lock:
                self._cache.put(unique[missing], fetched)
        np.take(rows, inverse.reshape(-1), axis=0, out=out, mode="clip")
        self._count(cache_hits=len(unique) - len(missing), disk_rows=len(missing))

    def _fetch(self, ids: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Read sorted, distinct rows. Few are read here, for handing them to threads takes longer than asking ahead."""
        parts = list(_parts(len(ids), self._threads))
        if len(parts) == 1:
            self._read_part(ids, out)
            return
        for done in [self._pool.submit(self._read_part, ids[part], out[part]) for part in parts]:
            done.result()

    def _read_part(self, ids: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        header = self.header
        blocks, at = np.unique(ids // header.block_rows, return_inverse=True)
        offsets = (header.data_start + blocks * header.block_bytes).tolist()
        for offset in offsets:
            os.posix_fadvise(self._file, offset, header.block_bytes, os.POSIX_FADV_WILLNEED)
        data = np.empty((len(blocks), header.block_bytes), dtype=np.uint8)
        for i, offset in enumerate(offsets):
            try:
                count = os.preadv(self._file, [data[i].data], offset)
            except OSError as error:
                raise self._unreadable(int(blocks[i]), error.strerror or str(error)) from error
            if count != header.block_bytes:
                raise self._unreadable(int(blocks[i]), f"{count} of {header.block_bytes} bytes")
        for i in np.flatnonzero(~self._is_verified[blocks]).tolist():
            verify_block(self.name, header, int(blocks[i]), data[i])
        self._is_verified[blocks] = True
        _take_rows(data, at.reshape(-1), ids % header.block_rows, out)
        self._count(disk_bytes=data.nbytes)

    def _unreadable(self, block: int, got: str) -> CheckpointError:
        first = block * self.header.block_rows
        return CheckpointError(
            f"{self.name}: block {block} (rows from {first:,}) cannot be read: got {got}, expected {self.header.block_bytes} "
            "bytes, because the file changed since it was opened, or its disk fails. Keep table files unchanged while serving."
        )


class CheckpointTable(EngramTier):
    """The released layout read where it lies: codes and scales are two arrays of a safetensors file, joined on reading.

    Twice the random accesses of a converted table, and no checksums; but nothing to convert. format is "fp8" or "bf16".
    """

    def __init__(self, checkpoint: Checkpoint, layer: int) -> None:
        weight = f"layers.{layer}.engram.embed.weight"
        entry = checkpoint.entry(weight)
        names = [weight]
        format: RowFormat = "bf16"
        if entry.dtype != "BF16":
            names.append(checkpoint.quantized_scale(weight))
            format = "fp8"
            scales = checkpoint.entry(names[1])
            if entry.dtype != "F8_E4M3" or scales.shape != (entry.shape[0], entry.shape[1] // SCALE_GROUP):
                raise CheckpointError(
                    f"tensor {weight!r}: got {entry.dtype} {list(entry.shape)} with scales {list(scales.shape)}, "
                    f"expected F8_E4M3 with one E8M0 byte per {SCALE_GROUP} channels, because rows are packed from them. "
                    "Download the checkpoint again."
                )
        super().__init__(f"{checkpoint.place(weight)[0]} ({weight})", entry.shape[0], format, entry.shape[1])
        self._parts: list[tuple[mmap.mmap, int, NDArray[np.uint8]]] = []  # map, offset in it, [num_rows, bytes]
        for name in names:
            path, place = checkpoint.place(name)
            mapped, data = _map_random(path)
            array = data[place.offset : place.offset + place.num_bytes].reshape(entry.shape[0], -1)
            self._parts.append((mapped, place.offset, array))

    def close(self) -> None:
        maps = [mapped for mapped, _, _ in self._parts]
        self._parts = []
        for mapped in maps:
            _unmap(mapped)

    def _gather(self, ids: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        assert self._parts, "closed"
        for start in range(0, len(ids), _HINTED_ROWS):
            part, column = ids[start : start + _HINTED_ROWS], 0
            for mapped, offset, array in self._parts:
                width = array.shape[1]
                _ask_for(mapped, offset + np.unique(part) * width, width)
                out[start : start + _HINTED_ROWS, column : column + width] = array[part]
                column += width
        self._count(disk_rows=len(ids), disk_bytes=out.nbytes)


def _copy_rows(tier: EngramTier, rows: NDArray[np.uint8]) -> None:
    for start in range(0, tier.num_rows, _COPY_ROWS):
        part = rows[start : start + _COPY_ROWS]
        tier.read(np.arange(start, start + len(part), dtype=np.int64), part)


def _parts(count: int, threads: int) -> Iterator[slice]:
    """`count` rows in parts of at least 64 and at most 4,096, for that many threads if there is work for them."""
    size = min(_HINTED_ROWS, max(64, -(-count // threads)))
    return (slice(start, start + size) for start in range(0, count, size))


def _take_rows(
    blocks: NDArray[np.uint8], block: NDArray[np.int64], place: NDArray[np.int64], out: NDArray[np.uint8]
) -> None:
    """out[i] = the row at `place[i]` of blocks[block[i]]. blocks uint8 [num_blocks, block_bytes]."""
    row_bytes, per_block = out.shape[1], blocks.shape[1] // out.shape[1]
    shape, strides = (len(blocks), per_block, row_bytes), (blocks.shape[1], row_bytes, 1)
    out[...] = np.lib.stride_tricks.as_strided(blocks, shape, strides, writeable=False)[block, place]


def _map_random(path: Path) -> tuple[mmap.mmap, NDArray[np.uint8]]:
    """Map a file for reading at random: without the advice every fault would read 128 KB."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.madvise(mmap.MADV_RANDOM)
    return mapped, np.frombuffer(mapped, dtype=np.uint8)


def _ask_for(mapped: mmap.mmap, starts: NDArray[np.int64], num_bytes: int) -> None:
    """Have the pages of these places fetched all at once, instead of one by one as they are touched."""
    first, last = starts // mmap.PAGESIZE, (starts + num_bytes - 1) // mmap.PAGESIZE
    for page, end in sorted(set(zip(first.tolist(), last.tolist(), strict=True))):
        mapped.madvise(mmap.MADV_WILLNEED, page * mmap.PAGESIZE, (end - page + 1) * mmap.PAGESIZE)


def _unmap(mapped: mmap.mmap) -> None:
    with suppress(BufferError):  # a view is still held somewhere; the mapping goes with it
        mapped.close()
