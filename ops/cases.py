# SPDX-License-Identifier: Apache-2.0
"""Named inputs for operators, and what builds them. Framework-free: numpy arrays with dtype names, so that every
implementation in every framework is tried on the same numbers.

`ops/<name>/cases.py` holds two tuples. CASES are inputs: each makes fresh arrays from a seeded generator. EXPECTED are inputs
with the right answer, taken from somewhere else than our code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ascend_dsv4.ops.spec import OpSpec, Tolerance

Array = NDArray[Any]
Rng = np.random.Generator

COMPUTE_DTYPE = "<compute dtype>"
"""Stands in `attrs` for the name of the dtype that a case runs in."""
TOKEN_COUNTS = (0, 1, 3, 4, 5, 127, 128, 129)
STALE = np.float32(7777.0)
"""What rows of rejected drafts hold in a case: finite, so that only their place keeps them out, and loud."""


@dataclass(frozen=True, slots=True)
class FarBlocks:
    """Where the blocks of a cache lie that is too large to be made: the case holds them side by side, with small ids.

    The answer is that of the small cache. An implementation is given one of `num_blocks` blocks, untouched but for these.
    """

    num_blocks: int
    ids: NDArray[np.int64]
    """[num_blocks of the small cache], no id twice."""
    tables: tuple[str, ...] = ()
    """Arguments that hold block ids, −1 for none."""
    slots: tuple[str, ...] = ()
    """Arguments that hold block · block_rows + row, −1 for none."""


@dataclass(frozen=True, slots=True)
class CaseInputs:
    """One call. Arguments may alias nothing; those that the operator mutates are written in place."""

    args: Mapping[str, Array | None]
    """By name. Optional arguments may be left out."""
    attrs: Mapping[str, Any] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    """Dtypes that do not follow from the array: float8_e4m3fn for uint8 codes, or a float argument that keeps its own."""
    defined: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    """Output → which rows (first axis) the contract says anything about; all of them where it is not named."""
    far: Mapping[str, FarBlocks] = field(default_factory=dict)
    """Cache argument → where its blocks lie. Whoever ignores this has a correct, small call."""
    later: tuple[Mapping[str, Array | None], ...] = ()
    """Further calls on what the first one left behind: what each is given anew; all else, caches above all, is as it was.
    Outputs are those of the last call."""


@dataclass(frozen=True, slots=True)
class Case:
    """A named input."""

    name: str
    kind: Literal["typical", "boundary", "hostile"]
    make: Callable[[Rng], CaseInputs]
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    """Compute dtypes to run in: see `arg_dtypes`."""
    smooth: bool = True
    """False where the operator rounds on its way, so that a last-bit difference may come out as a whole step."""


@dataclass(frozen=True, slots=True)
class ExpectedCase:
    """An input with its answer, in float32."""

    name: str
    source: str
    """Where the answer comes from."""
    inputs: Callable[[], CaseInputs]
    outs: Mapping[str, Array]
    """Output or mutated argument → its value."""
    tolerance: Tolerance | None = None
    """Instead of the operator's own."""


def arg_dtypes(spec: OpSpec, inputs: CaseInputs, dtype: str) -> dict[str, str | None]:
    """Dtype name of every argument when a case runs in `dtype`; None for those left out.

    float32 arrays take the compute dtype where the contract admits it, the rest keep what they have.
    """
    names: dict[str, str | None] = {}
    for name, arg in spec.args.items():
        array = inputs.args.get(name)
        if array is None:
            names[name] = None
        elif name in inputs.dtypes:
            names[name] = inputs.dtypes[name]
        else:
            names[name] = dtype if array.dtype == np.float32 and dtype in arg.dtype else str(array.dtype)
    return names


def resolve_attrs(inputs: CaseInputs, dtype: str) -> dict[str, Any]:
    """The attributes with the compute dtype filled in."""
    return {name: dtype if value == COMPUTE_DTYPE else value for name, value in inputs.attrs.items()}


def token_cases(
    make: Callable[[Rng, int], CaseInputs],
    counts: Sequence[int] = TOKEN_COUNTS,
    dtypes: tuple[str, ...] = ("float32", "bfloat16"),
    smooth: bool = True,
) -> tuple[Case, ...]:
    """The same case at awkward numbers of tokens."""

    def at(count: int) -> Callable[[Rng], CaseInputs]:
        return lambda rng: make(rng, count)

    return tuple(Case(f"tokens-{count}", "boundary", at(count), dtypes, smooth) for count in counts)


def f32(values: ArrayLike) -> NDArray[np.float32]:
    """A float32 array."""
    return np.array(values, dtype=np.float32)


def i32(values: ArrayLike) -> NDArray[np.int32]:
    """An int32 array."""
    return np.array(values, dtype=np.int32)


def normal(rng: Rng, *shape: int, scale: float = 1.0) -> NDArray[np.float32]:
    """Normally distributed float32 values."""
    return f32(rng.standard_normal(shape) * scale)


def strided(array: Array) -> Array:
    """The same values as a view into memory that holds NaN (−1 for integers) before, between and behind them: no axis is
    contiguous, and the view begins at an odd offset."""
    filler = np.nan if array.dtype.kind == "f" else np.array(-1).astype(array.dtype)
    room = np.full([*(size + 2 for size in array.shape[:-1]), 2 * array.shape[-1] + 2], filler, dtype=array.dtype)
    view = room[tuple(slice(1, size + 1) for size in array.shape[:-1])][..., 1 : 2 * array.shape[-1] + 1 : 2]
    view[...] = array
    return view


def all_strided(made: CaseInputs) -> CaseInputs:
    """The same call with every argument such a view."""
    return replace(made, args={name: None if array is None else strided(array) for name, array in made.args.items()})


def changed(made: CaseInputs, **args: Array | None) -> CaseInputs:
    """The same call with other arguments."""
    return replace(made, args={**made.args, **args})


def scaled(made: CaseInputs, factor: float, *names: str) -> CaseInputs:
    """The same call with these arguments multiplied."""
    return changed(made, **{name: f32(np.asarray(made.args[name]) * factor) for name in names})


def subnormal(rng: Rng, *shape: int) -> NDArray[np.float32]:
    """float32 numbers below 2^−126, the least normal one, of either sign; bfloat16 has them too, with fewer digits."""
    return f32(rng.uniform(0.01, 1, shape) * rng.choice([-1, 1], shape) * 2.0**-126)


def half_subnormal(rng: Rng, *shape: int) -> NDArray[np.float32]:
    """Numbers below 2^−14, the least normal one of float16, of either sign."""
    return f32(rng.uniform(0.01, 1, shape) * rng.choice([-1, 1], shape) * 2.0**-14)


@dataclass(frozen=True, slots=True)
class Small:
    """Subnormal numbers, and what makes them count: an implementation that takes them for 0 is to be seen in the outputs."""

    draw: Callable[..., NDArray[np.float32]]
    factor: float
    """Brings a product with such a number to the order of 1."""
    eps: float
    """For the root of a mean square, which itself is 0 in float32 …"""
    gain: float
    """… and what, times number / √eps, is of the order of 1."""


SMALL = {
    "subnormal": Small(subnormal, 2.0**124, 2.0**-120, 2.0**64),
    "half-subnormal": Small(half_subnormal, 2.0**12, 1e-12, 1.0),
}


def subnormal_cases(
    make: Callable[[Rng, Small], CaseInputs],
    dtypes: tuple[str, ...] = ("float32", "bfloat16"),
    half: bool = True,
    smooth: bool = True,
) -> tuple[Case, ...]:
    """A case with numbers that are subnormal in float32, and, with `half`, one with such as are in float16."""

    def of(small: Small) -> Callable[[Rng], CaseInputs]:
        return lambda rng: make(rng, small)

    single = Case("subnormal", "hostile", of(SMALL["subnormal"]), dtypes, smooth)
    name = "half-subnormal"
    return (single, *((Case(name, "hostile", of(SMALL[name]), ("float16",), smooth),) if half else ()))


def far_away(rng: Rng, made: CaseInputs, **caches: Mapping[str, tuple[str, ...]]) -> CaseInputs:
    """The same call with the blocks of these caches where an element's number no longer fits 31 bits, nor, in any dtype, a
    byte's 32 bits; cache argument → `tables` and `slots` as in FarBlocks."""
    far = {}
    for name, renumbered in caches.items():
        cache = made.args[name]
        assert cache is not None
        count, first = len(cache), 2**31 // cache[0].size + 1
        num_blocks = first + 5 * count + 3
        far[name] = FarBlocks(num_blocks, first + rng.permutation(num_blocks - first)[:count], **renumbered)
    return replace(made, far=far)


def nan_rows(array: Array, rows: Sequence[int] | slice) -> Array:
    """A copy in which these rows hold NaN: what padding may contain."""
    poisoned = array.copy()
    poisoned[rows] = np.nan
    return poisoned


def random_fp8(rng: Rng, *shape: int) -> NDArray[np.uint8]:
    """E4M3 codes of any sign and exponent but NaN."""
    codes = rng.integers(0, 127, shape) | rng.integers(0, 2, shape) << 7
    return codes.astype(np.uint8)


def random_fp4(rng: Rng, *shape: int) -> NDArray[np.int8]:
    """Bytes of two E2M1 codes each."""
    return rng.integers(-128, 128, shape).astype(np.int8)


def random_scales(rng: Rng, *shape: int, around: int = 122) -> NDArray[np.uint8]:
    """E8M0 bytes within two of `around`."""
    return rng.integers(around - 2, around + 3, shape).astype(np.uint8)


def random_factors(rng: Rng, *shape: int, around: float = 2.0**-9) -> NDArray[np.float32]:
    """float32 scales within a factor of two of `around`, no powers of two."""
    return f32(around * rng.uniform(0.5, 2, shape))


@dataclass(frozen=True, slots=True)
class Step:
    """The rows of one step: the first position and the number of tokens of each request, then padding."""

    requests: tuple[tuple[int, int], ...]
    padding: int = 0

    @property
    def num_tokens(self) -> int:
        return sum(count for _, count in self.requests) + self.padding

    @property
    def positions(self) -> NDArray[np.int32]:
        """[num_tokens], −1 in padding."""
        parts = [np.arange(start, start + count) for start, count in self.requests]
        return i32(np.concatenate([*parts, np.full(self.padding, -1)]))

    @property
    def req_idx(self) -> NDArray[np.int32]:
        """[num_tokens], −1 in padding."""
        parts = [np.full(count, i) for i, (_, count) in enumerate(self.requests)]
        return i32(np.concatenate([*parts, np.full(self.padding, -1)]))

    @property
    def cu_query_lens(self) -> NDArray[np.int32]:
        """[num_reqs + 1]."""
        return i32(np.cumsum([0, *(count for _, count in self.requests)]))

    @property
    def padding_rows(self) -> slice:
        return slice(self.num_tokens - self.padding, self.num_tokens)

    def ends(self) -> list[int]:
        """The position after each request's last token."""
        return [start + count for start, count in self.requests]


def block_tables(rng: Rng, rows: Sequence[int], block_rows: int) -> tuple[NDArray[np.int32], int]:
    """Tables for requests with that many rows each, and the number of blocks of the cache.

    Blocks are dealt out in random order; a table ends in −1, and one block belongs to nobody.
    """
    counts = [-(-count // block_rows) for count in rows]
    table = np.full((len(rows), max([0, *counts]) + 1), -1, dtype=np.int32)
    ids = rng.permutation(sum(counts) + 1)
    for i, count in enumerate(counts):
        table[i, :count], ids = ids[:count], ids[count:]
    return table, sum(counts) + 1


def window_tables(rng: Rng, step: Step, window: int, block_rows: int) -> tuple[NDArray[np.int32], int]:
    """Window tables: only blocks that the step's tokens can still see are live. As `block_tables` otherwise."""
    live = []
    for start, count in step.requests:
        first = max(0, start - window + 1) // block_rows
        live.append(range(first, -(-(start + count) // block_rows)))
    columns = max([1, *(len(blocks) for blocks in live)]) + 1
    table = np.full((len(live), columns), -1, dtype=np.int32)
    ids = iter(rng.permutation(sum(map(len, live)) + 1))
    for i, blocks in enumerate(live):
        for block in blocks:
            table[i, block % columns] = next(ids)
    return table, sum(map(len, live)) + 1


def filled_cache(
    rng: Rng, num_blocks: int, block_rows: int, width: int, slots: NDArray[np.int64], scale: float = 1.0
) -> NDArray[np.float32]:
    """A cache with random rows in these slots and NaN everywhere else: nothing else may be read."""
    cache = np.full((num_blocks * block_rows, width), np.nan, dtype=np.float32)
    cache[slots] = normal(rng, len(slots), width, scale=scale)
    return cache.reshape(num_blocks, block_rows, width)


def entry_slots(table: NDArray[np.int32], request: int, entries: ArrayLike, block_rows: int) -> NDArray[np.int64]:
    """Cache slots of these entries of a request."""
    at = np.asarray(entries, dtype=np.int64)
    return table[request, at // block_rows].astype(np.int64) * block_rows + at % block_rows


def chosen_entries(rng: Rng, positions: Array, ratio: int, topk: int) -> Array:
    """A random choice among the visible entries, ascending, then -1: what `index_topk` returns."""
    entries = np.full((len(positions), topk), -1, dtype=np.int32)
    for row, position in zip(entries, positions.tolist(), strict=True):
        visible = (position + 1) // ratio
        count = min(visible, topk)
        row[:count] = np.sort(rng.permutation(visible)[:count])
    return entries


def window_slots(table: NDArray[np.int32], request: int, positions: ArrayLike, block_rows: int) -> NDArray[np.int64]:
    """Cache slots of these positions of a request."""
    at = np.asarray(positions, dtype=np.int64)
    blocks = table[request, (at // block_rows) % table.shape[1]].astype(np.int64)
    return blocks * block_rows + at % block_rows
