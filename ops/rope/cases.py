# SPDX-License-Identifier: Apache-2.0
"""Cases of `rope`."""

from __future__ import annotations

import numpy as np

from ascend_dsv4.ops.cases import Array, Case, CaseInputs, ExpectedCase, Rng, f32, nan_rows, normal, strided, token_cases


def tables(rng: Rng, num_tokens: int, half: int) -> dict[str, Array]:
    angles = rng.uniform(-np.pi, np.pi, (num_tokens, half))
    return {"cos": f32(np.cos(angles)), "sin": f32(np.sin(angles))}


def inputs(rng: Rng, num_tokens: int, *heads: int, head_dim: int = 48, half: int = 16, inverse: bool = False) -> CaseInputs:
    return CaseInputs({"x": normal(rng, num_tokens, *heads, head_dim), **tables(rng, num_tokens, half)}, {"inverse": inverse})


def views(rng: Rng) -> CaseInputs:
    angles = {name: strided(table) for name, table in tables(rng, 5, 3).items()}
    return CaseInputs({"x": strided(normal(rng, 5, 2, 10)), **angles}, {"inverse": True})


def poisoned_padding(rng: Rng) -> CaseInputs:
    return CaseInputs({"x": nan_rows(normal(rng, 5, 2, 12), [1, 4]), **tables(rng, 5, 4)}, {"inverse": False})


CASES = (
    Case("query-heads", "typical", lambda rng: inputs(rng, 7, 8, head_dim=128, half=32)),
    Case("inverse", "typical", lambda rng: inputs(rng, 7, 8, inverse=True)),
    *token_cases(inputs),
    Case("all-channels", "boundary", lambda rng: inputs(rng, 3, head_dim=32, half=16)),
    Case("one-pair", "boundary", lambda rng: inputs(rng, 3, 2, head_dim=3, half=1)),
    Case("views", "hostile", views),
    Case("poisoned-padding", "hostile", poisoned_padding),
)

QUARTER_AND_HALF = {"cos": f32([[0, -1]]), "sin": f32([[1, 0]])}

EXPECTED = (
    ExpectedCase(
        "quarter-turn",
        "by hand: pairs are neighbours; (1, 2) turned by 90° is (-2, 1), (3, 4) by 180° is (-3, -4); 7, 8 come before them",
        lambda: CaseInputs({"x": f32([[7, 8, 1, 2, 3, 4]]), **QUARTER_AND_HALF}, {"inverse": False}),
        {"y": f32([[7, 8, -2, 1, -3, -4]])},
    ),
    ExpectedCase(
        "quarter-turn-back",
        "by hand: (1, 2) turned by -90° is (2, -1)",
        lambda: CaseInputs({"x": f32([[7, 8, 1, 2, 3, 4]]), **QUARTER_AND_HALF}, {"inverse": True}),
        {"y": f32([[7, 8, 2, -1, -3, -4]])},
    ),
)
