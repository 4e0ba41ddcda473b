# SPDX-License-Identifier: Apache-2.0
"""The table file: what is written is what is read; damage is named and never read as zeros."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ascend_dsv4.engram.store import EngramTier, MappedFile, PreadFile
from ascend_dsv4.engram.table_file import TableHeader, TableWriter, read_header
from ascend_dsv4.errors import CheckpointError

HEADER = TableHeader.make(layer=3, num_rows=1000, head_dim=32, format="fp8")


@pytest.fixture
def path(tmp_path: Path, rows: NDArray[np.uint8]) -> Path:
    file = tmp_path / "table"
    with TableWriter(file, HEADER) as writer:
        writer.append(rows)
    return file


def edit(path: Path, offset: int, data: bytes) -> None:
    whole = bytearray(path.read_bytes())
    whole[offset : offset + len(data)] = data
    path.write_bytes(whole)


def with_header(path: Path, **change: Any) -> None:
    """Write another header of the same length of file."""
    whole = path.read_bytes()
    length = int.from_bytes(whole[8:16], "little")
    text = json.dumps({**json.loads(whole[16 : 16 + length]), **change}, indent=1).encode()
    path.write_bytes((whole[:8] + len(text).to_bytes(8, "little") + text).ljust(4096, b"\0") + whole[4096:])


READERS = [MappedFile, PreadFile]


def read(kind: type[EngramTier], path: Path, ids: list[int]) -> NDArray[np.uint8]:
    tier = kind(path)  # type: ignore[call-arg, arg-type]
    try:
        out = np.empty((len(ids), tier.row_bytes), dtype=np.uint8)
        tier.read(np.array(ids, dtype=np.int64), out)
        return out
    finally:
        tier.close()


def test_layout(path: Path, rows: NDArray[np.uint8]) -> None:
    """Byte by byte, as the module says: 124 rows of 33 bytes per page, the checksum at its end."""
    assert (HEADER.row_bytes, HEADER.block_rows, HEADER.block_bytes, HEADER.num_blocks) == (33, 124, 4096, 9)
    data = path.read_bytes()
    assert data[:8] == b"ADSV4ENG"
    assert json.loads(data[16 : 16 + int.from_bytes(data[8:16], "little")]) == {
        "layer": 3, "num_rows": 1000, "head_dim": 32, "format": "fp8", "row_bytes": 33, "block_rows": 124,
        "block_bytes": 4096, "checksum": "crc32", "version": 1,
    }  # fmt: skip
    assert len(data) == 4096 * 10
    for block in range(9):
        page = data[4096 * (block + 1) : 4096 * (block + 2)]
        mine = rows[block * 124 : block * 124 + 124].tobytes().ljust(124 * 33, b"\0")
        assert page[: 124 * 33] == mine
        assert page[-4:] == zlib.crc32(block.to_bytes(8, "little") + mine).to_bytes(4, "little")
    assert read_header(path) == HEADER
    assert not list(path.parent.glob("*.partial"))


def test_sizes_of_the_release() -> None:
    for format, per_page in (("fp8", 15), ("int8", 15), ("int4", 30), ("bf16", 7)):
        header = TableHeader.make(layer=1, num_rows=384_006_168, head_dim=256, format=format)  # type: ignore[arg-type]
        assert (header.block_rows, header.block_bytes) == (per_page, 4096)
    wide = TableHeader.make(layer=1, num_rows=10, head_dim=4096, format="bf16")
    assert (wide.block_rows, wide.block_bytes) == (1, 12288)


def test_pieces_of_any_size_make_one_file(path: Path, rows: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ascend_dsv4.engram.table_file._WRITE_BLOCKS", 2)
    other = path.with_name("pieces")
    with TableWriter(other, HEADER) as writer:
        for start, stop in ((0, 0), (0, 1), (1, 124), (124, 125), (125, 700), (700, 1000)):
            writer.append(rows[start:stop])
    assert other.read_bytes() == path.read_bytes()


def test_incomplete_files_do_not_appear(tmp_path: Path, rows: NDArray[np.uint8]) -> None:
    file = tmp_path / "table"
    with pytest.raises(CheckpointError, match="got 999 rows, expected 1,000"), TableWriter(file, HEADER) as writer:
        writer.append(rows[:-1])
    with pytest.raises(KeyboardInterrupt), TableWriter(file, HEADER) as writer:
        writer.append(rows)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", READERS)
class TestDamage:
    def test_a_flipped_bit(self, path: Path, rows: NDArray[np.uint8], kind: type[EngramTier]) -> None:
        """In a row, in the checksum: the block is named; the others are read."""
        for offset in (4096 * 3 + 5, 4096 * 4 - 1):
            before = path.read_bytes()
            edit(path, offset, bytes([before[offset] ^ 4]))
            with pytest.raises(CheckpointError, match=r"table: block 2 \(rows 248 to 371\) is damaged: got checksum \w{8}"):
                read(kind, path, [0, 300])
            assert np.array_equal(read(kind, path, [247, 372]), rows[[247, 372]])
            path.write_bytes(before)
        assert np.array_equal(read(kind, path, [300]), rows[[300]])

    def test_swapped_blocks(self, path: Path, kind: type[EngramTier]) -> None:
        data = path.read_bytes()
        path.write_bytes(data[:4096] + data[8192:12288] + data[4096:8192] + data[12288:])
        with pytest.raises(CheckpointError, match="block 0"):
            read(kind, path, [0])

    def test_the_last_block(self, path: Path, kind: type[EngramTier]) -> None:
        edit(path, 4096 * 9, b"\xff\xfe\xfd\xfc")
        with pytest.raises(CheckpointError, match=r"block 8 \(rows 992 to 999\)"):
            read(kind, path, [999])

    @pytest.mark.parametrize("size", [0, 7, 15, 100, 4096, 4096 * 10 - 1, 4096 * 9])
    def test_truncated(self, path: Path, kind: type[EngramTier], size: int) -> None:
        path.write_bytes(path.read_bytes()[:size])
        expected = "no header of an Engram table" if size < 400 else rf"got {size:,} bytes, expected 40,960 .*truncated"
        with pytest.raises(CheckpointError, match=expected):
            kind(path)  # type: ignore[call-arg, arg-type]

    def test_too_long(self, path: Path, kind: type[EngramTier]) -> None:
        path.write_bytes(path.read_bytes() + b"x")
        with pytest.raises(CheckpointError, match="longer than its header says"):
            kind(path)  # type: ignore[call-arg, arg-type]

    @pytest.mark.parametrize(
        "change",
        [
            {"num_rows": -1},
            {"num_rows": "1000"},
            {"num_rows": True},
            {"row_bytes": 34},
            {"head_dim": 64},
            {"head_dim": 33},
            {"format": "int4"},
            {"format": "fp5"},
            {"block_rows": 0},
            {"block_rows": 125},
            {"block_bytes": 4000},
            {"checksum": "none"},
            {"extra": 1},
        ],
    )
    def test_headers(self, path: Path, kind: type[EngramTier], change: dict[str, Any]) -> None:
        with_header(path, **change)
        with pytest.raises(CheckpointError, match="got the header .* expected layer, num_rows"):
            kind(path)  # type: ignore[call-arg, arg-type]

    def test_wrong_size(self, path: Path, kind: type[EngramTier]) -> None:
        with_header(path, num_rows=1117)
        with pytest.raises(CheckpointError, match="expected 45,056 for 1,117 rows of 33 bytes"):
            kind(path)  # type: ignore[call-arg, arg-type]

    def test_other_versions_and_files(self, path: Path, kind: type[EngramTier]) -> None:
        with_header(path, version=2)
        with pytest.raises(CheckpointError, match="version 2 of the table format, expected 1"):
            kind(path)  # type: ignore[call-arg, arg-type]
        path.write_bytes(b"{}" * 5000)
        with pytest.raises(CheckpointError, match="no header of an Engram table"):
            kind(path)  # type: ignore[call-arg, arg-type]
        with pytest.raises(CheckpointError, match="missing: cannot be read"):
            kind(path.with_name("missing"))  # type: ignore[call-arg, arg-type]
