# SPDX-License-Identifier: Apache-2.0
"""Runs a case on an implementation: numpy inputs to torch, outputs and written caches by name."""

from __future__ import annotations

import importlib
import importlib.util
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ascend_dsv4.ops import OP_NAMES
from ascend_dsv4.ops.cases import Case, CaseInputs, ExpectedCase, arg_dtypes, resolve_attrs
from ascend_dsv4.ops.compare import Comparison, compare
from ascend_dsv4.ops.library import dtype_name, tensor_type
from ascend_dsv4.ops.registry import IMPLEMENTATION_MODULES, get_implementation, get_spec
from ascend_dsv4.ops.spec import EXACT, OpSpec, TensorType, Tolerance

Array = np.ndarray[Any, np.dtype[Any]]


def cases(name: str) -> tuple[Case, ...]:
    """CASES of an operator."""
    return importlib.import_module(f"ascend_dsv4.ops.{name}.cases").CASES  # type: ignore[no-any-return]


def expected_cases(name: str) -> tuple[ExpectedCase, ...]:
    """EXPECTED of an operator."""
    return importlib.import_module(f"ascend_dsv4.ops.{name}.cases").EXPECTED  # type: ignore[no-any-return]


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
            for case in cases(name):
                dtypes = case.dtypes + (half if case.kind == "typical" and "bfloat16" in case.dtypes else ())
                yield from ((name, implementation, case, dtype) for dtype in dtypes)


def make(name: str, case: Case) -> CaseInputs:
    """The inputs of a case. The seed follows from its name, so that every test sees the same numbers."""
    return case.make(np.random.default_rng(zlib.crc32(f"{name}/{case.name}".encode())))


def to_torch(array: Array, dtype: str) -> Tensor:
    """A tensor with the strides of the array, in memory of its own."""
    source = torch.from_numpy(array)
    if dtype == "float8_e4m3fn" and array.dtype == np.uint8:
        return source.clone().view(torch.float8_e4m3fn)
    tensor = torch.empty_strided(source.shape, source.stride(), dtype=getattr(torch, dtype))
    return tensor.copy_(source)


def to_numpy(tensor: Tensor) -> Array:
    """The values in a type numpy has: 16-bit floats as float32, FP8 as its codes."""
    if tensor.dtype == torch.float8_e4m3fn:
        return tensor.view(torch.uint8).numpy().copy()
    narrow = tensor.dtype in (torch.bfloat16, torch.float16)
    return (tensor.float() if narrow else tensor).numpy().copy()


def arguments(spec: OpSpec, inputs: CaseInputs, dtype: str) -> dict[str, Tensor | None]:
    """Tensors of a call by argument name."""
    tensors: dict[str, Tensor | None] = {}
    for name, wanted in arg_dtypes(spec, inputs, dtype).items():
        array = inputs.args.get(name)
        tensors[name] = None if array is None or wanted is None else to_torch(array, wanted)
    return tensors


def wide_arguments(spec: OpSpec, inputs: CaseInputs) -> dict[str, Tensor | None]:
    """The same with every float tensor in float64, also where the contract has float32 alone."""
    tensors = arguments(spec, inputs, "float32")
    floats = (torch.float32, torch.bfloat16)
    return {name: t.double() if t is not None and t.dtype in floats else t for name, t in tensors.items()}


def types(tensors: dict[str, Tensor | None]) -> list[TensorType | None]:
    return [None if tensor is None else tensor_type(tensor) for tensor in tensors.values()]


def call(name: str, implementation: str, tensors: dict[str, Tensor | None], attrs: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs, and the arguments that were written, by name."""
    spec = get_spec(name)
    outs = get_implementation(name, implementation)(*tensors.values(), **attrs)
    outs = () if outs is None else outs if isinstance(outs, tuple) else (outs,)
    written = {name: tensors[name] for name in spec.mutates}
    return {**dict(zip(spec.outs, outs, strict=True)), **written}


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


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Equal bit for bit, so that -0 differs from 0 and a NaN equals itself."""
    return left.shape == right.shape and left.dtype == right.dtype and torch.equal(_bits(left), _bits(right))


def _bits(tensor: Tensor) -> Tensor:
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(integers[tensor.element_size()])
