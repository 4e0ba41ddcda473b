# SPDX-License-Identifier: Apache-2.0
"""Cases of `linear_bias`."""

from __future__ import annotations

import numpy as np

from ascend_dsv4.ops.cases import (
    COMPUTE_DTYPE,
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


def inputs(rng: Rng, num_tokens: int, in_features: int = 96, out_features: int = 40) -> CaseInputs:
    weight = normal(rng, out_features, in_features, scale=in_features**-0.5)
    args = {"x": normal(rng, num_tokens, in_features), "weight": weight, "bias": normal(rng, out_features)}
    return CaseInputs(args, {"out_dtype": COMPUTE_DTYPE})


def float32_out(rng: Rng) -> CaseInputs:
    return CaseInputs(inputs(rng, 5).args, {"out_dtype": "float32"})


def leading_axes(rng: Rng) -> CaseInputs:
    args = {"x": normal(rng, 3, 2, 4, 32), "weight": normal(rng, 7, 32), "bias": normal(rng, 7)}
    return CaseInputs(args, {"out_dtype": COMPUTE_DTYPE})


def poisoned_padding(rng: Rng) -> CaseInputs:
    made = inputs(rng, 20)
    return CaseInputs({**made.args, "x": nan_rows(f32(made.args["x"]), [0, 3, 19])}, made.attrs)


def views(rng: Rng) -> CaseInputs:
    made = inputs(rng, 18, 33, 7)
    return CaseInputs({name: strided(f32(array)) for name, array in made.args.items()}, made.attrs)


def large(rng: Rng, factor: float = 1e30) -> CaseInputs:
    """All positive: a sum that cancels has no digits left to compare."""
    made = inputs(rng, 4)
    return scaled(changed(made, **{name: np.abs(f32(made.args[name])) for name in ("x", "weight")}), factor, "x", "bias")


def subnormals(rng: Rng, small: Small) -> CaseInputs:
    return changed(scaled(inputs(rng, 5), small.factor, "weight"), x=small.draw(rng, 5, 96))


CASES = (
    Case("patches", "typical", lambda rng: inputs(rng, 9, 588, 64)),
    Case("float32-out", "typical", float32_out),
    *token_cases(inputs),
    Case("leading-axes", "boundary", leading_axes),
    Case("one-output", "boundary", lambda rng: inputs(rng, 17, 33, 1)),
    Case("views", "hostile", views),
    Case("large", "hostile", large),
    Case("half-large", "hostile", lambda rng: scaled(large(rng, 1e4), 0.1, "weight"), ("float16",)),
    *subnormal_cases(subnormals),
    Case("poisoned-padding", "hostile", poisoned_padding),
)

EXPECTED = (
    ExpectedCase(
        "by-hand",
        "by hand",
        lambda: CaseInputs(
            {"x": f32([[1, 2], [3, 4]]), "weight": f32([[1, 0], [0, 1], [1, -1]]), "bias": f32([10, 20, 0.5])},
            {"out_dtype": "float32"},
        ),
        {"y": f32([[11, 22, -0.5], [13, 24, -0.5]])},
    ),
    ExpectedCase(
        "one-rounding",
        "by hand: 256 + 1 and 1 add up to 258, which bfloat16 has; 257 alone would round to 256 and 256 + 1 again",
        lambda: CaseInputs(
            {"x": f32([[1, 1]]), "weight": f32([[256, 1], [0, 1]]), "bias": np.ones(2, dtype=np.float32)},
            {"out_dtype": "bfloat16"},
        ),
        {"y": f32([[258, 2]])},
    ),
)
