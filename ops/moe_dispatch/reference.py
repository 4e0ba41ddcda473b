# SPDX-License-Identifier: Apache-2.0
"""Reference of `moe_dispatch`."""

from __future__ import annotations

import torch
from torch import Tensor

from ascend_dsv4.ops.moe_dispatch import SPEC
from ascend_dsv4.ops.registry import implements


@implements(SPEC, "reference")
def moe_dispatch(x: Tensor, ids: Tensor, weights: Tensor, *, num_experts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    topk = ids.shape[1]
    chosen = ids.reshape(-1).long()
    # Choices that send nothing sort behind the last expert.
    order = torch.sort(torch.where(chosen < 0, num_experts, chosen), stable=True).indices
    counts = torch.bincount(chosen[chosen >= 0], minlength=num_experts).int()
    row_of = torch.empty_like(order)
    row_of[order] = torch.arange(order.shape[0], device=x.device)
    row_of = torch.where(chosen < 0, -1, row_of)
    return x[order // topk], weights.reshape(-1)[order], counts, row_of.int().reshape(ids.shape)
