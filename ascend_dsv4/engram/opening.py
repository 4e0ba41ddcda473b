# SPDX-License-Identifier: Apache-2.0
"""Open the tables of a model where the options want them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

from ascend_dsv4.config.engine_config import EngineConfig
from ascend_dsv4.config.model_config import ModelConfig
from ascend_dsv4.engram.convert import table_file_name
from ascend_dsv4.engram.hashing import EngramHash, compressed_token_map
from ascend_dsv4.engram.rows import FORMATS, RowFormat, row_bytes
from ascend_dsv4.engram.store import EngramStore
from ascend_dsv4.engram.tiers import CheckpointTable, EngramTier, HostTable, MappedFile, PreadFile
from ascend_dsv4.errors import CheckpointError, ConfigError
from ascend_dsv4.model.checkpoint import Checkpoint

SEED: Final = 0
"""Of the multipliers. The release has no key for it."""


def open_store(config: ModelConfig, engine: EngineConfig, checkpoint: Checkpoint, folder: Path) -> EngramStore:
    """The store of a model.

    raises  ConfigError for a missing tokenizer.json or table files, or if the tokenizer does not fit the tables;
            CheckpointError for damaged tables or tables of another size
    """
    engram = config.engram
    assert engram is not None
    token_map = compressed_token_map(folder / "tokenizer.json", config.vocab_size)
    hashing = EngramHash.make(
        layer_ids=engram.layer_ids,
        max_ngram_size=engram.max_ngram_size,
        num_heads=engram.n_heads,
        vocab_size=engram.vocab_size,
        num_compressed=engram.compressed_vocab_size,
        pad=int(token_map[engram.pad_token_id]),
        seed=SEED,
    )
    if hashing.num_rows != engram.num_embeddings:
        raise ConfigError(
            f"engram_num_embeddings={list(engram.num_embeddings)}: expected {list(hashing.num_rows)}, the sums of the primes "
            f"from engram_vocab_size={engram.vocab_size} on, because every prime is one hash column. Use the released "
            "config.json."
        )
    tables = _open_tables(config, engine, checkpoint)
    # A request has rows on their way for the step that runs, until they are taken, and for the one after it.
    return EngramStore(tables, hashing, token_map, max_pending=2 * engine.max_num_seqs)


def planned_format(config: ModelConfig, engine: EngineConfig) -> RowFormat:
    """Format of the rows that a step gets, without opening a table: that of the table files, else the checkpoint's.

    raises  ConfigError if `engram_tables` names a folder without table files of one format
    """
    if config.engram is None or engine.engram_tables is None:
        return "fp8" if config.is_quantized else "bf16"
    return _format_of(Path(engine.engram_tables), config.engram.layer_ids[0])


def resident_table_bytes(config: ModelConfig, engine: EngineConfig) -> int:
    """Memory that the tables take where the options want them; files that are mapped take none of their own."""
    if config.engram is None:
        return 0
    rows = config.engram.num_embeddings
    held = {"host": sum(rows), "shared": sum(rows), "disk": sum(min(count, engine.engram_cache_rows) for count in rows)}
    return held.get(engine.engram_tier, 0) * row_bytes(planned_format(config, engine), config.engram.head_dim)


def _open_tables(config: ModelConfig, engine: EngineConfig, checkpoint: Checkpoint) -> list[EngramTier]:
    assert config.engram is not None
    layers = config.engram.layer_ids
    if engine.engram_tables is None:
        if engine.engram_tier in ("mmap", "disk"):
            raise ConfigError(
                f"engram_tier={engine.engram_tier!r}: expected engram_tables, a folder of table files, because only those are "
                "read row by row. Write them with `ascend-dsv4 convert`, or choose engram_tier checkpoint or host."
            )
        stored = [CheckpointTable(checkpoint, layer) for layer in layers]
        return [_placed(table, engine) for table in stored]
    folder = Path(engine.engram_tables)
    row_format = _format_of(folder, layers[0])
    paths = [folder / table_file_name(layer, row_format) for layer in layers]
    if engine.engram_tier == "disk":
        return [PreadFile(path, cache_rows=engine.engram_cache_rows) for path in paths]
    return [_placed(MappedFile(path), engine) for path in paths]


def _placed(table: EngramTier, engine: EngineConfig) -> EngramTier:
    """The table itself, or a copy of it in memory."""
    if engine.engram_tier == "host":
        resident = HostTable.copy_of(table)
    elif engine.engram_tier == "shared":
        resident = _shared(table)
    else:
        return table
    table.close()
    return resident


def _shared(table: EngramTier) -> HostTable:
    """The copy that another process of this host has made of the table, else one made here for others to use."""
    what = f"{Path(table.name).resolve()} {table.num_rows} {table.format} {table.head_dim} {os.getuid()}"
    name = f"ascend-dsv4-{hashlib.sha256(what.encode()).hexdigest()[:16]}"
    try:
        return HostTable.share(table, name)
    except CheckpointError:  # it exists
        return HostTable.attach(name, table.num_rows, table.format, table.head_dim)


def _format_of(folder: Path, layer: int) -> RowFormat:
    """The format whose table files are in a folder; exactly one must be."""
    found = [name for name in FORMATS if (folder / table_file_name(layer, name)).exists()]
    if len(found) != 1:
        raise ConfigError(
            f"engram_tables={folder}: found {', '.join(table_file_name(layer, name) for name in found) or 'no table file'} for "
            f"layer {layer}, expected one of {', '.join(table_file_name(layer, name) for name in FORMATS)}, because all layers "
            "share one format. Name a folder that `ascend-dsv4 convert` wrote."
        )
    return found[0]
