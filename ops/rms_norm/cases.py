# SPDX-License-Identifier: Apache-2.0
"""Cases of `rms_norm`."""

from __future__ import annotations

from dataclasses import replace

from ascend_dsv4.ops.cases import (
    Case,
    CaseInputs,
    ExpectedCase,
    Rng,
    Small,
    changed,
    f32,
    nan_rows,
    normal,
    scaled,
    strided,
    subnormal_cases,
    token_cases,
)

EPS = {"eps": 1e-6}


def inputs(rng: Rng, num_tokens: int, dim: int = 64, scale: float = 1.0) -> CaseInputs:
    return CaseInputs({"x": normal(rng, num_tokens, dim, scale=scale), "weight": 1 + normal(rng, dim, scale=0.3)}, EPS)


def poisoned_padding(rng: Rng) -> CaseInputs:
    return CaseInputs({"x": nan_rows(normal(rng, 7, 48), [1, 5, 6]), "weight": normal(rng, 48)}, EPS)


def zero_row(rng: Rng) -> CaseInputs:
    x = normal(rng, 3, 16)
    x[1] = 0
    return CaseInputs({"x": x, "weight": normal(rng, 16)}, EPS)


def subnormals(rng: Rng, small: Small) -> CaseInputs:
    made = scaled(inputs(rng, 5), small.gain, "weight")
    return replace(changed(made, x=small.draw(rng, 5, 64)), attrs={"eps": small.eps})


CASES = (
    Case("hidden", "typical", lambda rng: inputs(rng, 9, 4096)),
    Case("query-heads", "typical", lambda rng: CaseInputs({"x": normal(rng, 5, 4, 128), "weight": None}, EPS)),
    *token_cases(inputs),
    Case("odd-width", "boundary", lambda rng: inputs(rng, 5, 33)),
    Case("width-1", "boundary", lambda rng: inputs(rng, 5, 1)),
    Case("zero-row", "boundary", zero_row),
    Case("large", "hostile", lambda rng: inputs(rng, 4, scale=1e17)),
    Case("tiny", "hostile", lambda rng: inputs(rng, 4, scale=1e-20)),
    Case("poisoned-padding", "hostile", poisoned_padding),
    Case("half-large", "hostile", lambda rng: scaled(inputs(rng, 5), 1e4, "x"), ("float16",)),
    *subnormal_cases(subnormals),
    Case(
        "view", "hostile", lambda rng: CaseInputs({"x": strided(normal(rng, 6, 40)), "weight": strided(normal(rng, 40))}, EPS)
    ),
    Case("transposed", "hostile", lambda rng: CaseInputs({"x": normal(rng, 40, 6).T, "weight": normal(rng, 40)}, EPS)),
)

EXPECTED = (
    ExpectedCase(
        "three-four",
        "by hand: mean square of (3, 4) is 12.5, with eps 12.5 the root is 5",
        lambda: CaseInputs({"x": f32([[3, 4], [-3, 4]]), "weight": f32([2, 0.5])}, {"eps": 12.5}),
        {"y": f32([[1.2, 0.4], [-1.2, 0.4]])},
    ),
    ExpectedCase(
        "unweighted",
        "by hand: (3, 4, 0, 0) has mean square 6.25",
        lambda: CaseInputs({"x": f32([[3, 4, 0, 0]]), "weight": None}, {"eps": 0.0}),
        {"y": f32([[1.2, 1.6, 0, 0]])},
    ),
)
