# SPDX-License-Identifier: Apache-2.0
"""Cases of `place_rows`."""

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


def inputs(rng: Rng, num_tokens: int, num_rows: int | None = None, absent: int = 0) -> CaseInputs:
    count = num_tokens // 2 if num_rows is None else num_rows
    at = i32(np.concatenate([rng.permutation(num_tokens)[:count], np.full(absent, -1)]))
    rows = normal(rng, len(at), 24)
    rows[at < 0] = np.nan
    return CaseInputs({"streams": normal(rng, num_tokens, 4, 24), "rows": rows, "at": at}, {}, {"rows": "float32"})


def views(rng: Rng) -> CaseInputs:
    made = inputs(rng, 6)
    arrays = {name: strided(array) for name, array in made.args.items() if array is not None}
    return CaseInputs(arrays, {}, {"rows": "float32"})


CASES = (
    Case("half-of-the-tokens", "typical", lambda rng: inputs(rng, 17)),
    *token_cases(inputs),
    Case("no-rows", "boundary", lambda rng: inputs(rng, 5, num_rows=0)),
    Case("every-token", "boundary", lambda rng: inputs(rng, 5, num_rows=5)),
    Case("rows-for-nobody", "hostile", lambda rng: inputs(rng, 7, num_rows=3, absent=2)),
    Case("views", "hostile", views),
    Case("large", "hostile", lambda rng: scaled(inputs(rng, 4), 1e30, "streams", "rows")),
    *subnormal_cases(
        lambda rng, small: changed(inputs(rng, 5, 2), streams=small.draw(rng, 5, 4, 24), rows=small.draw(rng, 2, 24))
    ),
)

EXPECTED = (
    ExpectedCase(
        "by-hand",
        "by hand: token 1 becomes (5, 6) in both streams",
        lambda: CaseInputs(
            {"streams": f32([[[1, 2], [1, 2]], [[3, 4], [3, 4]]]), "rows": f32([[5, 6], [7, 8]]), "at": i32([1, -1])}
        ),
        {"y": f32([[[1, 2], [1, 2]], [[5, 6], [5, 6]]])},
    ),
)
