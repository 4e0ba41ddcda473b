# SPDX-License-Identifier: Apache-2.0
"""Cases of `hc_post`."""

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
    nan_rows,
    normal,
    scaled,
    strided,
    subnormal_cases,
    token_cases,
)


def inputs(rng: Rng, num_tokens: int, hidden_size: int = 24, hc_mult: int = 4) -> CaseInputs:
    args = {
        "x": normal(rng, num_tokens, hidden_size),
        "streams": normal(rng, num_tokens, hc_mult, hidden_size),
        "post": f32(rng.uniform(0, 2, (num_tokens, hc_mult))),
        "comb": f32(rng.uniform(0, 1, (num_tokens, hc_mult, hc_mult))),
    }
    return CaseInputs(args)


def poisoned_padding(rng: Rng) -> CaseInputs:
    made = inputs(rng, 6)
    return CaseInputs({name: nan_rows(array, [0, 4]) for name, array in made.args.items() if array is not None})


def views(rng: Rng) -> CaseInputs:
    made = inputs(rng, 6, hidden_size=9)
    return CaseInputs({name: strided(array) for name, array in made.args.items() if array is not None})


def large(rng: Rng) -> CaseInputs:
    """All positive: a sum that cancels has no digits left to compare."""
    made = inputs(rng, 3)
    big = {name: np.abs(f32(made.args[name])) * np.float32(1e30) for name in ("x", "streams")}
    return CaseInputs({**made.args, **big})


def subnormals(rng: Rng, small: Small) -> CaseInputs:
    made = changed(inputs(rng, 5), x=small.draw(rng, 5, 24), streams=small.draw(rng, 5, 4, 24))
    return scaled(made, small.factor, "post", "comb")


CASES = (
    Case("random", "typical", lambda rng: inputs(rng, 9, hidden_size=256)),
    *token_cases(inputs),
    Case("two-streams", "boundary", lambda rng: inputs(rng, 5, hc_mult=2)),
    Case("one-stream", "boundary", lambda rng: inputs(rng, 5, hc_mult=1)),
    Case("large", "hostile", large),
    Case("poisoned-padding", "hostile", poisoned_padding),
    Case(
        "half-large",
        "hostile",
        lambda rng: scaled(scaled(large(rng), 1e-26, "x", "streams"), 0.1, "post", "comb"),
        ("float16",),
    ),
    Case("views", "hostile", views),
    *subnormal_cases(subnormals),
)

EXPECTED = (
    ExpectedCase(
        "asymmetric",
        "by hand: new stream 1 is post[1]·x + comb[0, 1]·old 0 + comb[1, 1]·old 1 = 3·100 + 2·1 + 7·10",
        lambda: CaseInputs(
            {"x": f32([[100]]), "streams": f32([[[1], [10]]]), "post": f32([[2, 3]]), "comb": f32([[[5, 2], [4, 7]]])}
        ),
        {"y": f32([[[245], [372]]])},
    ),
)
