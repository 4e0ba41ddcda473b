# SPDX-License-Identifier: Apache-2.0
"""Cases of `vision_block`."""

from __future__ import annotations

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
    normal,
    scaled,
    strided,
    subnormal_cases,
    token_cases,
)


def inputs(
    rng: Rng, num_patches: int, num_heads: int = 2, head_dim: int = 8, inter: int = 12, eps: float = 1e-6, scale: float = 1.0
) -> CaseInputs:
    dim = num_heads * head_dim
    angles = rng.uniform(-np.pi, np.pi, (num_patches, head_dim // 2))
    args: dict[str, Array | None] = {
        "x": normal(rng, num_patches, dim, scale=scale),
        "norm1": 1 + normal(rng, dim, scale=0.3),
        "wqkv": normal(rng, 3 * dim, dim, scale=2 * dim**-0.5),
        "bqkv": normal(rng, 3 * dim, scale=0.5),
        "wo": normal(rng, dim, dim, scale=dim**-0.5),
        "bo": normal(rng, dim, scale=0.5),
        "norm2": 1 + normal(rng, dim, scale=0.3),
        "w1": normal(rng, 2 * inter, dim, scale=dim**-0.5),
        "w2": normal(rng, dim, inter, scale=inter**-0.5),
        "cos": f32(np.cos(angles)),
        "sin": f32(np.sin(angles)),
    }
    return CaseInputs(args, {"num_heads": num_heads, "eps": eps})


def equal_patches(rng: Rng) -> CaseInputs:
    """All scores equal: no turn, the same row everywhere."""
    made = inputs(rng, 40)
    args = {**made.args, "x": np.repeat(normal(rng, 1, 16), 40, axis=0)}
    args |= {"cos": np.ones((40, 4), dtype=np.float32), "sin": np.zeros((40, 4), dtype=np.float32)}
    return CaseInputs(args, made.attrs)


def large_scores(rng: Rng) -> CaseInputs:
    """Scores in the thousands: one key takes all, and no power may overflow."""
    made = inputs(rng, 20)
    return CaseInputs({**made.args, "wqkv": f32(made.args["wqkv"]) * np.float32(40)}, made.attrs)


def views(rng: Rng) -> CaseInputs:
    made = inputs(rng, 9)
    return CaseInputs({name: strided(f32(array)) for name, array in made.args.items()}, made.attrs)


def subnormals(rng: Rng, small: Small) -> CaseInputs:
    made = scaled(inputs(rng, 7, eps=small.eps), small.gain, "norm1")
    return changed(made, x=small.draw(rng, 7, 16))


def mean_of_values() -> CaseInputs:
    """Queries are zero, so every patch gets the mean of the values; the MLP adds nothing."""
    wqkv = np.zeros((6, 2), dtype=np.float32)
    wqkv[4:] = np.eye(2)
    args: dict[str, Array | None] = {
        "x": f32([[3, 4], [-4, 3], [4, -3], [0, 5]]), "norm1": f32([1, 2]), "wqkv": wqkv, "bqkv": f32([0, 0, 7, 7, 0, 0]),
        "wo": f32([[0, 1], [1, 0]]), "bo": f32([0.5, 0]), "norm2": f32([1, 1]), "w1": np.zeros((2, 2), dtype=np.float32),
        "w2": f32([[1], [1]]), "cos": f32([[1], [0], [-1], [0]]), "sin": f32([[0], [1], [0], [-1]]),
    }  # fmt: skip
    return CaseInputs(args, {"num_heads": 1, "eps": 12.5})


def quarter_turns() -> CaseInputs:
    """Two patches whose query and key of (3, 4) are turned by 0° and 90°: the scores are 25/√2 and 0 times √2·ln 3 / 25."""
    root = (2**0.5 * np.log(3) / 25) ** 0.5
    wqkv = np.zeros((6, 2), dtype=np.float32)
    wqkv[4, 0] = 1
    bqkv = f32([3 * root, 4 * root, 3 * root, 4 * root, 0, 0])
    args: dict[str, Array | None] = {
        "x": f32([[1, 1], [-1, 1]]), "norm1": f32([1, 1]), "wqkv": wqkv, "bqkv": bqkv, "wo": f32([[8, 0], [0, 8]]),
        "bo": f32([0, 0]), "norm2": f32([0, 0]), "w1": np.zeros((2, 2), dtype=np.float32), "w2": f32([[1], [1]]),
        "cos": f32([[1], [0]]), "sin": f32([[0], [1]]),
    }  # fmt: skip
    return CaseInputs(args, {"num_heads": 1, "eps": 0.0})


def gated() -> CaseInputs:
    """Attention adds nothing; gate ln 3 and up 2 times the normed patch, which is one."""
    args: dict[str, Array | None] = {
        "x": f32([[5, 5]]), "norm1": f32([1, 1]), "wqkv": np.zeros((6, 2), dtype=np.float32),
        "bqkv": np.zeros(6, dtype=np.float32), "wo": np.zeros((2, 2), dtype=np.float32), "bo": f32([0, 0]),
        "norm2": f32([1, 1]), "w1": f32([[np.log(3), 0], [0, 2]]), "w2": f32([[1], [-4]]), "cos": f32([[1]]), "sin": f32([[0]]),
    }  # fmt: skip
    return CaseInputs(args, {"num_heads": 1, "eps": 0.0})


CASES = (
    Case("heads", "typical", lambda rng: inputs(rng, 20, num_heads=4, head_dim=16, inter=96)),
    Case("released-head", "typical", lambda rng: inputs(rng, 33, num_heads=2, head_dim=64, inter=64)),
    *token_cases(inputs),
    Case("one-head", "boundary", lambda rng: inputs(rng, 7, num_heads=1)),
    Case("two-channels", "boundary", lambda rng: inputs(rng, 7, head_dim=2, inter=1)),
    Case("more-than-a-query-tile", "boundary", lambda rng: inputs(rng, 259, num_heads=1, head_dim=4), ("float32",)),
    Case("equal-patches", "boundary", equal_patches),
    Case("large-scores", "hostile", large_scores, ("float32",)),
    Case("large", "hostile", lambda rng: inputs(rng, 9, scale=1e15), ("float32",)),
    Case("tiny", "hostile", lambda rng: inputs(rng, 9, scale=1e-12)),
    Case("half-large", "hostile", lambda rng: scaled(inputs(rng, 9), 1e4, "x"), ("float16",)),
    Case("views", "hostile", views),
    *subnormal_cases(subnormals),
)

LN3 = float(np.log(3))

EXPECTED = (
    ExpectedCase(
        "mean-of-values",
        "by hand: mean square 12.5 and eps 12.5 give the root 5; normed rows (0.6, 1.6), (-0.8, 1.2), (0.8, -1.2), (0, 2) have "
        "the mean (0.15, 0.9); wo swaps it, bo adds 0.5",
        mean_of_values,
        {"y": f32([[3 + 1.4, 4 + 0.15], [-4 + 1.4, 3.15], [5.4, -3 + 0.15], [1.4, 5.15]])},
    ),
    ExpectedCase(
        "quarter-turns",
        "by hand: a patch sees itself with weight 3/4 (score ln 3), the other with 1/4 (score 0); values are 1 and -1, times 8",
        quarter_turns,
        {"y": f32([[1 + 4, 1], [-1 - 4, 1]])},
    ),
    ExpectedCase(
        "gated",
        "by hand: silu(ln 3) = 3/4·ln 3, times 2; w2 sends it to both channels, with 1 and -4",
        gated,
        {"y": f32([[5 + 1.5 * LN3, 5 - 6 * LN3]])},
    ),
)
