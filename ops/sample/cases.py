# SPDX-License-Identifier: Apache-2.0
"""Cases of `sample`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ascend_dsv4.ops.cases import Case, CaseInputs, ExpectedCase, Rng, Small, f32, i32, normal, strided, subnormal_cases

FLOAT32 = ("float32",)


def inputs(rng: Rng, num_rows: int, vocab_size: int = 60, **given: Any) -> CaseInputs:
    args = {
        "logits": normal(rng, num_rows, vocab_size, scale=3),
        "temperature": f32(rng.choice([0, 0.3, 1, 1.7], num_rows)),
        "top_k": i32(rng.choice([0, 1, 5, 40], num_rows)),
        "top_p": f32(rng.choice([0.2, 0.8, 0.95, 1], num_rows)),
        "min_p": f32(rng.choice([0, 0.02, 0.3], num_rows)),
        "uniform": rng.random(num_rows),
    }
    return CaseInputs({**args, **given})


def ties(rng: Rng) -> CaseInputs:
    return inputs(rng, 40, logits=f32(rng.integers(-1, 2, (40, 20))))


def masked(rng: Rng) -> CaseInputs:
    """Forbidden tokens at -inf, down to a single allowed one."""
    logits = normal(rng, 30, 20)
    logits[:20][rng.random((20, 20)) < 0.6] = -np.inf
    logits[20:, 1:] = -np.inf
    logits[:20, 7] = 1.0
    return inputs(rng, 30, logits=logits)


def extremes(rng: Rng) -> CaseInputs:
    """Uniforms at both ends, filters that keep one token or everything, huge and tiny temperatures."""
    return inputs(
        rng, 32,
        temperature=f32(np.tile([1e-6, 1, 1e6, 0], 8)), top_k=i32(np.repeat([0, 1, 60, 1000], 8)),
        top_p=f32(np.tile([1e-9, 1], 16)), min_p=f32(np.repeat([0, 1], 16)),
        uniform=np.tile([0.0, np.nextafter(1.0, 0.0)], 16),
    )  # fmt: skip


def subnormals(rng: Rng, small: Small) -> CaseInputs:
    """Logits next to 0, which are equally likely; and ordinary ones at a temperature that leaves the largest alone."""
    logits = np.concatenate([small.draw(rng, 10, 20), normal(rng, 10, 20)])
    temperature = np.concatenate([np.ones(10, dtype=np.float32), np.abs(small.draw(rng, 10))])
    return inputs(rng, 20, logits=logits, temperature=temperature)


def large(rng: Rng) -> CaseInputs:
    return inputs(rng, 20, logits=normal(rng, 20, 30, scale=1e4))


def no_distribution(rng: Rng) -> CaseInputs:
    """Rows without an answer beside rows with one: a NaN, nothing allowed, an infinite logit."""
    logits = normal(rng, 12, 20)
    logits[1, 3] = np.nan
    logits[4] = -np.inf
    logits[6, 0] = np.inf
    logits[9] = np.nan
    return inputs(rng, 12, logits=logits)


def views(rng: Rng) -> CaseInputs:
    return CaseInputs({name: strided(array) for name, array in inputs(rng, 9).args.items() if array is not None})


CASES = (
    Case("mixed", "typical", lambda rng: inputs(rng, 64), FLOAT32),
    Case("greedy", "typical", lambda rng: inputs(rng, 9, temperature=f32([0] * 9)), FLOAT32),
    *(Case(f"rows-{n}", "boundary", lambda rng, n=n: inputs(rng, n), FLOAT32) for n in (0, 1, 3, 4, 5, 127, 128, 129)),
    Case("vocab-1", "boundary", lambda rng: inputs(rng, 4, vocab_size=1), FLOAT32),
    Case("ties", "hostile", ties, FLOAT32),
    Case("masked", "hostile", masked, FLOAT32),
    Case("extremes", "hostile", extremes, FLOAT32),
    Case("no-distribution", "hostile", no_distribution, FLOAT32),
    Case("large", "hostile", large, FLOAT32),
    Case("huge", "hostile", lambda rng: inputs(rng, 20, logits=normal(rng, 20, 30, scale=1e30)), FLOAT32),
    *subnormal_cases(subnormals, FLOAT32, half=False),
    Case("views", "hostile", views, FLOAT32),
)


def ten_twenty_forty_thirty(num: int, **given: Any) -> CaseInputs:
    """Probabilities 0.1, 0.2, 0.4, 0.3: ranked, tokens 2, 3, 1, 0."""
    args = {
        "logits": np.tile(f32(np.log([1, 2, 4, 3])), (num, 1)),
        "temperature": f32([1] * num),
        "top_k": i32([0] * num),
        "top_p": f32([1] * num),
        "min_p": f32([0] * num),
    }
    return CaseInputs({**args, **given})


def logs(*probabilities: float) -> np.ndarray:
    return f32([math.log(p) for p in probabilities])


EXPECTED = (
    ExpectedCase(
        "ranked-running-sum",
        "by hand: running sums 0.4, 0.7, 0.9, 1 over tokens 2, 3, 1, 0",
        lambda: ten_twenty_forty_thirty(6, uniform=np.array([0, 0.39, 0.41, 0.69, 0.71, 0.91])),
        {"ids": i32([2, 2, 3, 3, 1, 0]), "logprobs": logs(0.4, 0.4, 0.3, 0.3, 0.2, 0.1)},
    ),
    ExpectedCase(
        "filters",
        "by hand: top_k 2 leaves 4/7 and 3/7; top_p 0.6 the same two; min_p 0.6 the same two; top_p 0.5 of those that top_k 2 "
        "left, token 2 alone; logprobs stay those of the whole distribution",
        lambda: ten_twenty_forty_thirty(
            5,
            uniform=np.array([0.58, 0.58, 0.58, 0.99, 0.56]),
            top_k=i32([2, 0, 0, 2, 2]),
            top_p=f32([1, 0.6, 1, 0.5, 1]),
            min_p=f32([0, 0, 0.6, 0, 0]),
        ),  # fmt: skip
        {"ids": i32([3, 3, 3, 2, 2]), "logprobs": logs(0.3, 0.3, 0.3, 0.4, 0.4)},
    ),
    ExpectedCase(
        "sum-exceeds",
        "contract: of two equal tokens the second from a uniform of exactly 1/2 on, where the first no longer exceeds it",
        lambda: ten_twenty_forty_thirty(
            3,
            uniform=np.array([0.5, np.nextafter(0.5, 0), 0.0]),
            logits=f32([[0, 0, -np.inf], [0, 0, -np.inf], [-np.inf, -np.inf, 0]]),
        ),
        {"ids": i32([1, 0, 2]), "logprobs": logs(0.5, 0.5, 1)},
    ),
    ExpectedCase(
        "no-distribution",
        "contract: id -1 and logprob NaN where the row holds a NaN or has no finite largest logit",
        lambda: ten_twenty_forty_thirty(
            4, uniform=np.array([0.0] * 4), logits=f32([[0, np.nan], [-np.inf, -np.inf], [np.inf, 0], [-np.inf, 1]])
        ),
        {"ids": i32([-1, -1, -1, 1]), "logprobs": f32([np.nan, np.nan, np.nan, 0])},
    ),
    ExpectedCase(
        "temperature",
        "by hand: at temperature 1/2 weights are squared, 16, 9, 4, 1 of 30; 0 takes the largest whatever the uniform",
        lambda: ten_twenty_forty_thirty(4, uniform=np.array([0.52, 0.54, 0.85, 0.99]), temperature=f32([0.5, 0.5, 0.5, 0])),
        {"ids": i32([2, 3, 1, 2]), "logprobs": logs(0.4, 0.3, 0.2, 0.4)},
    ),
)
