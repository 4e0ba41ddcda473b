# SPDX-License-Identifier: Apache-2.0
"""Wrong experts: scores, weights, counts, activations."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ascend_dsv4.ops.expert_mlp.reference import expert_mlp
from ascend_dsv4.ops.moe_combine.reference import moe_combine
from ascend_dsv4.ops.moe_dispatch.reference import moe_dispatch
from ascend_dsv4.ops.route.reference import add_bias, expert_scores, route
from ascend_dsv4.ops.swiglu.reference import swiglu

Choice = tuple[Tensor, Tensor]
Dispatch = tuple[Tensor, Tensor, Tensor, Tensor]


def bias_in_weights(
    logits: Tensor,
    bias: Tensor | None,
    tid2eid: Tensor | None,
    input_ids: Tensor,
    bias_vl: Tensor | None,
    is_image: Tensor | None,
    **attrs: Any,
) -> Choice:
    """The bias that balances the choice leaks into the weights."""
    ids, weights = route(logits, bias, tid2eid, input_ids, bias_vl, is_image, **attrs)
    if bias is None:
        return ids, weights
    ranks = add_bias(expert_scores(logits, attrs["scoring"]), bias, bias_vl, is_image)
    weights = torch.gather(ranks, 1, ids.long())
    if attrs["norm_topk_prob"]:
        weights = weights / (weights.sum(-1, keepdim=True) + attrs["norm_eps"])
    return ids, weights * attrs["scaling"]


def not_renormalised(*tensors: Any, **attrs: Any) -> Choice:
    """Weights are not divided by their sum."""
    return route(*tensors, **{**attrs, "norm_topk_prob": False})


def not_scaled(*tensors: Any, **attrs: Any) -> Choice:
    """Weights are not multiplied by the routing scale."""
    return route(*tensors, **{**attrs, "scaling": 1.0})


def sigmoid_scores(*tensors: Any, **attrs: Any) -> Choice:
    """Scores are sigmoids, as in the model before."""
    return route(*tensors, **{**attrs, "scoring": "sigmoid"})


def root_missing(logits: Tensor, *rest: Any, **attrs: Any) -> Choice:
    """Scores are softplus without its root: the order stays, the weights do not."""
    ids, weights = route(logits, *rest, **attrs)
    if attrs["scoring"] != "sqrtsoftplus":
        return ids, weights
    scores = torch.gather(expert_scores(logits, "sqrtsoftplus"), 1, ids.long()).square()
    if attrs["norm_topk_prob"]:
        scores = scores / (scores.sum(-1, keepdim=True) + attrs["norm_eps"])
    return ids, scores * attrs["scaling"]


def groups_ignored(*tensors: Any, **attrs: Any) -> Choice:
    """Experts are chosen from all groups."""
    return route(*tensors, **{**attrs, "n_group": 1, "topk_group": 1})


def image_bias_ignored(*tensors: Any, **attrs: Any) -> Choice:
    """Tokens of images are routed like text."""
    return route(*tensors[:4], None, None, **attrs)


def hash_ignored(logits: Tensor, bias: Tensor | None, tid2eid: Tensor | None, *rest: Any, **attrs: Any) -> Choice:
    """Hash layers choose by score."""
    return route(logits, bias, None, *rest, **attrs)


def norm_eps_ignored(*tensors: Any, **attrs: Any) -> Choice:
    """Nothing is added to the sum that weights are divided by."""
    return route(*tensors, **{**attrs, "norm_eps": 0.0})


def counts_exclusive(*tensors: Any, **attrs: Any) -> Dispatch:
    """Counts are of the expert before: running sums that leave out their own expert."""
    rows, row_weights, counts, row_of = moe_dispatch(*tensors, **attrs)
    return rows, row_weights, torch.cat([counts.new_zeros(1), counts[:-1]]), row_of


def last_expert_without_rows(*tensors: Any, **attrs: Any) -> Dispatch:
    """Experts are counted up to the last one, and not with it."""
    rows, row_weights, counts, row_of = moe_dispatch(*tensors, **attrs)
    return rows, row_weights, torch.cat([counts[:-1], counts.new_zeros(1)]), row_of


def nobody_sent_to_expert_0(x: Tensor, ids: Tensor, weights: Tensor, **attrs: Any) -> Dispatch:
    """A choice that sends nothing is sent to expert 0."""
    return moe_dispatch(x, ids.clamp(min=0), weights, **attrs)


def newest_token_first(x: Tensor, ids: Tensor, weights: Tensor, **attrs: Any) -> Dispatch:
    """An expert's rows stand in reverse order of token, as an unstable sort may leave them."""
    rows, row_weights, counts, row_of = moe_dispatch(x.flip(0), ids.flip(0, 1), weights.flip(0, 1), **attrs)
    return rows, row_weights, counts, row_of.flip(0, 1)


def weights_in_order_of_token(x: Tensor, ids: Tensor, weights: Tensor, **attrs: Any) -> Dispatch:
    """Rows are sorted by expert, their weights are not."""
    rows, _, counts, row_of = moe_dispatch(x, ids, weights, **attrs)
    return rows, weights.reshape(-1).clone(), counts, row_of


def experts_of_exclusive_counts(rows: Tensor, row_weights: Tensor, counts: Tensor, *weights: Any, **attrs: Any) -> Tensor:
    """Running sums of the counts are taken without their own expert, so that rows meet the expert after theirs."""
    moved = torch.cat([counts.new_zeros(1), counts[:-1]])
    y = expert_mlp(rows, row_weights, moved, *weights, **attrs)
    y[int(moved.sum()) :] = 0
    return y


def last_expert_dropped(rows: Tensor, row_weights: Tensor, counts: Tensor, *weights: Any, **attrs: Any) -> Tensor:
    """The loop over experts ends before the last one."""
    y = expert_mlp(rows, row_weights, counts, *weights, **attrs)
    y[int(counts[:-1].sum()) :] = 0
    return y


def experts_without_limit(*tensors: Any, limit: float, **attrs: Any) -> Tensor:
    """Nothing is clamped."""
    return expert_mlp(*tensors, limit=math.inf, **attrs)


def routing_weight_missing(rows: Tensor, row_weights: Tensor, *rest: Any, **attrs: Any) -> Tensor:
    """The routing weight is not multiplied."""
    return expert_mlp(rows, torch.ones_like(row_weights), *rest, **attrs)


def up_before_gate(rows: Tensor, row_weights: Tensor, counts: Tensor, w13: Tensor, *rest: Any, **attrs: Any) -> Tensor:
    """The up rows of the first matrix are taken for its gate rows."""
    exchanged = w13 if w13.element_size() == 1 else w13.roll(w13.shape[1] // 2, 1)  # quantised ones stay with their scales
    return expert_mlp(rows, row_weights, counts, exchanged, *rest, **attrs)


def absent_choice_adds_row_0(rows: Tensor, row_of: Tensor) -> Tensor:
    """A choice that sent nothing adds the first row."""
    return moe_combine(rows, row_of.clamp(min=0))


def last_choice_dropped(rows: Tensor, row_of: Tensor) -> Tensor:
    """The last choice of every token is not added."""
    return moe_combine(rows, row_of[:, :-1])


def clamped_above_only(gate: Tensor, up: Tensor, *, limit: float) -> Tensor:
    """Up is clamped on its upper side only."""
    return swiglu(gate.clamp(max=limit), up.clamp(max=limit), limit=math.inf)


def gate_clamped_below(gate: Tensor, up: Tensor, *, limit: float) -> Tensor:
    """The gate is clamped on its lower side too."""
    return swiglu(gate.clamp(min=-limit), up, limit=limit)


def limit_ignored(gate: Tensor, up: Tensor, *, limit: float) -> Tensor:
    """Nothing is clamped."""
    return swiglu(gate, up, limit=math.inf)


def gate_and_up_exchanged(gate: Tensor, up: Tensor, *, limit: float) -> Tensor:
    """The activation is applied to up."""
    return swiglu(up, gate, limit=limit)


MUTANTS = {
    "route/bias-in-weights": bias_in_weights,
    "route/not-renormalised": not_renormalised,
    "route/scale-missing": not_scaled,
    "route/sigmoid-scores": sigmoid_scores,
    "route/root-missing": root_missing,
    "route/groups-ignored": groups_ignored,
    "route/image-bias-ignored": image_bias_ignored,
    "route/hash-ignored": hash_ignored,
    "route/norm-eps-ignored": norm_eps_ignored,
    "moe_dispatch/counts-exclusive": counts_exclusive,
    "moe_dispatch/last-expert-without-rows": last_expert_without_rows,
    "moe_dispatch/nobody-is-expert-0": nobody_sent_to_expert_0,
    "moe_dispatch/newest-token-first": newest_token_first,
    "moe_dispatch/weights-not-sorted": weights_in_order_of_token,
    "expert_mlp/counts-exclusive": experts_of_exclusive_counts,
    "expert_mlp/last-expert-dropped": last_expert_dropped,
    "expert_mlp/limit-ignored": experts_without_limit,
    "expert_mlp/routing-weight-missing": routing_weight_missing,
    "expert_mlp/up-before-gate": up_before_gate,
    "moe_combine/absent-choice-adds-row-0": absent_choice_adds_row_0,
    "moe_combine/last-choice-dropped": last_choice_dropped,
    "swiglu/up-clamped-above-only": clamped_above_only,
    "swiglu/gate-clamped-below": gate_clamped_below,
    "swiglu/limit-ignored": limit_ignored,
    "swiglu/gate-and-up-exchanged": gate_and_up_exchanged,
}
