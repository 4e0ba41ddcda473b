# SPDX-License-Identifier: Apache-2.0
"""Cases of `rope`."""

from __future__ import annotations

from typing import Any

import numpy as np

from ascend_dsv4.ops.cases import (
    Array,
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


def tables(rng: Rng, num_tokens: int, half: int) -> dict[str, Array]:
    angles = rng.uniform(-np.pi, np.pi, (num_tokens, half))
    return {"cos": f32(np.cos(angles)), "sin": f32(np.sin(angles))}


def inputs(
    rng: Rng, num_tokens: int, *heads: int, head_dim: int = 48, half: int = 16, start: int | None = None, **options: Any
) -> CaseInputs:
    """The last channels unless `start` says otherwise."""
    args = {"x": normal(rng, num_tokens, *heads, head_dim), **tables(rng, num_tokens, half)}
    return CaseInputs(args, attrs(head_dim - 2 * half if start is None else start, **options))


def attrs(start: int, inverse: bool = False, layout: str = "adjacent") -> dict[str, Any]:
    return {"inverse": inverse, "start": start, "layout": layout}


def views(rng: Rng, layout: str) -> CaseInputs:
    angles = {name: strided(table) for name, table in tables(rng, 5, 3).items()}
    return CaseInputs({"x": strided(normal(rng, 5, 2, 10)), **angles}, attrs(1, inverse=True, layout=layout))


def poisoned_padding(rng: Rng) -> CaseInputs:
    return CaseInputs({"x": nan_rows(normal(rng, 5, 2, 12), [1, 4]), **tables(rng, 5, 4)}, attrs(4))


def large(rng: Rng) -> CaseInputs:
    """The first of a pair a million times the second: a sum that cancels has no digits left to compare."""
    made = inputs(rng, 4, 2)
    return changed(made, x=f32(made.args["x"]) * np.tile(f32([1e30, 1e24]), 24))


def subnormals(rng: Rng, small: Small) -> CaseInputs:
    return scaled(changed(inputs(rng, 5, 2), x=small.draw(rng, 5, 2, 48)), small.factor, "cos", "sin")


CASES = (
    Case("query-heads", "typical", lambda rng: inputs(rng, 7, 8, head_dim=128, half=32)),
    Case("inverse", "typical", lambda rng: inputs(rng, 7, 8, inverse=True)),
    Case("halves", "typical", lambda rng: inputs(rng, 7, 8, head_dim=128, half=32, start=0, layout="halves")),
    Case("halves-inverse", "typical", lambda rng: inputs(rng, 7, 8, start=0, layout="halves", inverse=True)),
    *token_cases(inputs),
    Case("all-channels", "boundary", lambda rng: inputs(rng, 3, head_dim=32, half=16)),
    Case("one-pair", "boundary", lambda rng: inputs(rng, 3, 2, head_dim=3, half=1)),
    Case("in-the-middle", "boundary", lambda rng: inputs(rng, 3, 2, start=5)),
    Case("halves-in-the-middle", "boundary", lambda rng: inputs(rng, 3, 2, start=5, layout="halves")),
    Case("halves-one-pair", "boundary", lambda rng: inputs(rng, 3, 2, head_dim=3, half=1, layout="halves")),
    Case("half-large", "hostile", lambda rng: scaled(inputs(rng, 4, 2), 1e4, "x"), ("float16",)),
    Case("views", "hostile", lambda rng: views(rng, "adjacent")),
    Case("large", "hostile", large),
    *subnormal_cases(subnormals),
    Case("views-halves", "hostile", lambda rng: views(rng, "halves")),
    Case("poisoned-padding", "hostile", poisoned_padding),
)

QUARTER_AND_HALF = {"cos": f32([[0, -1]]), "sin": f32([[1, 0]])}

EXPECTED = (
    ExpectedCase(
        "quarter-turn",
        "by hand: pairs are neighbours; (1, 2) turned by 90° is (-2, 1), (3, 4) by 180° is (-3, -4); 7, 8 come before them",
        lambda: CaseInputs({"x": f32([[7, 8, 1, 2, 3, 4]]), **QUARTER_AND_HALF}, attrs(2)),
        {"y": f32([[7, 8, -2, 1, -3, -4]])},
    ),
    ExpectedCase(
        "quarter-turn-back",
        "by hand: (1, 2) turned by -90° is (2, -1)",
        lambda: CaseInputs({"x": f32([[7, 8, 1, 2, 3, 4]]), **QUARTER_AND_HALF}, attrs(2, inverse=True)),
        {"y": f32([[7, 8, 2, -1, -3, -4]])},
    ),
    ExpectedCase(
        "halves",
        "by hand: pairs are (1, 3) and (2, 4); (1, 3) turned by 90° is (-3, 1), (2, 4) by 180° is (-2, -4); 7 and 8 stay",
        lambda: CaseInputs({"x": f32([[7, 1, 2, 3, 4, 8]]), **QUARTER_AND_HALF}, attrs(1, layout="halves")),
        {"y": f32([[7, -3, -2, 1, -4, 8]])},
    ),
)
