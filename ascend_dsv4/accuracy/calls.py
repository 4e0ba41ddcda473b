# SPDX-License-Identifier: Apache-2.0
"""From a case to a call and back: numpy inputs to torch tensors, one call, outputs and written caches by name."""

from __future__ import annotations

import importlib
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ascend_dsv4.ops.cases import Case, CaseInputs, ExpectedCase, arg_dtypes
from ascend_dsv4.ops.library import tensor_type
from ascend_dsv4.ops.registry import get_implementation, get_spec
from ascend_dsv4.ops.spec import Implementation, OpSpec, TensorType

Array = np.ndarray[Any, np.dtype[Any]]
Arguments = dict[str, Tensor | None]
"""Tensors of a call by argument name, in contract order."""


def load_cases(name: str) -> tuple[Case, ...]:
    """CASES of an operator."""
    return importlib.import_module(f"ascend_dsv4.ops.{name}.cases").CASES  # type: ignore[no-any-return]


def load_expected(name: str) -> tuple[ExpectedCase, ...]:
    """EXPECTED of an operator."""
    return importlib.import_module(f"ascend_dsv4.ops.{name}.cases").EXPECTED  # type: ignore[no-any-return]


def make_inputs(name: str, case: Case, seed: int = 0) -> CaseInputs:
    """The inputs of a case. What is drawn follows from the names and the seed, so that everybody sees the same numbers."""
    key = zlib.crc32(f"{name}/{case.name}".encode())
    return case.make(np.random.default_rng([key, seed] if seed else key))


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


def arguments(spec: OpSpec, inputs: CaseInputs, dtype: str) -> Arguments:
    """Tensors of a call in a compute dtype."""
    tensors: Arguments = {}
    for name, wanted in arg_dtypes(spec, inputs, dtype).items():
        array = inputs.args.get(name)
        tensors[name] = None if array is None or wanted is None else to_torch(array, wanted)
    return tensors


def wide_arguments(spec: OpSpec, inputs: CaseInputs, dtype: str = "float32") -> Arguments:
    """What `arguments` gives, then every float tensor in float64, also where the contract has float32 alone."""
    floats = (torch.float32, torch.bfloat16, torch.float16)
    tensors = arguments(spec, inputs, dtype)
    return {name: t.double() if t is not None and t.dtype in floats else t for name, t in tensors.items()}


def types(tensors: Arguments) -> list[TensorType | None]:
    """Shapes and dtypes for `OpSpec.infer`."""
    return [None if tensor is None else tensor_type(tensor) for tensor in tensors.values()]


class OutputCountError(ValueError):
    """An implementation returned more or fewer outputs than the contract has."""


def call(
    name: str, implementation: str | Implementation, tensors: Arguments, attrs: dict[str, Any], *, strict: bool = True
) -> dict[str, Tensor]:
    """Outputs, and the arguments that were written, by name. raises OutputCountError, unless not `strict`"""
    spec = get_spec(name)
    function = get_implementation(name, implementation) if isinstance(implementation, str) else implementation
    outs = function(*tensors.values(), **attrs)
    outs = () if outs is None else tuple(outs) if isinstance(outs, tuple | list) else (outs,)
    if strict and len(outs) != len(spec.outs):
        raise OutputCountError(f"{len(outs)} outputs, expected {len(spec.outs)}: {', '.join(spec.outs) or 'None'}")
    written = {arg: tensors[arg] for arg in spec.mutates}
    return {**dict(zip(spec.outs, outs, strict=False)), **written}


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Equal bit for bit, so that -0 differs from 0 and a NaN equals itself."""
    return left.shape == right.shape and left.dtype == right.dtype and torch.equal(_bits(left), _bits(right))


def _bits(tensor: Tensor) -> Tensor:
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(integers[tensor.element_size()])
