# SPDX-License-Identifier: Apache-2.0
"""Wrong attention: sinks, scales, windows, selections, and page offsets that do not fit their type."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ascend_dsv4.ops.mla_attention.reference import mla_attention
from ascend_dsv4.ops.sparse_attention.reference import sparse_attention


def wrapped(table: Tensor, cache: Tensor) -> Tensor:
    """The blocks whose bytes a kernel reads that keeps byte offsets in 32 bits, and takes a negative one for 0."""
    block_bytes = cache.stride(0) * cache.element_size()
    offset = (table.long() * block_bytes + 2**31) % 2**32 - 2**31
    return torch.where(table >= 0, (offset // block_bytes).clamp(min=0), -1).to(table.dtype)


def sink_missing(
    q: Tensor, win_kv: Tensor, cmp_kv: Tensor | None, entries: Tensor | None, sink: Tensor, *rest: Any, **attrs: Any
) -> Tensor:
    """The softmax has no sink."""
    return sparse_attention(q, win_kv, cmp_kv, entries, torch.full_like(sink, -torch.inf), *rest, **attrs)


def sink_of_head_0(
    q: Tensor, win_kv: Tensor, cmp_kv: Tensor | None, entries: Tensor | None, sink: Tensor, *rest: Any, **attrs: Any
) -> Tensor:
    """All heads take the sink of the first one."""
    return sparse_attention(q, win_kv, cmp_kv, entries, sink[:1].expand_as(sink), *rest, **attrs)


def sink_as_key(
    q: Tensor,
    win_kv: Tensor,
    cmp_kv: Tensor | None,
    entries: Tensor | None,
    sink: Tensor,
    *rest: Any,
    scale: float,
    **attrs: Any,
) -> Tensor:
    """The sink is scaled like a product of query and key."""
    return sparse_attention(q, win_kv, cmp_kv, entries, sink * scale, *rest, scale=scale, **attrs)


def scale_missing(*tensors: Any, scale: float, **attrs: Any) -> Tensor:
    """Scores are not scaled."""
    return sparse_attention(*tensors, scale=1.0, **attrs)


def window_one_short(*tensors: Any, window: int, **attrs: Any) -> Tensor:
    """The window counts the query's own token apart, so that the oldest row is not seen."""
    return sparse_attention(*tensors, window=max(1, window - 1), **attrs)


def window_one_long(*tensors: Any, window: int, **attrs: Any) -> Tensor:
    """The window reaches one row too far back, into a row that may be somebody else's."""
    return sparse_attention(*tensors, window=window + 1, **attrs)


def window_ring_not_turned(
    q: Tensor,
    win_kv: Tensor,
    cmp_kv: Tensor | None,
    entries: Tensor | None,
    sink: Tensor,
    positions: Tensor,
    req_idx: Tensor,
    window_table: Tensor,
    block_table: Tensor | None,
    **attrs: Any,
) -> Tensor:
    """The ring of window blocks is not turned: positions beyond its first turn are looked up in its last column."""
    last = window_table[:, -1:].expand(-1, 4096)
    unrolled = torch.cat([window_table, last], dim=1)
    return sparse_attention(q, win_kv, cmp_kv, entries, sink, positions, req_idx, unrolled, block_table, **attrs)


def entries_ignored(q: Tensor, win_kv: Tensor, cmp_kv: Tensor | None, *rest: Any, **attrs: Any) -> Tensor:
    """Compressed entries are left out, and the window alone is seen."""
    return sparse_attention(q, win_kv, None, *rest, **attrs)


def selection_ignored(
    q: Tensor, win_kv: Tensor, cmp_kv: Tensor | None, entries: Tensor | None, *rest: Any, **attrs: Any
) -> Tensor:
    """All visible entries are seen, not the chosen ones."""
    return sparse_attention(q, win_kv, cmp_kv, None, *rest, **attrs)


def one_selection_per_step(
    q: Tensor, win_kv: Tensor, cmp_kv: Tensor | None, entries: Tensor | None, *rest: Any, **attrs: Any
) -> Tensor:
    """The last row's selection serves all rows, as if it were chosen once per step."""
    shared = None if entries is None else entries[-1:].expand_as(entries)
    return sparse_attention(q, win_kv, cmp_kv, shared, *rest, **attrs)


def padding_not_zeroed(
    q: Tensor,
    win_kv: Tensor,
    cmp_kv: Tensor | None,
    entries: Tensor | None,
    sink: Tensor,
    positions: Tensor,
    req_idx: Tensor,
    *rest: Any,
    **attrs: Any,
) -> Tensor:
    """Padding rows, which have no key, are divided by their empty sum and come out as NaN."""
    o = sparse_attention(q, win_kv, cmp_kv, entries, sink, positions, req_idx, *rest, **attrs)
    o[req_idx < 0] = torch.nan
    return o


def entry_offset_in_int32(q: Tensor, win_kv: Tensor, cmp_kv: Tensor | None, *rest: Any, **attrs: Any) -> Tensor:
    """Byte offsets of compressed entries are int32 and wrap at 2 GiB."""
    *middle, block_table = rest
    table = None if cmp_kv is None else wrapped(block_table, cmp_kv)
    return sparse_attention(q, win_kv, cmp_kv, *middle, table, **attrs)


def window_offset_in_int32(q: Tensor, win_kv: Tensor, *rest: Any, **attrs: Any) -> Tensor:
    """Byte offsets of window rows are int32 and wrap at 2 GiB."""
    *middle, window_table, block_table = rest
    return sparse_attention(q, win_kv, *middle, wrapped(window_table, win_kv), block_table, **attrs)


def latent_offset_in_int32(
    q: Tensor, mla_kv: Tensor, entries: Tensor | None, positions: Tensor, req_idx: Tensor, block_table: Tensor, **attrs: Any
) -> Tensor:
    """Byte offsets of latent rows are int32 and wrap at 2 GiB."""
    return mla_attention(q, mla_kv, entries, positions, req_idx, wrapped(block_table, mla_kv), **attrs)


def rotated_channels_unscored(q: Tensor, *rest: Any, value_dim: int, **attrs: Any) -> Tensor:
    """Scores leave out the rotated channels behind the latent ones."""
    latent = torch.cat([q[..., :value_dim], torch.zeros_like(q[..., value_dim:])], dim=-1)
    return mla_attention(latent, *rest, value_dim=value_dim, **attrs)


def scale_of_the_latent(q: Tensor, *rest: Any, value_dim: int, scale: float) -> Tensor:
    """Scores are scaled by the width of the value, not as they are told to be."""
    return mla_attention(q, *rest, value_dim=value_dim, scale=value_dim**-0.5)


def own_row_unseen(q: Tensor, mla_kv: Tensor, entries: Tensor | None, positions: Tensor, *rest: Any, **attrs: Any) -> Tensor:
    """A query sees the rows before its own, not its own."""
    return mla_attention(q, mla_kv, entries, positions - 1, *rest, **attrs)


def latent_selection_ignored(q: Tensor, mla_kv: Tensor, entries: Tensor | None, *rest: Any, **attrs: Any) -> Tensor:
    """All visible rows are seen, not the chosen ones."""
    return mla_attention(q, mla_kv, None, *rest, **attrs)


MUTANTS = {
    "sparse_attention/sink-missing": sink_missing,
    "sparse_attention/sink-of-head-0": sink_of_head_0,
    "sparse_attention/sink-scaled": sink_as_key,
    "sparse_attention/scale-missing": scale_missing,
    "sparse_attention/window-one-short": window_one_short,
    "sparse_attention/window-one-long": window_one_long,
    "sparse_attention/window-ring-not-turned": window_ring_not_turned,
    "sparse_attention/entries-ignored": entries_ignored,
    "sparse_attention/selection-ignored": selection_ignored,
    "sparse_attention/one-selection-per-step": one_selection_per_step,
    "sparse_attention/padding-is-nan": padding_not_zeroed,
    "sparse_attention/page-offset-int32": entry_offset_in_int32,
    "sparse_attention/window-offset-int32": window_offset_in_int32,
    "mla_attention/page-offset-int32": latent_offset_in_int32,
    "mla_attention/rotated-channels-unscored": rotated_channels_unscored,
    "mla_attention/scale-of-the-latent": scale_of_the_latent,
    "mla_attention/own-row-unseen": own_row_unseen,
    "mla_attention/selection-ignored": latent_selection_ignored,
}
