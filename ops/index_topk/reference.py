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


def choose_entries(scores: Tensor, given: Tensor, topk: int, candidate_block: int) -> Tensor:
    """Ascending numbers of the best `topk` of the entries in the blocks `given`; all of them if they are no more."""
    place = torch.arange(candidate_block, device=given.device)
    entry = (given[given >= 0].long()[:, None] * candidate_block + place).flatten()
    entry = entry[entry < scores.shape[0]]
    return entry if entry.shape[0] <= topk else entry[best_entries(scores[entry], topk)]


def choose_blocks(scores: Tensor, num_candidates: int, candidate_block: int) -> Tensor:
    """Ascending numbers of the last block and of the best `num_candidates` − 1 others, of which there are more."""
    newest = torch.tensor([(scores.shape[0] - 1) // candidate_block], device=scores.device)
    if num_candidates == 1:
        return newest
    older = torch.where(torch.isnan(scores), -torch.inf, scores)[: int(newest) * candidate_block]
    return torch.cat([best_entries(older.reshape(-1, candidate_block).amax(1), num_candidates - 1), newest])


def lacks_blocks(candidates: Tensor, num_blocks: Tensor) -> Tensor:
    """Which rows of `candidates` do not hold all of the first `num_blocks` [num_tokens] blocks."""
    last, num_given = num_blocks - 1, candidates.shape[1]
    if num_given == 0:
        return last >= 0
    # Distinct numbers in ascending order begin with 0 … last exactly if the one in place `last` is `last`.
    found = candidates.gather(1, last.clamp(0, num_given - 1).long()[:, None]).squeeze(1)
    return (last >= 0) & ((last >= num_given) | (found != last))


def first_numbers(count: Tensor, width: int) -> Tensor:
    """[num_tokens, width] int32: 0 … count − 1 in each row, then -1."""
    number = torch.arange(width, dtype=torch.int32, device=count.device)
    return torch.where(number < count[:, None], number, -1)


@implements(SPEC, "reference")
def index_topk(
    q: Tensor,
    weights: Tensor,
    idx_kv: Tensor,
    positions: Tensor,
    req_idx: Tensor,
    block_table: Tensor,
    candidates: Tensor | None,
    *,
    ratio: int,
    topk: int,
    rounding: str,
    candidate_block: int,
    num_candidates: int,
) -> tuple[Tensor, Tensor]:
    dtype = accumulate_dtype(q)
    queries, scale = round_rows(q, rounding, 0).to(dtype), weights.to(dtype)
    visible = torch.where(req_idx >= 0, (positions + 1) // ratio, 0)
    num_blocks = (visible + candidate_block - 1) // candidate_block
    # Where everything fits it is chosen, whatever its score; no key is read.
    entries, blocks = first_numbers(visible, topk), first_numbers(num_blocks, num_candidates)
    restricted = torch.zeros_like(visible, dtype=torch.bool) if candidates is None else lacks_blocks(candidates, num_blocks)
    publishing = (num_blocks > num_candidates) & (num_candidates > 0)
    rows = ((visible > topk) | restricted | publishing).nonzero().flatten().tolist()
    requests, counts, is_restricted, publishes = (x.tolist() for x in (req_idx, visible, restricted, publishing))
    most: dict[int, int] = {}
    for t in rows:
        most[requests[t]] = max(counts[t], most.get(requests[t], 0))
    keys = {request: gather_keys(idx_kv, block_table[request], count).to(dtype) for request, count in most.items()}
    for t in rows:
        scores = index_scores(queries[t], scale[t], keys[requests[t]], counts[t])
        if candidates is not None and is_restricted[t]:
            chosen = choose_entries(scores, candidates[t], topk, candidate_block)
            entries[t] = -1
            entries[t, : chosen.shape[0]] = chosen
        elif counts[t] > topk:
            entries[t] = best_entries(scores, topk)
        if publishes[t]:
            blocks[t] = choose_blocks(scores, num_candidates, candidate_block)
    return entries, blocks
