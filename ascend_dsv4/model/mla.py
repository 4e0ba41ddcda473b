# SPDX-License-Identifier: Apache-2.0
"""Multi-head latent attention of V3.2: all heads read one latent row per token, chosen by an indexer.

The per-head key and value projections are absorbed into query and output, so attention runs on the rows as they are cached;
prefill and decode are the same sums.
"""

from __future__ import annotations

from typing import Any

from ascend_dsv4.config.layers import LayerSpec
from ascend_dsv4.model.attention import linear
from ascend_dsv4.model.weights import IndexerWeights, MlaWeights, Tensor


def mla(
    ops: Any, cfg: Any, spec: LayerSpec, w: MlaWeights, x: Tensor, batch: dict[str, Tensor], caches: dict[str, Tensor]
) -> Tensor:
    """x [num_tokens, hidden_size], normalised → [num_tokens, hidden_size]. Writes the layer's caches."""
    rope_dim, nope, rank = cfg.qk_rope_head_dim, cfg.qk_nope_head_dim, cfg.mla.kv_lora_rank
    cos, sin, slots = batch["yarn_cos"], batch["yarn_sin"], batch[f"cmp{spec.ratio}_slots"]
    latent = ops.rms_norm(linear(ops, cfg, x, w.wq_a), w.q_norm, eps=cfg.rms_norm_eps)  # [num_tokens, q_lora_rank]
    q = linear(ops, cfg, latent, w.wq_b).reshape(-1, cfg.num_attention_heads, cfg.head_dim)
    q = ops.rope(q, cos, sin, inverse=False, start=nope, layout="adjacent")
    q = ops.concat(ops.grouped_linear(q[..., :nope], *w.wk), q[..., nope:])  # [num_tokens, heads, kv_lora_rank + rope_dim]

    kv = linear(ops, cfg, x, w.wkv_a)  # [num_tokens, kv_lora_rank + rope_dim]
    kv = ops.concat(ops.rms_norm(kv[..., :rank], w.kv_norm, eps=cfg.rms_norm_eps), kv[..., rank:])
    kv = ops.rope(kv, cos, sin, inverse=False, start=rank, layout="adjacent")
    caches["mla_kv"] = ops.store_kv(caches["mla_kv"], kv, slots, rounding=cfg.entry_rounding, rope_dim=rope_dim)

    entries = None if w.indexer is None else choose_tokens(ops, cfg, spec, w.indexer, x, latent, batch, caches)
    o = ops.mla_attention(
        q, caches["mla_kv"], entries, batch["positions"], batch["req_idx"], batch[f"cmp{spec.ratio}_table"],
        value_dim=rank, scale=cfg.head_dim**-0.5 * cfg.mla.softmax_factor,
    )  # fmt: skip
    values = ops.grouped_linear(o, *w.wv)  # [num_tokens, heads, v_head_dim]
    return linear(ops, cfg, values.reshape(-1, cfg.num_attention_heads * cfg.mla.v_head_dim), w.wo)


def choose_tokens(
    ops: Any,
    cfg: Any,
    spec: LayerSpec,
    w: IndexerWeights,
    x: Tensor,
    latent: Tensor,
    batch: dict[str, Tensor],
    caches: dict[str, Tensor],
) -> Tensor:
    """Tokens each token attends to, [num_tokens, index_topk] int32. Writes the indexer's keys.

    The indexer rotates the first channels, by halves; the attention rotates the last, by adjacent pairs.
    """
    cos, sin = batch["yarn_cos"], batch["yarn_sin"]
    q = linear(ops, cfg, latent, w.wq_b).reshape(-1, cfg.index_n_heads, cfg.index_head_dim)
    q = ops.rope(q, cos, sin, inverse=False, start=0, layout="halves")
    assert w.wk is not None
    keys = ops.layer_norm(linear(ops, cfg, x, w.wk), w.k_norm, w.k_bias, eps=cfg.rms_norm_eps)
    keys = ops.rope(keys, cos, sin, inverse=False, start=0, layout="halves")
    caches["idx_kv"] = ops.store_kv(
        caches["idx_kv"], keys, batch[f"cmp{spec.ratio}_slots"], rounding=cfg.index_rounding, rope_dim=0
    )
    # Heads are weighed in float32, as in the released code.
    weights = ops.linear(x, *w.weights_proj, out_dtype="float32") * (cfg.index_head_dim**-0.5 * cfg.index_n_heads**-0.5)
    entries, _ = ops.index_topk(
        q, weights, caches["idx_kv"], batch["positions"], batch["req_idx"], batch[f"cmp{spec.ratio}_table"], None,
        ratio=spec.ratio, topk=cfg.index_topk, rounding=cfg.index_rounding, candidate_block=1, num_candidates=0,
    )  # fmt: skip
    return entries
