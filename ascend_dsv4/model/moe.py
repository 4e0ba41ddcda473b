# SPDX-License-Identifier: Apache-2.0
"""Feed-forward layers: experts routed by token id, by score, or by score inside groups, with a shared expert; or none."""

from __future__ import annotations

from typing import Any

from ascend_dsv4.model.attention import linear
from ascend_dsv4.model.weights import LayerWeights, MlpWeights, MoeWeights, Tensor


def feed_forward(ops: Any, cfg: Any, w: LayerWeights, x: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """x [num_tokens, hidden_size], normalised → [num_tokens, hidden_size]."""
    if w.moe is None:
        assert w.mlp is not None
        return mlp(ops, cfg, w.mlp, x)
    return moe(ops, cfg, w.moe, x, batch)


def moe(ops: Any, cfg: Any, w: MoeWeights, x: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Routed experts and the shared one."""
    logits = ops.linear(x, *w.gate, out_dtype="float32")  # [num_tokens, n_routed_experts]
    ids, weights = ops.route(
        logits, w.bias, w.tid2eid, batch["input_ids"], w.bias_vl, batch.get("is_image") if w.bias_vl is not None else None,
        topk=cfg.num_experts_per_tok, scoring=cfg.scoring_func, norm_topk_prob=cfg.norm_topk_prob,
        scaling=cfg.routed_scaling_factor, norm_eps=cfg.routing_eps, n_group=cfg.n_group, topk_group=cfg.topk_group,
    )  # fmt: skip
    rows, row_weights, counts, row_of = ops.moe_dispatch(x, ids, weights, num_experts=cfg.n_routed_experts)
    rows = ops.expert_mlp(
        rows, row_weights, counts, w.w13.weight, w.w13.scale, w.w2.weight, w.w2.scale,
        block=w.w13.block, limit=cfg.swiglu_limit,
    )  # fmt: skip
    return ops.moe_combine(rows, row_of) + mlp(ops, cfg, w.shared, x)


def mlp(ops: Any, cfg: Any, w: MlpWeights, x: Tensor) -> Tensor:
    """What every token passes: the shared expert, clamped as the routed ones, or a dense layer."""
    hidden = ops.swiglu(linear(ops, cfg, x, w.w1), linear(ops, cfg, x, w.w3), limit=cfg.swiglu_limit)
    return linear(ops, cfg, hidden, w.w2)
