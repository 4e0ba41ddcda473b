# SPDX-License-Identifier: Apache-2.0
"""Cases of `concat`."""

from __future__ import annotations

import numpy as np

from ascend_dsv4.ops.cases import (
    Case,
    CaseInputs,
    ExpectedCase,
    Rng,
    f32,
    nan_rows,
    normal,
    scaled,
    strided,
    subnormal_cases,
    token_cases,
)


def inputs(rng: Rng, num_tokens: int, heads: int = 3, left: int = 16, right: int = 8) -> CaseInputs:
    return CaseInputs({"x": normal(rng, num_tokens, heads, left), "y": normal(rng, num_tokens, heads, right)})


def views(rng: Rng) -> CaseInputs:
    return CaseInputs({name: strided(array) for name, array in inputs(rng, 5).args.items() if array is not None})


def not_finite(rng: Rng) -> CaseInputs:
    return CaseInputs({"x": f32([[np.nan, np.inf]]), "y": f32([[-np.inf, 0]])})


CASES = (
    Case("heads", "typical", lambda rng: inputs(rng, 17)),
    *token_cases(inputs),
    Case("uneven", "boundary", lambda rng: inputs(rng, 3, left=5, right=1)),
    Case("views", "hostile", views),
    Case("large", "hostile", lambda rng: scaled(inputs(rng, 4), 1e30, "x", "y")),
    Case(
        "nan-rows",
        "hostile",
        lambda rng: CaseInputs({name: nan_rows(f32(a), [0, 3]) for name, a in inputs(rng, 5).args.items()}),
    ),
    *subnormal_cases(lambda rng, small: CaseInputs({"x": small.draw(rng, 5, 7), "y": small.draw(rng, 5, 3)})),
    Case("not-finite", "hostile", not_finite),
)

EXPECTED = (
    ExpectedCase(
        "by-hand",
        "by hand: the second pair stands behind the first",
        lambda: CaseInputs({"x": f32([[1, 2], [3, 4]]), "y": f32([[5], [6]])}),
        {"z": f32([[1, 2, 5], [3, 4, 6]])},
    ),
)
