# SPDX-License-Identifier: Apache-2.0
"""Cases of `step_metadata`."""

from __future__ import annotations

import numpy as np

from ascend_dsv4.ops.cases import Case, CaseInputs, ExpectedCase, Rng, f32, i32, strided, token_cases

FLOAT32 = ("float32",)
# Angles are formed in float32 on purpose: no case is smooth.


def frequencies(rng: Rng, half: int) -> np.ndarray:
    return f32(np.sort(10.0 ** rng.uniform(-6, 0, half))[::-1])


def inputs(rng: Rng, num_tokens: int, offset: int = 0, first: int = 0) -> CaseInputs:
    positions = i32(np.arange(first, first + num_tokens))
    return CaseInputs({"positions": positions, "inv_freq": frequencies(rng, 16)}, {"offset": offset})


def with_padding(rng: Rng) -> CaseInputs:
    return CaseInputs({"positions": i32([5, 6, 0, -1, -1]), "inv_freq": frequencies(rng, 5)}, {"offset": 0})


def views(rng: Rng) -> CaseInputs:
    return CaseInputs({"positions": strided(i32([3, 9, 27])), "inv_freq": strided(frequencies(rng, 8))}, {"offset": -3})


CASES = (
    Case("prefill", "typical", lambda rng: inputs(rng, 40), FLOAT32, smooth=False),
    Case("closed-entries", "typical", lambda rng: inputs(rng, 9, offset=-3, first=100), FLOAT32, smooth=False),
    *token_cases(inputs, dtypes=FLOAT32, smooth=False),
    Case("before-the-first-window", "boundary", lambda rng: inputs(rng, 5, offset=-127), FLOAT32, smooth=False),
    Case("padding", "hostile", with_padding, FLOAT32, smooth=False),
    Case("million", "hostile", lambda rng: inputs(rng, 4, first=1048572), FLOAT32, smooth=False),
    Case("views", "hostile", views, FLOAT32, smooth=False),
)

EXPECTED = (
    ExpectedCase(
        "radians",
        "tables of cosine and sine of 0, 1 and 2 radians; position 3 with offset -3 is 0",
        lambda: CaseInputs({"positions": i32([3, 4, 5]), "inv_freq": f32([1, 0.5])}, {"offset": -3}),
        {
            "cos": f32([[1, 1], [0.5403023058681398, 0.8775825618903728], [-0.4161468365471424, 0.5403023058681398]]),
            "sin": f32([[0, 0], [0.8414709848078965, 0.479425538604203], [0.9092974268256817, 0.8414709848078965]]),
        },
    ),
    ExpectedCase(
        "angle-in-float32",
        "specification: t·f is formed in float32, here with the published second YaRN frequency 0.687656045 at position "
        "1048575: 721058.9375, where float64 has 721058.93734. Its cosine and sine to 30 digits by mpmath; those of the "
        "float64 angle are 0.830110 and 0.557600",
        lambda: CaseInputs({"positions": i32([1048575]), "inv_freq": f32([0.687656045])}, {"offset": 0}),
        {"cos": f32([[0.830022628765231]]), "sin": f32([[0.557729715666696]])},
    ),
)
