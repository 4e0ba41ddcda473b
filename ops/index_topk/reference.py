# SPDX-License-Identifier: Apache-2.0
"""Reference of `index_topk`. `index_scores` is also what traces and comparisons of the selection read."""

from __future__ import annotations

import torch
from torch import Tensor

from ascend_dsv4.ops.index_topk import SPEC
from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.rowwise import accumulate_dtype, aligned_rows
from ascend_dsv4.ops.store_kv.reference import round_rows

MIN_WIDTH = 64


def gather_keys(idx_kv: Tensor, blocks: Tensor, count: int) -> Tensor:
    """The first `count` index keys of a request, zero-padded to a power of two: [width, head_dim]."""
    entry = torch.arange(count, device=idx_kv.device)
    rows = blocks.long()[entry // idx_kv.shape[1]] * idx_kv.shape[1] + entry % idx_kv.shape[1]
    keys = idx_kv.reshape(-1, idx_kv.shape[-1])[rows]
    return torch.cat([keys, keys.new_zeros(padded_width(count) - count, keys.shape[1])])


def padded_width(count: int) -> int:
    """Width of the score product of a query with `count` visible entries: it depends on that query alone."""
    return max(MIN_WIDTH, 1 << (count - 1).bit_length())


def index_scores(q: Tensor, weights: Tensor, keys: Tensor, count: int) -> Tensor:
    """Scores of one query's first `count` entries. q [num_heads, head_dim], weights [num_heads] → [count]."""
    products = torch.mm(aligned_rows(q, q.shape[0]), keys[: padded_width(count)].t())
    return (weights[:, None] * torch.relu(products)).sum(0)[:count]


def best_entries(scores: Tensor, topk: int) -> Tensor:
    """Ascending numbers of the `topk` highest of more than `topk` scores; among equals the lower. NaN counts as lowest."""
    best, entries = torch.topk(scores, topk + 1)
    if best[-2] > best[-1] and best[0] == best[0]:  # no tie across the border and no NaN: the set is unique
        return torch.sort(entries[:topk]).values
    scores = torch.where(torch.isnan(scores), -torch.inf, scores)
    threshold = torch.topk(scores, topk).values[-1]
    above, equal = scores > threshold, scores == threshold
    chosen = above | (equal & (torch.cumsum(equal, 0) <= topk - above.sum()))
    return chosen.nonzero().squeeze(1)


@implements(SPEC, "reference")
def index_topk(
    q: Tensor,
    weights: Tensor,
    idx_kv: Tensor,
    positions: Tensor,
    req_idx: Tensor,
    block_table: Tensor,
    *,
    ratio: int,
    topk: int,
    rounding: str,
) -> Tensor:
    dtype = accumulate_dtype(q)
    queries, scale = round_rows(q, rounding, 0).to(dtype), weights.to(dtype)
    chosen = torch.full((q.shape[0], topk), -1, dtype=torch.int32, device=q.device)
    visible = ((positions + 1) // ratio).tolist()
    requests = req_idx.tolist()
    most: dict[int, int] = {}
    for request, count in zip(requests, visible, strict=True):
        most[request] = max(count, most.get(request, 0))
    keys = {
        request: gather_keys(idx_kv, block_table[request], count).to(dtype)
        for request, count in most.items()
        if request >= 0 and count > topk
    }
    for t, (request, count) in enumerate(zip(requests, visible, strict=True)):
        if request < 0 or count == 0:
            continue
        if count <= topk:  # every visible entry is chosen, whatever its score
            chosen[t, :count] = torch.arange(count, dtype=torch.int32)
        else:
            chosen[t] = best_entries(index_scores(queries[t], scale[t], keys[request], count), topk).int()
    return chosen
