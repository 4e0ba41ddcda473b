# SPDX-License-Identifier: Apache-2.0
"""pool_kv and store_state carry projections from step to step: however the tokens of a request are cut into steps, and
whoever else is in them, its entries are the same to the last bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from ascend_dsv4.accuracy.calls import call, same_bits
from ascend_dsv4.ops.cases import Step, i32, normal

LENGTHS = (41, 30, 27)
Chunks = Sequence[tuple[int, int]]
"""One step: which requests take how many tokens."""


class Engine:
    """Requests with fixed projections, a state for them, and the entries that came out so far."""

    def __init__(self, ratio: int, width: int, *, extra_rows: int = 0, dtype: str = "float32", seed: int = 0) -> None:
        fixed = np.random.default_rng(3)
        self.rows = [normal(fixed, length, 2, width) for length in LENGTHS]
        self.ratio, self.dtype = ratio, dtype
        self.state_slots = np.random.default_rng(seed).permutation(len(LENGTHS) + 1)[: len(LENGTHS)]
        self.state = torch.full((len(LENGTHS) + 1, ratio + extra_rows, 2, width), torch.nan)
        self.done = [0] * len(LENGTHS)
        self.entries: list[dict[int, Tensor]] = [{} for _ in LENGTHS]

    def step(self, chunks: Chunks, padding: int = 0) -> None:
        """Process these tokens; padding is poisoned."""
        plan = Step(tuple((self.done[i], count) for i, count in chunks), padding)
        parts = [self.rows[i][self.done[i] : self.done[i] + count] for i, count in chunks]
        rows = np.concatenate([*parts, np.full((padding, *self.rows[0].shape[1:]), np.nan, dtype=np.float32)])
        arrays = (
            rows[:, 0].copy(), rows[:, 1].copy(), plan.positions, plan.req_idx, plan.cu_query_lens,
            i32(self.state_slots[[i for i, _ in chunks]]),
        )  # fmt: skip
        names = ("kv", "gate", "positions", "req_idx", "cu_query_lens", "state_slots")
        tensors: dict[str, Tensor | None] = {"state": self.state}
        tensors |= {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}
        entries = call("pool_kv", "reference", tensors, {"ratio": self.ratio, "entry_dtype": self.dtype})["entries"]
        call("store_state", "reference", tensors, {})
        owners = [i for i, count in chunks for _ in range(count)]
        for t, entry in enumerate(entries):
            position = int(plan.positions[t])
            if position >= 0 and (position + 1) % self.ratio == 0:
                self.entries[owners[t]][position // self.ratio] = entry
            else:
                assert same_bits(entry, torch.zeros_like(entry))
        for i, count in chunks:
            self.done[i] += count

    def all_entries(self, request: int) -> Tensor:
        """Entries of a request in order, none missing."""
        found = self.entries[request]
        assert sorted(found) == list(range(self.done[request] // self.ratio))
        return torch.stack([found[s] for s in sorted(found)])


@pytest.fixture(params=[(1, 24), (2, 24), (2, 512), (4, 7)], ids=lambda param: f"ratio-{param[0]}-width-{param[1]}")
def sizes(request: pytest.FixtureRequest) -> tuple[int, int]:
    found: tuple[int, int] = request.param
    return found


def whole(sizes: tuple[int, int], request: int = 0, dtype: str = "float32") -> Tensor:
    """Entries of a request that was processed alone and in one step."""
    engine = Engine(*sizes, dtype=dtype, seed=9)
    engine.step([(request, LENGTHS[request])])
    assert bool(engine.all_entries(request).isfinite().all())
    return engine.all_entries(request)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_chunks(sizes: tuple[int, int], chunk: int, dtype: str) -> None:
    engine = Engine(*sizes, dtype=dtype)
    while engine.done[0] < LENGTHS[0]:
        engine.step([(0, min(chunk, LENGTHS[0] - engine.done[0]))])
    assert same_bits(engine.all_entries(0), whole(sizes, dtype=dtype))


def test_company_and_padding(sizes: tuple[int, int]) -> None:
    """Three requests interleaved, in changing order, with poisoned padding, against each one alone."""
    together = Engine(*sizes, extra_rows=3, seed=1)
    schedule: list[Chunks] = [
        [(0, 7), (1, 3)], [(2, 13), (1, 1), (0, 1)], [(1, 20), (0, 32)], [(0, 1), (2, 1), (1, 6)], [(2, 13)],
    ]  # fmt: skip
    for i, chunks in enumerate(schedule):
        together.step(chunks, padding=(0, 5, 1, 3, 2)[i])
    assert together.done == list(LENGTHS)
    for request in range(len(LENGTHS)):
        assert same_bits(together.all_entries(request), whole(sizes, request))


def test_rollback_is_a_length(sizes: tuple[int, int]) -> None:
    """Drafted tokens that were rejected leave nothing behind, given state rows for as many; odd and even lengths."""
    engine = Engine(*sizes, extra_rows=6)
    for start in range(1, 35, 3):
        engine.step([(0, start - engine.done[0])])
        kept, right = dict(engine.entries[0]), engine.rows[0]
        engine.rows[0] = right + 1
        engine.step([(0, 6)])
        engine.rows[0], engine.done[0], engine.entries[0] = right, start, kept
    engine.step([(0, LENGTHS[0] - engine.done[0])])
    assert same_bits(engine.all_entries(0), whole(sizes))


def test_a_reused_state_slot_does_not_leak(sizes: tuple[int, int]) -> None:
    engine = Engine(*sizes)
    engine.state.fill_(1e30)
    engine.step([(0, 5)])
    engine.step([(0, 36)])
    assert same_bits(engine.all_entries(0), whole(sizes))
