# SPDX-License-Identifier: Apache-2.0
"""Caches past 2^31 elements: no memory is used, the answer is that of the small cache, and offsets that wrap are noticed."""

from __future__ import annotations

import resource
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ascend_dsv4.accuracy.calls import answers, call_case, load_cases, make_inputs, same_bits, to_numpy
from ascend_dsv4.accuracy.far import (
    StrayWriteError,
    check_strays,
    far_arguments,
    gather_back,
    renumbered,
    stray_blocks,
    untouched,
)
from ascend_dsv4.accuracy.operators import SPECIFIED, judge_case, prepare
from ascend_dsv4.errors import CapacityError
from ascend_dsv4.ops import OP_NAMES
from ascend_dsv4.ops.cases import Case, CaseInputs, FarBlocks
from ascend_dsv4.ops.compare import compare, compare_sets
from ascend_dsv4.ops.registry import get_implementation, get_spec
from ascend_dsv4.ops.spec import EXACT

FAR = [(name, case) for name in OP_NAMES for case in load_cases(name) if make_inputs(name, case).far]
LAST_GOOD_BLOCK = 29_077
"""Where an index cache in use elsewhere began to wrap."""
COUNTERS = {"elements in int32": (False, 32, True), "bytes in int32": (True, 32, True), "bytes in uint32": (True, 32, False)}
"""What a kernel counts in → whether bytes, in how many bits, with a sign."""


def case_id(value: object) -> str:
    return value.name if isinstance(value, Case) else str(value)


@pytest.mark.parametrize(("name", "case"), FAR, ids=case_id)
def test_the_answer_is_that_of_the_small_cache(name: str, case: Case) -> None:
    inputs = make_inputs(name, case)
    for dtype in case.dtypes:
        far, small = call_case(name, "reference", inputs, dtype), call_case(name, "reference", inputs, dtype, far=False)
        assert all(same_bits(far[out], small[out]) for out in small)
    assert all(place.ids.min() > LAST_GOOD_BLOCK for place in inputs.far.values())


def test_no_memory_is_used() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, case in FAR:
        call_case(name, "reference", make_inputs(name, case), "float32")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


def wrapped(block: int, cache: Tensor, counter: str) -> int:
    """The block that a kernel with this counter finds, modulo the size of the cache."""
    by_bytes, bits, signed = COUNTERS[counter]
    unit, elements = cache.dtype.itemsize if by_bytes else 1, cache[0].numel()
    offset = block * elements * unit % (1 << bits)
    if signed and offset >> bits - 1:
        offset -= 1 << bits
    return offset // unit % cache.numel() // elements


def with_counter(name: str, inputs: CaseInputs, counter: str) -> Any:
    """The reference with tables and slots changed to where such a counter would lead it."""
    spec, reference = get_spec(name), get_implementation(name, "reference")

    def implementation(*tensors: Tensor, **attrs: Any) -> Any:
        given = dict(zip(spec.args, tensors, strict=True))
        for name, place in inputs.far.items():
            cache = given[name]
            rows = cache.shape[1]
            for arg in place.tables:
                given[arg] = given[arg].clone().apply_(lambda b, cache=cache: wrapped(b, cache, counter) if b >= 0 else b)
            for arg in place.slots:
                given[arg] = (
                    given[arg]
                    .clone()
                    .apply_(
                        lambda s, cache=cache, rows=rows: wrapped(s // rows, cache, counter) * rows + s % rows if s >= 0 else s
                    )
                )
        return reference(*given.values(), **attrs)

    return implementation


@pytest.mark.parametrize("counter", COUNTERS)
@pytest.mark.parametrize(("name", "case"), FAR, ids=case_id)
def test_wrapped_offsets_are_noticed(name: str, case: Case, counter: str) -> None:
    """In every dtype: a stray write, or an output outside the operator's tolerance."""
    inputs = make_inputs(name, case)
    for dtype in case.dtypes:
        try:
            actual = call_case(name, with_counter(name, inputs, counter), inputs, dtype)
        except StrayWriteError:
            continue
        with np.errstate(all="ignore"):
            expected = answers(name, inputs, dtype)
        assert not all(agree(name, out, actual[out], expected[out]) for out in expected), dtype


@pytest.mark.parametrize(("name", "case"), FAR, ids=case_id)
def test_they_are_noticed_by_the_comparison(name: str, case: Case) -> None:
    """`compare ops` calls implementations with far caches, not with the small ones, where the counter would do no harm."""
    prepared, reference = prepare(name, case, "float32"), get_implementation(name, "reference")
    assert all(result.passed for result in judge_case(prepared, "reference", reference))
    wrong = with_counter(name, prepared.inputs, "elements in int32")
    assert not all(result.passed for result in judge_case(prepared, "wrong", wrong))


def test_a_case_of_several_calls() -> None:
    """An implementation is called once per step, on the caches that the step before left, and judged by the last."""
    case = next(case for case in load_cases("store_state") if case.name == "decode-after-prefill")
    prepared, seen = prepare("store_state", case, "float32"), []

    def forgets_the_third(state: Tensor, *given: Tensor) -> None:
        seen.append((state.data_ptr(), int(given[2].max())))
        if len(seen) % 5 != 3:
            get_implementation("store_state", "reference")(state, *given)

    results = judge_case(prepared, "forgetful", forgets_the_third, without=("repeat",))
    assert [position for _, position in seen] == [16, 17, 18, 19, 20] and len({state for state, _ in seen}) == 1
    assert {result.status for result in results if result.golden == SPECIFIED} == {"fail"}


def agree(name: str, out: str, actual: Tensor, expected: np.ndarray[Any, Any]) -> bool:
    if expected.dtype.kind == "i":
        return compare_sets(to_numpy(actual), expected).passed
    limit = get_spec(name).tol.get((out, str(actual.dtype).removeprefix("torch.")), EXACT)
    return compare(to_numpy(actual), expected, limit, allow_constant=True).passed


FIRST = (1 << 31) // 8
PLACE = FarBlocks(FIRST + 40, np.array([FIRST + 30, FIRST + 3]), ("table",), ("slots",))
"""Blocks of eight elements."""


def test_renumbering() -> None:
    cache = torch.arange(16.0).view(2, 4, 2)
    table, slots = torch.tensor([[1, -1], [0, 1]], dtype=torch.int32), torch.tensor([0, 7, -1], dtype=torch.int32)
    small: dict[str, Tensor | None] = {"cache": cache, "table": table, "slots": slots, "other": torch.tensor([1])}
    far = {name: tensor for name, tensor in far_arguments({"cache": PLACE}, small).items() if tensor is not None}
    first, second = PLACE.ids.tolist()
    assert far["cache"].shape == (PLACE.num_blocks, 4, 2)
    assert far["table"].tolist() == [[second, -1], [first, second]]
    assert far["slots"].tolist() == [4 * first, 4 * second + 3, -1]
    assert far["slots"].dtype == torch.int32 and far["other"] is small["other"]
    assert torch.equal(gather_back(PLACE, far["cache"]), cache)
    assert renumbered({"cache": PLACE}, small, {"other": small["other"]}) == {"other": small["other"]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stray_writes(dtype: torch.dtype) -> None:
    """Blocks beside the call's and where its offsets wrap to; NaN counts as written."""
    cache = untouched((PLACE.num_blocks, 4, 2), dtype)
    cache[torch.from_numpy(PLACE.ids)] = 1
    assert stray_blocks(PLACE, cache) == []
    for block in (3, 30, int(PLACE.ids[0]) + 1, int(PLACE.ids[1]) - 1):
        cache[block, 3, 1] = torch.nan
        assert stray_blocks(PLACE, cache) == [block]
        with pytest.raises(StrayWriteError, match=f"store_kv cache: blocks .{block}. were written, expected zeros there"):
            check_strays("store_kv cache", PLACE, cache)
        cache[block] = 0


def test_too_large_for_the_system() -> None:
    with pytest.raises(CapacityError, match="far cache of .* no mapping of .* bytes"):
        untouched((1 << 60,), torch.float32)
