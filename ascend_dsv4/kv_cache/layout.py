# SPDX-License-Identifier: Apache-2.0
"""Which caches a layer type owns, in which rows and blocks, and how many blocks an engine needs.

Blocks come from one pool per group, shared by all layers: a request holds one block table per group.

    window      win_kv (and draft_kv): one row per token, given back once the window has passed
    cmp<ratio>  cmp_kv, idx_kv: one row per `ratio` tokens, kept as long as the request
    state       cmp_state, idx_state: one slot per request, rows addressed by position
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ascend_dsv4.config.engine_config import EngineConfig
from ascend_dsv4.config.layers import DRAFT_LAYER, LayerSpec, compressor_roles, layer_specs
from ascend_dsv4.config.model_config import ModelConfig
from ascend_dsv4.errors import CapacityError, ConfigError
from ascend_dsv4.ops.spec import DTYPE_BYTES

CACHE_DTYPES = {"float32": "float32", "bf16": "bfloat16", "packed": "uint8"}
KV_SCALE_GROUP = 64
FP4_SCALE_GROUP = 32


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


def packed_kv_bytes(head_dim: int, rope_dim: int) -> int:
    """Bytes of a packed KV row: E4M3 codes, bf16 rotary channels, one scale byte per 64 codes, padded to 8 bytes."""
    codes = head_dim - rope_dim
    return -(-(codes + 2 * rope_dim + -(-codes // KV_SCALE_GROUP)) // 8) * 8


def packed_index_bytes(index_head_dim: int) -> int:
    """Bytes of a packed index key: two E2M1 codes a byte, one scale byte per 32 codes."""
    return index_head_dim // 2 + index_head_dim // FP4_SCALE_GROUP


def layer_caches(config: ModelConfig, engine: EngineConfig, spec: LayerSpec) -> tuple[CacheSpec, ...]:
    """The caches of one layer."""
    dtype = CACHE_DTYPES[engine.kv_cache]
    packed = engine.kv_cache == "packed"
    kv = (packed_kv_bytes(config.head_dim, config.qk_rope_head_dim) if packed else config.head_dim,)
    caches = [CacheSpec("win_kv", "window", engine.window_block_size, kv, dtype)]
    if spec.ratio:
        group, block_rows = f"cmp{spec.ratio}", engine.block_size // spec.ratio
        caches.append(CacheSpec("cmp_kv", group, block_rows, kv, dtype))
        caches.append(_state("cmp_state", spec.ratio, config.head_dim, engine.num_drafts))
    if spec.layer_type == "csa":
        index = (packed_index_bytes(config.index_head_dim) if packed else config.index_head_dim,)
        caches.append(CacheSpec("idx_kv", group, block_rows, index, dtype))
        caches.append(_state("idx_state", spec.ratio, config.index_head_dim, engine.num_drafts))
    return tuple(caches)


def _state(name: str, ratio: int, head_dim: int, num_drafts: int) -> CacheSpec:
    """Rows of projections an entry may still need: kv and gate of the open window, and of the overlapped one before it.

    They suffice because a step reads the rows before it writes them. The rows of n rejected drafts displace those of the n
    oldest positions, which the true tokens may still need: so there are n more.
    """
    roles = compressor_roles(ratio)
    return CacheSpec(name, "state", roles * ratio + num_drafts, (2, roles * head_dim), "float32")


def draft_cache(config: ModelConfig, engine: EngineConfig) -> CacheSpec:
    """Window rows of a draft stage; they lie in the same blocks as the backbone's."""
    window = layer_caches(config, engine, DRAFT_LAYER)[0]
    return CacheSpec("draft_kv", window.group, window.block_rows, window.row_shape, window.dtype)


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
    max_model_len: int

    @property
    def ratios(self) -> tuple[int, ...]:
        return tuple(sorted(int(group[3:]) for group in self.num_blocks if group.startswith("cmp")))

    def shape(self, cache: CacheSpec) -> tuple[int, ...]:
        """Shape of a cache tensor."""
        return (self.num_blocks[cache.group], cache.block_rows, *cache.row_shape)

    def caches(self) -> Iterator[CacheSpec]:
        """Every cache of every layer."""
        return (cache for layer in self.layers for cache in layer)

    @property
    def total_bytes(self) -> int:
        """What an engine allocates."""
        return sum(self.num_blocks[cache.group] * cache.block_bytes for cache in self.caches())


def plan_caches(config: ModelConfig, engine: EngineConfig) -> CachePlan:
    """Sizes for these options.

    Raises ConfigError if max_model_len exceeds the model's positions, CapacityError if one such sequence cannot fit.
    """
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
    block = engine.window_block_size
    # Rows of rejected drafts lie beyond the last token of a sequence until true ones overwrite them.
    window_blocks = -(-(config.sliding_window + engine.num_drafts) // block) + 2
    # Rows written in a step lie beside those it reads: a step's tokens need blocks on top of every sequence's window.
    pool = engine.max_num_seqs * window_blocks + engine.max_num_batched_tokens // block
    longest = -(-max_len // block)
    num_blocks = {"window": min(pool, engine.max_num_seqs * longest), "state": engine.max_num_seqs}
    columns = {"window": min(window_blocks + -(-engine.max_num_batched_tokens // block), longest)}
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
        window_block_size=block,
        window=config.sliding_window,
        max_model_len=max_len,
    )
