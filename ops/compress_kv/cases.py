# SPDX-License-Identifier: Apache-2.0
"""Cases of `compress_kv`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ascend_dsv4.ops.cases import (
    COMPUTE_DTYPE,
    SMALL,
    STALE,
    Array,
    Case,
    CaseInputs,
    ExpectedCase,
    Rng,
    Step,
    all_strided,
    block_tables,
    changed,
    entry_slots,
    f32,
    far_away,
    i32,
    normal,
    scaled,
)


@dataclass(frozen=True, slots=True)
class Entries:
    """Where the entries of requests go, and what all their steps share."""

    ratio: int
    width: int
    half: int
    block_rows: int
    table: Array

    def step(self, rng: Rng, step: Step) -> dict[str, Array]:
        """What a step brings with it; NaN in padding."""
        slots = np.full(step.num_tokens, -1)
        for i, ((start, count), first) in enumerate(zip(step.requests, step.cu_query_lens, strict=False)):
            closing = [p for p in range(start, start + count) if (p + 1) % self.ratio == 0]
            entries = [p // self.ratio for p in closing]
            slots[[first + p - start for p in closing]] = entry_slots(self.table, i, entries, self.block_rows)
        kv, gate = normal(rng, step.num_tokens, self.width), normal(rng, step.num_tokens, self.width)
        angles = rng.uniform(-np.pi, np.pi, (step.num_tokens, self.half))
        kv[step.padding_rows] = gate[step.padding_rows] = np.nan
        angles[step.padding_rows] = np.nan
        return {
            "kv": kv, "gate": gate, "cos": f32(np.cos(angles)), "sin": f32(np.sin(angles)), "positions": step.positions,
            "req_idx": step.req_idx, "cu_query_lens": step.cu_query_lens, "slots": i32(slots),
        }  # fmt: skip


def inputs(
    rng: Rng, step: Step, ratio: int, *, head_dim: int = 16, half: int = 4, rounding: str = "none", block_rows: int = 3,
    state_rows: int | None = None, stale: int = 0, later: tuple[Step, ...] = (),
) -> CaseInputs:  # fmt: skip
    """Requests in mid-life: the state holds what earlier steps of each would have left there, those of `stale` drafts in vain,
    and NaN where nothing was needed. `later` are further steps of the same requests."""
    roles = 2 if ratio == 4 else 1
    rows, width, num_reqs = state_rows or roles * ratio, roles * head_dim, len(step.requests)
    ends = [max(ends) for ends in zip(*(one.ends() for one in (step, *later)), strict=True)]
    table, num_blocks = block_tables(rng, [end // ratio for end in ends], block_rows)
    ape = normal(rng, ratio, width)
    order = rng.permutation(num_reqs + 1)[:num_reqs]
    state = np.full((num_reqs + 1, rows, 2, width), np.nan, dtype=np.float32)
    for slot, (start, _) in zip(order, step.requests, strict=True):
        for position in range(max(0, start - rows), start):
            kv, gate = normal(rng, width), normal(rng, width) + ape[position % ratio]
            state[slot, position % rows] = np.stack([kv, gate])
        for position in range(start, start + stale):
            state[slot, position % rows] = STALE
    entries = Entries(ratio, width, half, block_rows, table)
    args = {
        "cache": normal(rng, num_blocks, block_rows, head_dim), "state": state, "ape": ape,
        "norm": 1 + normal(rng, head_dim, scale=0.3), "state_slots": i32(order), **entries.step(rng, step),
    }  # fmt: skip
    attrs = {"ratio": ratio, "eps": 1e-6, "rounding": rounding, "entry_dtype": COMPUTE_DTYPE}
    return CaseInputs(args, attrs, later=tuple(entries.step(rng, one) for one in later))


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


def decode(rng: Rng) -> CaseInputs:
    """Five tokens and then one at a time, by two requests at different places of their windows; padding in between."""
    steps = (Step(((5 + i, 1), (12 + i, 1)), i % 2) for i in range(5))
    return inputs(rng, Step(((0, 5), (9, 3)), 1), 4, later=tuple(steps))


def rejected(rng: Rng) -> CaseInputs:
    """Drafts in vain that closed entries: both requests come back to positions they had, and go on from there."""
    return inputs(rng, Step(((5, 6), (0, 7))), 4, state_rows=13, later=(Step(((7, 2), (3, 4)), 1), Step(((9, 5), (7, 2)))))


def far(rng: Rng, cache: str, **pointers: tuple[str, ...]) -> CaseInputs:
    return far_away(rng, inputs(rng, Step(((0, 9), (5, 6), (7, 1)), 1), 4), **{cache: pointers})


def subnormals(rng: Rng) -> CaseInputs:
    """Tokens next to 0, from the state and from the step, that eps and the norm's weight bring back."""
    small = SMALL["subnormal"]
    made = scaled(inputs(rng, Step(((6, 3),)), 4), small.gain, "norm")
    state = np.array(made.args["state"])
    state[:, :, 0] = small.draw(rng, *state[:, :, 0].shape)
    return replace(changed(made, kv=small.draw(rng, 3, 32), state=state), attrs={**made.attrs, "eps": small.eps})


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
    case("request-without-tokens", "boundary", ((4, 0), (6, 3), (3, 0)), 4),
    case("larger-state", "boundary", ((5, 4), (11, 3)), 4, state_rows=13),
    case("poisoned-padding", "hostile", ((6, 3), (0, 4)), 4, padding=5),
    case("padding-alone", "hostile", (), 4, padding=3),
    Case("steep-gates", "hostile", steep_gates),
    Case("views", "hostile", lambda rng: all_strided(inputs(rng, Step(((3, 7), (0, 5)), 2), 4))),
    case("csa-overlap-in-the-state", "boundary", ((8, 4), (4, 6), (12, 3)), 4),
    case("stale-rows", "hostile", ((11, 1), (13, 6), (0, 4), (8, 5)), 4, state_rows=12, stale=4),
    case("hca-stale-rows", "hostile", ((127, 1), (250, 9)), 128, state_rows=132, stale=4),
    Case("decode-after-prefill", "hostile", decode),
    Case("rejected-drafts", "hostile", rejected),
    Case("far-cache", "hostile", lambda rng: far(rng, "cache", slots=("slots",))),
    Case("far-state", "hostile", lambda rng: far(rng, "state", tables=("state_slots",))),
    Case("large", "hostile", lambda rng: scaled(inputs(rng, Step(((0, 9), (5, 6))), 4), 1e15, "kv")),
    Case("subnormal", "hostile", subnormals),
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
