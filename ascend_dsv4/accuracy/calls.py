# SPDX-License-Identifier: Apache-2.0
"""From a case to a call and back: numpy inputs to torch tensors, one call, outputs and written caches by name."""

from __future__ import annotations

import importlib
import traceback
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ascend_dsv4.accuracy.far import check_strays, far_arguments, gather_back, renumbered
from ascend_dsv4.accuracy.oracles import ORACLES
from ascend_dsv4.ops.cases import Case, CaseInputs, ExpectedCase, arg_dtypes, resolve_attrs
from ascend_dsv4.ops.library import tensor_type
from ascend_dsv4.ops.registry import FOREIGN_ERRORS, get_implementation, get_spec
from ascend_dsv4.ops.spec import Implementation, OpSpec, TensorType

Array = np.ndarray[Any, np.dtype[Any]]
Arguments = dict[str, Tensor | None]
"""Tensors of a call by argument name, in contract order."""
CALL_ERRORS = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
"""What a call may raise that could not be made or judged; anything else is a mistake of ours."""


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
    """A tensor with the strides of the array, in memory of its own. A view into more memory stays one: a copy of all of it, so
    that offset and neighbours reach the operator too."""
    room = _room(array)
    if room is not None:
        at = (array.__array_interface__["data"][0] - room.__array_interface__["data"][0]) // array.itemsize
        strides = [stride // array.itemsize for stride in array.strides]
        return to_torch(room.copy(), dtype).as_strided(array.shape, strides, at)
    source = torch.from_numpy(array)
    if dtype == "float8_e4m3fn" and array.dtype == np.uint8:
        return source.clone().view(torch.float8_e4m3fn)
    tensor = torch.empty_strided(source.shape, source.stride(), dtype=getattr(torch, dtype))
    return tensor.copy_(source)


def _room(array: Array) -> Array | None:
    """All the memory that a view lies in, as a row of numbers of its dtype; None for an array that fills its memory."""
    base: Any = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    if array.size == 0 or base.size == array.size or base.dtype != array.dtype or not base.flags.forc:
        return None
    return base.ravel(order="K")  # type: ignore[no-any-return]


def to_numpy(tensor: Tensor) -> Array:
    """The values in a type numpy has: 16-bit floats as float32, FP8 as its codes."""
    if tensor.dtype == torch.float8_e4m3fn:
        return tensor.view(torch.uint8).numpy().copy()
    tensor = tensor.detach().resolve_conj().resolve_neg()  # numpy has neither gradients nor lazy signs
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


class ImplementationError(RuntimeError):
    """An implementation raised something that is none of CALL_ERRORS, be it an exit."""


def call(
    name: str, implementation: str | Implementation, tensors: Arguments, attrs: dict[str, Any], *, strict: bool = True
) -> dict[str, Tensor]:
    """Outputs, and the arguments that were written, by name.

    Raises one of CALL_ERRORS whatever the implementation raises; OutputCountError unless not `strict`.
    """
    spec = get_spec(name)
    function = get_implementation(name, implementation) if isinstance(implementation, str) else implementation
    try:
        outs = function(*tensors.values(), **attrs)
    except CALL_ERRORS:
        raise
    except FOREIGN_ERRORS as error:
        raise ImplementationError(f"it raised {type(error).__name__}: {error}") from error
    outs = () if outs is None else tuple(outs) if isinstance(outs, tuple | list) else (outs,)
    if strict and len(outs) != len(spec.outs):
        raise OutputCountError(f"{len(outs)} outputs, expected {len(spec.outs)}: {', '.join(spec.outs) or 'None'}")
    written = {arg: tensors[arg] for arg in spec.mutates}
    return {**dict(zip(spec.outs, outs, strict=False)), **written}


class CaseCall:
    """A case in a compute dtype with caches of its own: all calls that it is made of, once."""

    def __init__(self, name: str, inputs: CaseInputs, dtype: str, *, wide: bool = False, far: bool = True) -> None:
        """wide: every float in float64 after it was rounded to the compute dtype: what a golden is computed from.
        far: False leaves the blocks of a far cache side by side, in as little memory; the answer is the same."""
        self.name, self.spec, self.inputs = name, get_spec(name), inputs
        self.attrs = resolve_attrs(inputs, "float64" if wide else dtype)
        make = wide_arguments if wide else arguments
        self._places = inputs.far if far else {}
        self._small = make(self.spec, inputs, dtype)
        self.tensors = far_arguments(self._places, self._small)
        """What the implementation is given in its first call."""
        self._later = []
        for changed in inputs.later:
            given = make(self.spec, replace(inputs, args=changed), dtype)
            self._later.append(renumbered(self._places, self._small, {arg: given[arg] for arg in changed}))

    def run(self, implementation: str | Implementation, *, strict: bool = True) -> dict[str, Tensor]:
        """Outputs of the last call and the written caches, by name, in the shapes that the case has.

        Raises StrayWriteError where a far cache was written outside its blocks; `strict` as for `call`.
        """
        tensors = dict(self.tensors)
        outs = call(self.name, implementation, tensors, self.attrs, strict=strict)
        for changed in self._later:
            tensors |= changed
            outs = call(self.name, implementation, tensors, self.attrs, strict=strict)
        for arg in self._places:
            check_strays(f"{self.name} {arg}", self._places[arg], tensors[arg])
        return {**outs, **{arg: self._compact(arg, outs[arg]) for arg in self.spec.mutates}}

    def compact(self) -> Arguments:
        """Arguments of the first call, far caches in the shapes that the case has."""
        return {arg: None if tensor is None else self._compact(arg, tensor) for arg, tensor in self.tensors.items()}

    def _compact(self, arg: str, tensor: Tensor) -> Tensor:
        return gather_back(self._places[arg], tensor) if arg in self._places else tensor


def call_case(
    name: str, implementation: str | Implementation, inputs: CaseInputs, dtype: str, *, wide: bool = False, far: bool = True
) -> dict[str, Tensor]:
    """`CaseCall` for those who need its outputs alone."""
    return CaseCall(name, inputs, dtype, wide=wide, far=far).run(implementation)


def answers(name: str, inputs: CaseInputs, dtype: str) -> dict[str, Array]:
    """What the oracle says to a case in a compute dtype, with the very numbers an implementation gets: float64 throughout."""
    spec, attrs = get_spec(name), resolve_attrs(inputs, dtype)
    arrays = _wide_arrays(arguments(spec, inputs, dtype))
    outs = ORACLES[name](arrays, attrs, dtype)
    for changed in inputs.later:
        given = _wide_arrays(arguments(spec, replace(inputs, args=changed), dtype))
        arrays |= {arg: given[arg] for arg in changed} | {arg: outs[arg] for arg in spec.mutates}
        outs = ORACLES[name](arrays, attrs, dtype)
    return outs


def _wide_arrays(tensors: Arguments) -> dict[str, Array | None]:
    arrays = {arg: None if tensor is None else to_numpy(tensor) for arg, tensor in tensors.items()}
    return {arg: a.astype(np.float64) if a is not None and a.dtype.kind == "f" else a for arg, a in arrays.items()}


def told(error: BaseException, spec: OpSpec) -> str:
    """What an implementation raised, with the place in its file; how it is called, if it did not even begin."""
    if isinstance(error, ImplementationError) and error.__cause__ is not None:
        error = error.__cause__
    frames = traceback.extract_tb(error.__traceback__)
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, TypeError) and (not frames or Path(frames[-1].filename).parent == Path(__file__).parent):
        attrs = f", *, {', '.join(spec.attrs)}" if spec.attrs else ""
        return f"{message}; it is called as {spec.name}({', '.join(spec.args)}{attrs})"
    return f"{message} ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else message


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Equal bit for bit, so that -0 differs from 0 and a NaN equals itself."""
    return left.shape == right.shape and left.dtype == right.dtype and torch.equal(_bits(left), _bits(right))


def _bits(tensor: Tensor) -> Tensor:
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(integers[tensor.element_size()])
