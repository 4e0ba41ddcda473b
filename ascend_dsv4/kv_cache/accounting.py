# SPDX-License-Identifier: Apache-2.0
"""Where cache memory goes: per kind rows, bytes per row, blocks, and what is lost to rounding."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ascend_dsv4.config.engine_config import EngineConfig
from ascend_dsv4.config.model_config import ModelConfig
from ascend_dsv4.kv_cache.layout import CachePlan, CacheSpec, draft_cache, plan_caches


@dataclass(frozen=True, slots=True)
class CacheUse:
    """One kind of cache over all layers that own it (one line per ratio)."""

    name: str
    group: str
    layers: int
    rows: int
    """Rows that max_total_tokens tokens of one sequence need in one layer."""
    row_bytes: int
    needed_bytes: int
    blocks: int
    block_rows: int
    allocated_bytes: int

    @property
    def rounding_loss_bytes(self) -> int:
        """Allocated beyond the need: partly filled blocks, and room for the rows of a step in flight."""
        return self.allocated_bytes - self.needed_bytes


@dataclass(frozen=True, slots=True)
class CacheAccount:
    """Cache memory of an engine."""

    uses: tuple[CacheUse, ...]
    tokens: int
    draft: CacheUse | None
    """Allocated on first use of a drafter; not part of the sums."""

    def needed_bytes(self, *, state: bool) -> int:
        """Bytes without rounding loss: of the partial states, or of all paged caches."""
        return sum(use.needed_bytes for use in self.uses if (use.group == "state") == state)

    @property
    def allocated_bytes(self) -> int:
        return sum(use.allocated_bytes for use in self.uses)

    def to_dict(self) -> dict[str, Any]:
        uses = [{**asdict(use), "rounding_loss_bytes": use.rounding_loss_bytes} for use in self.uses]
        return {
            "tokens": self.tokens,
            "caches": uses,
            "kv_bytes": self.needed_bytes(state=False),
            "state_bytes": self.needed_bytes(state=True),
            "allocated_bytes": self.allocated_bytes,
            "draft": asdict(self.draft) if self.draft else None,
        }


def account(config: ModelConfig, engine: EngineConfig) -> CacheAccount:
    """Cache memory for these options: what `plan_caches` allocates, and what its rows need."""
    plan = plan_caches(config, engine)
    tokens = engine.max_total_tokens or plan.max_model_len
    layers: dict[CacheSpec, int] = {}
    for cache in plan.caches():
        layers[cache] = layers.get(cache, 0) + 1
    uses = tuple(_use(plan, cache, count, tokens, engine.max_num_seqs) for cache, count in layers.items())
    order = ("win_kv", "cmp_kv", "idx_kv", "cmp_state", "idx_state")
    draft = _use(plan, draft_cache(config, engine), 1, tokens, engine.max_num_seqs) if config.num_draft_stages else None
    return CacheAccount(tuple(sorted(uses, key=lambda use: (order.index(use.name), use.group))), tokens, draft)


def _use(plan: CachePlan, cache: CacheSpec, layers: int, tokens: int, max_num_seqs: int) -> CacheUse:
    if cache.group == "window":
        rows = min(plan.window * max_num_seqs, tokens)
    elif cache.group == "state":
        rows = cache.block_rows * max_num_seqs
    else:
        rows = tokens // (plan.block_size // cache.block_rows)
    blocks = plan.num_blocks[cache.group]
    needed, allocated = rows * cache.row_bytes * layers, blocks * cache.block_bytes * layers
    return CacheUse(
        cache.name, cache.group, layers, rows, cache.row_bytes, needed, blocks, cache.block_rows, allocated
    )
