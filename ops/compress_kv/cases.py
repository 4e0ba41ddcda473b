# SPDX-License-Identifier: Apache-2.0
"""Cases of `compress_kv`."""

from __future__ import annotations

from typing import Any

import numpy as np

from ascend_dsv4.ops.cases import (
    COMPUTE_DTYPE,
    Array,
    Case,
    CaseInputs,
    ExpectedCase,
    Rng,
    Step,
    block_tables,
    entry_slots,
    f32,
    i32,
    normal,
    strided,
)


def inputs(
    rng: Rng, step: Step, ratio: int, *, head_dim: int = 16, half: int = 4, rounding: str = "none", block_rows: int = 3,
    state_rows: int | None = None, state_slots: Array | None = None,
) -> CaseInputs:  # fmt: skip
    """Requests in mid-life: the state holds what earlier steps of each would have left there, NaN where nothing was needed."""
    roles = 2 if ratio == 4 else 1
    rows, width, num_reqs = state_rows or roles * ratio, roles * head_dim, len(step.requests)
    table, num_blocks = block_tables(rng, [end // ratio for end in step.ends()], block_rows)
    ape = normal(rng, ratio, width)
    order = rng.permutation(num_reqs + 1)[:num_reqs] if state_slots is None else state_slots
    state = np.full((num_reqs + 1, rows, 2, width), np.nan, dtype=np.float32)
    slots = np.full(step.num_tokens, -1)
    for i, ((start, count), first) in enumerate(zip(step.requests, step.cu_query_lens, strict=False)):
        for position in range(max(0, start - rows), start):
            kv, gate = normal(rng, width), normal(rng, width) + ape[position % ratio]
            state[order[i], position % rows] = np.stack([kv, gate])
        closing = [p for p in range(start, start + count) if (p + 1) % ratio == 0]
        slots[[first + p - start for p in closing]] = entry_slots(table, i, [p // ratio for p in closing], block_rows)
    kv, gate = normal(rng, step.num_tokens, width), normal(rng, step.num_tokens, width)
    kv[step.padding_rows] = gate[step.padding_rows] = np.nan
    angles = rng.uniform(-np.pi, np.pi, (step.num_tokens, half))
    angles[step.padding_rows] = np.nan
    args = {
        "cache": normal(rng, num_blocks, block_rows, head_dim), "state": state, "kv": kv, "gate": gate, "ape": ape,
        "norm": 1 + normal(rng, head_dim, scale=0.3), "cos": f32(np.cos(angles)), "sin": f32(np.sin(angles)),
        "positions": step.positions, "req_idx": step.req_idx, "cu_query_lens": step.cu_query_lens,
        "state_slots": i32(order), "slots": i32(slots),
    }  # fmt: skip
    return CaseInputs(args, {"ratio": ratio, "eps": 1e-6, "rounding": rounding, "entry_dtype": COMPUTE_DTYPE})


def case(name: str, kind: Any, requests: tuple[tuple[int, int], ...], ratio: int, padding: int = 0, **options: Any) -> Case:
    coarse = options.get("rounding", "none") != "none"
    return Case(
        name, kind, lambda rng: inputs(rng, Step(requests, padding), ratio, **options),
        dtypes=("float32",) if coarse else ("float32", "bfloat16"), smooth=not coarse,
    )  # fmt: skip


def steep_gates(rng: Rng) -> CaseInputs:
    """Gates hundreds apart: the softmax picks one row, and its powers must not overflow."""
    made = inputs(rng, Step(((0, 9),)), 4)
    return CaseInputs({**made.args, "gate": f32(made.args["gate"]) * np.float32(300)}, made.attrs)


def views(rng: Rng) -> CaseInputs:
    made = inputs(rng, Step(((3, 7), (0, 5)), 2), 4)
    floats = {name: strided(array) for name, array in made.args.items() if array is not None and array.dtype.kind == "f"}
    return CaseInputs({**made.args, **floats}, made.attrs)


CASES = (
    case("csa-prefill", "typical", ((0, 22),), 4),
    case("csa-several", "typical", ((0, 9), (5, 6), (18, 3), (8, 1), (7, 1)), 4),
    case("csa-fp8", "typical", ((0, 9), (6, 7)), 4, head_dim=80, half=8, rounding="fp8"),
    case("csa-index", "typical", ((0, 9), (6, 7)), 4, head_dim=64, half=8, rounding="hadamard_fp4"),
    case("hca-prefill", "typical", ((0, 300),), 128),
    case("tokens-0", "boundary", (), 4),
    *(case(f"csa-length-{n}", "boundary", ((0, n),), 4) for n in (1, 3, 4, 5, 8)),
    *(case(f"csa-one-token-at-{p}", "boundary", ((p, 1),), 4) for p in (3, 4, 6, 7, 1023)),
    *(case(f"hca-length-{n}", "boundary", ((0, n),), 128) for n in (127, 128, 129)),
    *(case(f"hca-one-token-at-{p}", "boundary", ((p, 1),), 128) for p in (126, 127, 128, 255)),
    case("hca-across-a-window", "boundary", ((120, 140),), 128),
    case("larger-state", "boundary", ((5, 4), (11, 3)), 4, state_rows=13),
    case("poisoned-padding", "hostile", ((6, 3), (0, 4)), 4, padding=5),
    case("padding-alone", "hostile", (), 4, padding=3),
    Case("steep-gates", "hostile", steep_gates),
    Case("views", "hostile", views),
)


def by_hand(**changed: Any) -> CaseInputs:
    """One request, ratio 2, no overlap, equal gates: the entry is the mean (2, 4), normed to (0.5, 1), turned by 90°."""
    args: dict[str, Any] = {
        "cache": f32(np.zeros((1, 2, 2))), "state": f32(np.zeros((1, 2, 2, 2))),
        "kv": f32([[1, 2], [3, 6], [5, 5]]), "gate": f32(np.zeros((3, 2))),
        "ape": f32(np.zeros((2, 2))), "norm": f32([1, 1]),
        "cos": f32(np.zeros((3, 1))), "sin": f32(np.ones((3, 1))),
        "positions": i32([0, 1, 2]), "req_idx": i32([0, 0, 0]), "cu_query_lens": i32([0, 3]), "state_slots": i32([0]),
        "slots": i32([-1, 1, -1]),
    }  # fmt: skip
    return CaseInputs({**args, **changed}, {"ratio": 2, "eps": 6.0, "rounding": "none", "entry_dtype": "float32"})


EXPECTED = (
    ExpectedCase(
        "mean",
        "by hand: mean square of (2, 4) plus eps is 16; (0.5, 1) turned by 90° is (-1, 0.5). The state keeps positions 2 and 1",
        by_hand,
        {"cache": f32([[[0, 0], [-1, 0.5]]]), "state": f32([[[[5, 5], [0, 0]], [[3, 6], [0, 0]]]])},
    ),
    ExpectedCase(
        "ape",
        "by hand: ape row 1 is ln 3 in channel 0, so position 1 weighs 3/4 there: (2.5, 4), mean square 89/8, with eps 16",
        lambda: CaseInputs(
            by_hand(ape=f32([[0, 0], [np.log(3), 0]])).args,
            {"ratio": 2, "eps": 4.875, "rounding": "none", "entry_dtype": "float32"},
        ),
        {"cache": f32([[[0, 0], [-1, 0.625]]]), "state": f32([[[[5, 5], [0, 0]], [[3, 6], [np.log(3), 0]]]])},
    ),
    ExpectedCase(
        "overlap",
        "by hand, ratio 1: entry 0 takes the second half of row 0, entry 1 the first half of row 0 and the second of row 1; "
        "equal gates. (30, 40) / 50, and ((1, 7) + (11, 17)) / 2 = (6, 12) / sqrt(90 + 1250)",
        lambda: CaseInputs(
            {
                **by_hand().args,
                "state": f32(np.zeros((1, 2, 2, 4))),
                "kv": f32([[1, 7, 30, 40], [2, 8, 11, 17]]),
                "gate": f32(np.zeros((2, 4))),
                "ape": f32(np.zeros((1, 4))),
                "cos": f32(np.ones((2, 1))),
                "sin": f32(np.zeros((2, 1))),
                "positions": i32([0, 1]),
                "req_idx": i32([0, 0]),
                "cu_query_lens": i32([0, 2]),
                "slots": i32([0, 1]),
            },
            {"ratio": 1, "eps": 1250.0, "rounding": "none", "entry_dtype": "float32"},
        ),
        {"cache": f32([[[30 / 50, 40 / 50], [6 / 1340**0.5, 12 / 1340**0.5]]])},
    ),
)
