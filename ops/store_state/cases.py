# SPDX-License-Identifier: Apache-2.0
"""Cases of `store_state`."""

from __future__ import annotations

from typing import Any

import numpy as np

from ascend_dsv4.ops.cases import Case, CaseInputs, ExpectedCase, Rng, Step, f32, i32, normal, strided


def inputs(rng: Rng, step: Step, state_rows: int = 2, width: int = 24) -> CaseInputs:
    """Every request has a slot of its own; one slot belongs to nobody."""
    num_reqs = len(step.requests)
    kv, gate = normal(rng, step.num_tokens, width), normal(rng, step.num_tokens, width)
    kv[step.padding_rows] = gate[step.padding_rows] = np.nan
    args = {
        "state": normal(rng, num_reqs + 1, state_rows, 2, width), "kv": kv, "gate": gate, "positions": step.positions,
        "req_idx": step.req_idx, "cu_query_lens": step.cu_query_lens,
        "state_slots": i32(rng.permutation(num_reqs + 1)[:num_reqs]),
    }  # fmt: skip
    return CaseInputs(args)


def case(name: str, kind: Any, requests: tuple[tuple[int, int], ...], padding: int = 0, **options: Any) -> Case:
    return Case(name, kind, lambda rng: inputs(rng, Step(requests, padding), **options))


def views(rng: Rng) -> CaseInputs:
    made = inputs(rng, Step(((3, 7), (0, 5)), 2))
    return CaseInputs({name: strided(array) for name, array in made.args.items() if array is not None})


CASES = (
    case("prefill", "typical", ((0, 23),), width=96),
    case("several", "typical", ((0, 9), (5, 1), (17, 3)), state_rows=5),
    case("tokens-0", "boundary", ()),
    *(case(f"tokens-{n}", "boundary", ((0, n),)) for n in (1, 2, 3, 129)),
    case("one-row", "boundary", ((4, 3), (9, 1)), state_rows=1),
    case("state-larger-than-step", "boundary", ((11, 3), (0, 2)), state_rows=8),
    case("poisoned-padding", "hostile", ((7, 2), (0, 4)), padding=5),
    case("padding-alone", "hostile", (), padding=3),
    Case("views", "hostile", views),
)

EXPECTED = (
    ExpectedCase(
        "by-position",
        "by hand: of positions 3 to 6 the last three are kept, position 6 in row 0; the second request adds row 1 to its "
        "slot 0 and leaves the others; padding goes nowhere",
        lambda: CaseInputs(
            {
                "state": f32(np.arange(12).reshape(2, 3, 2, 1)),
                "kv": f32([[30], [40], [50], [60], [70], [np.nan]]),
                "gate": f32([[31], [41], [51], [61], [71], [np.nan]]),
                "positions": i32([3, 4, 5, 6, 7, -1]),
                "req_idx": i32([0, 0, 0, 0, 1, -1]),
                "cu_query_lens": i32([0, 4, 5]),
                "state_slots": i32([1, 0]),
            }
        ),
        {"state": f32([[[0, 1], [70, 71], [4, 5]], [[60, 61], [40, 41], [50, 51]]]).reshape(2, 3, 2, 1)},
    ),
)
