# SPDX-License-Identifier: Apache-2.0
"""Cases of `hc_collapse`."""

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
    args = {"streams": normal(rng, num_tokens, hc_mult, hidden_size), "mix": f32(rng.uniform(0, 1, (num_tokens, hc_mult)))}
    return CaseInputs(args)


def poisoned_padding(rng: Rng) -> CaseInputs:
    made = inputs(rng, 6)
    return CaseInputs({name: nan_rows(f32(array), [0, 4]) for name, array in made.args.items()})


def views(rng: Rng) -> CaseInputs:
    made = inputs(rng, 6, hidden_size=9)
    return CaseInputs({name: strided(f32(array)) for name, array in made.args.items()})


def large(rng: Rng) -> CaseInputs:
    """All positive: a sum that cancels has no digits left to compare."""
    made = inputs(rng, 3)
    return CaseInputs({**made.args, "streams": np.abs(f32(made.args["streams"])) * np.float32(1e30)})


def subnormals(rng: Rng, small: Small) -> CaseInputs:
    return scaled(changed(inputs(rng, 5), streams=small.draw(rng, 5, 4, 24)), small.factor, "mix")


CASES = (
    Case("random", "typical", lambda rng: inputs(rng, 9, hidden_size=256)),
    *token_cases(inputs),
    Case("two-streams", "boundary", lambda rng: inputs(rng, 5, hc_mult=2)),
    Case("one-stream", "boundary", lambda rng: inputs(rng, 5, hc_mult=1)),
    Case("large", "hostile", large),
    Case("poisoned-padding", "hostile", poisoned_padding),
    Case("half-large", "hostile", lambda rng: scaled(scaled(large(rng), 1e-26, "streams"), 0.25, "mix"), ("float16",)),
    Case("views", "hostile", views),
    *subnormal_cases(subnormals),
)

EXPECTED = (
    ExpectedCase(
        "asymmetric",
        "by hand: 2·1 + 3·10 + 5·100 and 2·4 + 3·20 + 5·300; the second token reads stream 0 alone",
        lambda: CaseInputs(
            {"streams": f32([[[1, 4], [10, 20], [100, 300]]] * 2), "mix": f32([[2, 3, 5], [1, 0, 0]])},
        ),
        {"x": f32([[532, 1568], [1, 4]])},
    ),
)
