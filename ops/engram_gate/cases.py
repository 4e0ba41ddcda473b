# SPDX-License-Identifier: Apache-2.0
"""Cases of `engram_gate`."""

from __future__ import annotations

import numpy as np

from ascend_dsv4.ops.cases import (
    Array,
    Case,
    CaseInputs,
    ExpectedCase,
    Rng,
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

ATTRS = {"eps": 1e-20, "sign_of_zero": True}


def inputs(rng: Rng, num_tokens: int, hidden_size: int = 24, hc_mult: int = 4, images: bool = True) -> CaseInputs:
    args = {
        "streams": normal(rng, num_tokens, hc_mult, hidden_size),
        "kv": normal(rng, num_tokens, (hc_mult + 1) * hidden_size),
        "q_weight": f32(rng.uniform(0.5, 2, (hc_mult, hidden_size))),
        "k_weight": f32(rng.uniform(0.5, 2, (hc_mult, hidden_size))),
        "is_image": i32(rng.integers(0, 2, num_tokens)) if images else None,
    }
    return CaseInputs(args, ATTRS)


def orthogonal(rng: Rng, sign_of_zero: bool) -> CaseInputs:
    """Keys of zeros, and keys that vanish in the product: every dot is +0."""
    made = inputs(rng, 3, images=False)
    kv, streams = f32(made.args["kv"]), np.abs(f32(made.args["streams"]))
    kv[0, :-24] = 0
    kv[1:, :-24] = np.tile([1, 1, 0, 0], 24)
    streams[1], streams[2] = np.tile([0, 0, 1, 2], 6), np.tile([3, -3, 5, 7], 6)
    ones = np.ones((4, 24), dtype=np.float32)
    args = {"streams": streams, "kv": kv, "q_weight": ones, "k_weight": ones}
    return CaseInputs(args, {"eps": 1e-20, "sign_of_zero": sign_of_zero})


def poisoned_padding(rng: Rng) -> CaseInputs:
    made = inputs(rng, 6)
    poisoned = {name: nan_rows(f32(made.args[name]), [0, 4]) for name in ("streams", "kv")}
    return CaseInputs({**made.args, **poisoned}, made.attrs)


def poisoned_images(rng: Rng) -> CaseInputs:
    """What the rows of an image token hold reaches nothing."""
    made = inputs(rng, 6)
    return CaseInputs({**made.args, "kv": nan_rows(f32(made.args["kv"]), [1, 2]), "is_image": i32([0, 1, -5, 0, 0, 7])}, ATTRS)


def views(rng: Rng) -> CaseInputs:
    made = inputs(rng, 6, hidden_size=9)
    return CaseInputs({name: strided(array) for name, array in made.args.items() if array is not None}, made.attrs)


def extremes(rng: Rng) -> CaseInputs:
    """Tiny and huge streams: the norms take the magnitude out."""
    made = inputs(rng, 4, images=False)
    streams = np.abs(f32(made.args["streams"])) * f32([1e-12, 1e-6, 1e6, 1e12])[:, None, None]
    return CaseInputs({**made.args, "streams": streams}, ATTRS)


CASES = (
    Case("random", "typical", lambda rng: inputs(rng, 9, hidden_size=256)),
    Case("text-only", "typical", lambda rng: inputs(rng, 9, images=False)),
    *token_cases(inputs),
    Case("one-stream", "boundary", lambda rng: inputs(rng, 5, hc_mult=1)),
    Case("zero-dots", "boundary", lambda rng: orthogonal(rng, True)),
    Case("zero-dots-of-the-paper", "boundary", lambda rng: orthogonal(rng, False)),
    Case("extremes", "hostile", extremes),
    Case("poisoned-padding", "hostile", poisoned_padding),
    Case("poisoned-images", "hostile", poisoned_images),
    Case("half-large", "hostile", lambda rng: scaled(inputs(rng, 5), 1e4, "streams"), ("float16",)),
    Case("views", "hostile", views),
    *subnormal_cases(lambda rng, small: changed(inputs(rng, 5, images=False), streams=small.draw(rng, 5, 4, 24))),
)


def with_dots(dots: list[float], sign_of_zero: bool = True) -> CaseInputs:
    """Four channels of ones against ones: dot = 2 · weight. The streams are ones and the value is 1, so y = 1 + gate."""
    count = len(dots)
    weight = np.repeat(f32(dots)[:, None] / 2, 4, axis=1)
    ones: Array = np.ones((1, count, 4), dtype=np.float32)
    kv = np.ones((1, (count + 1) * 4), dtype=np.float32)
    args = {"streams": ones, "kv": kv, "q_weight": weight, "k_weight": np.ones((count, 4), dtype=np.float32)}
    return CaseInputs(args, {"eps": 1e-20, "sign_of_zero": sign_of_zero})


def one_plus(*gates: float) -> Array:
    return np.repeat(1 + f32(gates)[None, :, None], 4, axis=2)


EXPECTED = (
    ExpectedCase(
        "gates",
        "model definition of DeepSeek-V4.1, printed to five digits: dot 0, 0.25 and -4",
        lambda: with_dots([0.0, 0.25, -4.0]),
        {"y": one_plus(0.50025, 0.62246, 0.11920)},
    ),
    ExpectedCase(
        "gates-of-the-paper",
        "arXiv 2601.07372: sign(0) = 0, so the gate is a half; 0.25 as in V4.1",
        lambda: with_dots([0.0, 0.25], sign_of_zero=False),
        {"y": one_plus(0.5, 0.62246)},
    ),
)
