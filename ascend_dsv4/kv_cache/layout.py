# SPDX-License-Identifier: Apache-2.0
"""Which caches a layer type owns, in which rows and blocks, and how many blocks an engine needs.

Blocks come from one pool per group, shared by all layers: a request holds one block table per group.

    window      win_kv (and those of draft stages): one row per token, given back once the window has passed
    cmp<ratio>  cmp_kv, mla_kv, idx_kv: one row per `ratio` tokens, kept as long as the request
    state       cmp_state, idx_state, pair_state: one slot per request, rows addressed by position
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ascend_dsv4.config.engine_config import EngineConfig
from ascend_dsv4.config.layers import LayerSpec, compressor_roles, draft_layer, layer_specs
from ascend_dsv4.config.model_config import ModelConfig
from ascend_dsv4.errors import CapacityError, ConfigError
from ascend_dsv4.ops.spec import DTYPE_BYTES

DSPARK_EXTRA_ROWS = 1
"""The block drafter sees a whole window of final rows, where a token sees itself and one row less."""
CACHE_DTYPES = {"float32": "float32", "bf16": "bfloat16", "packed": "uint8"}


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """One cache tensor of one layer: [blocks of the group, block_rows, *row_shape]."""

    name: str
    group: str
    block_rows: int
    row_shape: tuple[int, ...]
    dtype: str

    @property
    def row_bytes(self) -> int:
        return math.prod(self.row_shape) * int(DTYPE_BYTES[self.dtype])

    @property
    def block_bytes(self) -> int:
        return self.block_rows * self.row_bytes


def packed_bytes(grid: str, width: int, rope_dim: int) -> int:
    """Bytes of a row of `width` channels as the codes and scales of its grid; `rope_dim` of them are rotated."""
    if grid == "fp8":  # E4M3, the rotated channels in bf16, one scale byte per 64 codes, padded to 8 bytes
        codes = width - rope_dim
        return -(-(codes + 2 * rope_dim + -(-codes // 64)) // 8) * 8
    if grid == "fp8_b32":
        return width + -(-width // 32)
    if grid == "fp4_b16_e4m3":
        return width // 2 + -(-width // 16)
    if grid in ("fp4_b32", "hadamard_fp4"):
        return width // 2 + -(-width // 32)
    # No grid belongs to the model: E4M3 with one float32 scale per 128 codes, rotated channels in bf16.
    codes = width - rope_dim
    return codes + 4 * -(-codes // 128) + 2 * rope_dim


def layer_caches(config: ModelConfig, engine: EngineConfig, spec: LayerSpec) -> tuple[CacheSpec, ...]:
    """The caches that one layer owns."""
    grids, rope_dim = config.cache_grids, config.qk_rope_head_dim
    group, block_rows = f"cmp{spec.ratio}", engine.block_size // (spec.ratio or 1)

    def paged(name: str, group: str, block_rows: int, width: int, grid: str, rope_dim: int) -> CacheSpec:
        if engine.kv_cache == "packed":
            width = packed_bytes(grid, width, rope_dim)
        return CacheSpec(name, group, block_rows, (width,), CACHE_DTYPES[engine.kv_cache])

    caches = []
    if config.mla is not None:
        caches.append(paged("mla_kv", group, block_rows, config.mla.kv_lora_rank + rope_dim, "none", rope_dim))
    else:
        caches.append(paged("win_kv", "window", engine.window_block_size, config.head_dim, grids.window, rope_dim))
    if spec.layer_type in ("csa", "hca", "full"):
        caches.append(paged("cmp_kv", group, block_rows, config.head_dim, grids.entries, rope_dim))
    if spec.layer_type in ("csa", "hca"):
        caches.append(_state("cmp_state", spec.ratio, config.head_dim, engine.num_drafts))
    if spec.layer_type in ("csa", "full") or (config.mla is not None and config.index_topk):
        caches.append(paged("idx_kv", group, block_rows, config.index_head_dim, grids.index, 0))
    if spec.layer_type == "csa":
        caches.append(_state("idx_state", spec.ratio, config.index_head_dim, engine.num_drafts))
    if spec.layer_type == "full" and spec.ratio > 1:
        caches.append(_state("pair_state", spec.ratio, config.head_dim, engine.num_drafts))
    return tuple(caches)


BORROWED = ("cmp_kv", "idx_kv")
"""Caches of its source that a layer with a `kv_source` reads; the latter only if it indexes."""


def borrowed_caches(spec: LayerSpec) -> tuple[str, ...]:
    """Names of the caches that the layer reads out of its source."""
    return {"reindex": BORROWED, "reuse": BORROWED[:1]}.get(spec.layer_type, ())


def _state(name: str, ratio: int, head_dim: int, num_drafts: int) -> CacheSpec:
    """Rows of projections an entry may still need: kv and gate of the open window, and of the overlapped one before it.

    They suffice because a step reads the rows before it writes them. The rows of n rejected drafts displace those of the n
    oldest positions, which the true tokens may still need: so there are n more.
    """
    roles = compressor_roles(ratio)
    return CacheSpec(name, "state", roles * ratio + num_drafts, (2, roles * head_dim), "float32")


def draft_caches(config: ModelConfig, engine: EngineConfig) -> tuple[CacheSpec, ...]:
    """The caches of the draft stages; they lie in the same blocks as the backbone's.

    The MTP stage has those of a layer, under their names. A stage of the block drafter has window rows, draft_kv<stage>.
    """
    own = layer_caches(config, engine, draft_layer(config))
    if config.dspark is None:
        return own
    return tuple(replace(own[0], name=f"draft_kv{stage}") for stage in range(config.num_draft_stages))


@dataclass(frozen=True, slots=True)
class CachePlan:
    """Sizes of all caches of an engine."""

    layers: tuple[tuple[CacheSpec, ...], ...]
    num_blocks: dict[str, int]
    """Blocks (slots for "state") by group."""
    table_columns: dict[str, int]
    """Width of a request's block table by paged group."""
    block_size: int
    window_block_size: int
    window: int
    """Tokens a window reaches back; 0 for a model without windows."""
    max_model_len: int
    history: int
    """Tokens before a step's first one that its n-grams reach back to."""

    @property
    def ratios(self) -> tuple[int, ...]:
        return tuple(sorted(int(group[3:]) for group in self.num_blocks if group.startswith("cmp")))

    def shape(self, cache: CacheSpec) -> tuple[int, ...]:
        """Shape of a cache tensor."""
        return (self.num_blocks[cache.group], cache.block_rows, *cache.row_shape)

    def readable(self, spec: LayerSpec, layer: int) -> tuple[CacheSpec, ...]:
        """The caches of a layer, and those that it reads out of its source."""
        if spec.kv_source is None:
            return self.layers[layer]
        names = borrowed_caches(spec)
        return (*self.layers[layer], *(cache for cache in self.layers[spec.kv_source] if cache.name in names))

    def caches(self) -> Iterator[CacheSpec]:
        """Every cache of every layer."""
        return (cache for layer in self.layers for cache in layer)

    @property
    def total_bytes(self) -> int:
        """What an engine allocates."""
        return sum(self.num_blocks[cache.group] * cache.block_bytes for cache in self.caches())


def _window_rows(config: ModelConfig, drafter: str) -> int:
    """Rows of a window cache that a sequence keeps."""
    return config.sliding_window + (DSPARK_EXTRA_ROWS if drafter == "dspark" else 0)


def _window_blocks(config: ModelConfig, engine: EngineConfig, drafter: str) -> int:
    """Blocks of the window group that a sequence holds between steps."""
    ahead = engine.num_drafts
    if drafter == "dspark" and config.dspark is not None:
        ahead = max(ahead, config.dspark.block_size - 1)  # the first row of the block is the next token's
    # Rows of rejected drafts lie beyond the last token of a sequence until true ones overwrite them.
    return -(-(_window_rows(config, drafter) + ahead) // engine.window_block_size) + 2


def _window_columns(config: ModelConfig, engine: EngineConfig, drafter: str, max_len: int) -> int:
    """Columns of a request's table of window blocks: with those that a step writes."""
    block = engine.window_block_size
    return min(_window_blocks(config, engine, drafter) - (-engine.max_num_batched_tokens // block), -(-max_len // block))


def drafting_plan(plan: CachePlan, config: ModelConfig, engine: EngineConfig) -> CachePlan:
    """The same caches for a sequence alone that the checkpoint's drafter drafts for, though the engine does not."""
    drafter = config.draft_method or "none"
    columns = dict(plan.table_columns)
    if plan.window:
        columns["window"] = _window_columns(config, engine, drafter, plan.max_model_len)
    return replace(plan, window=_window_rows(config, drafter), table_columns=columns)


def plan_caches(config: ModelConfig, engine: EngineConfig) -> CachePlan:
    """Sizes for these options.

    Raises ConfigError if max_model_len exceeds the model's positions, or a block has no place for so many drafts, CapacityError
    if one such sequence cannot fit.
    """
    _check_drafts(config, engine)
    max_len = engine.max_model_len or config.max_position_embeddings
    if max_len > config.max_position_embeddings:
        raise ConfigError(
            f"max_model_len={max_len}: the model allows at most {config.max_position_embeddings} positions "
            "(max_position_embeddings; its rotary tables are not trained beyond). Lower max_model_len."
        )
    total = engine.max_total_tokens or max_len
    if total < max_len:
        raise CapacityError(
            f"max_total_tokens={total} holds no sequence of max_model_len={max_len} tokens; a sequence must fit whole. "
            f"Raise max_total_tokens to {max_len} or lower max_model_len."
        )
    num_blocks, columns = {"state": engine.max_num_seqs}, {}
    if config.sliding_window:
        block = engine.window_block_size
        # Rows written in a step lie beside those it reads: a step's tokens need blocks on top of every sequence's window.
        pool = engine.max_num_seqs * _window_blocks(config, engine, engine.speculative) + engine.max_num_batched_tokens // block
        num_blocks["window"] = min(pool, engine.max_num_seqs * -(-max_len // block))
        columns["window"] = _window_columns(config, engine, engine.speculative, max_len)
    for ratio in sorted({ratio for ratio in config.compress_ratios if ratio}):
        # Sequences end inside a block: every one but the first may waste part of one.
        num_blocks[f"cmp{ratio}"] = -(-total // engine.block_size) + engine.max_num_seqs - 1
        columns[f"cmp{ratio}"] = -(-max_len // engine.block_size)
    layers = tuple(layer_caches(config, engine, spec) for spec in layer_specs(config))
    rows = max(num_blocks[cache.group] * cache.block_rows for layer in layers for cache in layer)
    if rows >= 1 << 31:
        raise CapacityError(
            f"max_total_tokens={total}, max_num_seqs={engine.max_num_seqs}: a cache would have {rows:,} rows, but rows are "
            "numbered in 32 bits. Lower one of them."
        )
    return CachePlan(
        layers=layers,
        num_blocks=num_blocks,
        table_columns=columns,
        block_size=engine.block_size,
        window_block_size=engine.window_block_size,
        window=_window_rows(config, engine.speculative) if config.sliding_window else 0,
        max_model_len=max_len,
        history=config.engram.max_ngram_size - 1 if config.engram is not None else 0,
    )


def _check_drafts(config: ModelConfig, engine: EngineConfig) -> None:
    """Raises ConfigError for more drafts than a block of the checkpoint's block drafter holds."""
    wanted = engine.num_speculative_tokens or 0
    if engine.speculative == "dspark" and config.dspark is not None and wanted > config.dspark.block_size:
        raise ConfigError(
            f"num_speculative_tokens={wanted}: expected at most {config.dspark.block_size}, the dspark_block_size, "
            "because the draft stages guess one block at a time. Lower num_speculative_tokens, or leave it out."
        )
