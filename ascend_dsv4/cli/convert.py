# SPDX-License-Identifier: Apache-2.0
"""`ascend-dsv4 convert`: the n-gram tables of a checkpoint as table files, which can be read row by row."""

from __future__ import annotations

import argparse
import errno
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from ascend_dsv4.config import EngramConfig, ModelConfig
from ascend_dsv4.errors import CapacityError, ConfigError, UnsupportedError

if TYPE_CHECKING:
    from ascend_dsv4.engram.convert import Progress
    from ascend_dsv4.engram.rows import RowFormat

FORMATS: Final = ("fp8", "bf16", "int8", "int4")  # as in `engram.rows`, which loads numpy


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "convert",
        allow_abbrev=False,
        help="write n-gram tables as files that are read row by row",
        description="Write the Engram tables of a checkpoint as table files, for --engram-tables with --engram-tier mmap, disk "
        "or host, and report what a smaller format loses. fp8 keeps the released bytes. A file of an earlier conversion into "
        "the same format is replaced, once the new one is complete.",
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="checkpoint folder as published")
    parser.add_argument("--out", required=True, metavar="DIR", type=Path, help="folder for the files; made if it is not there")
    parser.add_argument(
        "--engram", required=True, choices=FORMATS,
        help="format of the rows; int8 and int4 take less room and lose precision",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON document when all is done")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert every table of the model."""
    from ascend_dsv4.cli.options import model_path
    from ascend_dsv4.cli.terminal import note, print_json

    folder, out, form = model_path(args.model), args.out, args.engram
    if not folder.is_dir():
        raise ConfigError(f"--model {folder}: no folder; expected one with a checkpoint, whose tables are converted. Name it.")
    config = ModelConfig.from_file(folder)
    if config.engram is None:
        raise UnsupportedError(
            f"--model {folder}: {config.architecture} without engram_* values, expected a model with n-gram tables, because "
            "nothing else needs conversion. Use the checkpoint as it is."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        _check_out(out, config.engram, form)
        tables = _convert(config.engram, folder, out, form)
    except OSError as error:
        _raise_unwritable(out, error)
    if args.json:
        print_json({"model": str(folder), "out": str(out), "format": form, "tables": tables})
    else:
        _print_table(form, tables)
        note(f"use them with --engram-tables {out} --engram-tier disk (or mmap, or host)")
    return 0


def _check_out(out: Path, engram: EngramConfig, form: RowFormat) -> None:
    """Raises ConfigError for a folder with tables of another format, CapacityError if not all new ones fit."""
    from ascend_dsv4.engram.convert import table_file_name
    from ascend_dsv4.engram.table_file import TableHeader

    others = [out / table_file_name(layer, other) for layer in engram.layer_ids for other in FORMATS if other != form]
    if found := [path.name for path in others if path.exists()]:
        raise ConfigError(
            f"--out {out}: holds {', '.join(found)}, expected no tables of another format than {form}, because all tables of a "
            "folder are read in one format. Name another folder."
        )
    needed = sum(
        TableHeader.make(layer=layer, num_rows=rows, head_dim=engram.head_dim, format=form).file_bytes
        for layer, rows in zip(engram.layer_ids, engram.num_embeddings, strict=True)
    )
    free = shutil.disk_usage(out).free
    if free < needed:
        raise CapacityError(
            f"--out {out}: {free:,} bytes free, expected {needed:,}, because all {len(engram.layer_ids)} tables take that much "
            f"in {form}. Free space, or choose another folder or a smaller format."
        )


def _convert(engram: EngramConfig, folder: Path, out: Path, form: RowFormat) -> list[dict[str, Any]]:
    """Write the files; returns a line of the report for each."""
    from ascend_dsv4.engram.convert import convert_table, table_file_name
    from ascend_dsv4.model.checkpoint import Checkpoint

    checkpoint, tables = Checkpoint.open(folder), []
    for layer, num_rows in zip(engram.layer_ids, engram.num_embeddings, strict=True):
        path, start = out / table_file_name(layer, form), time.perf_counter()
        with _progress_bar(f"layer {layer}") as progress:
            error = convert_table(checkpoint, layer, path, form, num_rows=num_rows, progress=progress)
        tables.append({
            "layer": layer,
            "file": path.name,
            "rows": num_rows,
            "bytes": path.stat().st_size,
            "max_abs_error": error.max_abs,
            "rms_error": error.rms,
            "worst_block_error": error.worst_group,
            "cosine": error.cosine,
            "seconds": time.perf_counter() - start,
        })  # fmt: skip
    return tables


@contextmanager
def _progress_bar(title: str) -> Iterator[Progress | None]:
    """Rows done, drawn on stderr if that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("rows"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_table(form: RowFormat, tables: list[dict[str, Any]]) -> None:
    """What each table lost, on stdout."""
    columns = ("rows", "bytes", "max error", "rms error", "worst block", "cosine")
    print(f"{form}: {len(tables)} tables")
    print(f"  {'':<10}" + "".join(f"{column:>17}" for column in columns))
    for table in tables:
        errors = (table["max_abs_error"], table["rms_error"], table["worst_block_error"])
        cells = [f"{table['rows']:,}", f"{table['bytes']:,}", *(f"{value:.3e}" for value in errors), f"{table['cosine']:.6f}"]
        print(f"  {'layer ' + str(table['layer']):<10}" + "".join(f"{cell:>17}" for cell in cells))


def _raise_unwritable(out: Path, error: OSError) -> NoReturn:
    if error.errno == errno.ENOSPC:
        raise CapacityError(
            f"--out {out}: the disk became full while a table was written; expected room for all of them, because rows are "
            "kept whole. What was incomplete is removed. Free space and convert again."
        ) from error
    raise ConfigError(
        f"--out {error.filename or out}: cannot be written ({error.strerror}); expected a folder for table files, because they "
        "are new files beside the checkpoint. Choose another folder or correct its permissions."
    ) from error
