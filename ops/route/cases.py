# SPDX-License-Identifier: Apache-2.0
"""Cases of `route`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ascend_dsv4.ops.cases import (
    Array,
    Case,
    CaseInputs,
    ExpectedCase,
    Rng,
    all_strided,
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

FLOAT32 = ("float32",)
ATTRS = {
    "topk": 3, "scoring": "sqrtsoftplus", "norm_topk_prob": True, "scaling": 1.5,
    "norm_eps": 0.0, "n_group": 1, "topk_group": 1,
}  # fmt: skip
GROUPS = {"scoring": "sigmoid", "norm_eps": 1e-20, "n_group": 4, "topk_group": 2}


def scored(rng: Rng, num_tokens: int, num_experts: int = 16, bias: float = 1.0, **attrs: Any) -> CaseInputs:
    args: dict[str, Array | None] = {
        "logits": normal(rng, num_tokens, num_experts, scale=3),
        "bias": normal(rng, num_experts, scale=bias),
        "input_ids": i32(rng.integers(0, 50, num_tokens)),
    }
    return CaseInputs(args, {**ATTRS, **attrs})


def hashed(rng: Rng, num_tokens: int) -> CaseInputs:
    made = scored(rng, num_tokens)
    tid2eid = i32(rng.integers(0, 16, (50, 3)))  # ids may repeat within a row
    return CaseInputs({**made.args, "bias": None, "tid2eid": tid2eid}, made.attrs)


def with_images(rng: Rng, num_tokens: int = 9) -> CaseInputs:
    made = scored(rng, num_tokens)
    is_image = i32(np.arange(num_tokens) % 3 - 1)  # any number but 0 says image
    return CaseInputs({**made.args, "bias_vl": normal(rng, 16), "is_image": is_image}, made.attrs)


def without_bias(rng: Rng) -> CaseInputs:
    made = scored(rng, 9, norm_topk_prob=False)
    return CaseInputs({**made.args, "bias": None}, made.attrs)


def ties(rng: Rng) -> CaseInputs:
    """Three logit values only, and no bias."""
    made = without_bias(rng)
    return CaseInputs({**made.args, "logits": f32(rng.integers(-1, 2, (9, 16)))}, made.attrs)


def tied_groups(rng: Rng) -> CaseInputs:
    """As `ties`, in groups of two: many groups count the same."""
    made = ties(rng)
    return CaseInputs(made.args, {**made.attrs, "n_group": 8, "topk_group": 3})


def negative_in_groups(rng: Rng) -> CaseInputs:
    """Every score + bias is negative: experts of the groups left out must not count as 0."""
    made = scored(rng, 9, **GROUPS)
    return CaseInputs({**made.args, "bias": f32(rng.uniform(-9, -5, 16))}, made.attrs)


def one_expert(rng: Rng) -> CaseInputs:
    """One expert takes every token and one takes none."""
    made = scored(rng, 20)
    bias = normal(rng, 16)
    bias[[5, 11]] = 1000, -1000
    return CaseInputs({**made.args, "bias": bias}, made.attrs)


def magnitudes(rng: Rng) -> CaseInputs:
    """Logits past the switch of softplus to the identity, and far below zero."""
    made = scored(rng, 6)
    return CaseInputs({**made.args, "logits": f32(rng.uniform(-60, 60, (6, 16)))}, made.attrs)


def poisoned_padding(rng: Rng) -> CaseInputs:
    made = scored(rng, 6)
    defined = np.array([True, False, True, True, False, False])
    logits = nan_rows(f32(made.args["logits"]), [1, 4, 5])
    return CaseInputs({**made.args, "logits": logits}, made.attrs, defined={"ids": defined, "weights": defined})


def views(rng: Rng) -> CaseInputs:
    made = with_images(rng, 6)
    return CaseInputs({name: None if array is None else strided(array) for name, array in made.args.items()}, made.attrs)


CASES = (
    Case("scored", "typical", lambda rng: scored(rng, 9, num_experts=256, topk=6), FLOAT32),
    Case("hashed", "typical", lambda rng: hashed(rng, 9), FLOAT32),
    Case("no-bias-no-norm", "typical", without_bias, FLOAT32),
    Case("sigmoid", "typical", lambda rng: scored(rng, 9, scoring="sigmoid", norm_eps=1e-20), FLOAT32),
    Case("groups", "typical", lambda rng: scored(rng, 9, 64, topk=6, **{**GROUPS, "n_group": 8, "topk_group": 4}), FLOAT32),
    Case("images", "typical", with_images, FLOAT32),
    *token_cases(scored, dtypes=FLOAT32),
    Case("groups-tokens-0", "boundary", lambda rng: scored(rng, 0, **GROUPS), FLOAT32),
    Case("images-tokens-1", "boundary", lambda rng: with_images(rng, 1), FLOAT32),
    Case("groups-of-two", "boundary", lambda rng: scored(rng, 9, **{**GROUPS, "n_group": 8}), FLOAT32),
    Case("groups-filled", "boundary", lambda rng: scored(rng, 9, topk=8, **GROUPS), FLOAT32),
    Case("every-group", "boundary", lambda rng: scored(rng, 9, **{**GROUPS, "topk_group": 4}), FLOAT32),
    Case("norm-eps", "boundary", lambda rng: scored(rng, 9, norm_eps=0.5), FLOAT32),
    Case("all-experts", "boundary", lambda rng: scored(rng, 4, num_experts=3), FLOAT32),
    Case("one-choice", "boundary", lambda rng: scored(rng, 4, topk=1, norm_topk_prob=False), FLOAT32),
    Case("hashed-tokens-0", "boundary", lambda rng: hashed(rng, 0), FLOAT32),
    Case("ties", "hostile", ties, FLOAT32),
    Case("tied-groups", "hostile", tied_groups, FLOAT32),
    Case("negative-in-groups", "hostile", negative_in_groups, FLOAT32),
    Case("one-expert", "hostile", one_expert, FLOAT32),
    Case("magnitudes", "hostile", magnitudes, FLOAT32),
    Case("poisoned-padding", "hostile", poisoned_padding, FLOAT32),
    Case("views", "hostile", views, FLOAT32),
    Case("hashed-views", "hostile", lambda rng: all_strided(hashed(rng, 6)), FLOAT32),
    Case("large", "hostile", lambda rng: scaled(scored(rng, 6), 1e12, "logits"), FLOAT32),
    *subnormal_cases(lambda rng, small: changed(scored(rng, 6), logits=small.draw(rng, 6, 16)), FLOAT32, half=False),
)

# softplus is 1, 4 and 9 here, so the scores are 1, 2 and 3.
ONE, TWO, THREE = math.log(math.expm1(1)), math.log(math.expm1(4)), math.log(math.expm1(9))

EXPECTED = (
    ExpectedCase(
        "bias-chooses-only",
        "by hand: scores 1, 2, 3, and a bias of 10 brings expert 0 in first; weights 1/4 and 3/4 of scaling 2",
        lambda: CaseInputs(
            {"logits": f32([[ONE, TWO, THREE]]), "bias": f32([10, 0, 0]), "input_ids": i32([0])},
            {**ATTRS, "topk": 2, "scaling": 2.0},
        ),
        {"ids": i32([[0, 2]]), "weights": f32([[0.5, 1.5]])},
    ),
    ExpectedCase(
        "ties",
        "contract: of equal scores the lower expert comes first",
        lambda: CaseInputs(
            {"logits": f32([[ONE, TWO, ONE, TWO, TWO]]), "bias": None, "input_ids": i32([0])},
            {**ATTRS, "norm_topk_prob": False, "scaling": 1.0, "topk": 4},
        ),
        {"ids": i32([[1, 3, 4, 0]]), "weights": f32([[2, 2, 2, 1]])},
    ),
    ExpectedCase(
        "hashed",
        "by hand: token 1 goes to experts 2, 0, with the weights of the gate, 3/4 and 1/4",
        lambda: CaseInputs(
            {"logits": f32([[ONE, TWO, THREE]]), "tid2eid": i32([[0, 1], [2, 0]]), "input_ids": i32([1])},
            {**ATTRS, "topk": 2, "scaling": 4.0},
        ),
        {"ids": i32([[2, 0]]), "weights": f32([[3, 1]])},
    ),
    ExpectedCase(
        "sigmoid",
        "by hand: scores of ln 3, 0 and -ln 3 are 3/4, 1/2 and 1/4; the sum of the first two and 1/4 is 3/2",
        lambda: CaseInputs(
            {"logits": f32([[-math.log(3), 0, math.log(3)]]), "bias": None, "input_ids": i32([0])},
            {**ATTRS, "topk": 2, "scoring": "sigmoid", "norm_eps": 0.25, "scaling": 6.0},
        ),
        {"ids": i32([[2, 1]]), "weights": f32([[3, 2]])},
    ),
    ExpectedCase(
        "groups",
        "by hand, scores 3/4 and 1/4 for experts 4 and 5, else 1/2: the first three have the largest score + bias (9.5), the "
        "last three the most in all (13.5), but the two largest together (5.75 + 4.5) are in the middle; the third has -8.75",
        lambda: CaseInputs(
            {
                "logits": f32([[0, 0, 0, 0, math.log(3), -math.log(3), 0, 0, 0]]),
                "bias": f32([9, -6, -9, 4, 5, -9, 4, 4, 4]),
                "input_ids": i32([0]),
            },
            {**ATTRS, **GROUPS, "n_group": 3, "topk_group": 1, "scaling": 3.0},
        ),
        {"ids": i32([[4, 3, 5]]), "weights": f32([[1.5, 1, 0.5]])},
    ),
    ExpectedCase(
        "tied-groups",
        "contract: of equal groups, here 2 + 0 and 1 + 1 besides scores of 1/2, the lower is kept; a score of 3/4 decides",
        lambda: CaseInputs(
            {
                "logits": f32([[0] * 6, [0, 0, 0, 0, 0, math.log(3)]]),
                "bias": f32([0, 0.5, 2, 0, 1, 1]),
                "input_ids": i32([0, 0]),
            },
            {**ATTRS, **GROUPS, "topk": 2, "n_group": 3, "topk_group": 1, "norm_topk_prob": False, "scaling": 8.0},
        ),
        {"ids": i32([[2, 3], [5, 4]]), "weights": f32([[4, 4], [6, 4]])},
    ),
    ExpectedCase(
        "images",
        "by hand: scores 1, 2, 3; a text token has expert 0 brought in by its bias, an image token expert 1 by the other",
        lambda: CaseInputs(
            {
                "logits": f32([[ONE, TWO, THREE]] * 2),
                "bias": f32([10, 0, 0]),
                "input_ids": i32([0, 0]),
                "bias_vl": f32([0, 10, 0]),
                "is_image": i32([0, 1]),
            },
            {**ATTRS, "topk": 2, "norm_topk_prob": False, "scaling": 1.0},
        ),
        {"ids": i32([[0, 2], [1, 2]]), "weights": f32([[1, 3], [2, 3]])},
    ),
)
