# SPDX-License-Identifier: Apache-2.0
"""Choices of the best by score: the scores behind them in float64, and comparison as sets.

Two implementations add in different orders, so scores that lie next to each other may be ranked either way; `OpSpec.choices`
says how close that is. What depends on the place of a choice is brought into the golden's order before it is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ascend_dsv4.accuracy.calls import Arguments, Array, to_numpy
from ascend_dsv4.ops.compare import compare_sets
from ascend_dsv4.ops.index_topk.reference import gather_keys, index_scores
from ascend_dsv4.ops.route.reference import add_bias, expert_scores, mask_groups
from ascend_dsv4.ops.store_kv.reference import round_rows

PAIRED: Mapping[tuple[str, str], str] = {("route", "weights"): "ids"}
"""(operator, output) → the choice whose places it follows."""


@dataclass(frozen=True, slots=True)
class ChoiceVerdict:
    """Rows of choices against the golden ones."""

    reason: str
    """Why it failed; empty if it passed."""
    figures: Mapping[str, float]
    """overlap: share of the golden choices that were made; tied_rows, wrong_rows; score_gap: by how much of the row's largest
    score the worst wrong choice lies below the lowest golden one."""
    worst: tuple[int, float, float] | None
    """Row, a surplus choice and a missing one, of the first wrong row."""


def compare_choices(actual: Array, golden: Array, scores: Array | None, gap: float) -> ChoiceVerdict:
    """Hold rows of chosen numbers (-1: none) against the golden ones as sets, ties within `gap` allowed.

    scores  [..., num_candidates], higher is better, -inf for what must not be chosen; None if there is nothing to rank by
    """
    actual, golden = actual.reshape(-1, actual.shape[-1]), golden.reshape(-1, golden.shape[-1])
    relative = None if scores is None else _relative(scores.reshape(len(golden), -1))
    if relative is not None and golden.size and int(golden.max()) >= relative.shape[1]:
        relative = None  # a golden that disagrees with the scores is not excused by them
    result = compare_sets(actual, golden, relative, tie=gap)
    reason = result.reason or _gap_in_a_row(actual)
    wanted = max(int((golden >= 0).sum()), 1)
    found = sum(
        len(set(row[row >= 0].tolist()) & set(right[right >= 0].tolist())) for row, right in zip(actual, golden, strict=True)
    )
    figures = {
        "overlap": found / wanted if (golden >= 0).any() else 1.0,
        "tied_rows": float(result.num_tied),
        "wrong_rows": float(result.num_wrong),
        "score_gap": _score_gap(result.first_wrong, result.surplus, golden, relative),
    }
    worst = None
    if result.first_wrong >= 0:
        worst = (result.first_wrong, float(next(iter(result.surplus), -1)), float(next(iter(result.missing), -1)))
    return ChoiceVerdict(reason, figures, worst)


def _gap_in_a_row(actual: Array) -> str:
    """Readers stop at the first -1, so it must not stand before a choice."""
    rows = np.flatnonzero(((actual[:, :-1] == -1) & (actual[:, 1:] != -1)).any(axis=1))
    return f"-1 stands before a choice in {len(rows)} rows, first in row {rows[0]}" if len(rows) else ""


def _relative(scores: Array) -> Array:
    """Scores over the largest of their row, and one more candidate that nobody may choose."""
    finite = np.where(np.isfinite(scores), np.abs(scores), 0).max(axis=1, initial=0.0)
    scaled = scores / np.where(finite > 0, finite, 1)[:, None]
    return np.concatenate([scaled, np.full((len(scores), 1), -np.inf)], axis=1)


def _score_gap(row: int, surplus: tuple[int, ...], golden: Array, scores: Array | None) -> float:
    if row < 0 or scores is None or not surplus or not (golden[row] >= 0).any():
        return 0.0
    lowest = float(scores[row, golden[row][golden[row] >= 0]].min())
    inside = [float(scores[row, index]) for index in surplus if 0 <= index < scores.shape[1]]
    return max((lowest - score for score in inside), default=float("inf"))


def pair_with(ids: Array, golden_ids: Array, values: Array, golden: Array) -> Array:
    """Values that stand beside `ids` [rows, k], brought into the order of `golden_ids`.

    Where an id of the golden was not chosen the golden value itself is put in: the choice has been judged already.
    """
    ordered = golden.astype(values.dtype).copy()
    for row, (mine, right) in enumerate(zip(ids, golden_ids, strict=True)):
        at = {int(index): place for place, index in enumerate(mine.tolist())}
        for place, index in enumerate(right.tolist()):
            if index in at:
                ordered[row, place] = values[row, at[index]]
    return ordered


def choice_scores(name: str, tensors: Arguments, attrs: Mapping[str, Any]) -> dict[str, Array]:
    """float64 scores behind the choices of a call, by output: [num_tokens, num_candidates]. Empty where nothing is ranked."""
    wide = {arg: None if t is None else t.double() if t.is_floating_point() else t for arg, t in tensors.items()}
    return _SCORES[name](tensors, wide, attrs) if name in _SCORES else {}


def _index_topk(narrow: Arguments, a: Arguments, attrs: Mapping[str, Any]) -> dict[str, Array]:
    q, weights, keys = narrow["q"], a["weights"], a["idx_kv"]
    positions, req_idx, table, candidates = a["positions"], a["req_idx"], a["block_table"], a["candidates"]
    assert q is not None and weights is not None and keys is not None
    assert positions is not None and req_idx is not None and table is not None
    queries = round_rows(q, attrs["rounding"], 0).double()
    counts = torch.where(req_idx >= 0, (positions + 1) // attrs["ratio"], 0).tolist()
    width, size = max([1, *counts]), attrs["candidate_block"]
    entries, blocks = np.full((len(counts), width), -np.inf), np.full((len(counts), -(-width // size)), -np.inf)
    for t, count in enumerate(counts):
        if count <= 0:
            continue
        mine = gather_keys(keys, table[int(req_idx[t])], count)
        scores = np.nan_to_num(to_numpy(index_scores(queries[t], weights[t], mine, count)), nan=-np.inf, neginf=-np.inf)
        for block in range(-(-count // size)):
            blocks[t, block] = scores[block * size : (block + 1) * size].max()
        newest = (count - 1) // size
        # The newest block is always published: nothing is as good, whatever its score.
        blocks[t, newest] = np.abs(blocks[t][np.isfinite(blocks[t])]).max(initial=1.0) * 2
        allowed = np.ones(count, dtype=bool) if candidates is None else np.isin(np.arange(count) // size, candidates[t].numpy())
        entries[t, :count] = np.where(allowed, scores, -np.inf)
    return {"entries": entries, "blocks": blocks}


def _route(narrow: Arguments, a: Arguments, attrs: Mapping[str, Any]) -> dict[str, Array]:
    logits = a["logits"]
    assert logits is not None
    if a["tid2eid"] is not None:
        return {}
    ranked = add_bias(expert_scores(logits, attrs["scoring"]), a["bias"], a["bias_vl"], a["is_image"])
    if attrs["n_group"] > 1:
        ranked = mask_groups(ranked, attrs["topk"], attrs["n_group"], attrs["topk_group"])
    return {"ids": to_numpy(ranked)}


_SCORES: Mapping[str, Callable[[Arguments, Arguments, Mapping[str, Any]], dict[str, Array]]] = {
    "index_topk": _index_topk, "route": _route,
}  # fmt: skip
