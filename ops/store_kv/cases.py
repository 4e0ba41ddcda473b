# SPDX-License-Identifier: Apache-2.0
"""Cases of `store_kv`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ascend_dsv4.ops.cases import (
    Array,
    Case,
    CaseInputs,
    ExpectedCase,
    Rng,
    changed,
    f32,
    far_away,
    i32,
    nan_rows,
    normal,
    strided,
    subnormal,
)

NONE = {"rounding": "none", "rope_dim": 0}
FP8 = {"rounding": "fp8", "rope_dim": 16}
FP4 = {"rounding": "hadamard_fp4", "rope_dim": 0}
FP8_B32 = {"rounding": "fp8_b32", "rope_dim": 16}
FP4_B32 = {"rounding": "fp4_b32", "rope_dim": 16}
FP4_B16 = {"rounding": "fp4_b16_e4m3", "rope_dim": 16}


def inputs(rng: Rng, num_tokens: int, attrs: dict[str, object], width: int = 64, block_rows: int = 8) -> CaseInputs:
    """Every token to a slot of its own, in random order, over a cache that is a block larger than needed."""
    num_blocks = num_tokens // block_rows + 2
    slots = rng.permutation(num_blocks * block_rows)[:num_tokens]
    args = {
        "cache": normal(rng, num_blocks, block_rows, width),
        "rows": normal(rng, num_tokens, width),
        "slots": i32(slots),
    }
    return CaseInputs(args, attrs)


def integers(rng: Rng, num_tokens: int) -> CaseInputs:
    """Small integers, whose Hadamard transform is exact."""
    made = inputs(rng, num_tokens, FP4)
    return CaseInputs({**made.args, "rows": f32(rng.integers(-4, 5, (num_tokens, 64)))}, FP4)


def unwritten(rng: Rng) -> CaseInputs:
    """Slot -1, as in padding, whose content is NaN."""
    made = inputs(rng, 6, FP8)
    slots = i32(made.args["slots"])
    slots[[1, 4, 5]] = -1
    return CaseInputs({**made.args, "rows": nan_rows(f32(made.args["rows"]), [1, 4, 5]), "slots": slots}, FP8)


def block_edges(rng: Rng) -> CaseInputs:
    made = inputs(rng, 5, NONE)
    return CaseInputs({**made.args, "slots": i32([7, 8, 0, 9, 15])}, NONE)


def nothing(rng: Rng) -> CaseInputs:
    made = inputs(rng, 3, NONE)
    return CaseInputs({**made.args, "slots": i32([-1, -1, -1])}, NONE)


def magnitudes(rng: Rng, attrs: dict[str, object] = FP8) -> CaseInputs:
    """Rows from below the floors of the scales to near the end of bfloat16's range, powers of two among them."""
    made = inputs(rng, 8, attrs)
    scales = f32([1e-30, 1e-6, 1e-4, 2.0**-6, 1, 448, 1e10, 1e30])
    rows: Array = f32(made.args["rows"]) * scales[:, None]
    rows[5, :48] = 448
    return CaseInputs({**made.args, "rows": rows}, attrs)


def wide_groups(rng: Rng, attrs: dict[str, object] = FP8) -> CaseInputs:
    """Channels a million times apart: small ones lose bits to the scale of their group, so its borders show."""
    made = inputs(rng, 4, attrs, width=144)
    return CaseInputs({**made.args, "rows": f32(made.args["rows"]) * f32(10 ** rng.uniform(-6, 0, (4, 144)))}, attrs)


def views(rng: Rng) -> CaseInputs:
    made = inputs(rng, 5, FP8)
    return CaseInputs({name: strided(array) for name, array in made.args.items() if array is not None}, FP8)


def far(rng: Rng, attrs: dict[str, object]) -> CaseInputs:
    return far_away(rng, inputs(rng, 20, attrs), cache={"slots": ("slots",)})


def rejected(rng: Rng) -> CaseInputs:
    """Six rows of which the last four were drafts in vain; then five others from the third slot on, and one step more."""
    made = inputs(rng, 6, NONE)
    slots = np.concatenate([i32(made.args["slots"]), i32([-1])])
    second = {"rows": normal(rng, 5, 64), "slots": i32([*slots[2:4], -1, *slots[4:6]])}
    return replace(made, later=(second, {"rows": normal(rng, 1, 64), "slots": slots[5:6].copy()}))


def subnormals(rng: Rng, attrs: dict[str, object]) -> CaseInputs:
    return changed(inputs(rng, 5, attrs), cache=subnormal(rng, 2, 8, 64), rows=subnormal(rng, 5, 64))


CASES = (
    Case("fp8", "typical", lambda rng: inputs(rng, 9, FP8, width=512)),
    Case("hadamard-fp4", "typical", lambda rng: integers(rng, 9)),
    Case("none", "typical", lambda rng: inputs(rng, 9, NONE)),
    Case("fp8-b32", "typical", lambda rng: inputs(rng, 9, FP8_B32, width=512)),
    Case("fp4-b32", "typical", lambda rng: inputs(rng, 9, FP4_B32, width=128)),
    Case("fp4-b16-e4m3", "typical", lambda rng: inputs(rng, 9, FP4_B16, width=512)),
    Case("tokens-0", "boundary", lambda rng: inputs(rng, 0, FP8)),
    Case("tokens-1", "boundary", lambda rng: inputs(rng, 1, FP8)),
    *(Case(f"tokens-{n}", "boundary", lambda rng, n=n: inputs(rng, n, NONE)) for n in (3, 4, 5, 127, 128)),
    Case("tokens-129", "boundary", lambda rng: inputs(rng, 129, FP8)),
    Case("fp8-partial-group", "boundary", lambda rng: inputs(rng, 3, FP8, width=100)),
    Case("fp4-b16-e4m3-partial-group", "boundary", lambda rng: inputs(rng, 3, FP4_B16, width=100)),
    Case("block-edges", "boundary", block_edges),
    Case("slot-minus-one", "hostile", unwritten),
    Case("nothing-written", "hostile", nothing),
    Case("wide-groups", "hostile", wide_groups),
    Case("magnitudes", "hostile", magnitudes),
    Case("fp8-b32-wide-groups", "hostile", lambda rng: wide_groups(rng, FP8_B32)),
    Case("fp4-b32-magnitudes", "hostile", lambda rng: magnitudes(rng, FP4_B32)),
    Case("fp4-b16-e4m3-wide-groups", "hostile", lambda rng: wide_groups(rng, FP4_B16)),
    Case("fp4-b16-e4m3-magnitudes", "hostile", lambda rng: magnitudes(rng, FP4_B16)),
    Case("views", "hostile", views),
    Case("far", "hostile", lambda rng: far(rng, NONE)),
    Case("fp8-far", "hostile", lambda rng: far(rng, FP8)),
    Case("rejected-drafts", "hostile", rejected),
    Case("subnormal", "hostile", lambda rng: subnormals(rng, NONE)),
    Case("fp8-subnormal", "hostile", lambda rng: subnormals(rng, FP8)),
)

EXPECTED = (
    ExpectedCase(
        "q8",
        "specification: check vector of Q8, scale 2^-6; the two rotary channels stay as they are",
        lambda: CaseInputs(
            {
                "cache": np.zeros((1, 2, 8), dtype=np.float32),
                "rows": f32([[0.1, -0.37, 1.0, 3.3, -5.0, 0.0019, 0.1, 0.0019]]),
                "slots": i32([1]),
            },
            {"rounding": "fp8", "rope_dim": 2},
        ),
        {"cache": f32([[[0] * 8, [0.1015625, -0.375, 1.0, 3.25, -5.0, 0.001953125, 0.1, 0.0019]]])},
    ),
    ExpectedCase(
        "q4-ties",
        "by hand: half the Sylvester-Hadamard transform of the rows is (5, -2.5, 0.25, 1) and (6, -2, -3, 1), scale 1; ties go "
        "to the even code as in the specification's list (5 to 4, 2.5 to 2, 0.25 to 0)",
        lambda: CaseInputs(
            {
                "cache": np.zeros((2, 1, 4), dtype=np.float32),
                "rows": f32([[1.875, 3.375, 0.625, 4.125], [1, 2, 3, 6]]),
                "slots": i32([1, 0]),
            },
            FP4,
        ),
        {"cache": f32([[[6, -2, -3, 1]], [[4, -2, 0, 1]]])},
    ),
    ExpectedCase(
        "whole-row",
        "specification: the check vector of Q8; rope_dim leaves nothing out here",
        lambda: CaseInputs(
            {
                "cache": np.zeros((1, 1, 8), dtype=np.float32),
                "rows": f32([[0.1, -0.37, 1.0, 3.3, -5.0, 0.0019, 0.1, 0.0019]]),
                "slots": i32([0]),
            },
            {"rounding": "fp8_b32", "rope_dim": 2},
        ),
        {"cache": f32([[[0.1015625, -0.375, 1.0, 3.25, -5.0, 0.001953125, 0.1015625, 0.001953125]]])},
    ),
    *(
        ExpectedCase(
            f"ties-{rounding}",
            "specification: ties of E2M1; the 6 makes the scale 1",
            lambda rounding=rounding: CaseInputs(  # type: ignore[misc]
                {
                    "cache": np.zeros((1, 1, 8), dtype=np.float32),
                    "rows": f32([[0.25, -0.75, 1.25, -1.75, 2.5, -3.5, 5, 6]]),
                    "slots": i32([0]),
                },
                {"rounding": rounding, "rope_dim": 0},
            ),
            {"cache": f32([[[0, -1, 1, -2, 2, -4, 4, 6]]])},
        )
        for rounding in ("fp4_b32", "fp4_b16_e4m3")
    ),
    ExpectedCase(
        "e4m3-scales",
        "by hand: 6.3 / 6 rounds to the scale 1, so 6.3 is clamped to 6; 7 / 6 rounds to 1.125, and 3 is 2.67 of it; 0.001 is "
        "below the floor and 0.51 of its scale 2^-9; 6000 / 6 exceeds 448, and 1000 is 2.23 of that",
        lambda: CaseInputs(
            {
                "cache": np.zeros((1, 4, 2), dtype=np.float32),
                "rows": f32([[6.3, 1], [7, 3], [0.001, 0], [6000, -1000]]),
                "slots": i32([0, 1, 2, 3]),
            },
            {"rounding": "fp4_b16_e4m3", "rope_dim": 0},
        ),
        {"cache": f32([[[6, 1], [6.75, 3.375], [2**-10, 0], [2688, -896]]])},
    ),
    ExpectedCase(
        "slots",
        "by hand: slot 3 is block 1, row 1; -1 goes nowhere; the rest keeps its value",
        lambda: CaseInputs(
            {"cache": f32([[[1], [2]], [[3], [4]]]), "rows": f32([[7], [8], [9]]), "slots": i32([3, -1, 0])}, NONE
        ),
        {"cache": f32([[[9], [2]], [[3], [7]]])},
    ),
)
