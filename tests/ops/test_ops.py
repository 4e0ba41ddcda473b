# SPDX-License-Identifier: Apache-2.0
"""Every operator, case, dtype and implementation: against numpy oracles, float64, and answers from elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ascend_dsv4.accuracy.calls import (
    answers,
    arguments,
    call,
    call_case,
    load_cases,
    load_expected,
    make_inputs,
    to_numpy,
    types,
)
from ascend_dsv4.accuracy.oracles import ORACLES
from ascend_dsv4.ops import OP_NAMES
from ascend_dsv4.ops.cases import Case, ExpectedCase, resolve_attrs
from ascend_dsv4.ops.library import tensor_type
from ascend_dsv4.ops.registry import get_spec
from tests.ops.harness import check, compare_defined, every_case, implementations, run, tolerance

EVERY_CASE = list(every_case())
SMOOTH = [(name, case) for name in OP_NAMES for case in load_cases(name) if case.smooth and "float32" in case.dtypes]
CALLED = [(name, impl, case) for name in OP_NAMES for impl in implementations(name) for case in load_cases(name)]
EXPECTED = [(name, impl, case) for name in OP_NAMES for impl in implementations(name) for case in load_expected(name)]


def case_id(value: object) -> str:
    return value.name if isinstance(value, Case | ExpectedCase) else str(value)


@pytest.mark.parametrize(("name", "implementation", "case", "dtype"), EVERY_CASE, ids=case_id)
def test_matches_the_oracle(name: str, implementation: str, case: Case, dtype: str) -> None:
    """Shapes and dtypes are those of the contract, values those of an independent computation on the same inputs."""
    spec, inputs = get_spec(name), make_inputs(name, case)
    promised = spec.infer(types(arguments(spec, inputs, dtype)), resolve_attrs(inputs, dtype))
    actual = call_case(name, implementation, inputs, dtype)
    assert tuple(tensor_type(actual[out]) for out in spec.outs) == promised
    with np.errstate(all="ignore"):  # NaN in padding, powers that vanish
        check(name, inputs, actual, answers(name, inputs, dtype), case)


@pytest.mark.parametrize(("name", "implementation", "case"), CALLED, ids=case_id)
def test_arguments_stay_as_they_are(name: str, implementation: str, case: Case) -> None:
    """But for those that the contract has written."""
    spec, inputs = get_spec(name), make_inputs(name, case)
    for dtype in case.dtypes:
        tensors = arguments(spec, inputs, dtype)
        before = {arg: to_numpy(t).tobytes() for arg, t in tensors.items() if t is not None and arg not in spec.mutates}
        call(name, implementation, tensors, resolve_attrs(inputs, dtype))
        for arg, content in before.items():
            tensor = tensors[arg]
            assert tensor is not None
            assert to_numpy(tensor).tobytes() == content, f"{arg} was written"


@pytest.mark.parametrize(("name", "case"), SMOOTH, ids=case_id)
def test_float64_agrees(name: str, case: Case) -> None:
    """The reference follows the dtype of its inputs up to float64, and float32 is within the tolerance of that."""
    inputs = make_inputs(name, case)
    narrow = call_case(name, "reference", inputs, "float32")
    wide = call_case(name, "reference", inputs, "float32", wide=True, far=False)
    check(name, inputs, narrow, {out: to_numpy(tensor) for out, tensor in wide.items()}, case)


@pytest.mark.parametrize(("name", "implementation", "case"), EXPECTED, ids=case_id)
def test_expected(name: str, implementation: str, case: ExpectedCase) -> None:
    spec, inputs = get_spec(name), case.inputs()
    actual = run(name, inputs, "float32", implementation)
    for out, answer in case.outs.items():
        limit = case.tolerance or tolerance(spec, out, "float32" if answer.dtype.kind == "f" else "int32")
        result = compare_defined(inputs, out, actual[out], answer, limit, constant=False)
        assert result.passed, f"{out}: {result}\nexpected ({case.source}):\n{answer}\ngot:\n{actual[out]}"


@pytest.mark.parametrize("name", OP_NAMES)
def test_cases_are_complete(name: str) -> None:
    """Every operator has cases of each kind and at least one answer from elsewhere, and every output has a tolerance."""
    spec = get_spec(name)
    assert {case.kind for case in load_cases(name)} == {"typical", "boundary", "hostile"}
    assert len({case.name for case in load_cases(name)}) == len(load_cases(name))
    assert load_expected(name)
    assert set(spec.outs) | set(spec.mutates) == {out for case in load_expected(name) for out in case.outs}
    for case in load_expected(name):
        assert case.source
    for out, promise in spec.outs.items():
        if not promise.dtype.startswith("int"):
            assert any(of == out for of, _ in spec.tol)


@pytest.mark.parametrize("name", OP_NAMES)
def test_cases_are_reproducible(name: str) -> None:
    for case in load_cases(name):
        first, second = make_inputs(name, case), make_inputs(name, case)
        for arg, array in first.args.items():
            other = second.args[arg]
            assert (array is None and other is None) or np.array_equal(array, other, equal_nan=array.dtype.kind == "f")
            assert array is None or not np.shares_memory(array, other)


def test_oracles_cover_every_operator() -> None:
    assert sorted(ORACLES) == list(OP_NAMES)


def test_the_harness_keeps_strides_and_dtypes() -> None:
    """Views reach the operator as views, in each dtype."""
    view = next(case for case in load_cases("rms_norm") if case.name == "view")
    for dtype in ("float32", "bfloat16"):
        tensor = arguments(get_spec("rms_norm"), make_inputs("rms_norm", view), dtype)["x"]
        assert tensor is not None and not tensor.is_contiguous()
        assert tensor.dtype == getattr(torch, dtype)
