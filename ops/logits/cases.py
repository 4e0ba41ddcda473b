# SPDX-License-Identifier: Apache-2.0
"""Cases of `logits`."""

from __future__ import annotations

import numpy as np

from ascend_dsv4.ops.cases import (
    Case,
    CaseInputs,
    ExpectedCase,
    Rng,
    Small,
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


def inputs(rng: Rng, num_rows: int, num_tokens: int = 140, hidden_size: int = 48, vocab_size: int = 65) -> CaseInputs:
    args = {
        "x": normal(rng, num_tokens, hidden_size),
        "weight": normal(rng, vocab_size, hidden_size, scale=hidden_size**-0.5),
        "rows": i32(rng.permutation(num_tokens)[:num_rows]),
    }
    return CaseInputs(args)


def poisoned_elsewhere(rng: Rng) -> CaseInputs:
    made = inputs(rng, 3, num_tokens=6)
    return CaseInputs({**made.args, "x": nan_rows(f32(made.args["x"]), [0, 2, 5]), "rows": i32([3, 1, 4])})


def repeated(rng: Rng) -> CaseInputs:
    made = inputs(rng, 3, num_tokens=4)
    return CaseInputs({**made.args, "rows": i32([3, 0, 3, 3])})


def bf16_weight(rng: Rng) -> CaseInputs:
    return CaseInputs(inputs(rng, 5).args, dtypes={"weight": "bfloat16"})


def views(rng: Rng) -> CaseInputs:
    return CaseInputs({name: strided(array) for name, array in inputs(rng, 17, 20, 33).args.items() if array is not None})


def large(rng: Rng) -> CaseInputs:
    """All positive: a sum that cancels has no digits left to compare."""
    made = inputs(rng, 4, 6)
    return scaled(changed(made, **{name: np.abs(f32(made.args[name])) for name in ("x", "weight")}), 1e30, "x")


def subnormals(rng: Rng, small: Small) -> CaseInputs:
    return changed(scaled(inputs(rng, 5, 6), small.factor, "weight"), x=small.draw(rng, 6, 48))


CASES = (
    Case("last-rows", "typical", lambda rng: inputs(rng, 4, hidden_size=256, vocab_size=512)),
    Case("bf16-weight", "typical", bf16_weight, dtypes=("float32",)),
    *token_cases(inputs),
    Case("no-tokens", "boundary", lambda rng: inputs(rng, 0, num_tokens=0)),
    Case("repeated-rows", "boundary", repeated),
    Case("poisoned-elsewhere", "hostile", poisoned_elsewhere),
    Case("views", "hostile", views),
    Case("large", "hostile", large),
    *subnormal_cases(subnormals, half=False),
)

EXPECTED = (
    ExpectedCase(
        "two-rows",
        "by hand",
        lambda: CaseInputs(
            {"x": f32([[1, 2], [9, 9], [3, 4]]), "weight": f32([[1, 0], [0, 1], [1, -1]]), "rows": i32([2, 0])},
        ),
        {"y": f32([[3, 4, -1], [1, 2, -1]])},
    ),
)
