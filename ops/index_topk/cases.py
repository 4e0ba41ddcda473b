# SPDX-License-Identifier: Apache-2.0
"""Cases of `index_topk`."""

from __future__ import annotations

from typing import Any

import numpy as np

from ascend_dsv4.ops.cases import (
    Array,
    Case,
    CaseInputs,
    ExpectedCase,
    Rng,
    Step,
    block_tables,
    entry_slots,
    f32,
    filled_cache,
    i32,
    normal,
    strided,
)

ATTRS = {"ratio": 4, "topk": 5, "rounding": "none"}


def inputs(rng: Rng, step: Step, *, heads: int = 4, head_dim: int = 32, block_rows: int = 3, **attrs: Any) -> CaseInputs:
    """Every entry that exists after the step has a key; the rest of the cache is NaN."""
    attrs = {**ATTRS, **attrs}
    counts = [end // attrs["ratio"] for end in step.ends()]
    table, num_blocks = block_tables(rng, counts, block_rows)
    slots = [entry_slots(table, i, range(count), block_rows) for i, count in enumerate(counts)]
    q, weights = normal(rng, step.num_tokens, heads, head_dim), normal(rng, step.num_tokens, heads)
    q[step.padding_rows] = weights[step.padding_rows] = np.nan
    args = {
        "q": q,
        "weights": weights,
        "idx_kv": filled_cache(rng, num_blocks, block_rows, head_dim, np.concatenate([np.zeros(0, np.int64), *slots])),
        "positions": step.positions,
        "req_idx": step.req_idx,
        "block_table": table,
    }
    return CaseInputs(args, attrs)


def case(name: str, kind: Any, requests: tuple[tuple[int, int], ...], padding: int = 0, **options: Any) -> Case:
    return Case(name, kind, lambda rng: inputs(rng, Step(requests, padding), **options))


def integers(rng: Rng, made: CaseInputs, low: int, high: int) -> CaseInputs:
    """The same call with small integers, exact in every dtype: many scores are equal."""

    def draw(name: str) -> Array:
        array = made.args[name]
        assert array is not None
        return f32(np.where(np.isnan(array), np.nan, rng.integers(low, high, array.shape)))

    return CaseInputs({**made.args, **{name: draw(name) for name in ("q", "weights", "idx_kv")}}, made.attrs)


def ties(rng: Rng) -> CaseInputs:
    return integers(rng, inputs(rng, Step(((0, 60), (41, 3)), 2), heads=2, head_dim=4), 0, 2)


def all_equal(rng: Rng) -> CaseInputs:
    return integers(rng, inputs(rng, Step(((90, 4),))), 1, 2)


def hadamard(rng: Rng) -> CaseInputs:
    # 64 channels: the Hadamard factor is 1/8, so that the transform of integers is exact before it is rounded.
    return integers(rng, inputs(rng, Step(((70, 20),)), head_dim=64, rounding="hadamard_fp4"), -4, 5)


def views(rng: Rng) -> CaseInputs:
    made = inputs(rng, Step(((20, 30),)))
    return CaseInputs({name: strided(array) for name, array in made.args.items() if array is not None}, made.attrs)


def large(rng: Rng) -> CaseInputs:
    made = inputs(rng, Step(((40, 6),)))
    return CaseInputs({**made.args, "q": f32(made.args["q"]) * np.float32(1e30)}, made.attrs)


CASES = (
    case("prefill", "typical", ((0, 90),), heads=8, head_dim=64, topk=8),
    case("decode-batch", "typical", ((399, 1), (64, 1), (3, 1), (200, 1)), block_rows=16, topk=16),
    Case("hadamard-fp4", "typical", hadamard),
    case("tokens-0", "boundary", ()),
    *(case(f"tokens-{n}", "boundary", ((0, n),)) for n in (1, 3, 127, 128, 129)),
    case("around-topk", "boundary", ((16, 10),), topk=5),
    case("topk-beyond-entries", "boundary", ((10, 20),), topk=64),
    case("topk-1", "boundary", ((0, 30),), topk=1),
    case("block-edges", "boundary", ((30, 20),), block_rows=1),
    case("padded-width", "boundary", ((255, 6), (511, 6)), block_rows=32),
    Case("ties", "hostile", ties),
    Case("all-equal", "hostile", all_equal),
    Case("large", "hostile", large),
    case("poisoned-padding", "hostile", ((33, 3), (0, 2)), 3),
    case("padding-alone", "hostile", (), 2),
    Case("views", "hostile", views),
)


def scored(scores: list[float], positions: list[int], topk: int) -> CaseInputs:
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
    return CaseInputs(args, {"ratio": 4, "topk": topk, "rounding": "none"})


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
            {"ratio": 4, "topk": 2, "rounding": "none"},
        ),
        {"entries": i32([[0, 1]])},
    ),
)
