# SPDX-License-Identifier: Apache-2.0
"""Reference of `moe_combine`."""

from __future__ import annotations

import torch
from torch import Tensor

from ascend_dsv4.ops.moe_combine import SPEC
from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.rowwise import accumulate_dtype


@implements(SPEC, "reference")
def moe_combine(rows: Tensor, row_of: Tensor) -> Tensor:
    total = torch.zeros(row_of.shape[0], rows.shape[1], dtype=accumulate_dtype(rows), device=rows.device)
    for choice in range(row_of.shape[1]):
        at = row_of[:, choice].long()
        # A row that nobody sent may hold anything, NaN too, so it is replaced and not multiplied by zero.
        total = total + torch.where((at >= 0)[:, None], rows[at.clamp(min=0)].to(total.dtype), 0)
    return total.to(rows.dtype)
