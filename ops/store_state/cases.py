# SPDX-License-Identifier: Apache-2.0
"""Cases of `store_state`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ascend_dsv4.ops.cases import (
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

STEP_ARGS = ("kv", "gate", "positions", "req_idx", "cu_query_lens")
"""What every step brings with it."""


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


def later(rng: Rng, made: CaseInputs, *steps: Step, width: int = 24) -> CaseInputs:
    """Further steps of the same requests."""
    rows = [{name: inputs(rng, step, width=width).args[name] for name in STEP_ARGS} for step in steps]
    return replace(made, later=tuple(rows))


def decode(rng: Rng) -> CaseInputs:
    """Three tokens and then one at a time, by two requests that the state holds five rows of."""
    made = inputs(rng, Step(((0, 3), (14, 3)), 1), state_rows=5)
    return later(rng, made, *(Step(((3 + i, 1), (17 + i, 1)), i) for i in range(4)))


def rejected(rng: Rng) -> CaseInputs:
    """Drafts in vain: both requests come back to positions they had, and rows of the first step stay behind the last token."""
    made = inputs(rng, Step(((7, 5), (0, 4))), state_rows=6)
    return later(rng, made, Step(((8, 2), (1, 3)), 1))


def far(rng: Rng) -> CaseInputs:
    return far_away(rng, inputs(rng, Step(((0, 9), (5, 1), (17, 3)), 1)), state={"tables": ("state_slots",)})


def magnitudes(rng: Rng, factor: float) -> CaseInputs:
    return scaled(inputs(rng, Step(((3, 4), (0, 2)))), factor, "state", "kv", "gate")


def subnormals(rng: Rng) -> CaseInputs:
    return changed(inputs(rng, Step(((3, 4),))), **{name: subnormal(rng, 4, 24) for name in ("kv", "gate")})


CASES = (
    case("prefill", "typical", ((0, 23),), width=96),
    case("several", "typical", ((0, 9), (5, 1), (17, 3)), state_rows=5),
    case("tokens-0", "boundary", ()),
    *(case(f"tokens-{n}", "boundary", ((0, n),)) for n in (1, 2, 3, 4, 5, 127, 128, 129)),
    case("one-row", "boundary", ((4, 3), (9, 1)), state_rows=1),
    case("request-without-tokens", "boundary", ((4, 0), (7, 2), (3, 0))),
    case("state-larger-than-step", "boundary", ((11, 3), (0, 2)), state_rows=8),
    case("poisoned-padding", "hostile", ((7, 2), (0, 4)), padding=5),
    case("padding-alone", "hostile", (), padding=3),
    Case("views", "hostile", lambda rng: all_strided(inputs(rng, Step(((3, 7), (0, 5)), 2)))),
    Case("decode-after-prefill", "hostile", decode),
    Case("rejected-drafts", "hostile", rejected),
    Case("far", "hostile", far),
    Case("large", "hostile", lambda rng: magnitudes(rng, 1e30)),
    Case("subnormal", "hostile", subnormals),
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
