# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's table as a table file, in every format."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ascend_dsv4.engram.convert import convert_table, table_file_name
from ascend_dsv4.engram.rows import FORMATS, RowFormat, decode_rows
from ascend_dsv4.engram.store import MappedFile
from ascend_dsv4.engram.table_file import TableHeader
from ascend_dsv4.errors import CapacityError, CheckpointError
from ascend_dsv4.model.checkpoint import Checkpoint


@pytest.mark.parametrize("variant", ["bf16", "fp8_fp4"])
@pytest.mark.parametrize("format", FORMATS)
def test_formats(
    full_golden_v41: Path, tmp_path: Path, variant: str, format: RowFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values come out as stored, or within the error that is reported; in chunks, with progress."""
    monkeypatch.setattr("ascend_dsv4.engram.convert._CHUNK_ROWS", 500)
    checkpoint = Checkpoint.open(full_golden_v41 / variant)
    path = tmp_path / table_file_name(4, format)
    assert path.name == f"engram.layer4.{format}.table"
    steps: list[tuple[int, int]] = []
    report = convert_table(checkpoint, 4, path, format, num_rows=1552, progress=lambda *done: steps.append(done))
    assert steps == [(500, 1552), (1000, 1552), (1500, 1552), (1552, 1552)]
    table = MappedFile(path)
    assert table.header == TableHeader.make(layer=4, num_rows=1552, head_dim=32, format=format)
    packed = np.empty((1552, table.row_bytes), dtype=np.uint8)
    table.read(np.arange(1552), packed)
    stored = checkpoint.read_float32("layers.4.engram.embed.weight", (1, 32))
    error = np.abs(decode_rows(packed, format, 32) - stored)
    assert report.num_rows == 1552
    assert report.max_abs == pytest.approx(error.max())
    assert report.rms == pytest.approx(np.sqrt((error.astype(np.float64) ** 2).mean()))
    if format in ("fp8", "bf16"):
        assert error.max() == 0, "both checkpoints hold values that E4M3 has"
        assert report.cosine == pytest.approx(1, abs=1e-12)
    else:
        assert 0 < error.max() < np.abs(stored).max() / 5
        assert report.cosine < 1
    table.close()


def test_released_rows_keep_their_bytes(full_golden_v41: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(full_golden_v41 / "fp8_fp4")
    convert_table(checkpoint, 1, tmp_path / "t", "fp8")
    table = MappedFile(tmp_path / "t")
    packed = np.empty((1362, 33), dtype=np.uint8)
    table.read(np.arange(1362), packed)
    assert np.array_equal(packed[:, :32], checkpoint.array("layers.1.engram.embed.weight"))
    assert np.array_equal(packed[:, 32:], checkpoint.array("layers.1.engram.embed.scale"))


def test_another_size(full_golden_v41: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="1,362 rows, expected 1,363"):
        convert_table(Checkpoint.open(full_golden_v41 / "bf16"), 1, tmp_path / "t", "fp8", num_rows=1363)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(full_golden_v41: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=5000))
    with pytest.raises(CapacityError, match="5,000 bytes free, expected"):
        convert_table(Checkpoint.open(full_golden_v41 / "bf16"), 1, tmp_path / "t", "fp8")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("part", "code"), [("weight", 0xFF), ("scale", 0xFF)])
def test_a_nan_in_the_table(tmp_path: Path, format: RowFormat, part: str, code: int) -> None:
    """The file does not appear."""
    sizes = {"weight": (40, 64), "scale": (40, 2)}
    data = {name: np.full(shape, 0x38, dtype=np.uint8) for name, shape in sizes.items()}
    data[part][17, 1] = code
    header, offset = {}, 0
    for name, dtype in (("weight", "F8_E4M3"), ("scale", "F8_E8M0")):
        end = offset + data[name].size
        header[f"layers.0.engram.embed.{name}"] = {"dtype": dtype, "shape": sizes[name], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    body = b"".join(data[name].tobytes() for name in ("weight", "scale"))
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)
    checkpoint = Checkpoint.open(tmp_path)
    with pytest.raises(CheckpointError, match="got a NaN or an infinity"):
        convert_table(checkpoint, 0, tmp_path / "t", format)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
