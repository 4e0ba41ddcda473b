# SPDX-License-Identifier: Apache-2.0
"""Cases of `pool_kv`."""

from __future__ import annotations

from typing import Any

import numpy as np

from ascend_dsv4.ops.cases import COMPUTE_DTYPE, Case, CaseInputs, ExpectedCase, Rng, Step, f32, i32, normal, strided


def inputs(rng: Rng, step: Step, ratio: int = 2, *, width: int = 24, state_rows: int | None = None) -> CaseInputs:
    """Requests in mid-life: the state holds their last rows, NaN where no token has been."""
    rows, num_reqs = state_rows or ratio, len(step.requests)
    order = rng.permutation(num_reqs + 1)[:num_reqs]
    state = np.full((num_reqs + 1, rows, 2, width), np.nan, dtype=np.float32)
    for slot, (start, _) in zip(order, step.requests, strict=True):
        for position in range(max(0, start - rows), start):
            state[slot, position % rows] = normal(rng, 2, width)
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


def views(rng: Rng) -> CaseInputs:
    made = inputs(rng, Step(((3, 7), (0, 5)), 2))
    floats = {name: strided(array) for name, array in made.args.items() if array is not None and array.dtype.kind == "f"}
    return CaseInputs({**made.args, **floats}, made.attrs)


CASES = (
    case("prefill", "typical", ((0, 23),), width=96),
    case("several", "typical", ((0, 9), (5, 6), (17, 3), (8, 1), (7, 1))),
    case("tokens-0", "boundary", ()),
    *(case(f"tokens-{n}", "boundary", ((0, n),)) for n in (1, 2, 3, 129)),
    *(case(f"one-token-at-{p}", "boundary", ((p, 1),)) for p in (1, 2, 1023)),
    case("ratio-1", "boundary", ((0, 5), (8, 2)), ratio=1),
    case("ratio-4", "boundary", ((0, 9), (6, 7), (15, 1)), ratio=4),
    case("larger-state", "boundary", ((5, 4), (11, 1), (13, 6)), state_rows=7),
    case("poisoned-padding", "hostile", ((7, 2), (0, 4)), padding=5),
    case("padding-alone", "hostile", (), padding=3),
    Case("steep-gates", "hostile", steep_gates),
    Case("views", "hostile", views),
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
