# SPDX-License-Identifier: Apache-2.0
"""`compare ops`: any implementation of any operator, case by case, against goldens.

Two goldens per case. "float64" is the reference on the same inputs widened to float64. "specified" is an independent
computation that also rounds where the contract rounds (`accuracy.oracles`). Where rounding in mid-operator makes them two
answers, the first is shown without a verdict. Cases with an answer from elsewhere (EXPECTED of an operator) are judged by that
answer alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ascend_dsv4.accuracy.calls import (
    Arguments,
    Array,
    CaseCall,
    OutputCountError,
    answers,
    arguments,
    call_case,
    load_cases,
    load_expected,
    make_inputs,
    same_bits,
    to_numpy,
    types,
)
from ascend_dsv4.accuracy.choices import PAIRED, choice_scores, pair_with
from ascend_dsv4.accuracy.far import StrayWriteError
from ascend_dsv4.accuracy.figures import FORMATS, overflowed
from ascend_dsv4.accuracy.grids import GRIDS, grid_figures
from ascend_dsv4.accuracy.judging import OutputContext, judge_output
from ascend_dsv4.accuracy.results import OutputResult
from ascend_dsv4.ops.cases import Case, CaseInputs, ExpectedCase, resolve_attrs
from ascend_dsv4.ops.library import dtype_name, tensor_type
from ascend_dsv4.ops.registry import get_spec
from ascend_dsv4.ops.spec import EXACT, Implementation, OpSpec, Tolerance

FLOAT64, SPECIFIED, EXPECTED = "float64", "specified", "expected"
CALL_CHECKS = ("names", "types", "arguments", "alias", "repeat")
"""What is held against a call besides its values: number of outputs; shapes and dtypes; arguments left as they were; no output
in an argument's memory; the same bits when called again."""


@dataclass(frozen=True)
class PreparedCase:
    """A case in a dtype with its goldens, ready for any implementation."""

    op: str
    name: str
    kind: str
    dtype: str
    inputs: CaseInputs
    attrs: Mapping[str, Any]
    goldens: Mapping[str, Mapping[str, Array]]
    """Golden → output or written argument → value."""
    deciding: frozenset[str]
    """Goldens that give a verdict."""
    scores: Mapping[str, Array] = field(default_factory=dict)
    """Of choices, for ties."""
    tolerance: Tolerance | None = None
    """Instead of the operator's own."""
    seed: int = 0

    @property
    def spec(self) -> OpSpec:
        return get_spec(self.op)


def dtypes_of(name: str, case: Case) -> tuple[str, ...]:
    """Compute dtypes that a case runs in: its own, and float16 where the contract has a tolerance for it and inputs fit it."""
    spec = get_spec(name)
    may = "bfloat16" in case.dtypes and any(dtype == "float16" for _, dtype in spec.tol)
    return (*case.dtypes, "float16") if may and _fits_float16(spec, make_inputs(name, case)) else (*case.dtypes,)


def _fits_float16(spec: OpSpec, inputs: CaseInputs) -> bool:
    """Whether no finite number becomes infinite."""
    largest = FORMATS["float16"][2]
    for name, array in inputs.args.items():
        if array is not None and array.dtype == np.float32 and "float16" in spec.args[name].dtype:
            finite = np.abs(array[np.isfinite(array)])
            if bool((finite > largest).any()):
                return False
    return True


def prepare(name: str, case: Case, dtype: str, seed: int = 0) -> PreparedCase:
    """Inputs and both goldens of a case."""
    spec, inputs = get_spec(name), make_inputs(name, case, seed)
    tensors, attrs = arguments(spec, inputs, dtype), resolve_attrs(inputs, dtype)
    with np.errstate(all="ignore"):  # NaN in padding, powers that vanish
        specified = answers(name, inputs, dtype)
    widened = call_case(name, "reference", inputs, dtype, wide=True, far=False)
    unrounded = case.smooth and (dtype == "float32" or not spec.rounds_inside)
    return PreparedCase(
        name, case.name, case.kind, dtype, inputs, attrs,
        goldens={SPECIFIED: specified, FLOAT64: {out: to_numpy(tensor) for out, tensor in widened.items()}},
        deciding=frozenset((SPECIFIED, FLOAT64) if unrounded else (SPECIFIED,)),
        scores=choice_scores(name, tensors, attrs) if spec.choices else {},
        seed=seed,
    )  # fmt: skip


def prepare_expected(name: str, case: ExpectedCase) -> PreparedCase:
    """A case whose answer comes from elsewhere, in float32."""
    spec, inputs = get_spec(name), case.inputs()
    attrs = resolve_attrs(inputs, "float32")
    return PreparedCase(
        name, case.name, EXPECTED, "float32", inputs, attrs,
        goldens={EXPECTED: case.outs}, deciding=frozenset((EXPECTED,)), tolerance=case.tolerance,
        scores=choice_scores(name, arguments(spec, inputs, "float32"), attrs) if spec.choices else {},
    )  # fmt: skip


def prepared_cases(
    name: str, dtypes: Collection[str], wanted: Callable[[str], bool] = lambda case: True, seeds: Sequence[int] = (0,)
) -> Iterator[PreparedCase]:
    """Every case of an operator whose name is wanted, in every dtype it runs in, then the answers from elsewhere."""
    for case in load_cases(name):
        if wanted(case.name):
            for dtype in dtypes_of(name, case):
                if dtype in dtypes:
                    yield from (prepare(name, case, dtype, seed) for seed in seeds)
    if "float32" in dtypes:
        yield from (prepare_expected(name, case) for case in load_expected(name) if wanted(case.name))


def judge_case(
    prepared: PreparedCase,
    label: str,
    function: Implementation,
    *,
    standard: str = "tolerance",
    level: str = "L0",
    baseline: Implementation | None = None,
    without: Collection[str] = (),
) -> list[OutputResult]:
    """Call an implementation on a case and judge all outputs against all goldens.

    label     what results call the implementation
    baseline  for opbase-double: the implementation whose errors are the measure
    without   checks that are left out, of CALL_CHECKS or `ops.compare.CHECKS`
    raises    whatever the implementation raises
    """
    made = _case_call(prepared)
    before = {arg: tensor.clone() for arg, tensor in made.compact().items() if tensor is not None}
    try:
        outs = made.run(function, strict="names" not in without)
    except OutputCountError as error:
        return [_refused_call(prepared, label, standard, "names", str(error))]
    except StrayWriteError as error:
        return [_refused_call(prepared, label, standard, "arguments", str(error))]
    tensors = made.compact()
    problem = _call_problem(prepared, function, (made.tensors, tensors), before, outs, without)
    if problem is not None:
        return [_refused_call(prepared, label, standard, *problem)]
    theirs = {} if baseline is None else _case_call(prepared).run(baseline)
    results = []
    promised = zip(prepared.spec.outs, prepared.spec.infer(types(tensors), prepared.attrs), strict=True)
    dtypes = {out: dtype_name(tensor.dtype) for out, tensor in outs.items()} | {out: kind.dtype for out, kind in promised}
    for golden, values in prepared.goldens.items():
        for out in values:
            context = _context(prepared, label, golden, (out, dtypes[out]), outs, values, without)
            base = to_numpy(theirs[out]) if theirs else None
            if context.expected.size:  # otherwise there was only a shape to get right, which is checked
                results.append(judge_output(context, _defined(prepared, out, base), standard, level))
    return results


def _case_call(prepared: PreparedCase) -> CaseCall:
    return CaseCall(prepared.op, prepared.inputs, prepared.dtype)


def _context(
    prepared: PreparedCase,
    label: str,
    golden: str,
    output: tuple[str, str],
    outs: Mapping[str, Tensor],
    values: Mapping[str, Array],
    without: Collection[str],
) -> OutputContext:
    """Everything about one output, given by name and promised dtype, that a verdict needs."""
    out, dtype = output
    spec, expected, actual = prepared.spec, values[out], to_numpy(outs[out])
    ids = PAIRED.get((prepared.op, out))
    if ids is not None and actual.shape == expected.shape:
        actual = pair_with(to_numpy(outs[ids]), values[ids], actual, expected)
    if expected.dtype.kind == "f":
        tolerance = prepared.tolerance or spec.tol.get((out, dtype), EXACT)
        expected = _in_output_format(expected, dtype, exactly=tolerance == EXACT)
    else:
        tolerance = EXACT
    return OutputContext(
        op=prepared.op, implementation=label, dtype=prepared.dtype, case=prepared.name, kind=prepared.kind, output=out,
        golden=golden, decides=golden in prepared.deciding,
        actual=_required(prepared, out, actual), expected=_required(prepared, out, expected), output_dtype=dtype,
        tolerance=tolerance,
        allow_constant=prepared.kind not in ("typical", EXPECTED),  # hostile cases may well ask for a constant
        choice_gap=spec.choices.get(out),
        scores=_defined(prepared, out, prepared.scores.get(out)),
        figures=_grid_figures(prepared, out, actual, expected),
        without=without,
    )  # fmt: skip


def _grid_figures(prepared: PreparedCase, out: str, actual: Array, expected: Array) -> dict[str, float]:
    """Figures of the rows that were written to a cache on a grid; none for other outputs."""
    slots, rounding = prepared.inputs.args.get("slots"), str(prepared.attrs.get("rounding"))
    if out != "cache" or slots is None or rounding not in GRIDS or actual.shape != expected.shape:
        return {}
    written, tail = slots[slots >= 0], prepared.inputs.args.get("cos")
    rope_dim = prepared.attrs["rope_dim"] if tail is None else 2 * tail.shape[1]
    mine, right = (array.reshape(-1, array.shape[-1])[written] for array in (actual, expected))
    return grid_figures(mine, right, rounding, rope_dim)


def _in_output_format(golden: Array, dtype: str, *, exactly: bool) -> Array:
    """What operators that only move data must return; for others ∞ where the format ends."""
    if exactly and dtype in ("bfloat16", "float16"):
        return to_numpy(torch.from_numpy(np.ascontiguousarray(golden)).to(getattr(torch, dtype)))
    return overflowed(golden, dtype) if dtype in ("bfloat16", "float16") else golden


def _defined(prepared: PreparedCase, out: str, array: Array | None) -> Array | None:
    return None if array is None else _required(prepared, out, array)


def _required(prepared: PreparedCase, out: str, array: Array) -> Array:
    """The rows that the contract says anything about."""
    mask = prepared.inputs.defined.get(out)
    return array if mask is None or len(array) != len(mask) else array[mask]


def _call_problem(
    prepared: PreparedCase,
    function: Implementation,
    called: tuple[Arguments, Arguments],
    before: Mapping[str, Tensor],
    outs: Mapping[str, Tensor],
    without: Collection[str],
) -> tuple[str, str] | None:
    """(check, reason) of what is wrong with a call whatever its values; None if nothing is. `called`: arguments as they were
    given, and in the shapes of the case."""
    spec, (given, tensors) = prepared.spec, called
    for out in spec.outs:
        if not isinstance(outs[out], Tensor):
            return "types", f"{out} is a {type(outs[out]).__name__}, expected a tensor"
    if "types" not in without:
        for out, promised in zip(spec.outs, spec.infer(types(tensors), prepared.attrs), strict=True):
            if tensor_type(outs[out]) != promised:
                return "types", f"{out} is {tensor_type(outs[out])}, expected {promised}"
    if "arguments" not in without:
        for arg, tensor in tensors.items():
            if tensor is not None and arg not in spec.mutates and not same_bits(tensor, before[arg]):
                return "arguments", f"argument {arg} was overwritten; {spec.name} writes {', '.join(spec.mutates) or 'nothing'}"
    if "alias" not in without:
        memory = {t.untyped_storage().data_ptr(): arg for arg, t in given.items() if t is not None and t.numel()}
        for out in spec.outs:
            if outs[out].numel() and outs[out].untyped_storage().data_ptr() in memory:
                return "alias", f"{out} lies in the memory of {memory[outs[out].untyped_storage().data_ptr()]}"
    if "repeat" not in without:
        again = _case_call(prepared).run(function, strict="names" not in without)
        for out, tensor in again.items():
            first, second = (_required(prepared, out, to_numpy(t)) for t in (outs[out], tensor))
            if first.tobytes() != second.tobytes():
                return "repeat", f"{out} has other bits when the same call is made again"
    return None


def _refused_call(prepared: PreparedCase, label: str, standard: str, check: str, reason: str) -> OutputResult:
    return OutputResult(
        prepared.op, label, prepared.dtype, prepared.name, prepared.kind, "", SPECIFIED, standard, "fail", reason, check,
        ratio=float("inf"), num_elements=1,
    )  # fmt: skip
