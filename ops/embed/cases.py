# SPDX-License-Identifier: Apache-2.0
"""Cases of `embed`."""

from __future__ import annotations

from ascend_dsv4.ops.cases import (
    COMPUTE_DTYPE,
    Case,
    CaseInputs,
    ExpectedCase,
    Rng,
    changed,
    f32,
    i32,
    normal,
    scaled,
    strided,
    subnormal_cases,
    token_cases,
)


def inputs(rng: Rng, num_tokens: int, vocab_size: int = 50, hidden_size: int = 24, hc_mult: int = 4) -> CaseInputs:
    ids = i32(rng.integers(0, vocab_size, num_tokens))
    args = {"input_ids": ids, "weight": normal(rng, vocab_size, hidden_size)}
    return CaseInputs(args, {"hc_mult": hc_mult, "out_dtype": COMPUTE_DTYPE})


def ends_of_vocabulary(rng: Rng) -> CaseInputs:
    made = inputs(rng, 4)
    return CaseInputs({**made.args, "input_ids": i32([0, 49, 49, 0])}, made.attrs)


def views(rng: Rng) -> CaseInputs:
    made = inputs(rng, 5)
    return CaseInputs({name: strided(array) for name, array in made.args.items() if array is not None}, made.attrs)


def bf16_weight(rng: Rng) -> CaseInputs:
    made = inputs(rng, 5)
    return CaseInputs(made.args, {"hc_mult": 4, "out_dtype": "float32"}, {"weight": "bfloat16"})


CASES = (
    Case("random", "typical", lambda rng: inputs(rng, 17)),
    Case("bf16-weight-float32-out", "typical", bf16_weight, dtypes=("float32",)),
    *token_cases(inputs),
    Case("first-and-last-id", "boundary", ends_of_vocabulary),
    Case("one-stream", "boundary", lambda rng: inputs(rng, 3, hc_mult=1)),
    Case("views", "hostile", views),
    Case("large", "hostile", lambda rng: scaled(inputs(rng, 4), 1e30, "weight")),
    *subnormal_cases(lambda rng, small: changed(inputs(rng, 5), weight=small.draw(rng, 50, 24))),
)

EXPECTED = (
    ExpectedCase(
        "two-ids",
        "by hand: row 2 and row 0 of the table, once per stream",
        lambda: CaseInputs(
            {"input_ids": i32([2, 0]), "weight": f32([[1, 2], [3, 4], [5, 6]])}, {"hc_mult": 2, "out_dtype": "float32"}
        ),
        {"y": f32([[[5, 6], [5, 6]], [[1, 2], [1, 2]]])},
    ),
)
