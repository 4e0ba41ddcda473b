# SPDX-License-Identifier: Apache-2.0
"""Every kernel in the twin: all cases of its operator within the operator's tolerances, whatever the cores and the schedule."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch import Tensor

from ascend_dsv4.accuracy.calls import CaseCall, load_cases, load_expected, make_inputs, same_bits
from ascend_dsv4.accuracy.operators import PreparedCase, judge_case, prepare, prepare_expected
from ascend_dsv4.accuracy.operators import dtypes_of as case_dtypes
from ascend_dsv4.ops import OP_NAMES
from ascend_dsv4.ops.cases import Case, ExpectedCase
from ascend_dsv4.ops.registry import dtypes_of, get_implementation
from ascend_dsv4.twin.kernel_library import KERNELS, settings

IMPLEMENTATION = "ascendc-twin"
OPS = [op for op in OP_NAMES if (KERNELS / op).is_dir()]
CASES = [
    pytest.param(op, case, dtype, id=f"{op}-{case.name}-{dtype}")
    for op in OPS
    for case in load_cases(op)
    for dtype in case_dtypes(op, case)
    if dtype in dtypes_of(op, IMPLEMENTATION)
]
EXPECTED = [
    pytest.param(op, case, id=f"{op}-{case.name}")
    for op in OPS
    for case in load_expected(op)
    if "float32" in dtypes_of(op, IMPLEMENTATION)
]
CORES = (1, 3, 20, 24, 40)
SEEDS = 20


def check(prepared: PreparedCase) -> None:
    results = judge_case(prepared, IMPLEMENTATION, get_implementation(prepared.op, IMPLEMENTATION))
    wrong = [f"{r.output} against {r.golden}: {r.reason}" for r in results if r.status in ("fail", "refused")]
    assert not wrong, "; ".join(wrong)
    assert results or not any(golden.size for values in prepared.goldens.values() for golden in values.values())


@pytest.mark.parametrize(("op", "case", "dtype"), CASES)
def test_case(op: str, case: Case, dtype: str) -> None:
    check(prepare(op, case, dtype))


@pytest.mark.parametrize(("op", "case"), EXPECTED)
def test_expected(op: str, case: ExpectedCase) -> None:
    check(prepare_expected(op, case))


def outputs(op: str, case: Case, dtype: str, **changes: int) -> dict[str, Tensor]:
    with settings(**changes):
        return CaseCall(op, make_inputs(op, case), dtype).run(IMPLEMENTATION)


def assert_same_everywhere(op: str, case: Case, dtype: str, schedules: Iterator[tuple[int, int]]) -> None:
    """The same bits for each seed and number of vector cores; rows that the contract leaves undefined are left out."""
    defined = make_inputs(op, case).defined
    wanted = outputs(op, case, dtype, seed=99, vector_cores=2)
    for seed, cores in schedules:
        actual = outputs(op, case, dtype, seed=seed, vector_cores=cores, yield_one_in=(0, 4, 16)[seed % 3])
        for out, tensor in wanted.items():
            keep = defined.get(out)
            left, right = (tensor, actual[out]) if keep is None else (tensor[keep], actual[out][keep])
            assert same_bits(left, right), f"{out}: seed {seed}, {cores} cores"


@pytest.mark.parametrize("op", OPS)
def test_schedules(op: str) -> None:
    """The first case of an operator, which is an ordinary one, on every number of cores."""
    case = load_cases(op)[0]
    dtype = next(d for d in ("bfloat16", "float32") if d in case_dtypes(op, case) and d in dtypes_of(op, IMPLEMENTATION))
    assert_same_everywhere(op, case, dtype, iter(enumerate(CORES)))


@pytest.mark.slow
@pytest.mark.parametrize(("op", "case", "dtype"), CASES)
def test_every_case_in_every_schedule(op: str, case: Case, dtype: str) -> None:
    """20 seeds, four for each number of cores."""
    assert_same_everywhere(op, case, dtype, ((seed, CORES[seed % len(CORES)]) for seed in range(SEEDS)))
