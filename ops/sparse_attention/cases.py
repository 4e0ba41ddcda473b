# SPDX-License-Identifier: Apache-2.0
"""Cases of `sparse_attention`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from ascend_dsv4.ops.cases import (
    STALE,
    Array,
    Case,
    CaseInputs,
    ExpectedCase,
    Rng,
    Small,
    Step,
    block_tables,
    changed,
    chosen_entries,
    entry_slots,
    f32,
    far_away,
    filled_cache,
    i32,
    normal,
    scaled,
    strided,
    subnormal_cases,
    window_slots,
    window_tables,
)


def inputs(
    rng: Rng, step: Step, *, ratio: int = 4, topk: int | None = 5, window: int = 8, heads: int = 4, head_dim: int = 32,
    window_block_rows: int = 4, block_rows: int = 3, scale: float | None = None, drafts: int = 0,
) -> CaseInputs:  # fmt: skip
    """Ratio 0 is a window alone, topk None takes every entry. Rows that no query may see are NaN, and stale where so many
    drafts in vain were."""
    drafted = Step(tuple((start, count + drafts) for start, count in step.requests))
    table, num_blocks = window_tables(rng, drafted, window, window_block_rows)
    live = [range(max(0, start - window + 1), start + count) for start, count in step.requests]
    rows = [window_slots(table, i, positions, window_block_rows) for i, positions in enumerate(live)]
    q = normal(rng, step.num_tokens, heads, head_dim)
    q[step.padding_rows] = np.nan
    keys = filled_cache(rng, num_blocks, window_block_rows, head_dim, np.concatenate([np.zeros(0, np.int64), *rows]))
    for i, end in enumerate(step.ends()):
        keys.reshape(-1, head_dim)[window_slots(table, i, range(end, end + drafts), window_block_rows)] = STALE
    args: dict[str, Array | None] = {
        "q": q,
        "win_kv": keys,
        "sink": normal(rng, heads),
        "positions": step.positions,
        "req_idx": step.req_idx,
        "window_table": table,
    }
    if ratio:
        counts = [end // ratio for end in step.ends()]
        entry_table, num_blocks = block_tables(rng, [end // ratio for end in drafted.ends()], block_rows)
        rows = [entry_slots(entry_table, i, range(count), block_rows) for i, count in enumerate(counts)]
        slots = np.concatenate([np.zeros(0, np.int64), *rows])
        entries = filled_cache(rng, num_blocks, block_rows, head_dim, slots)
        for i, (count, end) in enumerate(zip(counts, drafted.ends(), strict=True)):
            entries.reshape(-1, head_dim)[entry_slots(entry_table, i, range(count, end // ratio), block_rows)] = STALE
        args |= {"cmp_kv": entries, "block_table": entry_table}
    if ratio and topk is not None:
        args["entries"] = chosen_entries(rng, step.positions, ratio, topk)
    return CaseInputs(args, {"window": window, "ratio": ratio, "scale": scale or head_dim**-0.5})


def case(name: str, kind: Any, requests: tuple[tuple[int, int], ...], padding: int = 0, **options: Any) -> Case:
    return Case(name, kind, lambda rng: inputs(rng, Step(requests, padding), **options))


def sinks(rng: Rng) -> CaseInputs:
    """Sinks that take nothing, everything, and would overflow if the maximum left them out."""
    made = inputs(rng, Step(((20, 5),)))
    return CaseInputs({**made.args, "sink": f32([-1e4, 1e4, 200, 0])}, made.attrs)


def views(rng: Rng) -> CaseInputs:
    made = inputs(rng, Step(((20, 5), (0, 3)), 1))
    return CaseInputs({name: None if array is None else strided(array) for name, array in made.args.items()}, made.attrs)


def far(rng: Rng, cache: str, table: str) -> CaseInputs:
    return far_away(rng, inputs(rng, Step(((20, 4), (37, 1)), 1)), **{cache: {"tables": (table,)}})


def large_keys(rng: Rng) -> CaseInputs:
    """Keys, which are values, of 1e15 under queries so small that scores are ordinary; all positive, so that no sum cancels."""
    made = scaled(inputs(rng, Step(((20, 5),))), 1e-15, "q")
    return changed(made, **{name: np.abs(f32(made.args[name])) * np.float32(1e15) for name in ("win_kv", "cmp_kv")})


def subnormals(rng: Rng, small: Small) -> CaseInputs:
    return changed(inputs(rng, Step(((20, 5),)), scale=small.factor), q=small.draw(rng, 5, 4, 32))


CASES = (
    case("csa", "typical", ((0, 40), (37, 5), (90, 1)), heads=8, head_dim=64),
    case("hca", "typical", ((0, 40), (37, 5), (90, 1)), ratio=16, topk=None),
    case("window-alone", "typical", ((0, 40), (37, 5)), ratio=0),
    case("decode-far", "typical", ((1000, 1), (517, 1)), ratio=4, topk=16, window=16),
    case("tokens-0", "boundary", ()),
    *(
        case(f"tokens-{n}", "boundary", ((0, n),), window=128, window_block_rows=64, heads=2)
        for n in (1, 3, 4, 5, 127, 128, 129)
    ),
    case("at-window-end", "boundary", ((127, 3),), ratio=128, topk=None, window=128, window_block_rows=32, heads=2),
    case("window-1", "boundary", ((0, 6),), window=1),
    case("rows-of-one-block", "boundary", ((9, 7),), window_block_rows=1, block_rows=1),
    case("many-entries", "boundary", ((250, 8), (509, 6)), topk=None, ratio=4),
    case("no-entries-yet", "boundary", ((0, 3),), topk=4),
    case("topk-beyond-entries", "boundary", ((10, 9),), topk=100),
    case("large", "hostile", ((20, 5),), scale=5.0),
    Case("sinks", "hostile", sinks),
    case("poisoned-padding", "hostile", ((6, 3), (0, 4)), 5),
    case("padding-alone", "hostile", (), 2),
    Case("half-large", "hostile", lambda rng: scaled(inputs(rng, Step(((20, 5),)), scale=1e-5), 1e4, "q"), ("float16",)),
    Case("views", "hostile", views),
    case("stale-rows", "hostile", ((20, 5), (0, 3), (37, 1)), drafts=4),
    case("stale-rows-all-entries", "hostile", ((20, 5), (0, 3), (37, 1)), 1, topk=None, drafts=9),
    Case("repeated", "hostile", lambda rng: replace(inputs(rng, Step(((20, 5),), 1)), later=({},))),
    Case("far-window", "hostile", lambda rng: far(rng, "win_kv", "window_table")),
    Case("far-entries", "hostile", lambda rng: far(rng, "cmp_kv", "block_table")),
    Case("large-keys", "hostile", large_keys),
    *subnormal_cases(subnormals),
)


def flat(position: int, sink: float, **more: Any) -> CaseInputs:
    """One head with query 0, so that every key weighs 1 and the sink e^sink. Keys 1, 2, 4, 8, 16, 32 at positions 0 to 5."""
    args: dict[str, Array | None] = {
        "q": np.zeros((1, 1, 1), dtype=np.float32),
        "win_kv": f32([[[1], [2], [4]], [[8], [16], [32]]]),
        "sink": f32([sink]),
        "positions": i32([position]),
        "req_idx": i32([0]),
        "window_table": i32([[0, 1]]),
    }
    return CaseInputs({**args, **more}, {"window": 3, "ratio": 2, "scale": 1.0})


EXPECTED = (
    ExpectedCase(
        "window",
        "specification: the window counts the token itself; keys of positions 3, 4, 5 and a sink of weight 1",
        lambda: flat(5, 0.0),
        {"o": f32([[[56 / 4]]])},
    ),
    ExpectedCase("short-window", "as above: positions 0 and 1", lambda: flat(1, 0.0), {"o": f32([[[3 / 3]]])}),
    ExpectedCase("sink", "as above, the sink weighs 5", lambda: flat(5, math.log(5)), {"o": f32([[[56 / 8]]])}),
    ExpectedCase(
        "all-entries",
        "specification: entry s is visible from position 2s + 1 on; at position 4 entries 0 and 1 besides keys 2, 3, 4",
        lambda: flat(4, 0.0, cmp_kv=f32([[[100], [200], [400]]]), block_table=i32([[0]])),
        {"o": f32([[[(28 + 300) / 6]]])},
    ),
    ExpectedCase(
        "chosen-entry",
        "as above, entry 1 alone is chosen",
        lambda: flat(5, 0.0, cmp_kv=f32([[[100], [200], [400]]]), block_table=i32([[0]]), entries=i32([[1, -1]])),
        {"o": f32([[[(56 + 200) / 5]]])},
    ),
    ExpectedCase(
        "scores",
        "by hand: q·k·scale are ln 2 and ln 6, a sink of weight 2 leaves 2/10 and 6/10; values are the keys. Padding gives 0",
        lambda: CaseInputs(
            {
                "q": f32([[[2 * math.log(2), 2 * math.log(6)]], [[np.nan, 1]]]),
                "win_kv": f32([[[1, 0], [0, 1]]]),
                "sink": f32([math.log(2)]),
                "positions": i32([1, -1]),
                "req_idx": i32([0, -1]),
                "window_table": i32([[0]]),
            },
            {"window": 4, "ratio": 0, "scale": 0.5},
        ),
        {"o": f32([[[0.2, 0.6]], [[0, 0]]])},
    ),
)
