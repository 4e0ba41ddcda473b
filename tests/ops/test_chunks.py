# SPDX-License-Identifier: Apache-2.0
"""compress_kv carries state from step to step: however the tokens of a request are cut into steps, and whoever else is in
them, its entries and its state are the same to the last bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from ascend_dsv4.accuracy.calls import call, same_bits
from ascend_dsv4.ops.cases import Step, f32, i32, normal

Chunks = Sequence[tuple[int, int]]
"""One step: which requests take how many tokens."""


@dataclass(frozen=True)
class Sizes:
    ratio: int
    head_dim: int
    rounding: str = "none"
    dtype: str = "float32"

    @property
    def width(self) -> int:
        return self.head_dim * (2 if self.ratio == 4 else 1)

    @property
    def smallest_state(self) -> int:
        return self.ratio * (2 if self.ratio == 4 else 1)


class Requests:
    """Projections of a few requests by position, and what all of them share."""

    def __init__(self, sizes: Sizes, lengths: Sequence[int]) -> None:
        rng = np.random.default_rng(3)
        self.sizes, self.lengths = sizes, lengths
        self.kv = [normal(rng, length, sizes.width) for length in lengths]
        self.gate = [normal(rng, length, sizes.width, scale=2) for length in lengths]
        self.ape, self.norm = normal(rng, sizes.ratio, sizes.width), normal(rng, sizes.head_dim)
        angles = rng.uniform(-3, 3, (max(lengths), 4))
        self.cos, self.sin = f32(np.cos(angles)), f32(np.sin(angles))


class Engine:
    """Caches for the requests, in which steps are run one after the other."""

    def __init__(self, requests: Requests, *, block_rows: int = 4, extra_state: int = 0, seed: int = 0) -> None:
        self.requests, self.block_rows = requests, block_rows
        sizes, rng = requests.sizes, np.random.default_rng(seed)
        self.blocks = max(requests.lengths) // sizes.ratio // block_rows + 1
        count = len(requests.lengths)
        self.table = rng.permutation(count * self.blocks).reshape(count, self.blocks)
        self.state_slots = i32(rng.permutation(count + 2)[:count])
        dtype = getattr(torch, sizes.dtype)
        self.cache = torch.full((count * self.blocks, block_rows, sizes.head_dim), torch.nan, dtype=dtype)
        self.state = torch.full((count + 2, sizes.smallest_state + extra_state, 2, sizes.width), torch.nan)
        self.done = [0] * count

    def step(self, chunks: Chunks, padding: int = 0) -> None:
        """Process these tokens; padding is poisoned."""
        r, ratio = self.requests, self.requests.sizes.ratio
        plan = Step(tuple((self.done[i], count) for i, count in chunks), padding)
        owners = np.array([i for i, count in chunks for _ in range(count)], dtype=int)
        at = plan.positions[: len(owners)]
        entry = at // ratio
        slot = self.table[owners, entry // self.block_rows] * self.block_rows + entry % self.block_rows
        slots = np.where((at + 1) % ratio == 0, slot, -1)
        poison = np.full((padding, r.sizes.width), np.nan, dtype=np.float32)
        rows = {
            "kv": [r.kv[i][p : p + 1] for i, p in zip(owners, at, strict=True)] + [poison],
            "gate": [r.gate[i][p : p + 1] for i, p in zip(owners, at, strict=True)] + [poison],
            "cos": [r.cos[at], poison[:, :4]],
            "sin": [r.sin[at], poison[:, :4]],
        }
        arrays = {name: np.concatenate(parts) for name, parts in rows.items()}
        arrays |= {"ape": r.ape, "norm": r.norm}
        arrays |= {"positions": plan.positions, "req_idx": plan.req_idx, "cu_query_lens": plan.cu_query_lens}
        arrays |= {"state_slots": self.state_slots[[i for i, _ in chunks]], "slots": i32([*slots, *[-1] * padding])}
        order = ("kv", "gate", "ape", "norm", "cos", "sin", "positions", "req_idx", "cu_query_lens", "state_slots", "slots")
        tensors: dict[str, Tensor | None] = {"cache": self.cache, "state": self.state}
        tensors |= {name: torch.from_numpy(arrays[name]) for name in order}
        attrs = {"ratio": ratio, "eps": 1e-6, "rounding": r.sizes.rounding, "entry_dtype": r.sizes.dtype}
        call("compress_kv", "reference", tensors, attrs)
        for i, count in chunks:
            self.done[i] += count

    def entries(self, request: int) -> Tensor:
        """All entries of a request so far, in order; what follows in its blocks must still be untouched."""
        rows = self.cache[torch.from_numpy(self.table[request])].flatten(0, 1)
        count = self.done[request] // self.requests.sizes.ratio
        assert bool(rows[count:].isnan().all()), "written past the last entry"
        return rows[:count]

    def state_rows(self, request: int) -> Tensor:
        """State rows of the last positions, oldest first."""
        rows = self.state[int(self.state_slots[request])]
        count = min(self.done[request], self.requests.sizes.smallest_state)
        positions = torch.arange(self.done[request] - count, self.done[request])
        return rows[positions % len(rows)]


def run_in_chunks(engine: Engine, chunk: int, length: int) -> None:
    while engine.done[0] < length:
        engine.step([(0, min(chunk, length - engine.done[0]))])


def assert_same(left: Engine, right: Engine, requests: Sequence[int] = (0,)) -> None:
    for request in requests:
        assert left.done[request] == right.done[request]
        assert same_bits(left.entries(request), right.entries(request)), f"entries of request {request}"
        assert same_bits(left.state_rows(request), right.state_rows(request)), f"state of request {request}"


SIZES = {
    "csa": Sizes(4, 24), "csa-fp8-512": Sizes(4, 512, "fp8"), "csa-index": Sizes(4, 128, "hadamard_fp4"),
    "csa-bf16": Sizes(4, 24, "none", "bfloat16"), "hca": Sizes(128, 24), "hca-fp8": Sizes(128, 72, "fp8"),
}  # fmt: skip


@pytest.fixture(params=SIZES, scope="module")
def sizes(request: pytest.FixtureRequest) -> Sizes:
    return SIZES[request.param]


@pytest.fixture(scope="module", params=[1, 2], ids=["1-thread", "2-threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("chunk", [1, 3, 4, 5, 127, 128, 129])
def test_chunks_equal_the_whole(sizes: Sizes, chunk: int, threads: int) -> None:
    """After 260 tokens, and still after 131 more: the state has to serve entries that are not closed yet."""
    requests = Requests(sizes, [391])
    whole, parts = Engine(requests), Engine(requests, block_rows=3, seed=1)
    whole.step([(0, 260)])
    run_in_chunks(parts, chunk, 260)
    assert_same(whole, parts)
    for engine in (whole, parts):
        engine.step([(0, 131)])
    assert_same(whole, parts)
    assert whole.entries(0).shape[0] == 391 // sizes.ratio
    assert not bool(whole.entries(0).isnan().any())


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5, 6, 7, 8, 9, 126, 127, 128, 129, 255, 256])
def test_a_cut_anywhere(sizes: Sizes, cut: int) -> None:
    requests = Requests(sizes, [270])
    whole, parts = Engine(requests), Engine(requests, extra_state=5, seed=2)
    whole.step([(0, 270)])
    parts.step([(0, cut)])
    parts.step([(0, 270 - cut)])
    assert_same(whole, parts)


def test_company_and_padding(sizes: Sizes) -> None:
    """Three requests interleaved, in changing order, with poisoned padding, against each one alone."""
    requests = Requests(sizes, [200, 137, 260])
    together = Engine(requests, seed=3)
    schedule: list[Chunks] = [
        [(0, 7), (1, 3)], [(2, 130), (1, 1), (0, 1)], [(1, 128), (0, 121)], [(0, 1), (2, 1), (1, 5)], [(2, 129), (0, 70)],
    ]  # fmt: skip
    for i, chunks in enumerate(schedule):
        together.step(chunks, padding=(0, 5, 1, 13, 2)[i])
    assert together.done == list(requests.lengths)
    for request, length in enumerate(requests.lengths):
        alone = Engine(requests, block_rows=5, seed=4)
        alone.step([(request, length)])
        assert_same(together, alone, [request])


def test_a_reused_state_slot_does_not_leak(sizes: Sizes) -> None:
    """A slot keeps the rows of the request that had it before; a new one must not see them, not even as NaN."""
    requests = Requests(sizes, [141])
    fresh, used = Engine(requests), Engine(requests, seed=5)
    used.state.fill_(1e30)
    for engine in (fresh, used):
        engine.step([(0, 5)])
        engine.step([(0, 136)])
    assert_same(fresh, used)


def test_rollback_is_a_length(sizes: Sizes) -> None:
    """Tokens that were processed and then rejected leave nothing behind, given state rows for as many."""
    requests = Requests(sizes, [270])
    straight, drafted = Engine(requests), Engine(requests, extra_state=6)
    wrong = Requests(sizes, [270])
    wrong.kv[0] = wrong.kv[0] + 1
    for start in (3, 124, 125, 250):
        drafted.requests = requests
        drafted.step([(0, start - drafted.done[0])])
        drafted.requests = wrong
        drafted.step([(0, 6)])
        drafted.done[0] = start
    drafted.requests = requests
    drafted.step([(0, 270 - drafted.done[0])])
    straight.step([(0, 270)])
    assert_same(straight, drafted)
