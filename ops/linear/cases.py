# SPDX-License-Identifier: Apache-2.0
"""Cases of `linear`."""

from __future__ import annotations

import numpy as np

from ascend_dsv4.ops.cases import (
    COMPUTE_DTYPE,
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

FP8 = {"weight": "float8_e4m3fn"}


def plain(rng: Rng, num_tokens: int, in_features: int = 96, out_features: int = 40) -> CaseInputs:
    weight = normal(rng, out_features, in_features, scale=in_features**-0.5)
    return CaseInputs({"x": normal(rng, num_tokens, in_features), "weight": weight, "scale": None}, attrs())


def attrs(rows: int = 1, columns: int = 1, out_dtype: str = COMPUTE_DTYPE) -> dict[str, object]:
    return {"block": (rows, columns), "out_dtype": out_dtype}


def fp8(rng: Rng, out_features: int, in_features: int, block: int) -> CaseInputs:
    scale = random_scales(rng, -(-out_features // block), -(-in_features // block), around=118)
    args = {"x": normal(rng, 5, in_features), "weight": random_fp8(rng, out_features, in_features), "scale": scale}
    return CaseInputs(args, attrs(block, block), FP8)


def float_scales(rng: Rng, out_features: int, in_features: int, block: int) -> CaseInputs:
    made = fp8(rng, out_features, in_features, block)
    factors = random_factors(rng, -(-out_features // block), -(-in_features // block))
    return CaseInputs({**made.args, "scale": factors}, made.attrs, FP8)


def fp4(rng: Rng, num_tokens: int, out_features: int, in_features: int) -> CaseInputs:
    weight, scale = random_fp4(rng, out_features, in_features // 2), random_scales(rng, out_features, in_features // 32)
    return CaseInputs({"x": normal(rng, num_tokens, in_features), "weight": weight, "scale": scale}, attrs())


def float32_out(rng: Rng) -> CaseInputs:
    made = plain(rng, 5)
    return CaseInputs(made.args, attrs(out_dtype="float32"))


def leading_axes(rng: Rng) -> CaseInputs:
    return CaseInputs({"x": normal(rng, 3, 2, 4, 32), "weight": normal(rng, 7, 32), "scale": None}, attrs())


def views(rng: Rng) -> CaseInputs:
    return CaseInputs({"x": strided(normal(rng, 18, 33)), "weight": strided(normal(rng, 7, 33)), "scale": None}, attrs())


def poisoned_padding(rng: Rng) -> CaseInputs:
    made = plain(rng, 20)
    return CaseInputs({**made.args, "x": nan_rows(f32(made.args["x"]), [0, 3, 19])}, made.attrs)


def large(rng: Rng, factor: float = 1e30) -> CaseInputs:
    """All positive: a sum that cancels has no digits left to compare."""
    made = plain(rng, 4)
    return scaled(changed(made, **{name: np.abs(f32(made.args[name])) for name in ("x", "weight")}), factor, "x")


def subnormals(rng: Rng, small: Small) -> CaseInputs:
    return changed(scaled(plain(rng, 5), small.factor, "weight"), x=small.draw(rng, 5, 96))


CASES = (
    Case("plain", "typical", lambda rng: plain(rng, 9, 512, 130)),
    Case("fp8", "typical", lambda rng: fp8(rng, 256, 128, 128)),
    Case("fp8-float-scales", "typical", lambda rng: float_scales(rng, 256, 128, 128)),
    Case("fp4", "typical", lambda rng: fp4(rng, 9, 48, 128)),
    Case("float32-out", "typical", float32_out),
    *token_cases(plain),
    Case("leading-axes", "boundary", leading_axes),
    Case("fp8-partial-blocks", "boundary", lambda rng: fp8(rng, 130, 200, 128)),
    Case("float-scales-partial-blocks", "boundary", lambda rng: float_scales(rng, 130, 200, 128)),
    Case("fp8-small-blocks", "boundary", lambda rng: fp8(rng, 65, 96, 32)),
    Case("fp4-one-group", "boundary", lambda rng: fp4(rng, 1, 3, 32)),
    Case("one-output", "boundary", lambda rng: plain(rng, 17, 33, 1)),
    Case("views", "hostile", views),
    Case("fp8-views", "hostile", lambda rng: all_strided(fp8(rng, 65, 96, 32))),
    Case("float-scales-views", "hostile", lambda rng: all_strided(float_scales(rng, 65, 96, 32))),
    Case("fp4-views", "hostile", lambda rng: all_strided(fp4(rng, 5, 7, 64))),
    *subnormal_cases(subnormals),
    Case("poisoned-padding", "hostile", poisoned_padding),
    Case("large", "hostile", large),
    Case("half-large", "hostile", lambda rng: scaled(large(rng, 1e4), 0.1, "weight"), ("float16",)),
)

EXPECTED = (
    ExpectedCase(
        "nibbles",
        "specification: byte 0x21 holds 0.5 (low nibble, even column) and 1.0; magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6",
        lambda: CaseInputs(
            {
                # Each row of x picks one column: 0x21, 0x43, 0x65, 0x7F (-6 in the low nibble), then zeros.
                "x": np.eye(32, dtype=np.float32)[:9],
                "weight": np.array([[0x21, 0x43, 0x65, 0x7F, *[0] * 12]], dtype=np.uint8).view(np.int8),
                "scale": np.array([[128]], dtype=np.uint8),
            },
            attrs(out_dtype="float32"),
        ),
        {"y": f32([[1], [2], [3], [4], [6], [8], [-12], [12], [0]])},
    ),
    ExpectedCase(
        "fp8-blocks",
        "by hand from the E4M3 layout: 0x38 is 1, 0x40 is 2, 0xB8 is -1, 0x7E is 448, 0x01 is 2^-9; scale 126 is 0.5, 128 is 2",
        lambda: CaseInputs(
            {
                "x": np.eye(3, dtype=np.float32),
                "weight": np.array([[0x38, 0x40, 0x38], [0xB8, 0x7E, 0x40], [0x01, 0x38, 0xB8]], dtype=np.uint8),
                "scale": np.array([[126, 128], [127, 129]], dtype=np.uint8),
            },
            attrs(2, 2, "float32"),
            FP8,
        ),
        {"y": f32([[0.5, -0.5, 2**-9], [1, 224, 1], [2, 4, -4]])},
    ),
    ExpectedCase(
        "float-scales",
        "by hand, codes as above: scales are factors, not exponents and not divisors: 3, 0.75 over 5, -6",
        lambda: CaseInputs(
            {
                "x": np.eye(3, dtype=np.float32),
                "weight": np.array([[0x38, 0x40, 0x38], [0xB8, 0x7E, 0x40], [0x01, 0x38, 0xB8]], dtype=np.uint8),
                "scale": f32([[3, 0.75], [5, -6]]),
            },
            attrs(2, 2, "float32"),
            FP8,
        ),
        {"y": f32([[3, -3, 5 * 2**-9], [6, 1344, 5], [0.75, 1.5, 6]])},
    ),
    ExpectedCase(
        "plain",
        "by hand",
        lambda: CaseInputs(
            {"x": f32([[1, 2], [3, 4]]), "weight": f32([[1, 0], [0, 1], [1, -1]]), "scale": None}, attrs(out_dtype="float32")
        ),
        {"y": f32([[1, 2, -1], [3, 4, -1]])},
    ),
)
