# SPDX-License-Identifier: Apache-2.0
"""Cases of `swiglu`."""

from __future__ import annotations

import math

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

LIMIT, NO_LIMIT = {"limit": 10.0}, {"limit": math.inf}


def inputs(rng: Rng, num_tokens: int, dim: int = 33, scale: float = 2.0) -> CaseInputs:
    return CaseInputs({name: normal(rng, num_tokens, dim, scale=scale) for name in ("gate", "up")}, LIMIT)


def at_the_limits(rng: Rng) -> CaseInputs:
    edges = f32([-1e30, -100, -20, -10.5, -10, -9.5, -1e-30, 0, 1e-30, 9.5, 10, 10.5, 100, 1e30])
    gate, up = np.meshgrid(edges, edges)
    return CaseInputs({"gate": gate, "up": up}, LIMIT)


def without_limit(rng: Rng) -> CaseInputs:
    """Magnitudes whose products stay finite."""
    edges = f32([-1e15, -100, -20, -10.5, -1, -1e-30, 0, 1e-30, 1, 10.5, 100, 1e15])
    gate, up = np.meshgrid(edges, edges)
    return CaseInputs({"gate": gate, "up": up}, NO_LIMIT)


def poisoned_padding(rng: Rng) -> CaseInputs:
    made = inputs(rng, 5)
    return CaseInputs({name: nan_rows(f32(array), [1, 4]) for name, array in made.args.items()}, LIMIT)


def views(rng: Rng) -> CaseInputs:
    return CaseInputs({name: strided(f32(array)) for name, array in inputs(rng, 5).args.items()}, LIMIT)


def subnormals(rng: Rng, small: Small) -> CaseInputs:
    made = scaled(CaseInputs(inputs(rng, 5).args, NO_LIMIT), small.factor, "up")
    return changed(made, gate=small.draw(rng, 5, 33))


CASES = (
    Case("random", "typical", lambda rng: inputs(rng, 9, dim=256)),
    Case("clamped", "typical", lambda rng: inputs(rng, 9, scale=12.0)),
    Case("no-limit", "typical", lambda rng: CaseInputs(inputs(rng, 9, scale=12.0).args, NO_LIMIT)),
    *token_cases(inputs),
    Case("leading-axes", "boundary", lambda rng: CaseInputs({n: normal(rng, 2, 3, 5) for n in ("gate", "up")}, LIMIT)),
    Case("at-the-limits", "hostile", at_the_limits),
    Case("far-without-limit", "hostile", without_limit),
    Case("transposed", "hostile", lambda rng: CaseInputs({n: normal(rng, 40, 6).T for n in ("gate", "up")}, LIMIT)),
    Case("poisoned-padding", "hostile", poisoned_padding),
    Case("half-large", "hostile", lambda rng: inputs(rng, 5, scale=1e4), ("float16",)),
    Case("views", "hostile", views),
    *subnormal_cases(subnormals),
)

EXPECTED = (
    ExpectedCase(
        "one-sided",
        "by hand: silu(ln 3) = 3/4·ln 3; a gate of 20 counts as 10, silu 9.9995460213; one of -20 stays, silu -4.12230724e-8 "
        "(it would be -4.54e-4 at -10); up is held within ±10",
        lambda: CaseInputs(
            {"gate": f32([[math.log(3), 20, -20, math.log(3), math.log(3)]]), "up": f32([[1, 1, 10, 25, -25]])}, LIMIT
        ),
        {"y": f32([[0.75 * math.log(3), 9.9995460213, -4.12230724e-7, 7.5 * math.log(3), -7.5 * math.log(3)]])},
    ),
    ExpectedCase(
        "no-limit",
        "by hand: the same gates and ups as they are; silu(20) is 20 to eight digits, silu(-ln 3) is -1/4·ln 3",
        lambda: CaseInputs({"gate": f32([[math.log(3), 20, -math.log(3)]]), "up": f32([[25, -30, 40]])}, NO_LIMIT),
        {"y": f32([[18.75 * math.log(3), -600, -10 * math.log(3)]])},
    ),
)
