# SPDX-License-Identifier: Apache-2.0
"""Reference of `route`."""

from __future__ import annotations

import torch
from torch import Tensor

from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.route import SPEC
from ascend_dsv4.ops.rowwise import row_sum, softplus


@implements(SPEC, "reference")
def route(
    logits: Tensor,
    bias: Tensor | None,
    tid2eid: Tensor | None,
    input_ids: Tensor,
    *,
    topk: int,
    scoring: str,
    norm_topk_prob: bool,
    scaling: float,
) -> tuple[Tensor, Tensor]:
    if scoring != "sqrtsoftplus":
        raise ValueError(f"route: scoring={scoring!r}, expected sqrtsoftplus")
    scores = torch.sqrt(softplus(logits))
    if tid2eid is not None:
        ids = tid2eid[input_ids.long()].long()
    else:
        ranked = scores if bias is None else scores + bias
        ids = torch.sort(ranked, dim=-1, descending=True, stable=True).indices[:, :topk]
    weights = torch.gather(scores, 1, ids)
    if norm_topk_prob:
        weights = weights / row_sum(weights).unsqueeze(-1)
    return ids.int(), weights * scaling
