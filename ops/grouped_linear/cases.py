# SPDX-License-Identifier: Apache-2.0
"""Cases of `grouped_linear`."""

from __future__ import annotations

import numpy as np

from ascend_dsv4.ops.cases import (
    Case,
    CaseInputs,
    ExpectedCase,
    Rng,
    Small,
    all_strided,
    changed,
    f32,
    nan_rows,
    normal,
    random_factors,
    random_fp4,
    random_fp8,
    random_scales,
    scaled,
    strided,
    subnormal_cases,
    token_cases,
)

PLAIN = {"block": (1, 1)}
FP8 = {"weight": "float8_e4m3fn"}


def plain(rng: Rng, num_tokens: int, groups: int = 4, in_features: int = 32, out_per_group: int = 12) -> CaseInputs:
    weight = normal(rng, groups * out_per_group, in_features, scale=in_features**-0.5)
    return CaseInputs({"x": normal(rng, num_tokens, groups, in_features), "weight": weight, "scale": None}, PLAIN)


def fp8(rng: Rng) -> CaseInputs:
    # 96 rows of 32 a group in blocks of 64: a block of scales straddles two groups.
    weight, scale = random_fp8(rng, 96, 80), random_scales(rng, 2, 2, around=118)
    return CaseInputs({"x": normal(rng, 5, 3, 80), "weight": weight, "scale": scale}, {"block": (64, 64)}, FP8)


def float_scales(rng: Rng) -> CaseInputs:
    made = fp8(rng)
    return CaseInputs({**made.args, "scale": random_factors(rng, 2, 2)}, made.attrs, FP8)


def fp4(rng: Rng) -> CaseInputs:
    weight, scale = random_fp4(rng, 24, 32), random_scales(rng, 24, 2)
    return CaseInputs({"x": normal(rng, 5, 3, 64), "weight": weight, "scale": scale}, PLAIN)


def view(rng: Rng) -> CaseInputs:
    return CaseInputs({"x": strided(normal(rng, 17, 3, 33)), "weight": strided(normal(rng, 6, 33)), "scale": None}, PLAIN)


def subnormals(rng: Rng, small: Small) -> CaseInputs:
    return changed(scaled(plain(rng, 5), small.factor, "weight"), x=small.draw(rng, 5, 4, 32))


def large(rng: Rng, factor: float = 1e30) -> CaseInputs:
    """All positive: a sum that cancels has no digits left to compare."""
    made = plain(rng, 4)
    return scaled(changed(made, **{name: np.abs(f32(made.args[name])) for name in ("x", "weight")}), factor, "x")


def poisoned_padding(rng: Rng) -> CaseInputs:
    return CaseInputs({"x": nan_rows(normal(rng, 6, 2, 32), [2, 5]), "weight": normal(rng, 8, 32), "scale": None}, PLAIN)


CASES = (
    Case("plain", "typical", lambda rng: plain(rng, 9, 8, 128, 32)),
    Case("fp8-block-across-groups", "typical", fp8),
    Case("fp8-float-scales", "typical", float_scales),
    Case("fp4", "typical", fp4),
    *token_cases(plain),
    Case("one-group", "boundary", lambda rng: plain(rng, 5, groups=1)),
    Case("one-output-per-group", "boundary", lambda rng: plain(rng, 5, out_per_group=1)),
    Case("view", "hostile", view),
    Case("fp8-views", "hostile", lambda rng: all_strided(fp8(rng))),
    Case("fp4-views", "hostile", lambda rng: all_strided(fp4(rng))),
    Case("large", "hostile", large),
    Case("half-large", "hostile", lambda rng: scaled(large(rng, 1e4), 0.1, "weight"), ("float16",)),
    *subnormal_cases(subnormals),
    Case("poisoned-padding", "hostile", poisoned_padding),
)

EXPECTED = (
    ExpectedCase(
        "two-groups",
        "by hand: rows 0 and 1 of the weight belong to group 0, row 2 and 3 to group 1",
        lambda: CaseInputs(
            {"x": f32([[[1, 2], [3, 4]]]), "weight": f32([[1, 0], [0, 1], [1, 1], [1, -1]]), "scale": None}, PLAIN
        ),
        {"y": f32([[[1, 2], [7, -1]]])},
    ),
    ExpectedCase(
        "scale-rows",
        "by hand: E4M3 0x38 is 1; three rows in blocks of two, so row 2, the third group, has the second scale",
        lambda: CaseInputs(
            {
                "x": f32([[[1], [10], [100]]]),
                "weight": np.array([[0x38], [0x38], [0x38]], dtype=np.uint8),
                "scale": np.array([[127], [128]], dtype=np.uint8),
            },
            {"block": (2, 1)},
            FP8,
        ),
        {"y": f32([[[1], [10], [200]]])},
    ),
)
