# SPDX-License-Identifier: Apache-2.0
"""Cases of `mla_attention`."""

from __future__ import annotations

import math
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
    Small,
    Step,
    block_tables,
    changed,
    chosen_entries,
    entry_slots,
    f32,
    far_away,
    filled_cache,
    i32,
    normal,
    scaled,
    strided,
    subnormal_cases,
)


def inputs(
    rng: Rng, step: Step, *, topk: int | None = 5, heads: int = 4, width: int = 40, value_dim: int = 32, block_rows: int = 3,
    scale: float | None = None, drafts: int = 0,
) -> CaseInputs:  # fmt: skip
    """topk None takes every row. Rows that no query may see are NaN, and stale where so many drafts in vain were."""
    table, num_blocks = block_tables(rng, [end + drafts for end in step.ends()], block_rows)
    slots = [entry_slots(table, i, range(end), block_rows) for i, end in enumerate(step.ends())]
    q = normal(rng, step.num_tokens, heads, width)
    q[step.padding_rows] = np.nan
    rows = filled_cache(rng, num_blocks, block_rows, width, np.concatenate([np.zeros(0, np.int64), *slots]))
    for i, end in enumerate(step.ends()):
        rows.reshape(-1, width)[entry_slots(table, i, range(end, end + drafts), block_rows)] = STALE
    args: dict[str, Array | None] = {
        "q": q,
        "mla_kv": rows,
        "positions": step.positions,
        "req_idx": step.req_idx,
        "block_table": table,
    }
    if topk is not None:
        args["entries"] = chosen_entries(rng, step.positions, 1, topk)
    return CaseInputs(args, {"value_dim": value_dim, "scale": scale or width**-0.5})


def case(name: str, kind: Any, requests: tuple[tuple[int, int], ...], padding: int = 0, **options: Any) -> Case:
    return Case(name, kind, lambda rng: inputs(rng, Step(requests, padding), **options))


def nothing_chosen(rng: Rng) -> CaseInputs:
    made = inputs(rng, Step(((20, 5),)))
    entries = i32(made.args["entries"])
    entries[[1, 4]] = -1
    return CaseInputs({**made.args, "entries": entries}, made.attrs)


def views(rng: Rng) -> CaseInputs:
    made = inputs(rng, Step(((20, 5), (0, 3)), 1))
    return CaseInputs({name: None if array is None else strided(array) for name, array in made.args.items()}, made.attrs)


def far(rng: Rng) -> CaseInputs:
    return far_away(rng, inputs(rng, Step(((20, 4), (37, 1)), 1)), mla_kv={"tables": ("block_table",)})


def large_rows(rng: Rng) -> CaseInputs:
    """Rows of 1e15 under queries so small that scores are ordinary; all positive, so that no sum cancels."""
    made = scaled(inputs(rng, Step(((20, 5),))), 1e-15, "q")
    return changed(made, mla_kv=np.abs(f32(made.args["mla_kv"])) * np.float32(1e15))


def subnormals(rng: Rng, small: Small) -> CaseInputs:
    return changed(inputs(rng, Step(((20, 5),)), scale=small.factor), q=small.draw(rng, 5, 4, 40))


CASES = (
    case("chosen", "typical", ((0, 40), (37, 5), (90, 1)), heads=8, width=72, value_dim=64),
    case("all", "typical", ((0, 40), (37, 5), (90, 1)), topk=None, heads=8, width=72, value_dim=64),
    case("decode-far", "typical", ((1000, 1), (517, 1)), topk=16, block_rows=16),
    case("tokens-0", "boundary", ()),
    *(case(f"tokens-{n}", "boundary", ((0, n),), topk=None, heads=2, block_rows=16) for n in (1, 3, 4, 5, 127, 128, 129)),
    case("values-are-rows", "boundary", ((9, 7),), width=32),
    case("value-dim-1", "boundary", ((9, 7),), value_dim=1),
    case("rows-of-one-block", "boundary", ((9, 7),), block_rows=1),
    case("topk-1", "boundary", ((0, 9),), topk=1),
    case("topk-beyond-rows", "boundary", ((10, 9),), topk=100),
    case("many-rows", "boundary", ((250, 8), (509, 6)), topk=None),
    case("large", "hostile", ((20, 5),), scale=5.0),
    Case("nothing-chosen", "hostile", nothing_chosen),
    case("poisoned-padding", "hostile", ((6, 3), (0, 4)), 5),
    case("padding-alone", "hostile", (), 2),
    Case("half-large", "hostile", lambda rng: scaled(inputs(rng, Step(((20, 5),)), scale=1e-5), 1e4, "q"), ("float16",)),
    Case("views", "hostile", views),
    case("stale-rows", "hostile", ((20, 5), (0, 3), (37, 1)), drafts=4),
    case("stale-rows-all", "hostile", ((20, 5), (0, 3), (37, 1)), 1, topk=None, drafts=7),
    Case("repeated", "hostile", lambda rng: replace(inputs(rng, Step(((20, 5),), 1)), later=({},))),
    Case("far", "hostile", far),
    Case("large-rows", "hostile", large_rows),
    *subnormal_cases(subnormals),
)


def flat(positions: list[int], **more: Any) -> CaseInputs:
    """One head with query 0, so that every row weighs the same. Values 1, 2, 4, 8, 16, 32 at positions 0 to 5."""
    args: dict[str, Array | None] = {
        "q": np.zeros((len(positions), 1, 2), dtype=np.float32),
        "mla_kv": f32([[[16, 9], [32, 9], [np.nan, 9], [np.nan, 9]], [[1, 9], [2, 9], [4, 9], [8, 9]]]),
        "positions": i32(positions),
        "req_idx": i32([0 if position >= 0 else -1 for position in positions]),
        "block_table": i32([[1, 0]]),
    }
    return CaseInputs({**args, **more}, {"value_dim": 1, "scale": 1.0})


EXPECTED = (
    ExpectedCase(
        "causal",
        "specification: position t sees rows 0 to t; means of 1, of 1 and 2, and of 1 to 32. No sink, and padding gives 0",
        lambda: flat([0, 1, -1, 5]),
        {"o": f32([[[1]], [[1.5]], [[0]], [[63 / 6]]])},
    ),
    ExpectedCase(
        "chosen",
        "as above with rows 1 and 3, with row 0 alone, and with none",
        lambda: flat([5, 5, 5], entries=i32([[1, 3, -1], [0, -1, -1], [-1, -1, -1]])),
        {"o": f32([[[5]], [[1]], [[0]]])},
    ),
    ExpectedCase(
        "scores",
        "by hand: q·row·scale over both channels are ln 2 and ln 6, weights 1/4 and 3/4; the value is the first channel alone",
        lambda: CaseInputs(
            {
                "q": f32([[[2 * math.log(2), 2 * math.log(6)]]]),
                "mla_kv": f32([[[1, 0], [0, 1]]]),
                "positions": i32([1]),
                "req_idx": i32([0]),
                "block_table": i32([[0]]),
            },
            {"value_dim": 1, "scale": 0.5},
        ),
        {"o": f32([[[0.25]]])},
    ),
)
