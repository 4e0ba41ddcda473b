# SPDX-License-Identifier: Apache-2.0
"""Cases of `expert_mlp`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ascend_dsv4.ops.cases import (
    Array,
    Case,
    CaseInputs,
    ExpectedCase,
    Rng,
    Small,
    all_strided,
    changed,
    f32,
    i32,
    normal,
    random_factors,
    random_fp4,
    random_fp8,
    random_scales,
    scaled,
    subnormal_cases,
)

PLAIN = {"block": (1, 1), "limit": 1.0}
FP8 = {"w13": "float8_e4m3fn", "w2": "float8_e4m3fn"}


def routed(rng: Rng, counts: Sequence[int], hidden: int, unused: int) -> dict[str, Array | None]:
    """Rows by expert; those past the last one, and their weights, are NaN."""
    total = sum(counts)
    rows, weights = normal(rng, total + unused, hidden), f32(rng.uniform(0.1, 1.5, total + unused))
    rows[total:] = weights[total:] = np.nan
    return {"rows": rows, "row_weights": weights, "counts": i32(counts)}


def inputs(
    rng: Rng, counts: Sequence[int], *, hidden: int = 32, inter: int = 24, unused: int = 0, limit: float = 1.0
) -> CaseInputs:
    experts = len(counts)
    args = {
        **routed(rng, counts, hidden, unused),
        "w13": normal(rng, experts, 2 * inter, hidden, scale=hidden**-0.5),
        "w2": normal(rng, experts, hidden, inter, scale=inter**-0.5),
    }
    return CaseInputs(args, {**PLAIN, "limit": limit}, defined=used(counts, unused))


def used(counts: Sequence[int], unused: int) -> dict[str, Any]:
    return {"y": np.arange(sum(counts) + unused) < sum(counts)}


def fp4(rng: Rng) -> CaseInputs:
    args = {
        **routed(rng, [3, 0, 18], 64, 3),
        "w13": random_fp4(rng, 3, 128, 32),
        "w13_scale": random_scales(rng, 3, 128, 2, around=123),
        "w2": random_fp4(rng, 3, 64, 32),
        "w2_scale": random_scales(rng, 3, 64, 2, around=121),
    }
    return CaseInputs(args, {**PLAIN, "limit": 3.0}, defined=used([3, 0, 18], 3))


def fp8(rng: Rng, around: int = 118) -> CaseInputs:
    args = {
        **routed(rng, [2, 5], 48, 0),
        "w13": random_fp8(rng, 2, 80, 48),
        "w13_scale": random_scales(rng, 2, 3, 2, around=around),
        "w2": random_fp8(rng, 2, 48, 40),
        "w2_scale": random_scales(rng, 2, 2, 2, around=around - 2),
    }
    return CaseInputs(args, {"block": (32, 32), "limit": 3.0}, FP8)


def float_scales(rng: Rng) -> CaseInputs:
    """Both halves of w13 begin on a block border, and nothing is clamped."""
    args = {
        **routed(rng, [2, 0, 17], 48, 3),
        "w13": random_fp8(rng, 3, 128, 48),
        "w13_scale": random_factors(rng, 3, 4, 2),
        "w2": random_fp8(rng, 3, 48, 64),
        "w2_scale": random_factors(rng, 3, 2, 2),
    }
    return CaseInputs(args, {"block": (32, 32), "limit": math.inf}, FP8, used([2, 0, 17], 3))


def views(rng: Rng) -> CaseInputs:
    return all_strided(inputs(rng, [4, 17, 2]))


def subnormals(rng: Rng, small: Small) -> CaseInputs:
    return changed(scaled(inputs(rng, [3, 0, 2]), small.factor, "w13"), rows=small.draw(rng, 5, 32))


CASES = (
    Case("random", "typical", lambda rng: inputs(rng, [5, 0, 17, 1, 8], hidden=96, inter=64)),
    Case("fp4", "typical", fp4),
    Case("fp8", "typical", fp8),
    Case("fp8-float-scales", "typical", float_scales),
    Case("no-limit", "typical", lambda rng: inputs(rng, [5, 0, 17], limit=math.inf)),
    Case("tokens-0", "boundary", lambda rng: inputs(rng, [0, 0, 0])),
    Case("tokens-1", "boundary", lambda rng: inputs(rng, [0, 1, 0])),
    *(Case(f"tokens-{n}", "boundary", lambda rng, n=n: inputs(rng, [n // 2, 0, n - n // 2])) for n in (3, 4, 5, 127, 128)),
    Case("tile-edges", "boundary", lambda rng: inputs(rng, [15, 16, 17])),
    Case("one-expert-takes-all", "hostile", lambda rng: inputs(rng, [0, 129, 0, 0])),
    Case("unused-rows", "hostile", lambda rng: inputs(rng, [3, 0, 2], unused=7)),
    Case("nothing-used", "hostile", lambda rng: inputs(rng, [0, 0], unused=4)),
    Case("tight-clamp", "hostile", lambda rng: inputs(rng, [6, 6], limit=0.05)),
    Case("half-large", "hostile", lambda rng: scaled(inputs(rng, [2, 3]), 1e4, "rows"), ("float16",)),
    Case("views", "hostile", views),
    Case("views-fp4", "hostile", lambda rng: all_strided(fp4(rng))),
    Case("views-fp8", "hostile", lambda rng: all_strided(fp8(rng, around=115))),
    Case("large", "hostile", lambda rng: scaled(inputs(rng, [2, 3]), 1e30, "rows")),
    *subnormal_cases(subnormals),
)

EXPECTED = (
    ExpectedCase(
        "two-experts",
        "by hand, limit 2: silu(ln 3) = 3/4·ln 3, up 5 is clamped to 2, weight 4, down 10: 60·ln 3. Expert 1: gate -ln 3 has "
        "silu -1/4·ln 3, up -5 is clamped to -2, weight 2, down 3: 3·ln 3",
        lambda: CaseInputs(
            {
                "rows": f32([[1, 0], [0, 1]]),
                "row_weights": f32([4, 2]),
                "counts": i32([1, 1]),
                "w13": f32([[[math.log(3), 9], [5, 9]], [[9, -math.log(3)], [9, -5]]]),
                "w2": f32([[[10], [20]], [[3], [4]]]),
            },
            {"block": (1, 1), "limit": 2.0},
        ),
        {"y": f32([[60 * math.log(3), 120 * math.log(3)], [3 * math.log(3), 4 * math.log(3)]])},
    ),
    ExpectedCase(
        "float-scales",
        "by hand: E4M3 0x38 is 1, 0x40 is 2. Expert 0: gate ln 3, up 2·2.5, weight 4, down 2·1.5: 4·3/4·5·3·ln 3. Expert 1: "
        "gate -ln 3, up 25 without a clamp, weight 2, down 3: -2·1/4·25·3·ln 3",
        lambda: CaseInputs(
            {
                "rows": f32([[1], [1]]),
                "row_weights": f32([4, 2]),
                "counts": i32([1, 1]),
                "w13": np.array([[[0x38], [0x40]], [[0x38], [0x38]]], dtype=np.uint8),
                "w13_scale": f32([[[math.log(3)], [2.5]], [[-math.log(3)], [25]]]),
                "w2": np.array([[[0x40]], [[0x38]]], dtype=np.uint8),
                "w2_scale": f32([[[1.5]], [[3]]]),
            },
            {"block": (1, 1), "limit": math.inf},
            FP8,
        ),
        {"y": f32([[45 * math.log(3)], [-37.5 * math.log(3)]])},
    ),
)
