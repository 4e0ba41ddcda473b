# SPDX-License-Identifier: Apache-2.0
"""V4 attention: one shared key/value head, a window, and compressed entries chosen by an indexer (csa) or all (hca)."""

from __future__ import annotations

from typing import Any

from ascend_dsv4.config.layers import LayerSpec
from ascend_dsv4.model.weights import AttentionWeights, CompressorWeights, IndexerWeights, Tensor


def attention(
    ops: Any, cfg: Any, spec: LayerSpec, w: AttentionWeights, x: Tensor, batch: dict[str, Tensor], caches: dict[str, Tensor]
) -> Tensor:
    """x [num_tokens, hidden_size], normalised → [num_tokens, hidden_size]. Writes the layer's caches."""
    cos, sin = batch[f"{rotary_table(spec)}_cos"], batch[f"{rotary_table(spec)}_sin"]
    latent = ops.rms_norm(linear(ops, cfg, x, w.wq_a), w.q_norm, eps=cfg.rms_norm_eps)  # [num_tokens, q_lora_rank]
    q = linear(ops, cfg, latent, w.wq_b).reshape(-1, cfg.num_attention_heads, cfg.head_dim)
    q = ops.rope(ops.rms_norm(q, None, eps=cfg.rms_norm_eps), cos, sin, inverse=False)

    kv = ops.rms_norm(linear(ops, cfg, x, w.wkv), w.kv_norm, eps=cfg.rms_norm_eps)  # [num_tokens, head_dim]
    kv = ops.rope(kv, cos, sin, inverse=False)
    caches["win_kv"] = ops.store_kv(
        caches["win_kv"], kv, batch["window_slots"], rounding=cfg.kv_rounding, rope_dim=cfg.qk_rope_head_dim
    )
    cmp_kv = entries = block_table = None
    if w.compressor is not None:
        compress(ops, cfg, spec, w.compressor, x, batch, caches, "cmp", cfg.kv_rounding)
        cmp_kv, block_table = caches["cmp_kv"], batch[f"cmp{spec.ratio}_table"]
    if w.indexer is not None:
        entries = choose_entries(ops, cfg, spec, w.indexer, x, latent, batch, caches)

    o = ops.sparse_attention(
        q, caches["win_kv"], cmp_kv, entries, w.sink,
        batch["positions"], batch["req_idx"], batch["window_table"], block_table,
        window=cfg.sliding_window, ratio=spec.ratio, scale=cfg.head_dim**-0.5,
    )  # fmt: skip
    # Values carry the rotation of their own position; turning back by the query's leaves the distance.
    o = ops.rope(o, cos, sin, inverse=True)
    groups = o.reshape(-1, cfg.o_groups, cfg.num_attention_heads * cfg.head_dim // cfg.o_groups)
    mixed = ops.grouped_linear(groups, *w.wo_a)  # [num_tokens, o_groups, o_lora_rank]
    return linear(ops, cfg, mixed.reshape(-1, cfg.o_groups * cfg.o_lora_rank), w.wo_b)


def rotary_table(spec: LayerSpec) -> str:
    """A layer rotates everything by one table: YaRN where it compresses, plain where it only has a window."""
    return "yarn" if spec.ratio else "plain"


def compress(
    ops: Any,
    cfg: Any,
    spec: LayerSpec,
    w: CompressorWeights,
    x: Tensor,
    batch: dict[str, Tensor],
    caches: dict[str, Tensor],
    kind: str,
    rounding: str,
) -> None:
    """Project x to a compressor's kv and gate in float32, and store the entries that this step closes in `<kind>_kv`."""
    kv = ops.linear(x, *w.wkv, out_dtype="float32")
    gate = ops.linear(x, *w.wgate, out_dtype="float32")
    caches[f"{kind}_kv"], caches[f"{kind}_state"] = ops.compress_kv(
        caches[f"{kind}_kv"], caches[f"{kind}_state"], kv, gate, w.ape, w.norm,
        batch[f"cmp{spec.ratio}_cos"], batch[f"cmp{spec.ratio}_sin"],
        batch["positions"], batch["req_idx"], batch["cu_query_lens"], batch["state_slots"], batch[f"cmp{spec.ratio}_slots"],
        ratio=spec.ratio, eps=cfg.rms_norm_eps, rounding=rounding, entry_dtype=cfg.dtype,
    )  # fmt: skip


def choose_entries(
    ops: Any,
    cfg: Any,
    spec: LayerSpec,
    w: IndexerWeights,
    x: Tensor,
    latent: Tensor,
    batch: dict[str, Tensor],
    caches: dict[str, Tensor],
) -> Tensor:
    """Entries each token attends to, [num_tokens, index_topk] int32. Writes the indexer's keys."""
    q = linear(ops, cfg, latent, w.wq_b).reshape(-1, cfg.index_n_heads, cfg.index_head_dim)
    q = ops.rope(q, batch["yarn_cos"], batch["yarn_sin"], inverse=False)
    weights = linear(ops, cfg, x, w.weights_proj) * (cfg.index_head_dim**-0.5 * cfg.index_n_heads**-0.5)
    compress(ops, cfg, spec, w.compressor, x, batch, caches, "idx", cfg.index_rounding)
    entries, _ = ops.index_topk(
        q, weights, caches["idx_kv"], batch["positions"], batch["req_idx"], batch[f"cmp{spec.ratio}_table"],
        ratio=spec.ratio, topk=cfg.index_topk, rounding=cfg.index_rounding, candidate_block=1, num_candidates=0,
    )  # fmt: skip
    return entries


def linear(ops: Any, cfg: Any, x: Tensor, w: Any) -> Tensor:
    """x · wᵀ in the compute dtype."""
    return ops.linear(x, *w, out_dtype=cfg.dtype)
