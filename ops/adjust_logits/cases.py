# SPDX-License-Identifier: Apache-2.0
"""Cases of `adjust_logits`."""

from __future__ import annotations

from functools import partial
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
    i32,
    normal,
    scaled,
    strided,
    subnormal_cases,
)

FLOAT32 = ("float32",)
LENGTHS = (1, 3, 4, 5, 127, 128, 129)


def bit_mask(rng: Rng, allow: Array) -> Array:
    """Words [num_rows, ceil(vocab_size / 32)] for allow [num_rows, vocab_size] bool; bits past the vocabulary at random."""
    num_rows, vocab_size = allow.shape
    past = rng.random((num_rows, -vocab_size % 32)) < 0.5
    return i32(np.packbits(np.concatenate([allow, past], axis=1), axis=1, bitorder="little").view("<i4"))


def inputs(
    rng: Rng, num_rows: int, num_adjustments: int = 24, vocab_size: int = 100, share: float = 0.7, **given: Any
) -> CaseInputs:
    """Adjustments of distinct logits, an eighth of them bars, and a mask that allows this share of the tokens."""
    pairs = rng.permutation(num_rows * vocab_size)[:num_adjustments]
    bias = normal(rng, len(pairs))
    bias[rng.random(len(pairs)) < 0.125] = -np.inf
    args = {
        "logits": normal(rng, num_rows, vocab_size, scale=3),
        "rows": i32(pairs // vocab_size),
        "ids": i32(pairs % vocab_size),
        "repetition": f32(rng.uniform(0.5, 2, len(pairs))),
        "bias": bias,
        "allowed": bit_mask(rng, rng.random((num_rows, vocab_size)) < share),
    }
    return CaseInputs({**args, **given})


def every_logit(rng: Rng) -> CaseInputs:
    return inputs(rng, 5, num_adjustments=5 * 70, vocab_size=70, share=1.0)


def with_padding(rng: Rng, num_rows: int) -> CaseInputs:
    """Padding among the adjustments, and what it says about token, penalty and bias is nonsense."""
    args = {name: np.asarray(array) for name, array in inputs(rng, num_rows).args.items()}
    nonsense: dict[str, list[float]] = {
        "rows": [-1], "ids": [-1, 1 << 30, 0], "repetition": [np.nan, 0, -1], "bias": [np.nan, -np.inf, 9],
    }  # fmt: skip
    order = rng.permutation(len(args["rows"]) + 7)
    for name, values in nonsense.items():
        args[name] = np.concatenate([args[name], np.resize(values, 7).astype(args[name].dtype)])[order]
    return CaseInputs(args)


def not_finite(rng: Rng) -> CaseInputs:
    """NaN and infinities among the logits: allowed or not, adjusted or not."""
    made = inputs(rng, 8, num_adjustments=8 * 20, vocab_size=40, share=0.5)
    logits = f32(rng.choice([np.nan, np.inf, -np.inf, 1, -1], (8, 40)))
    return CaseInputs({**made.args, "logits": logits})


def extremes(rng: Rng) -> CaseInputs:
    """Both ends of float32, so that products, quotients and sums leave its range, and zeros of either sign."""
    most, least = float(np.finfo(np.float32).max), float(np.finfo(np.float32).smallest_subnormal)
    made = every_logit(rng)
    logits = f32(rng.choice([most, -most, least, -least, 0.0, -0.0, 1], (5, 70)))
    repetition = f32(rng.choice([1e-30, 0.5, 1, 1.5, 1e30], 350))
    bias = f32(rng.choice([most, -most, least, 0, -1], 350))
    return CaseInputs({**made.args, "logits": logits, "repetition": repetition, "bias": bias})


def subnormals(rng: Rng, small: Small) -> CaseInputs:
    """Logits next to 0 that a penalty brings to the order of 1; those that it multiplies stay where they are."""
    made = every_logit(rng)
    return changed(scaled(made, 1 / small.factor, "repetition"), logits=small.draw(rng, 5, 70))


def views(rng: Rng) -> CaseInputs:
    return CaseInputs({name: strided(array) for name, array in with_padding(rng, 9).args.items() if array is not None})


def transposed(rng: Rng) -> CaseInputs:
    made = inputs(rng, 9)
    return CaseInputs({**made.args, **{name: np.asfortranarray(np.asarray(made.args[name])) for name in ("logits", "allowed")}})


CASES = (
    Case("mixed", "typical", lambda rng: inputs(rng, 16, num_adjustments=200), FLOAT32),
    Case("mask-alone", "typical", lambda rng: inputs(rng, 7, num_adjustments=0), FLOAT32),
    Case("every-logit", "typical", every_logit, FLOAT32),
    *(Case(f"rows-{n}", "boundary", partial(inputs, num_rows=n), FLOAT32) for n in (0, *LENGTHS)),
    *(Case(f"vocab-{n}", "boundary", partial(inputs, num_rows=6, vocab_size=n), FLOAT32) for n in (1, 31, 32, 33, 64)),
    Case("one-adjustment", "boundary", lambda rng: inputs(rng, 2, num_adjustments=1), FLOAT32),
    Case("nothing-to-do", "boundary", lambda rng: inputs(rng, 2, num_adjustments=0, share=1.0), FLOAT32),
    Case("nothing-allowed", "hostile", lambda rng: inputs(rng, 3, share=0.0), FLOAT32),
    Case("padding", "hostile", lambda rng: with_padding(rng, 6), FLOAT32),
    Case("padding-without-rows", "hostile", lambda rng: with_padding(rng, 0), FLOAT32),
    Case("not-finite", "hostile", not_finite, FLOAT32),
    Case("extremes", "hostile", extremes, FLOAT32, smooth=False),
    Case("large", "hostile", lambda rng: inputs(rng, 9, 300, logits=normal(rng, 9, 100, scale=1e4)), FLOAT32),
    Case("views", "hostile", views, FLOAT32),
    *subnormal_cases(subnormals, FLOAT32, half=False),
    Case("transposed", "hostile", transposed, FLOAT32),
)


def adjusted(
    logits: Array, allowed: Array, rows: Array | None = None, ids: Array | None = None,
    repetition: Array | None = None, bias: Array | None = None,
) -> CaseInputs:  # fmt: skip
    """A call without adjustments, unless given."""
    args = {
        "logits": logits,
        "rows": i32([]) if rows is None else rows,
        "ids": i32([]) if ids is None else ids,
        "repetition": f32([]) if repetition is None else repetition,
        "bias": f32([]) if bias is None else bias,
        "allowed": allowed,
    }
    return CaseInputs(args)


EXPECTED = (
    ExpectedCase(
        "repetition-then-bias",
        "by hand: 3/2 + 0.5, -3·2 + 1, 0·2 - 1 and 4/0.5 + 0; the entry of row -1 changes nothing",
        lambda: adjusted(
            f32([[3, -3, 0, 8], [1, 2, 3, 4]]),
            i32([[-1], [-1]]),
            rows=i32([0, 0, 0, -1, 1]),
            ids=i32([0, 1, 2, 3, 3]),
            repetition=f32([2, 2, 2, 5, 0.5]),
            bias=f32([0.5, 1, -1, 9, 0]),
        ),
        {"y": f32([[2, -5, -1, 8], [1, 2, 3, 8]])},
    ),
    ExpectedCase(
        "mask",
        "contract: word 0 has bits 0 and 31, the second one bits 0 and 2 and, past the 35 tokens, bit 3",
        lambda: adjusted(f32([range(35)]), i32([[1 - 2**31, 0b1101]])),
        {"y": f32([[i if i in (0, 31, 32, 34) else -np.inf for i in range(35)]])},
    ),
    ExpectedCase(
        "barred",
        "contract: -inf by bias (tokens 0 to 2) and by mask (3 to 5), NaN and +inf come out as NaN; token 6 is allowed, and a "
        "bias that came after the mask could not lift the ban on token 7",
        lambda: adjusted(
            f32([[1, np.nan, np.inf, 1, np.nan, np.inf, -2, 5]]),
            i32([[0b01000111]]),
            rows=i32([0, 0, 0, 0]),
            ids=i32([0, 1, 2, 7]),
            repetition=f32([1, 1, 1, 1]),
            bias=f32([-np.inf, -np.inf, -np.inf, 100]),
        ),
        {"y": f32([[-np.inf, np.nan, np.nan, -np.inf, np.nan, np.nan, -2, -np.inf]])},
    ),
)
