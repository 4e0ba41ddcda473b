# SPDX-License-Identifier: Apache-2.0
"""Runs cases on implementations, and holds outputs against answers."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from ascend_dsv4.accuracy.calls import arguments, call, load_cases, to_numpy
from ascend_dsv4.ops import OP_NAMES
from ascend_dsv4.ops.cases import Case, CaseInputs, resolve_attrs
from ascend_dsv4.ops.compare import Comparison, compare
from ascend_dsv4.ops.library import dtype_name
from ascend_dsv4.ops.registry import IMPLEMENTATION_MODULES, get_spec
from ascend_dsv4.ops.spec import EXACT, OpSpec, Tolerance

Array = np.ndarray[Any, np.dtype[Any]]


def implementations(name: str) -> Iterator[str]:
    """Those that have a file in the operator's folder."""
    for implementation, module in IMPLEMENTATION_MODULES.items():
        if importlib.util.find_spec(f"ascend_dsv4.ops.{name}.{module}") is not None:
            yield implementation


def every_case() -> Iterator[tuple[str, str, Case, str]]:
    """(operator, implementation, case, dtype). Typical cases run in float16 too where the contract has a tolerance for it."""
    for name in OP_NAMES:
        half = ("float16",) if any(dtype == "float16" for _, dtype in get_spec(name).tol) else ()
        for implementation in implementations(name):
            for case in load_cases(name):
                dtypes = case.dtypes + (half if case.kind == "typical" and "bfloat16" in case.dtypes else ())
                yield from ((name, implementation, case, dtype) for dtype in dtypes)


def run(name: str, inputs: CaseInputs, dtype: str, implementation: str = "reference") -> dict[str, Tensor]:
    """Run one call in a compute dtype."""
    return call(name, implementation, arguments(get_spec(name), inputs, dtype), resolve_attrs(inputs, dtype))


def tolerance(spec: OpSpec, out: str, dtype: str) -> Tolerance:
    """The operator's tolerance of an output in this dtype; integers are exact."""
    return EXACT if dtype.startswith(("int", "uint")) else spec.tol[out, dtype]


def compare_defined(
    inputs: CaseInputs, out: str, actual: Tensor, expected: Array, limit: Tolerance, constant: bool
) -> Comparison:
    """Compare the rows that the contract says anything about."""
    mine = to_numpy(actual)
    assert mine.shape == expected.shape, f"{out}: shape {mine.shape}, expected {expected.shape}"
    mask = inputs.defined.get(out)
    if mask is not None:
        mine, expected = mine[mask], expected[mask]
    return compare(mine, expected, limit, allow_constant=constant)


def check(name: str, inputs: CaseInputs, actual: dict[str, Tensor], expected: dict[str, Array], case: Case) -> None:
    """Every output of a case within the operator's tolerance. Outputs without elements have only a shape to get right."""
    spec = get_spec(name)
    for out, answer in expected.items():
        limit = tolerance(spec, out, dtype_name(actual[out].dtype))
        # A hostile case may well ask for a constant; a typical one that does checks nothing.
        result = compare_defined(inputs, out, actual[out], answer, limit, constant=case.kind != "typical")
        assert result.passed or result.num_elements == 0, f"{name} {case.name} {out}: {result}"
