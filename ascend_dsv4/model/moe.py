# SPDX-License-Identifier: Apache-2.0
"""V4 mixture of experts: routed by token id in the first layers, by score in the others, plus a shared expert."""

from __future__ import annotations

from typing import Any

from ascend_dsv4.model.attention import linear
from ascend_dsv4.model.weights import MoeWeights, Tensor


def moe(ops: Any, cfg: Any, w: MoeWeights, x: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """x [num_tokens, hidden_size], normalised → [num_tokens, hidden_size]."""
    logits = ops.linear(x, *w.gate, out_dtype="float32")  # [num_tokens, n_routed_experts]
    ids, weights = ops.route(
        logits, w.bias, w.tid2eid, batch["input_ids"], None, None,
        topk=cfg.num_experts_per_tok, scoring=cfg.scoring_func, norm_topk_prob=cfg.norm_topk_prob,
        scaling=cfg.routed_scaling_factor, norm_eps=0.0, n_group=1, topk_group=1,
    )  # fmt: skip
    rows, row_weights, counts, row_of = ops.moe_dispatch(x, ids, weights, num_experts=cfg.n_routed_experts)
    rows = ops.expert_mlp(
        rows, row_weights, counts, w.w13.weight, w.w13.scale, w.w2.weight, w.w2.scale,
        block=w.w13.block, limit=cfg.swiglu_limit,
    )  # fmt: skip
    return ops.moe_combine(rows, row_of) + shared_expert(ops, cfg, w, x)


def shared_expert(ops: Any, cfg: Any, w: MoeWeights, x: Tensor) -> Tensor:
    """The expert every token passes, clamped as the routed ones, without a routing weight."""
    hidden = ops.swiglu(linear(ops, cfg, x, w.shared_w1), linear(ops, cfg, x, w.shared_w3), limit=cfg.swiglu_limit)
    return linear(ops, cfg, hidden, w.shared_w2)
