# SPDX-License-Identifier: Apache-2.0
"""Cases of `index_topk`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ascend_dsv4.ops.cases import (
    STALE,
    Array,
    Case,
    CaseInputs,
    ExpectedCase,
    Rng,
    Step,
    block_tables,
    changed,
    entry_slots,
    f32,
    far_away,
    filled_cache,
    i32,
    normal,
    strided,
    subnormal,
)

ATTRS = {"ratio": 4, "topk": 5, "rounding": "none", "candidate_block": 1, "num_candidates": 0}


def inputs(
    rng: Rng, step: Step, *, heads: int = 4, head_dim: int = 32, block_rows: int = 3, drafts: int = 0, **attrs: Any
) -> CaseInputs:
    """Every entry that exists after the step has a key, those that so many drafts in vain closed are stale; the rest is NaN."""
    attrs = {**ATTRS, **attrs}
    counts = [end // attrs["ratio"] for end in step.ends()]
    drafted = [(end + drafts) // attrs["ratio"] for end in step.ends()]
    table, num_blocks = block_tables(rng, drafted, block_rows)
    slots = [entry_slots(table, i, range(count), block_rows) for i, count in enumerate(counts)]
    q, weights = normal(rng, step.num_tokens, heads, head_dim), normal(rng, step.num_tokens, heads)
    q[step.padding_rows] = weights[step.padding_rows] = np.nan
    keys = filled_cache(rng, num_blocks, block_rows, head_dim, np.concatenate([np.zeros(0, np.int64), *slots]))
    for i, (count, end) in enumerate(zip(counts, drafted, strict=True)):
        keys.reshape(-1, head_dim)[entry_slots(table, i, range(count, end), block_rows)] = STALE
    args = {
        "q": q,
        "weights": weights,
        "idx_kv": keys,
        "positions": step.positions,
        "req_idx": step.req_idx,
        "block_table": table,
    }
    return CaseInputs(args, attrs)


def restricted(rng: Rng, step: Step, num_given: int, **options: Any) -> CaseInputs:
    """Every token may choose from up to `num_given` of its visible blocks, the newest among them."""
    made = inputs(rng, step, **options)
    candidates = np.full((step.num_tokens, num_given), -1, dtype=np.int32)
    for row, position in zip(candidates, step.positions, strict=True):
        newest = ((position + 1) // made.attrs["ratio"] - 1) // made.attrs["candidate_block"]
        if position >= 0 and newest >= 0:
            older = rng.permutation(newest)[: num_given - 1]
            row[: len(older) + 1] = sorted([*older, newest])
    return CaseInputs({**made.args, "candidates": candidates}, made.attrs)


def case(name: str, kind: Any, requests: tuple[tuple[int, int], ...], padding: int = 0, **options: Any) -> Case:
    return Case(name, kind, lambda rng: inputs(rng, Step(requests, padding), **options))


def integers(rng: Rng, made: CaseInputs, low: int, high: int) -> CaseInputs:
    """The same call with small integers, exact in every dtype: many scores are equal."""

    def draw(name: str) -> Array:
        array = made.args[name]
        assert array is not None
        return f32(np.where(np.isnan(array), np.nan, rng.integers(low, high, array.shape)))

    return CaseInputs({**made.args, **{name: draw(name) for name in ("q", "weights", "idx_kv")}}, made.attrs)


def tied_blocks(rng: Rng) -> CaseInputs:
    made = restricted(rng, Step(((0, 90), (61, 3)), 2), 5, heads=2, head_dim=4, candidate_block=3, num_candidates=3, topk=4)
    return integers(rng, made, 0, 2)


def no_scores_below_zero(rng: Rng) -> CaseInputs:
    """Every score negative: what stands in for a missing one must not win."""
    made = restricted(rng, Step(((50, 40),)), 3, candidate_block=4, num_candidates=2)
    return CaseInputs({**made.args, "weights": -np.abs(f32(made.args["weights"]))}, made.attrs)


def ties(rng: Rng) -> CaseInputs:
    return integers(rng, inputs(rng, Step(((0, 60), (41, 3)), 2), heads=2, head_dim=4), 0, 2)


def all_equal(rng: Rng) -> CaseInputs:
    return integers(rng, inputs(rng, Step(((90, 4),))), 1, 2)


def hadamard(rng: Rng) -> CaseInputs:
    # 64 channels: the Hadamard factor is 1/8, so that the transform of integers is exact before it is rounded.
    return integers(rng, inputs(rng, Step(((70, 20),)), head_dim=64, rounding="hadamard_fp4"), -4, 5)


def views(rng: Rng) -> CaseInputs:
    made = restricted(rng, Step(((20, 30),)), 3, candidate_block=2, num_candidates=2)
    return CaseInputs({name: strided(array) for name, array in made.args.items() if array is not None}, made.attrs)


def far(rng: Rng) -> CaseInputs:
    made = inputs(rng, Step(((60, 3), (41, 1)), 1), candidate_block=2, num_candidates=3)
    return far_away(rng, made, idx_kv={"tables": ("block_table",)})


def large(rng: Rng) -> CaseInputs:
    made = inputs(rng, Step(((40, 6),)))
    return CaseInputs({**made.args, "q": f32(made.args["q"]) * np.float32(1e30)}, made.attrs)


CASES = (
    case("prefill", "typical", ((0, 90),), heads=8, head_dim=64, topk=8),
    case("decode-batch", "typical", ((399, 1), (64, 1), (3, 1), (200, 1)), block_rows=16, topk=16),
    Case("hadamard-fp4", "typical", hadamard),
    case("fp4-b32", "typical", ((70, 20),), head_dim=64, rounding="fp4_b32"),
    case("publish", "typical", ((0, 90), (300, 2)), ratio=1, candidate_block=8, num_candidates=4),
    Case("restricted", "typical", lambda rng: restricted(rng, Step(((0, 90), (300, 2))), 4, ratio=1, candidate_block=8)),
    *(
        case(f"publish-{n}-of-blocks-of-{size}", "boundary", ((0, 70),), ratio=2, candidate_block=size, num_candidates=n)
        for n, size in ((1, 1), (1, 4), (2, 3), (9, 4), (64, 4))
    ),
    *(
        Case(
            f"restricted-to-{n}-blocks-of-{size}",
            "boundary",
            lambda rng, n=n, size=size: restricted(rng, Step(((0, 70),)), n, ratio=2, candidate_block=size),
        )
        for n, size in ((1, 1), (1, 4), (1, 8), (2, 3), (9, 4), (64, 4))
    ),
    Case(
        "restricted-and-publish",
        "boundary",
        lambda rng: restricted(rng, Step(((0, 70),)), 3, ratio=1, candidate_block=4, num_candidates=2),
    ),
    case("publish-tokens-0", "boundary", (), num_candidates=3),
    Case("restricted-tokens-0", "boundary", lambda rng: restricted(rng, Step(()), 3)),
    case("tokens-0", "boundary", ()),
    *(case(f"tokens-{n}", "boundary", ((0, n),)) for n in (1, 3, 4, 5, 127, 128, 129)),
    case("around-topk", "boundary", ((16, 10),), topk=5),
    case("topk-beyond-entries", "boundary", ((10, 20),), topk=64),
    case("topk-1", "boundary", ((0, 30),), topk=1),
    case("block-edges", "boundary", ((30, 20),), block_rows=1),
    case("padded-width", "boundary", ((255, 6), (511, 6)), block_rows=32),
    case("wide", "boundary", ((300, 2),), heads=65, head_dim=128, ratio=1, block_rows=64),
    case("deep", "boundary", ((300, 1),), heads=3, head_dim=128, ratio=1, block_rows=64),
    case("long", "boundary", ((9000, 2), (2500, 1)), ratio=1, topk=40, block_rows=64, candidate_block=16, num_candidates=60),
    case("long-single-entry-blocks", "boundary", ((4000, 1),), ratio=1, topk=1, block_rows=64, num_candidates=30),
    Case(
        "long-restricted",
        "boundary",
        lambda rng: restricted(rng, Step(((9000, 2),)), 140, ratio=1, candidate_block=8, block_rows=64, num_candidates=1200),
    ),
    Case("ties", "hostile", ties),
    Case("tied-blocks", "hostile", tied_blocks),
    Case("negative-scores", "hostile", no_scores_below_zero),
    Case("candidates-in-padding", "hostile", lambda rng: restricted(rng, Step(((33, 3), (0, 2)), 3), 2, num_candidates=2)),
    Case("all-equal", "hostile", all_equal),
    Case("large", "hostile", large),
    case("poisoned-padding", "hostile", ((33, 3), (0, 2)), 3),
    case("padding-alone", "hostile", (), 2),
    Case("views", "hostile", views),
    Case(
        "all-equal-blocks",
        "hostile",
        lambda rng: integers(rng, inputs(rng, Step(((90, 4),)), candidate_block=3, num_candidates=4), 1, 2),
    ),
    case("stale-rows", "hostile", ((40, 6), (25, 1), (0, 9)), drafts=9, candidate_block=2, num_candidates=3),
    Case("repeated", "hostile", lambda rng: replace(inputs(rng, Step(((40, 6),), 1)), later=({},))),
    Case("far", "hostile", far),
    Case("subnormal", "hostile", lambda rng: changed(inputs(rng, Step(((80, 5),))), q=subnormal(rng, 5, 4, 32))),
)


def scored(scores: list[float], positions: list[int], topk: int, **attrs: Any) -> CaseInputs:
    """Keys that are the scores themselves: one head, one channel, query 1, weight 1."""
    num = len(positions)
    args = {
        "q": np.ones((num, 1, 1), dtype=np.float32),
        "weights": np.ones((num, 1), dtype=np.float32),
        "idx_kv": f32(scores).reshape(-1, 1, 1),
        "positions": i32(positions),
        "req_idx": i32([0 if position >= 0 else -1 for position in positions]),
        "block_table": i32([range(len(scores))]),
    }
    return CaseInputs(args, {**ATTRS, "topk": topk, **attrs})


def given(inputs: CaseInputs, candidates: list[list[int]]) -> CaseInputs:
    return CaseInputs({**inputs.args, "candidates": i32(candidates)}, inputs.attrs)


EXPECTED = (
    ExpectedCase(
        "causal",
        "specification: entry s is visible from position 4s + 3 on; the best two of 1, 5, 2, 9",
        lambda: scored([1, 5, 2, 9], [-1, 2, 3, 6, 7, 10, 11, 14, 15], 2),
        {"entries": i32([[-1, -1], [-1, -1], [0, -1], [0, -1], [0, 1], [0, 1], [1, 2], [1, 2], [1, 3]])},
    ),
    ExpectedCase(
        "ties",
        "contract: of equal scores the lower entry wins",
        lambda: scored([3, 3, 7, 3, 3], [19], 3),
        {"entries": i32([[0, 1, 2]])},
    ),
    ExpectedCase(
        "relu-before-weight",
        "by hand: weights 1 and -1; products (2, 1), (-5, -1), (-1, 3) give 2 - 1, 0 - 0, 0 - 3",
        lambda: CaseInputs(
            {
                "q": f32([[[1, 0], [0, 1]]]),
                "weights": f32([[1, -1]]),
                "idx_kv": f32([[[2, 1], [-5, -1], [-1, 3]]]),
                "positions": i32([11]),
                "req_idx": i32([0]),
                "block_table": i32([[0]]),
            },
            {**ATTRS, "topk": 2},
        ),
        {"entries": i32([[0, 1]])},
    ),
    ExpectedCase(
        "publish",
        "by hand, blocks of two: maxima 5, 9, 3, then 8 or, one token earlier, 1. The newest block is forced in at the cost of "
        "5; before there are three blocks all are published; nothing is where nothing is visible",
        lambda: scored([1, 5, 9, 2, 3, 3, 1, 8], [7, 6, 4, 3, 1, 0, -1], 1, ratio=1, candidate_block=2, num_candidates=2),
        {
            "entries": i32([[2], [2], [2], [2], [1], [0], [-1]]),
            "blocks": i32([[1, 3], [1, 3], [1, 2], [0, 1], [0, -1], [0, -1], [-1, -1]]),
        },
    ),
    ExpectedCase(
        "blocks-tie",
        "contract: of blocks with equal scores the lower wins; the newest is in whatever its score",
        lambda: scored([4, 0, 4, 4, 4, 0, 4, 4], [7], 1, ratio=1, candidate_block=2, num_candidates=3),
        {"blocks": i32([[0, 1, 3]])},
    ),
    ExpectedCase(
        "restricted",
        "by hand, blocks of two: of 3, 1 and 8 in blocks 2 and 3; of all entries where the row lists all blocks; as many as "
        "there are where those are few; invisible entries of a listed block stay out",
        lambda: given(
            scored([1, 5, 9, 2, 3, 1, 8, 7], [6, 3, 7, 2], 2, ratio=1, candidate_block=2),
            [[2, 3, -1], [0, 1, -1], [0, -1, -1], [1, -1, -1]],
        ),
        {"entries": i32([[4, 6], [1, 2], [0, 1], [2, -1]])},
    ),
)
