# SPDX-License-Identifier: Apache-2.0
"""Reference of `mla_attention`: one query at a time over its own rows in ascending order."""

from __future__ import annotations

import torch
from torch import Tensor

from ascend_dsv4.ops.mla_attention import SPEC
from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.rowwise import accumulate_dtype, aligned_rows, row_sum
from ascend_dsv4.ops.sparse_attention.reference import entry_rows


def attend(q: Tensor, rows: Tensor, exists: Tensor, value_dim: int, scale: float) -> Tensor:
    """softmax(q · rowsᵀ · scale) · rows[:, :value_dim]. q [num_heads, width], rows [num_slots, width], one at least exists."""
    rows = torch.where(exists[:, None], rows, 0)  # what lies in a slot that does not exist must not reach the sum
    products = torch.mm(aligned_rows(q, q.shape[0]), rows.t())
    scores = torch.where(exists, products * scale, -torch.inf)
    powers = torch.exp(scores - scores.amax(-1, keepdim=True))
    return torch.mm(powers, rows[:, :value_dim]) / row_sum(powers).unsqueeze(-1)


@implements(SPEC, "reference")
def mla_attention(
    q: Tensor,
    mla_kv: Tensor,
    entries: Tensor | None,
    positions: Tensor,
    req_idx: Tensor,
    block_table: Tensor,
    *,
    value_dim: int,
    scale: float,
) -> Tensor:
    if not 0 < value_dim <= q.shape[-1]:
        raise ValueError(f"mla_attention: value_dim={value_dim}, expected 1 to {q.shape[-1]}, the channels of a row")
    dtype = accumulate_dtype(q)
    wide = q.to(dtype)
    out = q.new_zeros(*q.shape[:2], value_dim)
    for t, (position, request) in enumerate(zip(positions.tolist(), req_idx.tolist(), strict=True)):
        if request < 0:
            continue
        visible = position + 1
        mine = torch.arange(visible, device=q.device) if entries is None else entries[t, : min(visible, entries.shape[1])]
        rows, exists = entry_rows(mla_kv, block_table[request], mine)
        if exists.any():
            out[t] = attend(wide[t], rows.to(dtype), exists, value_dim, scale).to(q.dtype)
    return out
