# SPDX-License-Identifier: Apache-2.0
"""Cases of `layer_norm`."""

from __future__ import annotations

from dataclasses import replace

from ascend_dsv4.ops.cases import (
    Array,
    Case,
    CaseInputs,
    ExpectedCase,
    Rng,
    Small,
    f32,
    nan_rows,
    normal,
    scaled,
    strided,
    subnormal_cases,
    token_cases,
)

EPS = {"eps": 1e-6}


def inputs(rng: Rng, num_tokens: int, dim: int = 64, scale: float = 1.0, offset: float = 0.0) -> CaseInputs:
    return of(rng, f32(offset + normal(rng, num_tokens, dim, scale=scale)))


def of(rng: Rng, x: Array) -> CaseInputs:
    """These rows with a random weight and bias."""
    dim = x.shape[-1]
    return CaseInputs({"x": x, "weight": 1 + normal(rng, dim, scale=0.3), "bias": normal(rng, dim)}, EPS)


def constant_row(rng: Rng) -> CaseInputs:
    x = normal(rng, 3, 16)
    x[1] = 3
    return of(rng, x)


def views(rng: Rng) -> CaseInputs:
    made = inputs(rng, 6, 40)
    return CaseInputs({name: None if array is None else strided(array) for name, array in made.args.items()}, EPS)


def subnormals(rng: Rng, small: Small) -> CaseInputs:
    return replace(scaled(of(rng, small.draw(rng, 5, 48)), small.gain, "weight"), attrs={"eps": small.eps})


CASES = (
    Case("index-keys", "typical", lambda rng: inputs(rng, 9, 128)),
    Case("wide", "typical", lambda rng: inputs(rng, 9, 4096)),
    *token_cases(inputs),
    Case("odd-width", "boundary", lambda rng: inputs(rng, 5, 33)),
    Case("width-1", "boundary", lambda rng: inputs(rng, 5, 1)),
    Case("leading-axes", "boundary", lambda rng: of(rng, normal(rng, 2, 3, 8))),
    Case("constant-row", "boundary", constant_row),
    Case("offset", "hostile", lambda rng: inputs(rng, 4, offset=1000.0)),
    Case("large", "hostile", lambda rng: inputs(rng, 4, scale=1e17)),
    Case("tiny", "hostile", lambda rng: inputs(rng, 4, scale=1e-20)),
    Case("poisoned-padding", "hostile", lambda rng: of(rng, nan_rows(normal(rng, 7, 48), [1, 5, 6]))),
    Case("half-large", "hostile", lambda rng: inputs(rng, 4, scale=1e4), ("float16",)),
    Case("views", "hostile", views),
    *subnormal_cases(subnormals),
    Case("transposed", "hostile", lambda rng: of(rng, normal(rng, 40, 6).T)),
)

EXPECTED = (
    ExpectedCase(
        "two-values",
        "by hand: (1, 3) and (-1, -3) have means 2 and -2 and variance 1, with eps 3 the root is 2",
        lambda: CaseInputs({"x": f32([[1, 3], [-1, -3]]), "weight": f32([2, 4]), "bias": f32([10, 20])}, {"eps": 3.0}),
        {"y": f32([[9, 22], [11, 18]])},
    ),
    ExpectedCase(
        "variance-of-all",
        "by hand: (0, 0, 4, 4) has mean 2 and variance 16/4, not 16/3",
        lambda: CaseInputs({"x": f32([[0, 0, 4, 4]]), "weight": f32([1] * 4), "bias": f32([0] * 4)}, {"eps": 0.0}),
        {"y": f32([[-1, -1, 1, 1]])},
    ),
)
