# SPDX-License-Identifier: Apache-2.0
"""Where cache memory goes: per kind rows, bytes per row, blocks, and what is lost to rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ascend_dsv4.config.engine_config import EngineConfig
from ascend_dsv4.config.model_config import ModelConfig
from ascend_dsv4.kv_cache.layout import CachePlan, CacheSpec, draft_caches, plan_caches


@dataclass(frozen=True, slots=True)
class CacheUse:
    """One kind of cache over all layers that own it (one line per ratio)."""

    name: str
    group: str
    layer_type: str
    """Owning layer type; "all" for a cache of several."""
    layers: int
    rows: int
    """Rows that max_total_tokens tokens of one sequence need in one layer."""
    row_bytes: int
    needed_bytes: int
    blocks: int
    block_rows: int
    allocated_bytes: int
    ratio: int
    """Tokens per row; 0 for a cache that does not grow with a sequence."""

    @property
    def rounding_loss_bytes(self) -> int:
        """Allocated beyond the need: partly filled blocks, and room for the rows of a step in flight."""
        return self.allocated_bytes - self.needed_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "rounding_loss_bytes": self.rounding_loss_bytes}


@dataclass(frozen=True, slots=True)
class CacheAccount:
    """Cache memory of an engine."""

    uses: tuple[CacheUse, ...]
    tokens: int
    max_num_seqs: int
    draft: CacheUse | None
    """Allocated on first use of a drafter; not part of the sums."""

    @property
    def bytes_per_token(self) -> float:
        """What a sequence takes more with every token, without draft stages."""
        return sum(use.row_bytes * use.layers / use.ratio for use in self.uses if use.ratio)

    @property
    def bytes_per_sequence(self) -> int:
        """What a sequence of any length takes: its windows, those of draft stages included, and what is not folded yet."""
        fixed = [use for use in (*self.uses, *([self.draft] if self.draft else [])) if not use.ratio]
        return sum(use.needed_bytes for use in fixed) // self.max_num_seqs

    def needed_bytes(self, *, state: bool) -> int:
        """Bytes without rounding loss: of the partial states, or of all paged caches."""
        return sum(use.needed_bytes for use in self.uses if (use.group == "state") == state)

    @property
    def allocated_bytes(self) -> int:
        return sum(use.allocated_bytes for use in self.uses)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "tokens": self.tokens,
            "caches": [use.to_dict() for use in self.uses],
            "paged_bytes": self.needed_bytes(state=False),
            "state_bytes": self.needed_bytes(state=True),
            "allocated_bytes": self.allocated_bytes,
            "bytes_per_token": self.bytes_per_token,
            "bytes_per_sequence": self.bytes_per_sequence,
            "draft": self.draft.to_dict() if self.draft else None,
        }


def account(config: ModelConfig, engine: EngineConfig) -> CacheAccount:
    """Cache memory for these options: what `plan_caches` allocates, and what its rows need."""
    plan = plan_caches(config, engine)
    tokens = engine.max_total_tokens or plan.max_model_len
    owners: dict[CacheSpec, list[str]] = {}
    for layer_type, caches in zip(config.layer_types, plan.layers, strict=True):
        for cache in caches:
            owners.setdefault(cache, []).append(layer_type)
    uses = tuple(_use(plan, cache, layer_types, tokens, engine.max_num_seqs) for cache, layer_types in owners.items())
    order = ("win_kv", "mla_kv", "cmp_kv", "idx_kv", "cmp_state", "idx_state", "pair_state")
    draft = _draft_use(config, engine, plan, tokens) if config.num_draft_stages else None
    uses = tuple(sorted(uses, key=lambda use: (order.index(use.name), use.group)))
    return CacheAccount(uses, tokens, engine.max_num_seqs, draft)


def _draft_use(config: ModelConfig, engine: EngineConfig, plan: CachePlan, tokens: int) -> CacheUse:
    """The caches of all draft stages that run as one, whose row holds what a stage keeps of a token."""
    uses = [_use(plan, cache, ["draft"], tokens, engine.max_num_seqs) for cache in draft_caches(config, engine)]
    layers = 1 if config.dspark is None else config.num_draft_stages
    return replace(
        uses[0],
        name="draft_kv",
        layers=layers,
        row_bytes=sum(use.row_bytes for use in uses) // layers,
        needed_bytes=sum(use.needed_bytes for use in uses),
        allocated_bytes=sum(use.allocated_bytes for use in uses),
    )


def _use(plan: CachePlan, cache: CacheSpec, owners: Sequence[str], tokens: int, max_num_seqs: int) -> CacheUse:
    """`owners` are the layer types of the layers that hold such a cache."""
    ratio = 0 if cache.group in ("window", "state") else plan.block_size // cache.block_rows
    if cache.group == "window":
        rows = min(plan.window * max_num_seqs, tokens)
    elif cache.group == "state":
        rows = cache.block_rows * max_num_seqs
    else:
        rows = tokens // ratio
    blocks = plan.num_blocks[cache.group]
    return CacheUse(
        name=cache.name,
        group=cache.group,
        layer_type="all" if len(set(owners)) > 1 else owners[0],
        layers=len(owners),
        rows=rows,
        row_bytes=cache.row_bytes,
        needed_bytes=rows * cache.row_bytes * len(owners),
        blocks=blocks,
        block_rows=cache.block_rows,
        allocated_bytes=blocks * cache.block_bytes * len(owners),
        ratio=ratio,
    )
