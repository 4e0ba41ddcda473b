# SPDX-License-Identifier: Apache-2.0
"""Wrong choices of entries: what is visible, how it is scored, which blocks it is read from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ascend_dsv4.accuracy.mutants.attention import wrapped
from ascend_dsv4.ops.index_topk.reference import index_topk

Chosen = tuple[Tensor, Tensor]


def first_positions(positions: Tensor, req_idx: Tensor) -> Tensor:
    """Per token the position at which this step's rows of its request begin: [num_tokens]."""
    same = (req_idx[:, None] == req_idx) & (req_idx >= 0)
    far = torch.iinfo(positions.dtype).max
    first = torch.where(same, positions, far).amin(1) if len(positions) else positions
    return torch.where(req_idx >= 0, first, 0)


def page_offset_in_int32(
    q: Tensor,
    weights: Tensor,
    idx_kv: Tensor,
    positions: Tensor,
    req_idx: Tensor,
    block_table: Tensor,
    *rest: Any,
    **attrs: Any,
) -> Chosen:
    """Byte offsets of index keys are int32 and wrap at 2 GiB."""
    return index_topk(q, weights, idx_kv, positions, req_idx, wrapped(block_table, idx_kv), *rest, **attrs)


def present_chunk_alone(
    q: Tensor,
    weights: Tensor,
    idx_kv: Tensor,
    positions: Tensor,
    req_idx: Tensor,
    block_table: Tensor,
    candidates: Tensor | None,
    **attrs: Any,
) -> Chosen:
    """Only entries that this step closed are scored, so that each further prefill chunk hides what came before it."""
    oldest = first_positions(positions, req_idx) // attrs["ratio"]
    visible = torch.where(req_idx >= 0, (positions + 1) // attrs["ratio"], 0)
    entry = torch.arange(int(visible.max()) if len(visible) else 0, dtype=torch.int32)
    chunk = (entry >= oldest[:, None]) & (entry < visible[:, None])
    given = torch.sort(torch.where(chunk, entry, torch.iinfo(torch.int32).max), dim=1).values
    given = torch.where(given < torch.iinfo(torch.int32).max, given, -1)
    entries, _ = index_topk(
        q, weights, idx_kv, positions, req_idx, block_table, given, **{**attrs, "candidate_block": 1, "num_candidates": 0}
    )
    _, blocks = index_topk(q, weights, idx_kv, positions, req_idx, block_table, candidates, **attrs)
    return entries, blocks


def entries_lost_at_chunk_edges(
    q: Tensor, weights: Tensor, idx_kv: Tensor, positions: Tensor, req_idx: Tensor, *rest: Any, **attrs: Any
) -> Chosen:
    """Whole entries are counted per chunk, so that one open at a chunk's edge never counts and visibility falls behind."""
    first, ratio = first_positions(positions, req_idx), attrs["ratio"]
    counted = first // ratio + (positions - first + 1) // ratio
    behind = torch.where(req_idx >= 0, counted * ratio - 1, positions)
    return index_topk(q, weights, idx_kv, behind, req_idx, *rest, **attrs)


def one_position_late(q: Tensor, weights: Tensor, idx_kv: Tensor, positions: Tensor, *rest: Any, **attrs: Any) -> Chosen:
    """The entry that a token closes is visible from the next token on only."""
    return index_topk(q, weights, idx_kv, positions - 1, *rest, **attrs)


def one_position_early(q: Tensor, weights: Tensor, idx_kv: Tensor, positions: Tensor, *rest: Any, **attrs: Any) -> Chosen:
    """An entry is visible to the token before the one that closes it."""
    return index_topk(q, weights, idx_kv, positions + 1, *rest, **attrs)


def relu_missing(q: Tensor, weights: Tensor, *rest: Any, **attrs: Any) -> Chosen:
    """Heads that speak against an entry count: relu(x) - relu(-x) is x."""
    return index_topk(torch.cat([q, -q], dim=1), torch.cat([weights, -weights], dim=1), *rest, **attrs)


def relu_after_weight(q: Tensor, weights: Tensor, *rest: Any, **attrs: Any) -> Chosen:
    """The weight is multiplied before the relu, and its sign with it."""
    return index_topk(q * torch.sign(weights).unsqueeze(-1), weights.abs(), *rest, **attrs)


def weights_ignored(q: Tensor, weights: Tensor, *rest: Any, **attrs: Any) -> Chosen:
    """Heads are added up without their weights."""
    return index_topk(q, torch.ones_like(weights), *rest, **attrs)


def query_not_rounded(*tensors: Any, rounding: str, **attrs: Any) -> Chosen:
    """Keys are on their grid, the query is not put on it."""
    return index_topk(*tensors, rounding="none", **attrs)


def table_of_request_0(
    q: Tensor,
    weights: Tensor,
    idx_kv: Tensor,
    positions: Tensor,
    req_idx: Tensor,
    block_table: Tensor,
    *rest: Any,
    **attrs: Any,
) -> Chosen:
    """Every request reads its keys from the blocks of the first one."""
    shared = block_table[:1].expand_as(block_table)
    return index_topk(q, weights, idx_kv, positions, req_idx, shared, *rest, **attrs)


def count_of_row_0(*tensors: Any, **attrs: Any) -> Chosen:
    """Only as many entries as were chosen for the first row are kept in every row: the count is taken once per step."""
    entries, blocks = index_topk(*tensors, **attrs)
    if len(entries):
        entries = torch.where(torch.arange(entries.shape[1]) < (entries[0] >= 0).sum(), entries, -1)
    return entries, blocks


def candidate_blocks_off_by_one(*tensors: Any, **attrs: Any) -> Chosen:
    """Candidate blocks are numbered from 1 where they are read."""
    *rest, candidates = tensors
    moved = None if candidates is None else torch.where(candidates > 0, candidates - 1, candidates)
    return index_topk(*rest, moved, **attrs)


def published_blocks_off_by_one(*tensors: Any, **attrs: Any) -> Chosen:
    """Candidate blocks are numbered from 1 where they are published."""
    entries, blocks = index_topk(*tensors, **attrs)
    return entries, torch.where(blocks >= 0, blocks + 1, blocks)


def candidates_ignored(*tensors: Any, **attrs: Any) -> Chosen:
    """The selection of blocks of an earlier layer is not looked at."""
    return index_topk(*tensors[:-1], None, **attrs)


MUTANTS = {
    "index_topk/page-offset-int32": page_offset_in_int32,
    "index_topk/present-chunk-alone": present_chunk_alone,
    "index_topk/entries-lost-at-chunk-edges": entries_lost_at_chunk_edges,
    "index_topk/causal-limit-late": one_position_late,
    "index_topk/causal-limit-early": one_position_early,
    "index_topk/relu-missing": relu_missing,
    "index_topk/relu-after-weight": relu_after_weight,
    "index_topk/weights-ignored": weights_ignored,
    "index_topk/query-not-rounded": query_not_rounded,
    "index_topk/table-of-request-0": table_of_request_0,
    "index_topk/count-of-row-0": count_of_row_0,
    "index_topk/candidate-blocks-off-by-one": candidate_blocks_off_by_one,
    "index_topk/published-blocks-off-by-one": published_blocks_off_by_one,
    "index_topk/candidates-ignored": candidates_ignored,
}
