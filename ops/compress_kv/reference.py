# SPDX-License-Identifier: Apache-2.0
"""Reference of `compress_kv`."""

from __future__ import annotations

import torch
from torch import Tensor

from ascend_dsv4.ops.compress_kv import SPEC
from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.rms_norm.reference import rms_norm
from ascend_dsv4.ops.rope.reference import rope
from ascend_dsv4.ops.store_kv.reference import round_rows, write_rows


def covered_rows(
    rows: Tensor, state: Tensor, closing: Tensor, count: int, positions: Tensor, req_idx: Tensor, cu: Tensor, slots: Tensor
) -> Tensor:
    """kv and gate of the last `count` positions up to each closing token: [num_entries, count, 2, width].

    Rows of this step come from `rows` [num_tokens, 2, width], older ones from the state by position mod state_rows.
    """
    steps_back = torch.arange(count - 1, -1, -1, device=rows.device)
    row = closing[:, None] - steps_back
    request = req_idx[closing].long()
    in_step = (row >= cu[request][:, None]).unsqueeze(-1).unsqueeze(-1)
    state_row = (positions[closing][:, None] - steps_back) % state.shape[1]
    return torch.where(in_step, rows[row.clamp(min=0)], state[slots[request].long()[:, None], state_row.long()])


def pool(kv: Tensor, logits: Tensor) -> Tensor:
    """Per-channel softmax over axis 1 of `logits`, weighing `kv`; terms are added in order of position."""
    powers = torch.exp(logits - logits.amax(1, keepdim=True))
    norm = powers[:, 0]
    for j in range(1, kv.shape[1]):
        norm = norm + powers[:, j]
    total = powers[:, 0] / norm * kv[:, 0]
    for j in range(1, kv.shape[1]):
        total = total + powers[:, j] / norm * kv[:, j]
    return total


def pooled_entries(covered: Tensor, closing_positions: Tensor, ratio: int, head_dim: int) -> Tensor:
    """Entries [num_entries, head_dim] from their covered rows; the overlap of entry 0 is absent."""
    kv, logits = covered[:, :, 0], covered[:, :, 1]
    if kv.shape[1] > ratio:
        # The older window contributes through the first half of the channels, the current one through the second.
        kv = torch.cat([kv[:, :ratio, :head_dim], kv[:, ratio:, head_dim:]], dim=1)
        absent = (closing_positions < 2 * ratio - 1)[:, None, None]
        older = torch.where(absent, -torch.inf, logits[:, :ratio, :head_dim])
        kv = torch.where(torch.cat([absent.expand_as(older), torch.zeros_like(older, dtype=torch.bool)], dim=1), 0, kv)
        logits = torch.cat([older, logits[:, ratio:, head_dim:]], dim=1)
    return pool(kv, logits)


def write_state(state: Tensor, rows: Tensor, positions: Tensor, req_idx: Tensor, cu: Tensor, slots: Tensor) -> None:
    """Keep the last state_rows rows of every request."""
    owned = (req_idx >= 0).nonzero().squeeze(1)
    request = req_idx[owned].long()
    recent = owned >= cu[request + 1] - state.shape[1]
    owned, request = owned[recent], request[recent]
    state[slots[request].long(), (positions[owned] % state.shape[1]).long()] = rows[owned]


@implements(SPEC, "reference")
def compress_kv(
    cache: Tensor,
    state: Tensor,
    kv: Tensor,
    gate: Tensor,
    ape: Tensor,
    norm: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    req_idx: Tensor,
    cu_query_lens: Tensor,
    state_slots: Tensor,
    slots: Tensor,
    *,
    ratio: int,
    eps: float,
    rounding: str,
    entry_dtype: str,
) -> None:
    head_dim = cache.shape[-1]
    rows = torch.stack([kv, gate + ape[(positions % ratio).long()]], dim=1)  # [num_tokens, 2, width]
    closing = (slots >= 0).nonzero().squeeze(1)
    if closing.numel():
        count = ratio * (kv.shape[1] // head_dim)
        covered = covered_rows(rows, state, closing, count, positions, req_idx, cu_query_lens, state_slots)
        entries = pooled_entries(covered, positions[closing], ratio, head_dim).to(getattr(torch, entry_dtype))
        entries, rope_dim = rms_norm(entries, norm, eps=eps), 2 * cos.shape[1]
        start = head_dim - rope_dim
        entries = rope(entries, cos[closing], sin[closing], inverse=False, start=start, layout="adjacent")
        write_rows(cache, round_rows(entries, rounding, rope_dim), slots[closing])
    write_state(state, rows, positions, req_idx, cu_query_lens, state_slots)
