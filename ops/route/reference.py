# SPDX-License-Identifier: Apache-2.0
"""Reference of `route`."""

from __future__ import annotations

import torch
from torch import Tensor

from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.route import SPEC
from ascend_dsv4.ops.rowwise import row_sum, sigmoid, softplus


def expert_scores(logits: Tensor, scoring: str) -> Tensor:
    """Positive scores by name of the function."""
    if scoring == "sqrtsoftplus":
        return torch.sqrt(softplus(logits))
    if scoring == "sigmoid":
        return sigmoid(logits)
    raise ValueError(f"route: scoring={scoring!r}, expected sqrtsoftplus or sigmoid")


def add_bias(scores: Tensor, bias: Tensor | None, bias_vl: Tensor | None, is_image: Tensor | None) -> Tensor:
    """What experts are chosen by: scores plus the bias of the token's kind."""
    if bias_vl is None and is_image is None:
        return scores if bias is None else scores + bias
    if bias is None or bias_vl is None or is_image is None:
        raise ValueError("route: bias_vl and is_image belong together, and beside a bias; got one or two of the three")
    return scores + torch.where(is_image[:, None] != 0, bias_vl, bias)


def mask_groups(ranked: Tensor, topk: int, n_group: int, topk_group: int) -> Tensor:
    """-inf for the experts outside the best `topk_group` of `n_group` groups."""
    num_experts = ranked.shape[1]
    size, rest = divmod(num_experts, n_group)
    if rest or size < 2 or not 1 <= topk_group <= n_group or topk > topk_group * size:
        raise ValueError(
            f"route: topk={topk} of {num_experts} experts in n_group={n_group}, topk_group={topk_group}: expected equal groups "
            "of at least 2, and topk experts in the groups that are kept"
        )
    groups = ranked.unflatten(1, (n_group, size))
    first, second = torch.topk(groups, 2, dim=-1).values.unbind(-1)
    best = torch.sort(first + second, dim=-1, descending=True, stable=True).indices[:, :topk_group]
    kept = torch.zeros_like(first, dtype=torch.bool).scatter(1, best, True)
    return torch.where(kept.unsqueeze(-1), groups, -torch.inf).flatten(1)


@implements(SPEC, "reference")
def route(
    logits: Tensor,
    bias: Tensor | None,
    tid2eid: Tensor | None,
    input_ids: Tensor,
    bias_vl: Tensor | None,
    is_image: Tensor | None,
    *,
    topk: int,
    scoring: str,
    norm_topk_prob: bool,
    scaling: float,
    norm_eps: float,
    n_group: int,
    topk_group: int,
) -> tuple[Tensor, Tensor]:
    scores = expert_scores(logits, scoring)
    if tid2eid is not None:
        ids = tid2eid[input_ids.long()].long()
    else:
        ranked = add_bias(scores, bias, bias_vl, is_image)
        if n_group > 1:
            ranked = mask_groups(ranked, topk, n_group, topk_group)
        ids = torch.sort(ranked, dim=-1, descending=True, stable=True).indices[:, :topk]
    weights = torch.gather(scores, 1, ids)
    if norm_topk_prob:
        weights = weights / (row_sum(weights) + norm_eps).unsqueeze(-1)
    return ids.int(), weights * scaling
