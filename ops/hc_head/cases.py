# SPDX-License-Identifier: Apache-2.0
"""Cases of `hc_head`."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ascend_dsv4.ops.cases import (
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

ATTRS = {"hc_eps": 1e-6, "norm_eps": 1e-6}


def inputs(rng: Rng, num_tokens: int, hidden_size: int = 24, hc_mult: int = 4) -> CaseInputs:
    args = {
        "streams": normal(rng, num_tokens, hc_mult, hidden_size),
        "fn": normal(rng, hc_mult, hc_mult * hidden_size, scale=(hc_mult * hidden_size) ** -0.5),
        "base": normal(rng, hc_mult),
        "scale": f32([1.3]),
    }
    return CaseInputs(args, ATTRS)


def poisoned_padding(rng: Rng) -> CaseInputs:
    made = inputs(rng, 6)
    return CaseInputs({**made.args, "streams": nan_rows(f32(made.args["streams"]), [0, 4])}, ATTRS)


def views(rng: Rng) -> CaseInputs:
    made = inputs(rng, 6, hidden_size=9)
    return CaseInputs({name: strided(array) for name, array in made.args.items() if array is not None}, ATTRS)


def large(rng: Rng) -> CaseInputs:
    """All positive: a sum that cancels has no digits left to compare."""
    made = inputs(rng, 4)
    return changed(made, streams=np.abs(f32(made.args["streams"])) * np.float32(1e15))


def subnormals(rng: Rng, small: Small) -> CaseInputs:
    made = scaled(inputs(rng, 5), small.gain, "fn")
    return replace(changed(made, streams=small.draw(rng, 5, 4, 24)), attrs={**ATTRS, "norm_eps": small.eps})


CASES = (
    Case("random", "typical", lambda rng: inputs(rng, 9, hidden_size=256)),
    *token_cases(inputs),
    Case("two-streams", "boundary", lambda rng: inputs(rng, 5, hc_mult=2)),
    Case("poisoned-padding", "hostile", poisoned_padding),
    Case("half-large", "hostile", lambda rng: scaled(large(rng), 5e-12, "streams"), ("float16",)),
    Case("views", "hostile", views),
    Case("large", "hostile", large),
    *subnormal_cases(subnormals, ("float32",)),
)

EXPECTED = (
    ExpectedCase(
        "two-streams",
        "by hand: (3, 4, 0, 0) has mean square 25/4, norm_eps 39/4 makes it 16, the projection 3 becomes 3/4, times 4/3·ln 3 "
        "plus base -ln 3 has sigmoid 1/2; base ln 3 alone 3/4; hc_eps 1/4 on both",
        lambda: CaseInputs(
            {
                "streams": f32([[[3, 4], [0, 0]], [[0, 0], [3, 4]]]),
                "fn": f32([[1, 0, 1, 0], [0, 0, 0, 0]]),
                "base": f32([-math.log(3), math.log(3)]),
                "scale": f32([4 / 3 * math.log(3)]),
            },
            {"hc_eps": 0.25, "norm_eps": 9.75},
        ),
        {"y": f32([[2.25, 3], [3, 4]])},
    ),
)
