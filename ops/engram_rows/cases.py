# SPDX-License-Identifier: Apache-2.0
"""Cases of `engram_rows`."""

from __future__ import annotations

import numpy as np

from ascend_dsv4.ops.cases import (
    COMPUTE_DTYPE,
    Array,
    Case,
    CaseInputs,
    ExpectedCase,
    Rng,
    all_strided,
    f32,
    random_fp8,
    random_scales,
    token_cases,
)

CODE_BYTES = {"fp8": 1.0, "int8": 1.0, "int4": 0.5}
"""Per channel."""


def attrs(format: str, head_dim: int) -> dict[str, object]:
    return {"format": format, "head_dim": head_dim, "out_dtype": COMPUTE_DTYPE}


def packed(rng: Rng, format: str, *shape: int, head_dim: int) -> Array:
    """Random rows [*shape, row_bytes] of ordinary magnitudes."""
    if format == "bf16":
        single = rng.standard_normal((*shape, head_dim)).astype(np.float32)
        return (single.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
    width = int(head_dim * CODE_BYTES[format])
    codes = random_fp8(rng, *shape, width) if format == "fp8" else rng.integers(0, 256, (*shape, width)).astype(np.uint8)
    return np.concatenate([codes, random_scales(rng, *shape, head_dim // 32)], axis=-1)


def inputs(rng: Rng, num_tokens: int, format: str = "fp8", columns: int = 6, head_dim: int = 64) -> CaseInputs:
    return CaseInputs({"rows": packed(rng, format, num_tokens, columns, head_dim=head_dim)}, attrs(format, head_dim))


def every_code(rng: Rng, format: str) -> CaseInputs:
    """All 256 bytes under the scale 2^-1; those of FP8 hold two NaNs."""
    codes = np.arange(256, dtype=np.uint8).reshape(1, 2, 128)
    scales = np.full((1, 2, 8 if format == "int4" else 4), 126, dtype=np.uint8)
    return CaseInputs({"rows": np.concatenate([codes, scales], axis=-1)}, attrs(format, 256 if format == "int4" else 128))


def end_scales(rng: Rng, format: str) -> CaseInputs:
    """The smallest scale, a float32 subnormal, the largest, and NaN."""
    made = inputs(rng, 2, format, columns=2, head_dim=96)
    rows = np.array(made.args["rows"])
    rows[..., -3:] = 0, 254, 255
    return CaseInputs({"rows": rows}, made.attrs)


CASES = (
    Case("fp8", "typical", lambda rng: inputs(rng, 7, "fp8", columns=24, head_dim=256)),
    Case("bf16", "typical", lambda rng: inputs(rng, 7, "bf16")),
    Case("int8", "typical", lambda rng: inputs(rng, 7, "int8")),
    Case("int4", "typical", lambda rng: inputs(rng, 7, "int4")),
    *token_cases(inputs),
    Case("one-column", "boundary", lambda rng: inputs(rng, 3, "int4", columns=1, head_dim=32)),
    *(Case(f"every-code-{name}", "hostile", lambda rng, name=name: every_code(rng, name)) for name in CODE_BYTES),
    *(Case(f"end-scales-{name}", "hostile", lambda rng, name=name: end_scales(rng, name)) for name in CODE_BYTES),
    Case("views", "hostile", lambda rng: all_strided(inputs(rng, 5, "bf16", head_dim=9))),
)


def one_row(values: list[int], format: str, head_dim: int, scales: list[int]) -> CaseInputs:
    """A single row: these bytes, then zeros up to the scales."""
    width = 2 * head_dim if format == "bf16" else int(head_dim * CODE_BYTES[format])
    row = np.zeros(width + len(scales), dtype=np.uint8)
    row[: len(values)] = values
    row[width:] = scales
    return CaseInputs({"rows": row.reshape(1, 1, -1)}, {"format": format, "head_dim": head_dim, "out_dtype": "float32"})


def padded(*values: float, size: int = 32) -> Array:
    return f32([[*values, *[0.0] * (size - len(values))]])


EXPECTED = (
    ExpectedCase(
        "fp8-by-hand",
        "OCP FP8: 0x38 is 1, 0x7E is 448, 0x81 is -2^-9, 0xB8 is -1; scale byte 129 is 4",
        lambda: one_row([0x38, 0x7E, 0x81, 0xB8], "fp8", 32, [129]),
        {"e": padded(4, 1792, -(2**-7), -4)},
    ),
    ExpectedCase(
        "int8-by-hand",
        "two's complement bytes; scale byte 120 is 2^-7",
        lambda: one_row([1, 127, 128, 255], "int8", 32, [120]),
        {"e": padded(1 / 128, 127 / 128, -1, -1 / 128)},
    ),
    ExpectedCase(
        "int4-by-hand",
        "0x87: low nibble 7, high nibble 8 = -8; 0x1F: -1, then 1; the second group has scale byte 128, 2",
        lambda: one_row([0x87, 0x1F, *[0] * 14, 0x02], "int4", 64, [127, 128]),
        {"e": padded(7, -8, -1, 1, *[0] * 28, 4, size=64)},
    ),
    ExpectedCase(
        "bf16-by-hand",
        "0x3F80 is 1, 0xC0A0 is -5; low byte first",
        lambda: one_row([0x80, 0x3F, 0xA0, 0xC0], "bf16", 3, []),
        {"e": padded(1, -5, size=3)},
    ),
)
