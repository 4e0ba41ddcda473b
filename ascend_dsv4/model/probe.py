# SPDX-License-Identifier: Apache-2.0
"""A short report on a real checkpoint: headers, a few decoded blocks, statistics of the first layer, file hashes.

It is what somebody who has the files sends to somebody who does not. Only headers, the sampled blocks and the tensors
of the first layer are read. The report names the folder by its last component and holds no other path and no host name.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.config import ModelConfig
from ascend_dsv4.config.parts import ENGRAM_BLOCK
from ascend_dsv4.errors import CheckpointError, ConfigError, UnsupportedError
from ascend_dsv4.model.checkpoint import INDEX_NAME, MAX_LISTED, AliasStatus, Checkpoint, InventoryDifferences
from ascend_dsv4.model.inventory import DtypeTotal, inventory, optional_aliases
from ascend_dsv4.quant import fp4, fp8_blockwise

_HASHED_FILES: Final = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", INDEX_NAME)
_LAYER_PREFIXES: Final = ("layers.0.", "model.layers.0.")
_EXPERT: Final = re.compile(r"\.experts\.(\d+)\.")
_TABLE: Final = ".engram.embed."
_CHUNK_ELEMENTS: Final = 1 << 22
_HASH_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Size and SHA-256 of a small file of the folder."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ValueStats:
    """Statistics over the finite values; None where there are none."""

    min: float | None
    max: float | None
    mean: float | None
    rms: float | None
    num_non_finite: int


@dataclass(frozen=True, slots=True)
class TensorSample:
    """All values of one tensor, decoded. shape is the stored one."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stats: ValueStats


@dataclass(frozen=True, slots=True)
class BlockSample:
    """The values under one scale, decoded.

    block_index     (row, column) in the scale tensor
    scale_exponent  log2 of the scale; None for a NaN or, with float32 scales, for another value than a power of two
    zero_fraction   share of codes that mean zero
    """

    name: str
    dtype: str
    block_index: tuple[int, int]
    scale_exponent: int | None
    zero_fraction: float
    num_nan: int
    stats: ValueStats


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """Everything `probe` found. inventory_differences is None if config.json is unusable (config_error says why)."""

    folder: str
    layout: str
    has_draft: bool
    num_tensors: int
    total_bytes: int
    shards: dict[str, int]  # name -> file bytes
    dtypes: dict[str, DtypeTotal]
    config_error: str | None
    inventory_differences: InventoryDifferences | None
    aliases: dict[str, AliasStatus]
    blocks: tuple[BlockSample, ...]
    first_layer: tuple[TensorSample, ...]
    unreadable: tuple[str, ...]  # why a sample is missing above, one sentence each
    files: dict[str, FileIdentity]

    @property
    def is_expected(self) -> bool:
        """Whether the headers equal the model's inventory and stored aliases equal their originals."""
        fits = self.inventory_differences is not None and not self.inventory_differences.as_problems()
        return fits and "different" not in self.aliases.values()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; every number is finite."""
        return {**asdict(self), "is_expected": self.is_expected}

    def lines(self) -> list[str]:
        """The report for people."""
        return [
            f"{self.folder}: {self.num_tensors:,} tensors, {self.total_bytes:,} bytes in {len(self.shards)} shards, "
            f"{self.layout} names, {'with' if self.has_draft else 'without'} draft stages",
            *(
                f"  {name:8s} {count.num_tensors:>9,} tensors {count.num_bytes:>19,} bytes"
                for name, count in self.dtypes.items()
            ),
            *_inventory_lines(self),
            *(f"alias {name}: {status}" for name, status in self.aliases.items()),
            *(_block_line(block) for block in self.blocks),
            *(
                f"{_stats_text(sample.name, sample.dtype, sample.stats)} shape={list(sample.shape)}"
                for sample in self.first_layer
            ),
            *(f"not read: {reason}" for reason in self.unreadable),
            *(f"{name}: {file.num_bytes:,} bytes, sha256 {file.sha256}" for name, file in self.files.items()),
        ]


def probe(folder: Path | str, *, seed: int = 0, num_blocks: int = 16) -> ProbeReport:
    """Look at a checkpoint folder without loading it.

    seed, num_blocks  which quantised blocks are sampled, evenly over the stored formats; the same on every machine
    raises  CheckpointError if the headers are damaged or shards are missing: then there is nothing to report on
    """
    folder = Path(folder)
    checkpoint = Checkpoint.open(folder)
    config, config_error = _read_config(folder)
    block = config.weight_block_size if config is not None else None
    unreadable: list[str] = []
    aliases = optional_aliases(config) if config is not None else {}
    return ProbeReport(
        folder=folder.resolve().name,
        layout=checkpoint.layout,
        has_draft=checkpoint.has_draft,
        num_tensors=len(checkpoint.names()),
        total_bytes=checkpoint.total_bytes,
        shards={shard: (folder / shard).stat().st_size for shard in checkpoint.shards},
        dtypes=_count_dtypes(checkpoint),
        config_error=config_error,
        inventory_differences=checkpoint.differences(inventory(config), aliases) if config is not None else None,
        aliases=checkpoint.alias_status(aliases),
        blocks=tuple(_sample_blocks(checkpoint, block, random.Random(seed), num_blocks, unreadable)),
        first_layer=tuple(_sample_first_layer(checkpoint, block, unreadable)),
        unreadable=tuple(unreadable),
        files={name: _identify(folder / name) for name in _HASHED_FILES if (folder / name).is_file()},
    )


def _read_config(folder: Path) -> tuple[ModelConfig | None, str | None]:
    try:
        return ModelConfig.from_file(folder / "config.json"), None
    except (ConfigError, UnsupportedError) as error:
        return None, str(error).replace(str(folder), folder.resolve().name)


def _count_dtypes(checkpoint: Checkpoint) -> dict[str, DtypeTotal]:
    counts: dict[str, DtypeTotal] = {}
    for name in checkpoint.names():
        entry = checkpoint.entry(name)
        old = counts.get(entry.dtype, DtypeTotal(0, 0))
        counts[entry.dtype] = DtypeTotal(old.num_tensors + 1, old.num_bytes + entry.num_bytes)
    return dict(sorted(counts.items()))


def _sample_blocks(
    checkpoint: Checkpoint,
    block: fp8_blockwise.Block | None,
    rng: random.Random,
    num_blocks: int,
    unreadable: list[str],
) -> Iterator[BlockSample]:
    """Random blocks, taking turns between the stored formats (FP4 experts outnumber FP8 linears a hundred to one)."""
    formats: dict[str, list[str]] = {}
    for name in checkpoint.names():
        if checkpoint.scale_name(name) is None:
            continue
        try:
            scale = checkpoint.quantized_scale(name)
        except CheckpointError as error:
            unreadable.append(str(error))
            continue
        if checkpoint.entry(scale).num_bytes > 0:
            formats.setdefault(checkpoint.entry(name).dtype, []).append(name)
    groups = [names for _, names in sorted(formats.items())]
    for turn in range(num_blocks if groups else 0):
        name = rng.choice(groups[turn % len(groups)])
        shape = checkpoint.entry(checkpoint.scale_name(name) or name).shape
        index = (rng.randrange(shape[0]), rng.randrange(shape[-1]))
        try:
            yield _sample_block(checkpoint, name, index, block)
        except CheckpointError as error:
            unreadable.append(f"block {list(index)} of {name}: {error}")


def _sample_block(checkpoint: Checkpoint, name: str, index: tuple[int, int], block: fp8_blockwise.Block | None) -> BlockSample:
    entry = checkpoint.entry(name)
    row, column = index
    scale = checkpoint.array(checkpoint.scale_name(name) or name)[row : row + 1, column : column + 1]
    codes = checkpoint.array(name)
    if entry.dtype != "F8_E4M3":
        half = fp4.GROUP // 2
        values = fp4.decode_numpy(codes[row : row + 1, column * half : (column + 1) * half], scale)
    elif block is not None:
        rows, cols = _block_of(name, block)
        values = fp8_blockwise.decode_numpy(
            codes[row * rows : (row + 1) * rows, column * cols : (column + 1) * cols], scale, (rows, cols)
        )
    else:
        raise CheckpointError("FP8 without weight_block_size; config.json must give it. See config_error.")
    return BlockSample(
        name=name,
        dtype=entry.dtype,
        block_index=index,
        scale_exponent=_exponent(scale),
        zero_fraction=float((values == 0).mean()),
        num_nan=int(np.isnan(values).sum()),
        stats=_accumulate(iter([values])),
    )


def _block_of(name: str, block: fp8_blockwise.Block) -> fp8_blockwise.Block:
    """Rows and columns per FP8 scale: the rows of an n-gram table have scales of their own."""
    return (1, ENGRAM_BLOCK) if _TABLE in name else block


def _exponent(scale: NDArray[Any]) -> int | None:
    """log2 of one scale: E8M0 byte or float32."""
    if scale.dtype == np.uint8:
        code = int(scale.item())
        return code - 127 if code != 255 else None
    mantissa, exponent = math.frexp(float(scale.item()))
    return exponent - 1 if mantissa == 0.5 else None


def _sample_first_layer(
    checkpoint: Checkpoint, block: fp8_blockwise.Block | None, unreadable: list[str]
) -> Iterator[TensorSample]:
    """Layer 0 without its experts, then its expert 0. Scales are folded into their weights."""
    names = [name for name in checkpoint.names() if name.startswith(_LAYER_PREFIXES)]
    scales = {checkpoint.scale_name(name) for name in names}
    experts = {name: found[1] for name in names if (found := _EXPERT.search(name))}
    chosen = [name for name in names if name not in experts] + [name for name in names if experts.get(name) == "0"]
    for name in chosen:
        if name in scales:
            continue
        entry = checkpoint.entry(name)
        try:
            stats = _accumulate(_chunks(checkpoint, name, block))
        except CheckpointError as error:
            unreadable.append(f"{name}: {error}")
            continue
        yield TensorSample(name, entry.dtype, entry.shape, stats)


def _chunks(checkpoint: Checkpoint, name: str, block: fp8_blockwise.Block | None) -> Iterator[NDArray[Any]]:
    """The values of a tensor, some rows at a time, so that memory does not grow with the model."""
    entry = checkpoint.entry(name)
    if entry.dtype in ("I64", "I32", "BOOL"):
        yield checkpoint.array(name)
        return
    num_rows = entry.shape[0] if entry.shape else 1
    step = max(_CHUNK_ELEMENTS // max(math.prod(entry.shape[1:]), 1), 1)
    if block is not None:
        block = _block_of(name, block)
        step = -(-step // block[0]) * block[0]
    for start in range(0, num_rows, step):
        yield checkpoint.read_float32(name, block, rows=(start, min(start + step, num_rows)))


def _accumulate(chunks: Iterator[NDArray[Any]]) -> ValueStats:
    """Statistics of the finite values in float64."""
    count, non_finite, total, squares = 0, 0, 0.0, 0.0
    low, high = math.inf, -math.inf
    for chunk in chunks:
        values = chunk.astype(np.float64).ravel()
        finite = values[np.isfinite(values)]
        non_finite += values.size - finite.size
        if finite.size == 0:
            continue
        count += finite.size
        total += float(finite.sum())
        squares += float(np.square(finite).sum())
        low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if count == 0:
        return ValueStats(None, None, None, None, non_finite)
    return ValueStats(low, high, total / count, math.sqrt(squares / count), non_finite)


def _identify(path: Path) -> FileIdentity:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_BYTES):
            digest.update(chunk)
    return FileIdentity(path.stat().st_size, digest.hexdigest())


def _inventory_lines(report: ProbeReport) -> list[str]:
    if report.inventory_differences is None:
        return [f"inventory: not compared, config.json cannot be used: {report.config_error}"]
    problems: Mapping[str, list[str]] = report.inventory_differences.as_problems()
    if not problems:
        return ["inventory: equal to what config.json describes"]
    lines = []
    for kind, texts in problems.items():
        lines.append(f"inventory: {len(texts)} {kind}")
        lines += [f"  {text}" for text in texts[:MAX_LISTED]]
        if len(texts) > MAX_LISTED:
            lines.append(f"  ... and {len(texts) - MAX_LISTED} more")
    return lines


def _block_line(block: BlockSample) -> str:
    text = _stats_text(f"block {list(block.block_index)} of {block.name}", block.dtype, block.stats)
    exponent = "none" if block.scale_exponent is None else f"2^{block.scale_exponent}"
    return f"{text} scale={exponent} zeros={block.zero_fraction:.3f} nan={block.num_nan}"


def _stats_text(name: str, dtype: str, stats: ValueStats) -> str:
    shown = {"min": stats.min, "max": stats.max, "mean": stats.mean, "rms": stats.rms}
    numbers = " ".join(f"{key}={'-' if value is None else format(value, '.6g')}" for key, value in shown.items())
    return f"{name} ({dtype}): {numbers} non-finite={stats.num_non_finite}"
