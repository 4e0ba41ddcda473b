# SPDX-License-Identifier: Apache-2.0
"""Reference of `pool_kv`."""

from __future__ import annotations

import torch
from torch import Tensor

from ascend_dsv4.ops.compress_kv.reference import covered_rows, pool
from ascend_dsv4.ops.pool_kv import SPEC
from ascend_dsv4.ops.registry import implements


@implements(SPEC, "reference")
def pool_kv(
    state: Tensor,
    kv: Tensor,
    gate: Tensor,
    positions: Tensor,
    req_idx: Tensor,
    cu_query_lens: Tensor,
    state_slots: Tensor,
    *,
    ratio: int,
    entry_dtype: str,
) -> Tensor:
    entries = torch.zeros(kv.shape, dtype=getattr(torch, entry_dtype), device=kv.device)
    closing = ((positions >= 0) & ((positions + 1) % ratio == 0)).nonzero().squeeze(1)
    if closing.numel():
        rows = torch.stack([kv, gate], dim=1)
        covered = covered_rows(rows, state, closing, ratio, positions, req_idx, cu_query_lens, state_slots)
        entries[closing] = pool(covered[:, :, 0], covered[:, :, 1]).to(entries.dtype)
    return entries
