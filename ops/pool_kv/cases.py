# SPDX-License-Identifier: Apache-2.0
"""Cases of `pool_kv`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ascend_dsv4.ops.cases import (
    COMPUTE_DTYPE,
    STALE,
    Case,
    CaseInputs,
    ExpectedCase,
    Rng,
    Step,
    all_strided,
    changed,
    f32,
    far_away,
    i32,
    normal,
    scaled,
    subnormal,
)


def inputs(
    rng: Rng, step: Step, ratio: int = 2, *, width: int = 24, state_rows: int | None = None, stale: int = 0
) -> CaseInputs:
    """Requests in mid-life: the state holds their last rows, those of `stale` drafts in vain, NaN where no token has been."""
    rows, num_reqs = state_rows or ratio, len(step.requests)
    order = rng.permutation(num_reqs + 1)[:num_reqs]
    state = np.full((num_reqs + 1, rows, 2, width), np.nan, dtype=np.float32)
    for slot, (start, _) in zip(order, step.requests, strict=True):
        for position in range(max(0, start - rows), start):
            state[slot, position % rows] = normal(rng, 2, width)
        for position in range(start, start + stale):
            state[slot, position % rows] = STALE
    kv, gate = normal(rng, step.num_tokens, width), normal(rng, step.num_tokens, width)
    kv[step.padding_rows] = gate[step.padding_rows] = np.nan
    args = {
        "state": state, "kv": kv, "gate": gate, "positions": step.positions, "req_idx": step.req_idx,
        "cu_query_lens": step.cu_query_lens, "state_slots": i32(order),
    }  # fmt: skip
    return CaseInputs(args, {"ratio": ratio, "entry_dtype": COMPUTE_DTYPE})


def case(name: str, kind: Any, requests: tuple[tuple[int, int], ...], ratio: int = 2, padding: int = 0, **options: Any) -> Case:
    return Case(name, kind, lambda rng: inputs(rng, Step(requests, padding), ratio, **options))


def steep_gates(rng: Rng) -> CaseInputs:
    """Gates hundreds apart: the softmax picks one row, and its powers must not overflow."""
    made = inputs(rng, Step(((0, 9),)))
    return CaseInputs({**made.args, "gate": f32(made.args["gate"]) * np.float32(300)}, made.attrs)


def far(rng: Rng) -> CaseInputs:
    return far_away(rng, inputs(rng, Step(((3, 6), (7, 1), (1, 1)), 1)), state={"tables": ("state_slots",)})


def subnormals(rng: Rng) -> CaseInputs:
    made = inputs(rng, Step(((3, 4),)))
    rows = {name: subnormal(rng, 4, 24) for name in ("kv", "gate")}
    return changed(made, state=subnormal(rng, *np.shape(made.args["state"])), **rows)


CASES = (
    case("prefill", "typical", ((0, 23),), width=96),
    case("several", "typical", ((0, 9), (5, 6), (17, 3), (8, 1), (7, 1))),
    case("tokens-0", "boundary", ()),
    *(case(f"tokens-{n}", "boundary", ((0, n),)) for n in (1, 2, 3, 4, 5, 127, 128, 129)),
    *(case(f"one-token-at-{p}", "boundary", ((p, 1),)) for p in (1, 2, 1023)),
    case("ratio-1", "boundary", ((0, 5), (8, 2)), ratio=1),
    case("ratio-4", "boundary", ((0, 9), (6, 7), (15, 1)), ratio=4),
    case("request-without-tokens", "boundary", ((4, 0), (7, 2), (3, 0))),
    case("larger-state", "boundary", ((5, 4), (11, 1), (13, 6)), state_rows=7),
    case("poisoned-padding", "hostile", ((7, 2), (0, 4)), padding=5),
    case("padding-alone", "hostile", (), padding=3),
    Case("steep-gates", "hostile", steep_gates),
    Case("views", "hostile", lambda rng: all_strided(inputs(rng, Step(((3, 7), (0, 5)), 2)))),
    case("stale-rows", "hostile", ((11, 1), (13, 6), (0, 4), (8, 2)), state_rows=6, stale=4),
    case("stale-rows-of-four", "hostile", ((11, 1), (13, 6), (6, 3), (0, 5)), ratio=4, state_rows=7, stale=3),
    Case("repeated", "hostile", lambda rng: replace(inputs(rng, Step(((3, 6), (7, 1)), 1)), later=({},))),
    Case("far", "hostile", far),
    Case("large", "hostile", lambda rng: scaled(inputs(rng, Step(((3, 4), (0, 2)))), 1e30, "state", "kv", "gate")),
    Case("subnormal", "hostile", subnormals, ("float32",)),
)


def by_hand(start: int) -> CaseInputs:
    """Three tokens from `start` on; the state holds position 4 in row 1 of three. Gates weigh 1/4 to 3/4 in channel 0."""
    args = {
        "state": f32([[[[np.nan] * 2] * 2, [[10, 20], [0, 0]], [[np.nan] * 2] * 2]]),
        "kv": f32([[2, 4], [6, 8], [1, 3]]), "gate": f32([[np.log(3), 0], [0, 0], [np.log(3), 0]]),
        "positions": i32([start, start + 1, start + 2]), "req_idx": i32([0, 0, 0]), "cu_query_lens": i32([0, 3]),
        "state_slots": i32([0]),
    }  # fmt: skip
    return CaseInputs(args, {"ratio": 2, "entry_dtype": "float32"})


EXPECTED = (
    ExpectedCase(
        "from-this-step",
        "by hand: position 7 closes (6, 7): 3/4 · 2 + 1/4 · 6, and the mean of 4 and 8",
        lambda: by_hand(6),
        {"entries": f32([[0, 0], [3, 6], [0, 0]])},
    ),
    ExpectedCase(
        "from-the-state",
        "by hand: position 5 closes (4, 5): 1/4 · 10 + 3/4 · 2, and the mean of 20 and 4; position 7 closes (6, 7): "
        "1/4 · 6 + 3/4 · 1, and the mean of 8 and 3",
        lambda: by_hand(5),
        {"entries": f32([[4, 12], [0, 0], [2.25, 5.5]])},
    ),
)
