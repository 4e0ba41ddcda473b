# SPDX-License-Identifier: Apache-2.0
"""Attention of V4 and V4.1: one shared key/value head, a window, and entries of a few tokens each.

V4: csa layers choose among their own entries by an indexer, hca layers read all of theirs. V4.1: full layers write entries and
index keys that the layers after them read too; reindex layers choose anew, reuse layers take the choice that was made.
"""

from __future__ import annotations

from typing import Any

from ascend_dsv4.config.layers import LayerSpec
from ascend_dsv4.model.weights import AttentionWeights, CompressorWeights, IndexerWeights, Tensor

Tensors = dict[str, Tensor]


def attention(
    ops: Any, cfg: Any, spec: LayerSpec, w: AttentionWeights, x: Tensor, carry: Tensors, batch: Tensors, caches: Tensors
) -> tuple[Tensor, Tensors]:
    """x [num_tokens, hidden_size], normalised → [num_tokens, hidden_size], and the selection that later layers read.

    Writes the layer's caches.
    """
    start = cfg.head_dim - cfg.qk_rope_head_dim
    cos, sin = batch[f"{rotary_table(spec)}_cos"], batch[f"{rotary_table(spec)}_sin"]
    latent = ops.rms_norm(linear(ops, cfg, x, w.wq_a), w.q_norm, eps=cfg.rms_norm_eps)  # [num_tokens, q_lora_rank]
    q = linear(ops, cfg, latent, w.wq_b).reshape(-1, cfg.num_attention_heads, cfg.head_dim)
    q = ops.rms_norm(q, None, eps=cfg.rms_norm_eps) if cfg.q_head_norm else q
    q = ops.rope(q, cos, sin, inverse=False, start=start, layout="adjacent")

    kv = ops.rms_norm(linear(ops, cfg, x, w.wkv), w.kv_norm, eps=cfg.rms_norm_eps)  # [num_tokens, head_dim]
    kv = ops.rope(kv, cos, sin, inverse=False, start=start, layout="adjacent")
    caches["win_kv"] = ops.store_kv(
        caches["win_kv"], kv, batch["window_slots"], rounding=cfg.window_rounding, rope_dim=cfg.qk_rope_head_dim
    )
    if spec.layer_type == "full":
        store_shared(ops, cfg, spec, w, x, batch, caches)
    elif w.compressor is not None:
        compress(ops, cfg, spec, w.compressor, x, batch, caches, "cmp", cfg.entry_rounding)
    selected = {} if w.indexer is None else choose_entries(ops, cfg, spec, w.indexer, x, latent, carry, batch, caches)
    entries = selected.get("entries", carry.get("entries") if spec.layer_type == "reuse" else None)

    o = ops.sparse_attention(
        q, caches["win_kv"], caches["cmp_kv"] if spec.ratio else None, entries, w.sink,
        batch["positions"], batch["req_idx"], batch["window_table"], batch[f"cmp{spec.ratio}_table"] if spec.ratio else None,
        window=cfg.sliding_window, ratio=spec.ratio, scale=cfg.head_dim**-0.5,
    )  # fmt: skip
    # Values carry the rotation of their own position; turning back by the query's leaves the distance.
    o = ops.rope(o, cos, sin, inverse=True, start=start, layout="adjacent")
    groups = o.reshape(-1, cfg.o_groups, cfg.num_attention_heads * cfg.head_dim // cfg.o_groups)
    mixed = ops.grouped_linear(groups, *w.wo_a)  # [num_tokens, o_groups, o_lora_rank]
    y = linear(ops, cfg, mixed.reshape(-1, cfg.o_groups * cfg.o_lora_rank), w.wo_b)
    return y, selected if cfg.index_source_layer_ids else {}


def rotary_table(spec: LayerSpec) -> str:
    """A layer rotates everything by one table: YaRN where it keeps entries, plain where it only has a window."""
    return "yarn" if spec.ratio else "plain"


def compress(
    ops: Any,
    cfg: Any,
    spec: LayerSpec,
    w: CompressorWeights,
    x: Tensor,
    batch: Tensors,
    caches: Tensors,
    kind: str,
    rounding: str,
) -> None:
    """Project x to a compressor's kv and gate in float32, and store the entries that this step closes in `<kind>_kv`."""
    assert w.wgate is not None
    kv = ops.linear(x, *w.wkv, out_dtype="float32")
    gate = ops.linear(x, *w.wgate, out_dtype="float32")
    caches[f"{kind}_kv"], caches[f"{kind}_state"] = ops.compress_kv(
        caches[f"{kind}_kv"], caches[f"{kind}_state"], kv, gate, w.ape, w.norm,
        batch[f"cmp{spec.ratio}_cos"], batch[f"cmp{spec.ratio}_sin"],
        batch["positions"], batch["req_idx"], batch["cu_query_lens"], batch["state_slots"], batch[f"cmp{spec.ratio}_slots"],
        ratio=spec.ratio, eps=cfg.rms_norm_eps, rounding=rounding, entry_dtype=cfg.dtype,
    )  # fmt: skip


def store_shared(
    ops: Any, cfg: Any, spec: LayerSpec, w: AttentionWeights, x: Tensor, batch: Tensors, caches: Tensors
) -> None:
    """Store the entries that this step closes, and their index keys, made from the entries before they are rotated."""
    assert w.compressor is not None and w.indexer is not None and w.indexer.wk is not None
    slots, table = batch[f"cmp{spec.ratio}_slots"], f"cmp{spec.ratio}" if spec.ratio > 1 else "yarn"
    cos, sin, rope_dim = batch[f"{table}_cos"], batch[f"{table}_sin"], cfg.qk_rope_head_dim
    latent = ops.rms_norm(pooled(ops, cfg, spec, w.compressor, x, batch, caches), w.compressor.norm, eps=cfg.rms_norm_eps)
    keys = ops.rms_norm(linear(ops, cfg, latent, w.indexer.wk), w.indexer.k_norm, eps=cfg.rms_norm_eps)
    keys = ops.rope(keys, cos, sin, inverse=False, start=cfg.index_head_dim - rope_dim, layout="adjacent")
    rows = ops.rope(latent, cos, sin, inverse=False, start=cfg.head_dim - rope_dim, layout="adjacent")
    caches["cmp_kv"] = ops.store_kv(caches["cmp_kv"], rows, slots, rounding=cfg.entry_rounding, rope_dim=rope_dim)
    caches["idx_kv"] = ops.store_kv(caches["idx_kv"], keys, slots, rounding=cfg.index_rounding, rope_dim=0)


def pooled(
    ops: Any, cfg: Any, spec: LayerSpec, w: CompressorWeights, x: Tensor, batch: Tensors, caches: Tensors
) -> Tensor:
    """The group of tokens that each row closes as one, [num_tokens, head_dim]; rows that close none hold nothing of use."""
    if w.wgate is None:  # a group is one token
        return linear(ops, cfg, x, w.wkv)
    kv = ops.linear(x, *w.wkv, out_dtype="float32")
    gate = ops.linear(x, *w.wgate, out_dtype="float32")
    where = (batch["positions"], batch["req_idx"], batch["cu_query_lens"], batch["state_slots"])
    entries = ops.pool_kv(caches["pair_state"], kv, gate, *where, ratio=spec.ratio, entry_dtype=cfg.dtype)
    caches["pair_state"] = ops.store_state(caches["pair_state"], kv, gate, *where)
    return entries


def choose_entries(
    ops: Any,
    cfg: Any,
    spec: LayerSpec,
    w: IndexerWeights,
    x: Tensor,
    latent: Tensor,
    carry: Tensors,
    batch: Tensors,
    caches: Tensors,
) -> Tensors:
    """entries [num_tokens, index_topk] int32 that each token attends to; candidates if the layer publishes them.

    Writes the indexer's keys of a csa layer.
    """
    q = linear(ops, cfg, latent, w.wq_b).reshape(-1, cfg.index_n_heads, cfg.index_head_dim)
    start = cfg.index_head_dim - cfg.qk_rope_head_dim
    q = ops.rope(q, batch["yarn_cos"], batch["yarn_sin"], inverse=False, start=start, layout="adjacent")
    weights = linear(ops, cfg, x, w.weights_proj) * (cfg.index_head_dim**-0.5 * cfg.index_n_heads**-0.5)
    if w.compressor is not None:
        compress(ops, cfg, spec, w.compressor, x, batch, caches, "idx", cfg.index_rounding)
    entries, blocks = ops.index_topk(
        q, weights, caches["idx_kv"], batch["positions"], batch["req_idx"], batch[f"cmp{spec.ratio}_table"],
        carry["candidates"] if spec.candidates == "use" else None,
        ratio=spec.ratio, topk=cfg.index_topk, rounding=cfg.index_rounding,
        candidate_block=cfg.candidates.block_size if spec.candidates else 1,
        num_candidates=cfg.candidates.topk_blocks if spec.candidates == "publish" else 0,
    )  # fmt: skip
    return {"entries": entries, **({"candidates": blocks} if spec.candidates == "publish" else {})}


def linear(ops: Any, cfg: Any, x: Tensor, w: Any) -> Tensor:
    """x · wᵀ in the compute dtype."""
    return ops.linear(x, *w, out_dtype=cfg.dtype)
