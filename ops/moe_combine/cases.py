# SPDX-License-Identifier: Apache-2.0
"""Cases of `moe_combine`."""

from __future__ import annotations

import numpy as np

from ascend_dsv4.ops.cases import (
    Case,
    CaseInputs,
    ExpectedCase,
    Rng,
    changed,
    f32,
    i32,
    normal,
    scaled,
    strided,
    subnormal_cases,
    token_cases,
)


def inputs(rng: Rng, num_tokens: int, topk: int = 3, hidden_size: int = 12, absent: float = 0.0) -> CaseInputs:
    """A share of the choices sends nothing; rows that no token names are NaN."""
    row_of = i32(rng.permutation(num_tokens * topk).reshape(num_tokens, topk))
    row_of[rng.random(row_of.shape) < absent] = -1
    rows = normal(rng, num_tokens * topk, hidden_size)
    rows[np.setdiff1d(np.arange(len(rows)), row_of)] = np.nan
    return CaseInputs({"rows": rows, "row_of": row_of})


def all_absent(rng: Rng) -> CaseInputs:
    made = inputs(rng, 4)
    row_of = i32(made.args["row_of"])
    row_of[[1, 3]] = -1
    return CaseInputs({"rows": made.args["rows"], "row_of": row_of})


def views(rng: Rng) -> CaseInputs:
    return CaseInputs({name: strided(array) for name, array in inputs(rng, 5).args.items() if array is not None})


def large(rng: Rng) -> CaseInputs:
    """All positive: a sum that cancels has no digits left to compare."""
    made = inputs(rng, 4)
    return changed(made, rows=np.abs(f32(made.args["rows"])) * np.float32(1e30))


CASES = (
    Case("random", "typical", lambda rng: inputs(rng, 20, topk=6, hidden_size=64)),
    *token_cases(inputs),
    Case("one-choice", "boundary", lambda rng: inputs(rng, 5, topk=1)),
    Case("unsent-rows-are-nan", "hostile", lambda rng: inputs(rng, 20, absent=0.4)),
    Case("tokens-without-experts", "hostile", all_absent),
    Case("half-large", "hostile", lambda rng: scaled(large(rng), 6e-27, "rows"), ("float16",)),
    Case("views", "hostile", views),
    Case("large", "hostile", large),
    *subnormal_cases(lambda rng, small: changed(inputs(rng, 5), rows=small.draw(rng, 15, 12))),
)

EXPECTED = (
    ExpectedCase(
        "sums",
        "by hand: token 0 adds rows 2 and 0, token 1 row 1 alone, token 2 row 3 twice",
        lambda: CaseInputs({"rows": f32([[1, 2], [10, 20], [100, 200], [5, 6]]), "row_of": i32([[2, 0], [-1, 1], [3, 3]])}),
        {"y": f32([[101, 202], [10, 20], [10, 12]])},
    ),
)
