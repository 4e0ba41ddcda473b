# SPDX-License-Identifier: Apache-2.0
"""Cases of `gelu`."""

from __future__ import annotations

from ascend_dsv4.ops.cases import (
    Case,
    CaseInputs,
    ExpectedCase,
    Rng,
    f32,
    nan_rows,
    normal,
    strided,
    subnormal_cases,
    token_cases,
)


def inputs(rng: Rng, num_tokens: int, dim: int = 33, scale: float = 2.0) -> CaseInputs:
    return CaseInputs({"x": normal(rng, num_tokens, dim, scale=scale)})


def extremes(rng: Rng) -> CaseInputs:
    return CaseInputs({"x": f32([[-1e30, -100, -15, -6, -5, -1e-30, 0, 1e-30, 5, 6, 100, 1e30]])})


CASES = (
    Case("random", "typical", lambda rng: inputs(rng, 9, dim=512)),
    *token_cases(inputs),
    Case("leading-axes", "boundary", lambda rng: CaseInputs({"x": normal(rng, 2, 3, 5)})),
    Case("width-1", "boundary", lambda rng: inputs(rng, 5, 1)),
    Case("extremes", "hostile", extremes),
    Case("transposed", "hostile", lambda rng: CaseInputs({"x": normal(rng, 40, 6).T})),
    Case("poisoned-padding", "hostile", lambda rng: CaseInputs({"x": nan_rows(normal(rng, 5, 33), [1, 4])})),
    *subnormal_cases(lambda rng, small: CaseInputs({"x": small.draw(rng, 5, 33)}), ("float32",)),
    Case("half-large", "hostile", lambda rng: inputs(rng, 5, scale=1e4), ("float16",)),
    Case("view", "hostile", lambda rng: CaseInputs({"x": strided(normal(rng, 6, 40))})),
)

EXPECTED = (
    ExpectedCase(
        "normal-distribution",
        "tables of the normal distribution: x·Φ(x) with Φ(1) = 0.8413447461, Φ(0.5) = 0.6914624613, Φ(2) = 0.9772498681, "
        "Φ(-x) = 1 - Φ(x); the tanh approximation gives 0.8411920 at 1",
        lambda: CaseInputs({"x": f32([[1, -1, 0.5, -0.5, 2, -2, 0]])}),
        {"y": f32([[0.8413447461, -0.1586552539, 0.34573123065, -0.15426876935, 1.9544997362, -0.0455002638, 0]])},
    ),
)
