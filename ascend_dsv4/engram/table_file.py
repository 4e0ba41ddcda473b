# SPDX-License-Identifier: Apache-2.0
"""A table as a file that is read row by row: whole rows in checksummed blocks that never straddle a page.

    magic            8 bytes "ADSV4ENG"
    header length    8 bytes, little-endian
    header           JSON, see `TableHeader`; then zeros up to a multiple of 4096 bytes
    block 0, 1, …    block_rows rows back to back, zeros, and in the last 4 bytes the checksum, little-endian

A block takes `block_bytes`, a multiple of 4096, so that a random row costs one page. Its checksum is the CRC-32 of its
index (8 bytes, little-endian) and its rows: a block in the wrong place is as wrong as a damaged one. Rows past the last
one are zeros. A file appears under its name when it is complete.
"""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.engram.rows import FORMATS, RowFormat, row_bytes
from ascend_dsv4.errors import CheckpointError, ConfigError
from ascend_dsv4.model.safetensors_file import load_json

MAGIC: Final = b"ADSV4ENG"
VERSION: Final = 1
CHECKSUM: Final = "crc32"
PAGE_BYTES: Final = 4096
_PREFIX_BYTES: Final = 16
_CHECKSUM_BYTES: Final = 4
_MAX_HEADER_BYTES: Final = 1 << 16
_MAX_SIZE: Final = 2**48
_WRITE_BLOCKS: Final = 1024  # blocks put together before a write: 4 MB
_CONVERT_AGAIN: Final = "Copy the file again, or convert the checkpoint again."


@dataclass(frozen=True, slots=True)
class TableHeader:
    """What the JSON header says. layer: whose table it is; num_rows without the padding of the last block."""

    layer: int
    num_rows: int
    head_dim: int
    format: RowFormat
    row_bytes: int
    block_rows: int
    block_bytes: int
    checksum: str = CHECKSUM
    version: int = VERSION

    @classmethod
    def make(cls, *, layer: int, num_rows: int, head_dim: int, format: RowFormat, pages: int = 1) -> TableHeader:
        """A table in blocks of `pages` pages, or more if a row needs more. raises ConfigError as `rows.row_bytes`."""
        size = row_bytes(format, head_dim)
        block_bytes = PAGE_BYTES * max(pages, -(-(size + _CHECKSUM_BYTES) // PAGE_BYTES))
        return cls(layer, num_rows, head_dim, format, size, (block_bytes - _CHECKSUM_BYTES) // size, block_bytes)

    @property
    def num_blocks(self) -> int:
        return -(-self.num_rows // self.block_rows)

    @property
    def data_start(self) -> int:
        """Offset of the first block."""
        return -(-(_PREFIX_BYTES + len(self._json())) // PAGE_BYTES) * PAGE_BYTES

    @property
    def file_bytes(self) -> int:
        """Size of the whole file."""
        return self.data_start + self.num_blocks * self.block_bytes

    def encode(self) -> bytes:
        """Everything before the first block."""
        text = self._json()
        return (MAGIC + len(text).to_bytes(8, "little") + text).ljust(self.data_start, b"\0")

    def _json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def read_header(path: Path | str) -> TableHeader:
    """Header of a table file, held against the size of the file.

    raises  CheckpointError if the file cannot be read, is no table, is truncated or longer than its header says
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(_PREFIX_BYTES)
            length = int.from_bytes(prefix[len(MAGIC) :], "little")
            text = file.read(min(length, _MAX_HEADER_BYTES))
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}), expected a converted Engram table. Check the path."
        ) from error
    if prefix[: len(MAGIC)] != MAGIC or len(prefix) < _PREFIX_BYTES or length > _MAX_HEADER_BYTES or len(text) < length:
        raise CheckpointError(
            f"{path}: no header of an Engram table (it begins with {prefix[:8]!r}, expected {MAGIC!r}), because the file is "
            f"something else or cut off. {_CONVERT_AGAIN}"
        )
    header = _parse(path, load_json(text, f"header of {path}"))
    if text != header._json():  # the blocks begin where our own spelling of the header ends
        raise _bad_header(path, text)
    if size != header.file_bytes:
        raise CheckpointError(
            f"{path}: got {size:,} bytes, expected {header.file_bytes:,} for {header.num_rows:,} rows of {header.row_bytes} "
            f"bytes, because the file is {'truncated' if size < header.file_bytes else 'longer than its header says'}. "
            f"{_CONVERT_AGAIN}"
        )
    return header


def _parse(path: Path, raw: Any) -> TableHeader:
    names = {field.name for field in fields(TableHeader)}
    version = raw.get("version") if isinstance(raw, dict) else None
    if isinstance(raw, dict) and type(version) is int and version != VERSION:
        raise CheckpointError(
            f"{path}: version {version} of the table format, expected {VERSION}, because this release reads no other. "
            "Convert the checkpoint again."
        )
    is_plain = isinstance(raw, dict) and set(raw) == names and raw["format"] in FORMATS and raw["checksum"] == CHECKSUM
    sizes = [raw[name] for name in sorted(names - {"format", "checksum"})] if is_plain else []
    if not is_plain or not all(type(size) is int and 0 <= size <= _MAX_SIZE for size in sizes):
        raise _bad_header(path, raw)
    header = TableHeader(**raw)
    try:
        fits = header.row_bytes == row_bytes(header.format, header.head_dim)
    except ConfigError:
        fits = False
    room = header.block_bytes - _CHECKSUM_BYTES
    if not fits or header.block_bytes % PAGE_BYTES or not 0 < header.block_rows * header.row_bytes <= room:
        raise _bad_header(path, raw)
    return header


def _bad_header(path: Path, raw: Any) -> CheckpointError:
    return CheckpointError(
        f"{path}: got the header {str(raw)[:300]}, expected layer, num_rows, head_dim, format and sizes that fit one another, "
        f"because rows are found by these. {_CONVERT_AGAIN}"
    )


def block_checksum(block: int, rows: NDArray[np.uint8]) -> int:
    """CRC-32 of a block's index and its rows (the block without its zeros and its checksum)."""
    return zlib.crc32(rows.data, zlib.crc32(block.to_bytes(8, "little")))


def verify_block(path: Path | str, header: TableHeader, block: int, data: NDArray[np.uint8]) -> None:
    """Hold a block, uint8 [block_bytes], against its checksum. raises CheckpointError naming file, block and rows."""
    found = block_checksum(block, data[: header.block_rows * header.row_bytes])
    stored = int.from_bytes(data[-_CHECKSUM_BYTES:].tobytes(), "little")
    if found != stored:
        first = block * header.block_rows
        last = min(first + header.block_rows, header.num_rows) - 1
        raise CheckpointError(
            f"{path}: block {block} (rows {first:,} to {last:,}) is damaged: got checksum {found:08x}, expected {stored:08x}, "
            f"because its bytes changed since they were written. {_CONVERT_AGAIN}"
        )


class TableWriter:
    """Writes a table file front to back in bounded memory. A context manager: leaving it in peace completes the file,
    leaving it with an error removes what was written.
    """

    def __init__(self, path: Path | str, header: TableHeader) -> None:
        self.path, self.header = Path(path), header
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._file = self._partial.open("wb")
        self._file.write(header.encode())
        self._pending: list[NDArray[np.uint8]] = []
        self._num_pending = 0
        self._block = 0
        self.num_rows = 0

    def append(self, rows: NDArray[np.uint8]) -> None:
        """Add rows, uint8 [n, row_bytes]."""
        assert rows.dtype == np.uint8 and rows.shape[1:] == (self.header.row_bytes,)
        self.num_rows += len(rows)
        self._pending.append(rows)
        self._num_pending += len(rows)
        if self._num_pending >= _WRITE_BLOCKS * self.header.block_rows:
            self._flush(self._num_pending // self.header.block_rows)

    def close(self) -> None:
        """Complete the file. raises CheckpointError if it has another number of rows than its header says."""
        if self.num_rows != self.header.num_rows:
            self.discard()
            raise CheckpointError(
                f"{self.path}: got {self.num_rows:,} rows, expected {self.header.num_rows:,}, because its header says so. "
                "Convert the checkpoint again."
            )
        self._flush(-(-self._num_pending // self.header.block_rows))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._partial.replace(self.path)

    def discard(self) -> None:
        """Remove what was written."""
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self.discard()

    def _flush(self, num_blocks: int) -> None:
        """Write that many blocks of what is pending; the last is filled up with zeros."""
        if not num_blocks:
            return
        header, rows = self.header, np.concatenate(self._pending)
        count = min(num_blocks * header.block_rows, len(rows))
        size = header.block_rows * header.row_bytes
        flat = np.zeros(num_blocks * size, dtype=np.uint8)
        flat[: count * header.row_bytes] = rows[:count].reshape(-1)
        blocks = np.zeros((num_blocks, header.block_bytes), dtype=np.uint8)
        blocks[:, :size] = flat.reshape(num_blocks, size)
        sums = [block_checksum(self._block + i, blocks[i, :size]) for i in range(num_blocks)]
        blocks[:, -_CHECKSUM_BYTES:] = np.array(sums, dtype="<u4").view(np.uint8).reshape(-1, _CHECKSUM_BYTES)
        self._file.write(blocks.data)
        self._block += num_blocks
        self._pending, self._num_pending = [rows[count:].copy()], len(rows) - count
