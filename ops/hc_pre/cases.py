# SPDX-License-Identifier: Apache-2.0
"""Cases of `hc_pre`."""

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
from ascend_dsv4.ops.spec import Tolerance

ATTRS = {"sinkhorn_iters": 20, "hc_eps": 1e-6, "norm_eps": 1e-6}


def inputs(
    rng: Rng, num_tokens: int, hidden_size: int = 24, hc_mult: int = 4, iters: int = 20, scale: float = 1.0
) -> CaseInputs:
    outs = (2 + hc_mult) * hc_mult
    args = {
        "streams": normal(rng, num_tokens, hc_mult, hidden_size, scale=scale),
        "fn": normal(rng, outs, hc_mult * hidden_size, scale=(hc_mult * hidden_size) ** -0.5),
        "base": normal(rng, outs),
        "scale": f32([0.7, 1.3, 0.9]),
    }
    return CaseInputs(args, {**ATTRS, "sinkhorn_iters": iters})


def delayed(rng: Rng, num_tokens: int, hidden_size: int = 24, hc_mult: int = 4) -> CaseInputs:
    """Weights of x from elsewhere."""
    made = inputs(rng, num_tokens, hidden_size, hc_mult)
    return CaseInputs({**made.args, "mix": f32(rng.uniform(0, 1, (num_tokens, hc_mult)))}, made.attrs)


def poisoned_padding(rng: Rng) -> CaseInputs:
    made = delayed(rng, 6)
    poisoned = {name: nan_rows(f32(made.args[name]), [0, 4]) for name in ("streams", "mix")}
    return CaseInputs({**made.args, **poisoned}, made.attrs)


def views(rng: Rng) -> CaseInputs:
    made = delayed(rng, 6, hidden_size=9)
    return CaseInputs({name: strided(array) for name, array in made.args.items() if array is not None}, made.attrs)


def large(rng: Rng) -> CaseInputs:
    """All positive: a sum that cancels has no digits left to compare."""
    made = inputs(rng, 3, scale=1e15)
    return CaseInputs({**made.args, "streams": np.abs(f32(made.args["streams"]))}, made.attrs)


def steep(rng: Rng) -> CaseInputs:
    """Coefficients far in the tails: sigmoids of 0 and 1, a mixing matrix close to a permutation."""
    made = inputs(rng, 5)
    return CaseInputs({**made.args, "scale": f32([20, 20, 20])}, made.attrs)


def subnormals(rng: Rng, small: Small) -> CaseInputs:
    made = scaled(scaled(delayed(rng, 5), small.gain, "fn"), small.factor, "mix")
    return replace(changed(made, streams=small.draw(rng, 5, 4, 24)), attrs={**ATTRS, "norm_eps": small.eps})


CASES = (
    Case("random", "typical", lambda rng: inputs(rng, 9, hidden_size=256)),
    Case("delayed", "typical", lambda rng: delayed(rng, 9, hidden_size=256)),
    Case("two-streams", "typical", lambda rng: inputs(rng, 9, hc_mult=2)),
    *token_cases(inputs),
    Case("one-iteration", "boundary", lambda rng: inputs(rng, 5, iters=1)),
    Case("one-stream", "boundary", lambda rng: inputs(rng, 5, hc_mult=1)),
    Case("delayed-tokens-0", "boundary", lambda rng: delayed(rng, 0)),
    Case("delayed-one-stream", "boundary", lambda rng: delayed(rng, 5, hc_mult=1)),
    Case("steep", "hostile", steep, dtypes=("float32",)),
    Case("large", "hostile", large),
    Case("tiny", "hostile", lambda rng: inputs(rng, 3, scale=1e-12)),
    Case("poisoned-padding", "hostile", poisoned_padding),
    Case("half-large", "hostile", lambda rng: scaled(large(rng), 5e-12, "streams"), ("float16",)),
    Case("views", "hostile", views),
    *subnormal_cases(subnormals),
)


def without_projection(**attrs: float) -> CaseInputs:
    """Two streams whose coefficients come from `base` alone: logits of the mixing rows (0, ln 3) and (0, 0)."""
    args = {
        "streams": f32([[[1, 2], [10, 20]]]),
        "fn": np.zeros((8, 4), dtype=np.float32),
        "base": f32([0, math.log(3), 0, math.log(3), 0, math.log(3), 0, 0]),
        "scale": f32([1, 1, 1]),
    }
    return CaseInputs(args, {"hc_eps": 0.0, "norm_eps": 0.0, **attrs})


def published_sinkhorn() -> CaseInputs:
    """The specification's check matrix as the logits of comb."""
    args = {
        "streams": f32(np.ones((1, 4, 1))),
        "fn": np.zeros((24, 4), dtype=np.float32),
        "base": f32([*[0] * 8, 1, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1, 1, 0.5, 0, 0, -1]),
        "scale": f32([1, 1, 1]),
    }
    return CaseInputs(args, ATTRS)


EXPECTED = (
    ExpectedCase(
        "columns-first",
        "by hand: row softmax (1/4, 3/4), (1/2, 1/2); columns divided by 3/4 and 5/4. Row and column are told apart",
        lambda: without_projection(sinkhorn_iters=1),
        {"x": f32([[8, 16]]), "post": f32([[1, 1.5]]), "comb": f32([[[1 / 3, 0.6], [2 / 3, 0.4]]]), "pre": f32([[0.5, 0.75]])},
    ),
    ExpectedCase(
        "delayed",
        "by hand: x takes (1/4, 1/2) in place of its own (1/2, 3/4), which come back unchanged; the rest as above",
        lambda: CaseInputs(
            {**without_projection(sinkhorn_iters=1).args, "mix": f32([[0.25, 0.5]])},
            without_projection(sinkhorn_iters=1).attrs,
        ),
        {
            "x": f32([[5.25, 10.5]]),
            "post": f32([[1, 1.5]]),
            "comb": f32([[[1 / 3, 0.6], [2 / 3, 0.4]]]),
            "pre": f32([[0.5, 0.75]]),
        },
    ),
    ExpectedCase(
        "twenty-iterations",
        "specification: check values of Sinkhorn, to four digits",
        published_sinkhorn,
        {
            "comb": f32(
                [
                    [
                        [0.4203, 0.1259, 0.2031, 0.2507],
                        [0.1005, 0.6047, 0.1320, 0.1629],
                        [0.1021, 0.0832, 0.3646, 0.4501],
                        [0.3770, 0.1862, 0.3003, 0.1364],
                    ]
                ]
            )
        },
        Tolerance(5e-5, 0.0, 1e-7),
    ),
    ExpectedCase(
        "columns-last",
        "by hand: the above, rows divided by 14/15 and 16/15, columns by 55/56 and 57/56",
        lambda: without_projection(sinkhorn_iters=2),
        {"x": f32([[8, 16]]), "post": f32([[1, 1.5]]), "comb": f32([[[4 / 11, 12 / 19], [7 / 11, 7 / 19]]])},
    ),
    ExpectedCase(
        "eps",
        "by hand, hc_eps 1/4 and one iteration: pre + 1/4; softmax + 1/4 is (1/2, 1), (3/4, 3/4), columns / (5/4 + 1/4), "
        "/ (7/4 + 1/4); none on post",
        lambda: without_projection(sinkhorn_iters=1, hc_eps=0.25),
        {
            "x": f32([[10.75, 21.5]]),
            "post": f32([[1, 1.5]]),
            "comb": f32([[[1 / 3, 0.5], [0.5, 0.375]]]),
            "pre": f32([[0.75, 1]]),
        },
    ),
    ExpectedCase(
        "eps-every-step",
        "by hand: the above, rows / (5/6 + 1/4) and / (7/8 + 1/4), columns / (88/117 + 1/4) and / (31/39 + 1/4)",
        lambda: without_projection(sinkhorn_iters=2, hc_eps=0.25),
        {"x": f32([[10.75, 21.5]]), "post": f32([[1, 1.5]]), "comb": f32([[[144 / 469, 72 / 163], [208 / 469, 52 / 163]]])},
    ),
    ExpectedCase(
        "projection",
        "by hand: (3, 4, 0, 0) has mean square 25/4, norm_eps 39/4 makes it 16, the projection 3 becomes 3/4; times scale "
        "4/3·ln 3 its sigmoid is 3/4",
        lambda: CaseInputs(
            {
                "streams": f32([[[3, 4], [0, 0]]]),
                "fn": f32([[1, 0, 0, 0], *[[0] * 4] * 2, [1, 0, 0, 0], *[[0] * 4] * 4]),
                "base": f32([0, 0, 0, 0, 0, math.log(3), 0, 0]),
                "scale": f32([4 / 3 * math.log(3), 4 / 3 * math.log(3), 1]),
            },
            {"sinkhorn_iters": 1, "hc_eps": 0.0, "norm_eps": 9.75},
        ),
        {"x": f32([[2.25, 3]]), "post": f32([[1, 1.5]]), "comb": f32([[[1 / 3, 0.6], [2 / 3, 0.4]]])},
    ),
)
