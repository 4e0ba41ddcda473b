# SPDX-License-Identifier: Apache-2.0
"""Reference of `sparse_attention`: one query at a time over its own keys in a canonical order."""

from __future__ import annotations

import torch
from torch import Tensor

from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.rowwise import accumulate_dtype, aligned_rows, row_sum
from ascend_dsv4.ops.sparse_attention import SPEC

ENTRY_STEP = 64
"""A query's entries are padded with masked slots to a multiple of this."""


def window_rows(win_kv: Tensor, blocks: Tensor, position: int, window: int) -> tuple[Tensor, Tensor]:
    """Window keys of one query by position, [window, head_dim], and which of them exist."""
    at = max(0, position - window + 1) + torch.arange(window, device=win_kv.device)
    exists, at = at <= position, at.clamp(max=position)
    block = blocks[(at // win_kv.shape[1]) % blocks.shape[0]].long()
    return win_kv.reshape(-1, win_kv.shape[-1])[block * win_kv.shape[1] + at % win_kv.shape[1]], exists


def entry_rows(cmp_kv: Tensor, blocks: Tensor, entries: Tensor) -> tuple[Tensor, Tensor]:
    """Compressed keys of one query, padded to a multiple of ENTRY_STEP, and which of them exist."""
    padding = entries.new_full((-entries.shape[0] % ENTRY_STEP,), -1)
    padded = torch.cat([entries, padding]).long()
    exists, at = padded >= 0, padded.clamp(min=0)
    rows = blocks[at // cmp_kv.shape[1]].long() * cmp_kv.shape[1] + at % cmp_kv.shape[1]
    return cmp_kv.reshape(-1, cmp_kv.shape[-1])[rows], exists


def attend(q: Tensor, keys: Tensor, exists: Tensor, sink: Tensor, scale: float) -> Tensor:
    """softmax(q · keysᵀ · scale, sink) · keys. q [num_heads, head_dim], keys [num_slots, head_dim]."""
    keys = torch.where(exists[:, None], keys, 0)  # what lies in a slot that does not exist must not reach the sum
    products = torch.mm(aligned_rows(q, q.shape[0]), keys.t())
    scores = torch.where(exists, products * scale, -torch.inf)
    top = scores.amax(-1, keepdim=True)
    powers = torch.exp(scores - top)
    return torch.mm(powers / (row_sum(powers).unsqueeze(-1) + torch.exp(sink[:, None] - top)), keys)


@implements(SPEC, "reference")
def sparse_attention(
    q: Tensor,
    win_kv: Tensor,
    cmp_kv: Tensor | None,
    entries: Tensor | None,
    sink: Tensor,
    positions: Tensor,
    req_idx: Tensor,
    window_table: Tensor,
    block_table: Tensor | None,
    *,
    window: int,
    ratio: int,
    scale: float,
) -> Tensor:
    dtype = accumulate_dtype(q)
    wide, sink = q.to(dtype), sink.to(dtype)
    out = torch.zeros_like(q)
    for t, (position, request) in enumerate(zip(positions.tolist(), req_idx.tolist(), strict=True)):
        if request < 0:
            continue
        keys, exists = window_rows(win_kv, window_table[request], position, window)
        if cmp_kv is not None and block_table is not None:
            visible = (position + 1) // ratio
            mine = torch.arange(visible, device=q.device) if entries is None else entries[t, : min(visible, entries.shape[1])]
            rows, there = entry_rows(cmp_kv, block_table[request], mine)
            keys, exists = torch.cat([keys, rows]), torch.cat([exists, there])
        out[t] = attend(wide[t], keys.to(dtype), exists, sink, scale).to(q.dtype)
    return out
