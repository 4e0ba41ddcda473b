# SPDX-License-Identifier: Apache-2.0
"""Write the Engram table of a checkpoint as a table file, in the released format or a smaller one. Streams: the table may be
larger than memory, and the file takes its name only when it is complete.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.engram.rows import RowError, RowFormat, decode_rows, encode_rows, has_nonfinite
from ascend_dsv4.engram.table_file import TableHeader, TableWriter
from ascend_dsv4.engram.tiers import CheckpointTable
from ascend_dsv4.errors import CapacityError, CheckpointError
from ascend_dsv4.model.checkpoint import Checkpoint

_CHUNK_ROWS: Final = 1 << 14

Progress = Callable[[int, int], None]
"""Called with the rows done and the rows of the table."""


def table_file_name(layer: int, format: RowFormat) -> str:
    """The name under which a converted table is looked for."""
    return f"engram.layer{layer}.{format}.table"


def convert_table(
    checkpoint: Checkpoint,
    layer: int,
    path: Path | str,
    format: RowFormat,
    *,
    num_rows: int | None = None,
    progress: Progress | None = None,
) -> RowError:
    """Convert one layer's table, `layers.<layer>.engram.embed`, to a table file.

    num_rows  rows that the configuration demands: `EngramHash.num_rows`; None: as many as are stored
    returns   what the new format loses; nothing from "fp8" to "fp8" or "bf16", whose bytes or values are kept
    raises    CheckpointError for a table that is missing, of another size or not finite; CapacityError if the disk is too
              full; ConfigError for a format that does not fit its head_dim
    """
    path = Path(path)
    with closing(CheckpointTable(checkpoint, layer)) as table:
        if num_rows is not None and table.num_rows != num_rows:
            raise CheckpointError(
                f"{table.name}: {table.num_rows:,} rows, expected {num_rows:,}, because the hash columns of layer {layer} have "
                "that many. Check that config.json and the shards belong to the same release."
            )
        header = TableHeader.make(layer=layer, num_rows=table.num_rows, head_dim=table.head_dim, format=format)
        _check_room(path, header)
        error = RowError()
        with TableWriter(path, header) as writer:
            for start in range(0, table.num_rows, _CHUNK_ROWS):
                ids = np.arange(start, min(start + _CHUNK_ROWS, table.num_rows), dtype=np.int64)
                rows = np.empty((len(ids), table.row_bytes), dtype=np.uint8)
                table.read(ids, rows)
                writer.append(_converted(rows, table.format, format, table.head_dim, error))
                if progress is not None:
                    progress(start + len(ids), table.num_rows)
    return error


def _converted(
    rows: NDArray[np.uint8], source: RowFormat, target: RowFormat, head_dim: int, error: RowError
) -> NDArray[np.uint8]:
    """Rows in another format; what they lose is added to `error`."""
    if has_nonfinite(rows, source, head_dim):
        raise CheckpointError(
            "Engram table: got a NaN or an infinity, expected finite values, because tables are trained weights. Download the "
            "checkpoint again."
        )
    if source == target:
        error.add_exact(len(rows), head_dim)
        return rows
    values = decode_rows(rows, source, head_dim)
    packed = encode_rows(values, target)
    error.add(values, decode_rows(packed, target, head_dim))
    return packed


def _check_room(path: Path, header: TableHeader) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < header.file_bytes:
        raise CapacityError(
            f"{os.fspath(path.parent)}: {free:,} bytes free, expected {header.file_bytes:,}, because the converted table takes "
            "that much. Free space, or choose another folder or a smaller format."
        )
