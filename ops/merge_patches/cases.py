# SPDX-License-Identifier: Apache-2.0
"""Cases of `merge_patches`."""

from __future__ import annotations

from ascend_dsv4.ops.cases import (
    Case,
    CaseInputs,
    ExpectedCase,
    Rng,
    changed,
    f32,
    i32,
    nan_rows,
    normal,
    scaled,
    strided,
    subnormal_cases,
    token_cases,
)


def inputs(rng: Rng, num_blocks: int, dim: int = 7, cells: int = 9, num_patches: int = 50) -> CaseInputs:
    ids = i32(rng.integers(-1, num_patches, (num_blocks, cells)))
    return CaseInputs({"x": normal(rng, num_patches, dim), "patch_ids": ids})


def unread_patches(rng: Rng) -> CaseInputs:
    """Rows that no block names may hold anything."""
    ids = i32(rng.integers(-1, 5, (8, 4)))
    return CaseInputs({"x": nan_rows(normal(rng, 9, 6), slice(5, 9)), "patch_ids": ids})


def views(rng: Rng) -> CaseInputs:
    ids = strided(i32(rng.integers(-1, 6, (8, 4))))
    return CaseInputs({"x": strided(normal(rng, 6, 10)), "patch_ids": ids})


CASES = (
    Case("tower", "typical", lambda rng: inputs(rng, 12, dim=64)),
    *token_cases(inputs),
    Case("one-cell", "boundary", lambda rng: inputs(rng, 5, cells=1)),
    Case("one-channel", "boundary", lambda rng: inputs(rng, 5, dim=1)),
    Case("one-patch", "boundary", lambda rng: inputs(rng, 3, num_patches=1)),
    Case("unread-patches", "hostile", unread_patches),
    Case("views", "hostile", views),
    Case("large", "hostile", lambda rng: scaled(inputs(rng, 4), 1e30, "x")),
    *subnormal_cases(lambda rng, small: changed(inputs(rng, 5), x=small.draw(rng, 50, 7))),
)

EXPECTED = (
    ExpectedCase(
        "two-by-two",
        "by hand: a 3x2 image of two channels in 2x2 blocks; the lower block has only its upper two patches",
        lambda: CaseInputs(
            {"x": f32([[1, 10], [2, 20], [3, 30], [4, 40], [5, 50], [6, 60]]), "patch_ids": i32([[0, 1, 2, 3], [4, 5, -1, -1]])}
        ),
        {"y": f32([[1, 2, 3, 4, 10, 20, 30, 40], [5, 6, 0, 0, 50, 60, 0, 0]])},
    ),
)
