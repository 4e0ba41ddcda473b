# SPDX-License-Identifier: Apache-2.0
"""Wrong compression: what a chunk knows of those before it, and what the state keeps for those after it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ascend_dsv4.accuracy.mutants.attention import wrapped
from ascend_dsv4.accuracy.mutants.indexing import first_positions
from ascend_dsv4.ops.compress_kv.reference import compress_kv, write_state
from ascend_dsv4.ops.pool_kv.reference import pool_kv
from ascend_dsv4.ops.store_kv.reference import store_kv
from ascend_dsv4.ops.store_state.reference import store_state


def used_lengths_missing(
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
    *rest: Any,
    **attrs: Any,
) -> None:
    """Without the lengths already in the cache every step counts its tokens from 0."""
    counted = torch.where(req_idx >= 0, positions - first_positions(positions, req_idx), positions)
    compress_kv(cache, state, kv, gate, ape, norm, cos, sin, counted, req_idx, *rest, **attrs)


def own_states(state: Tensor, state_slots: Tensor) -> tuple[Tensor, Tensor]:
    """A copy of the requests' states side by side, and their places in it: the whole state may be too large to copy."""
    return state[state_slots.long()], torch.arange(len(state_slots), dtype=state_slots.dtype)


def _write_state(cache: Tensor, state: Tensor, *rest: Any, **attrs: Any) -> None:
    """The state as it should be after the call, and no entry."""
    *middle, slots = rest
    compress_kv(cache, state, *middle, torch.full_like(slots, -1), **attrs)


def overlap_dropped_at_chunk_edge(cache: Tensor, state: Tensor, kv: Tensor, *rest: Any, **attrs: Any) -> None:
    """Tokens of earlier steps do not take part as the older half of an entry's window."""
    *middle, state_slots, slots = rest
    forgotten, own_slots = own_states(state, state_slots)
    if kv.shape[1] > cache.shape[2]:
        forgotten[:, :, 0, : cache.shape[2]], forgotten[:, :, 1, : cache.shape[2]] = 0, -1e30
    compress_kv(cache, forgotten, kv, *middle, own_slots, slots, **attrs)
    _write_state(cache, state, kv, *rest, **attrs)


def state_ignored(cache: Tensor, state: Tensor, *rest: Any, **attrs: Any) -> None:
    """Tokens of earlier steps count as zeros."""
    *middle, state_slots, slots = rest
    own, own_slots = own_states(state, state_slots)
    compress_kv(cache, torch.zeros_like(own), *middle, own_slots, slots, **attrs)
    _write_state(cache, state, *rest, **attrs)


def state_written_first(
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
    **attrs: Any,
) -> None:
    """The state takes this step's rows before the entries have read those of earlier steps."""
    rows = torch.stack([kv, gate + ape[(positions % attrs["ratio"]).long()]], dim=1)
    write_state(state, rows, positions, req_idx, cu_query_lens, state_slots)
    compress_kv(
        cache, state, kv, gate, ape, norm, cos, sin, positions, req_idx, cu_query_lens, state_slots, slots, **attrs
    )  # fmt: skip


def ape_missing(cache: Tensor, state: Tensor, kv: Tensor, gate: Tensor, ape: Tensor, *rest: Any, **attrs: Any) -> None:
    """Gates do not depend on the place of a token in its window."""
    compress_kv(cache, state, kv, gate, torch.zeros_like(ape), *rest, **attrs)


def norm_missing(
    cache: Tensor, state: Tensor, kv: Tensor, gate: Tensor, ape: Tensor, norm: Tensor, *rest: Any, **attrs: Any
) -> None:
    """The norm of entries has no weight."""
    compress_kv(cache, state, kv, gate, ape, torch.ones_like(norm), *rest, **attrs)


def not_rotated(
    cache: Tensor,
    state: Tensor,
    kv: Tensor,
    gate: Tensor,
    ape: Tensor,
    norm: Tensor,
    cos: Tensor,
    sin: Tensor,
    *rest: Any,
    **attrs: Any,
) -> None:
    """Entries are stored without their rotation."""
    compress_kv(cache, state, kv, gate, ape, norm, torch.ones_like(cos), torch.zeros_like(sin), *rest, **attrs)


def roles_exchanged(cache: Tensor, state: Tensor, kv: Tensor, gate: Tensor, ape: Tensor, *rest: Any, **attrs: Any) -> None:
    """The halves of a projection change places: what was for the next entry goes into the current one."""
    *middle, state_slots, slots = rest
    turn = cache.shape[2] if kv.shape[1] > cache.shape[2] else 0
    own, own_slots = own_states(state, state_slots)
    turned = (tensor.roll(turn, -1) for tensor in (own, kv, gate, ape))
    compress_kv(cache, *turned, *middle, own_slots, slots, **attrs)
    _write_state(cache, state, kv, gate, ape, *rest, **attrs)


def one_state_for_all(*tensors: Any, **attrs: Any) -> None:
    """Every request keeps its tokens in the slot of the first one."""
    *front, state_slots, slots = tensors
    compress_kv(*front, state_slots[:1].expand_as(state_slots), slots, **attrs)


def entry_offset_in_int32(cache: Tensor, *rest: Any, **attrs: Any) -> None:
    """Byte offsets of entries are int32 and wrap at 2 GiB."""
    *middle, slots = rest
    compress_kv(cache, *middle, wrapped_slots(slots, cache), **attrs)


def row_offset_in_int32(cache: Tensor, rows: Tensor, slots: Tensor, **attrs: Any) -> None:
    """Byte offsets of rows are int32 and wrap at 2 GiB."""
    store_kv(cache, rows, wrapped_slots(slots, cache), **attrs)


def wrapped_slots(slots: Tensor, cache: Tensor) -> Tensor:
    """The slots that a kernel writes which keeps byte offsets in 32 bits, and takes a negative one for 0."""
    row_bytes = cache.stride(1) * cache.element_size()
    offset = (slots.long() * row_bytes + 2**31) % 2**32 - 2**31
    return torch.where(slots >= 0, (offset // row_bytes).clamp(min=0), slots).to(slots.dtype)


def rows_kept_after_rollback(cache: Tensor, rows: Tensor, slots: Tensor, **attrs: Any) -> None:
    """A row that was written once is not overwritten: after a rollback the rejected guess is still there."""
    at = slots.clamp(min=0).long()
    is_free = (cache[at // cache.shape[1], at % cache.shape[1]] == 0).all(-1)
    store_kv(cache, rows, torch.where(is_free, slots, -1), **attrs)


def padding_written_to_slot_0(cache: Tensor, rows: Tensor, slots: Tensor, **attrs: Any) -> None:
    """Padding is written to the first row instead of nowhere."""
    store_kv(cache, rows, slots.clamp(min=0), **attrs)


def last_row_lost(cache: Tensor, rows: Tensor, slots: Tensor, **attrs: Any) -> None:
    """The last row of a step is not written."""
    store_kv(cache, rows[:-1], slots[:-1], **attrs)


def mean_of_the_group(state: Tensor, kv: Tensor, gate: Tensor, *rest: Any, **attrs: Any) -> Tensor:
    """Tokens of a group weigh the same."""
    *middle, state_slots = rest
    own, own_slots = own_states(state, state_slots)
    own[:, :, 1] = 0
    return pool_kv(own, kv, torch.zeros_like(gate), *middle, own_slots, **attrs)


def groups_of_the_step(
    state: Tensor, kv: Tensor, gate: Tensor, positions: Tensor, req_idx: Tensor, *rest: Any, **attrs: Any
) -> Tensor:
    """Groups are counted from the first token of the step."""
    counted = torch.where(req_idx >= 0, positions - first_positions(positions, req_idx), positions)
    return pool_kv(state, kv, gate, counted, req_idx, *rest, **attrs)


def open_group_forgotten(state: Tensor, kv: Tensor, gate: Tensor, *rest: Any, **attrs: Any) -> Tensor:
    """What earlier steps left of an open group counts as zeros."""
    *middle, state_slots = rest
    own, own_slots = own_states(state, state_slots)
    return pool_kv(torch.zeros_like(own), kv, gate, *middle, own_slots, **attrs)


def state_row_within_the_step(state: Tensor, kv: Tensor, gate: Tensor, positions: Tensor, req_idx: Tensor, *rest: Any) -> None:
    """Rows of the state are numbered from the first token of the step."""
    counted = torch.where(req_idx >= 0, positions - first_positions(positions, req_idx), positions)
    store_state(state, kv, gate, counted, req_idx, *rest)


def state_offset_in_int32(state: Tensor, *rest: Any) -> None:
    """Byte offsets of a request's state are int32 and wrap at 2 GiB."""
    *middle, state_slots = rest
    store_state(state, *middle, wrapped(state_slots, state))


def kv_and_gate_exchanged(state: Tensor, kv: Tensor, gate: Tensor, *rest: Any) -> None:
    """The two projections change places in the state."""
    store_state(state, gate, kv, *rest)


MUTANTS = {
    "compress_kv/used-lengths-missing": used_lengths_missing,
    "compress_kv/overlap-dropped-at-chunk-edge": overlap_dropped_at_chunk_edge,
    "compress_kv/state-ignored": state_ignored,
    "compress_kv/state-written-first": state_written_first,
    "compress_kv/ape-missing": ape_missing,
    "compress_kv/norm-missing": norm_missing,
    "compress_kv/not-rotated": not_rotated,
    "compress_kv/roles-exchanged": roles_exchanged,
    "compress_kv/one-state-for-all": one_state_for_all,
    "compress_kv/page-offset-int32": entry_offset_in_int32,
    "store_kv/page-offset-int32": row_offset_in_int32,
    "store_kv/rows-kept-after-rollback": rows_kept_after_rollback,
    "store_kv/padding-written": padding_written_to_slot_0,
    "store_kv/last-row-lost": last_row_lost,
    "pool_kv/mean-of-the-group": mean_of_the_group,
    "pool_kv/groups-of-the-step": groups_of_the_step,
    "pool_kv/open-group-forgotten": open_group_forgotten,
    "store_state/page-offset-int32": state_offset_in_int32,
    "store_state/row-within-the-step": state_row_within_the_step,
    "store_state/kv-and-gate-exchanged": kv_and_gate_exchanged,
}
