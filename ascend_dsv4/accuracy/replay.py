# SPDX-License-Identifier: Apache-2.0
"""`compare replay`: recorded calls made again, by the implementation that made them or by another.

The same implementation has to give the recorded bits, on as many threads as then. Another one is judged by the operator's
tolerance, against what was recorded and against the reference on the same arguments in float64.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ascend_dsv4.accuracy.calls import CALL_ERRORS, Arguments, Array, call, same_bits, to_numpy, told
from ascend_dsv4.accuracy.capsule import RecordedCall, processor, versions
from ascend_dsv4.accuracy.capsule_reading import Capsule, open_capsule
from ascend_dsv4.accuracy.choices import PAIRED, choice_scores, pair_with
from ascend_dsv4.accuracy.environment import environment
from ascend_dsv4.accuracy.figures import overflowed
from ascend_dsv4.accuracy.judging import OutputContext, judge_output
from ascend_dsv4.accuracy.results import CaseError, OutputResult, Report
from ascend_dsv4.accuracy.stored_tensors import changed_rows
from ascend_dsv4.errors import CapsuleError, ConfigError
from ascend_dsv4.ops.compare import is_constant
from ascend_dsv4.ops.library import dtype_name
from ascend_dsv4.ops.registry import IMPLEMENTATION_MODULES, get_implementation, get_spec
from ascend_dsv4.ops.spec import EXACT, Implementation

RECORDED, FLOAT64 = "recorded", "float64"
BITS, TOLERANCE = "bits", "tolerance"
VACUOUS = "every recorded output holds one value throughout: nothing could have failed"


def replay(
    directory: Path | str,
    implementation: str | None = None,
    call: int | None = None,
    *,
    ops: Collection[str] = (),
    tolerance: bool = False,
    command: str = "",
    progress: Callable[[str], None] = lambda what: None,
) -> Report:
    """Make recorded calls again.

    implementation  None for that of the recording, which must give the same bits; or a name, or module:function for one
                    operator, which is judged by the operator's tolerance
    call            number of the only call to make
    ops             the only operators to call; all if empty
    tolerance       judge by the tolerance in any case: for a machine that adds in another order than the recording's
    progress        is told what is called next

    raises  CapsuleError for a capsule that cannot be read, ConfigError for a call, operator or implementation that is not there
    """
    started = time.perf_counter()
    capsule = open_capsule(directory)
    calls = _chosen(capsule, call, ops)
    functions = _functions(calls, implementation, capsule.folder)
    replayer = _Replayer(capsule, functions, implementation, BITS if implementation is None and not tolerance else TOLERANCE)
    results: list[OutputResult] = []
    errors: list[CaseError] = []
    with _threads(int(capsule.manifest["processor"]["num_threads"])):
        for recorded in calls:
            progress(f"call {recorded.number}: {recorded.op} of {recorded.graph}, step {recorded.step}")
            try:
                results += replayer.run(recorded)
            except CALL_ERRORS as error:
                if isinstance(error, CapsuleError):
                    raise
                errors.append(replayer.error(recorded, error))
    return Report(
        title="capsule",
        command=command or replayer.command(call, ops),
        environment={**environment(), **_recorded_environment(capsule)},
        standard=replayer.standard,
        results=tuple(results),
        errors=tuple(errors),
        findings=() if replayer.varied or call is not None or errors else (VACUOUS,),
        seconds=time.perf_counter() - started,
    )


def _chosen(capsule: Capsule, number: int | None, ops: Collection[str]) -> tuple[RecordedCall, ...]:
    if number is not None and not 0 <= number < len(capsule.calls):
        raise ConfigError(
            f"--call {number}: expected 0 to {len(capsule.calls) - 1}, because the capsule has no others. Choose one of them."
        )
    present = sorted({one.op for one in capsule.calls})
    if missing := sorted(set(ops) - set(present)):
        raise ConfigError(
            f"--op {', '.join(missing)}: expected operators among {', '.join(present)}, because the capsule has no others. "
            "Choose among them, or record again with other --capture-ops."
        )
    calls = capsule.calls if number is None else (capsule.calls[number],)
    return tuple(one for one in calls if not ops or one.op in ops)


def _functions(calls: Sequence[RecordedCall], implementation: str | None, folder: Path) -> dict[str, Implementation]:
    """Operator → what is called. A name out of the capsule is never more than the name of an implementation of ours."""
    ops = {one.op: one.implementation for one in calls}
    if implementation is None:
        if foreign := sorted(set(ops.values()) - IMPLEMENTATION_MODULES.keys()):
            raise CapsuleError(
                f"{folder}: recorded with the implementation {', '.join(map(repr, foreign))}, expected one of "
                f"{', '.join(IMPLEMENTATION_MODULES)}, because no code is looked up by what a capsule says. Name what to call "
                "with --impl."
            )
    elif ":" in implementation and len(ops) != 1:
        raise ConfigError(
            f"--impl {implementation}: got {len(ops)} operators, expected one, because a function implements one. Name it with "
            "--op, or a call of it with --call."
        )
    try:
        return {op: get_implementation(op, implementation or recorded) for op, recorded in ops.items()}
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"--impl {implementation}: {error}; expected an implementation of {', '.join(ops)}. Check the name; "
            "module:function is looked for where Python looks for modules, and PYTHONPATH=folder adds a folder of your own."
        ) from error


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """As many threads as the recording had: sums are split between them."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class _Made:
    """A call made again, and what to hold it against."""

    recorded: RecordedCall
    before: Arguments
    """The arguments again, as they were before the call; with standard BITS those of the call itself."""
    outs: Mapping[str, Tensor]
    golden: Mapping[str, Tensor]
    """What was recorded."""
    rows: Mapping[str, int]
    """Output → how many rows the contract says anything about, where that is not all."""


class _Replayer:
    """Makes calls of one capsule with one choice of implementations."""

    def __init__(
        self, capsule: Capsule, functions: Mapping[str, Implementation], implementation: str | None, standard: str
    ) -> None:
        self.standard = standard
        self.varied = False
        """Whether any recorded output had more than one value: otherwise nothing could have failed."""
        self._capsule = capsule
        self._functions = functions
        self._implementation = implementation
        self._differences = _differences(capsule)

    def command(self, number: int | None, ops: Collection[str] = ()) -> str:
        """The command line that makes one call again, or all of them."""
        parts = ["ascend-dsv4", "compare", "replay", str(self._capsule.folder)]
        parts += [] if number is None else ["--call", str(number)]
        parts += [part for op in sorted(ops) for part in ("--op", op)]
        parts += [] if self._implementation is None else ["--impl", self._implementation]
        if self._implementation is None and self.standard == TOLERANCE:
            parts.append("--tolerance")
        return shlex.join(parts)

    def error(self, recorded: RecordedCall, error: Exception) -> CaseError:
        """A call that broke off."""
        return CaseError(
            recorded.op, self._implementation or recorded.implementation, compute_dtype(recorded), case_name(recorded),
            told(error, get_spec(recorded.op)), self.command(recorded.number),
        )  # fmt: skip

    def run(self, recorded: RecordedCall) -> list[OutputResult]:
        """Make one call and judge its outputs and written arguments."""
        tensors = self._capsule.arguments(recorded)
        with torch.inference_mode():
            outs = call(recorded.op, self._functions[recorded.op], tensors, dict(recorded.attrs))
        golden = self._capsule.results(recorded)
        for name in outs:
            if not isinstance(outs[name], Tensor):
                raise TypeError(f"{name} is a {type(outs[name]).__name__}, expected a tensor")
        before = self._capsule.arguments(recorded) if self.standard == TOLERANCE else tensors
        made = _Made(recorded, before, outs, golden, _defined_rows(recorded, tensors, golden))
        if self._implementation is not None:
            problem = self._other_dtype(made) or self._overwritten(made, tensors)
            if problem is not None:
                return [problem]
        results = [result for name in outs if (result := self._against_recorded(made, name)) is not None]
        if self.standard == TOLERANCE and results:
            results += self._against_float64(made)
        return [replace(result, command=self.command(recorded.number)) for result in results]

    def _other_dtype(self, made: _Made) -> OutputResult | None:
        """An output is wider or narrower than the contract says: its values could well be right."""
        for name, golden in made.golden.items():
            if made.outs[name].dtype != golden.dtype:
                reason = f"{name} is {dtype_name(made.outs[name].dtype)}, expected {dtype_name(golden.dtype)}"
                return self._call_problem(made.recorded, name, "types", reason)
        return None

    def _call_problem(self, recorded: RecordedCall, name: str, check: str, reason: str) -> OutputResult:
        """What is wrong with a call whatever its values."""
        return OutputResult(
            recorded.op, self._implementation or "", compute_dtype(recorded), case_name(recorded), RECORDED, name, RECORDED,
            self.standard, "fail", reason, check, float("inf"), 1, command=self.command(recorded.number),
        )  # fmt: skip

    def _overwritten(self, made: _Made, tensors: Arguments) -> OutputResult | None:
        """An argument that is not to be written was."""
        recorded = made.recorded
        for name, tensor in tensors.items():
            fresh = made.before[name]
            if tensor is None or fresh is None or name in get_spec(recorded.op).mutates or same_bits(tensor, fresh):
                continue
            return self._call_problem(recorded, name, "arguments", f"argument {name} was overwritten")
        return None

    def _against_recorded(self, made: _Made, name: str) -> OutputResult | None:
        """None for an output without elements."""
        mine, golden = made.outs[name], made.golden[name]
        if (mine.shape, mine.dtype) == (golden.shape, golden.dtype):
            mine, golden = _cut(made, name, mine, golden)
        if golden.numel() == 0 and mine.shape == golden.shape:
            return None
        actual, expected = to_numpy(mine), to_numpy(golden)
        self.varied |= bool(expected.size) and not is_constant(expected)
        context = self._context(made, name, RECORDED, actual, expected)
        if self.standard == TOLERANCE:
            return judge_output(context)
        result = replace(judge_output(replace(context, tolerance=EXACT, choice_gap=None)), standard=BITS)
        if same_bits(mine, golden):
            return replace(result, status="pass", reason="", check="", ratio=0.0)
        differing = _num_differing(mine, golden)
        reason = f"{differing} of {golden.numel()} elements differ in their bits{self._differences}"
        return replace(result, status="fail", reason=reason, check=BITS, ratio=float("inf"))

    def _against_float64(self, made: _Made) -> list[OutputResult]:
        """The reference on arguments in float64; figures without a verdict where the contract rounds in mid-operator."""
        recorded, spec = made.recorded, get_spec(made.recorded.op)
        follow = {out.dtype[1:] for out in spec.outs.values() if out.dtype.startswith("@")}
        attrs = {name: FLOAT64 if name in follow else value for name, value in recorded.attrs.items()}
        with torch.inference_mode():
            widened = call(recorded.op, "reference", self._capsule.wide_arguments(recorded), attrs)
        results = []
        for name, golden in widened.items():
            kept = made.golden[name]
            if not golden.is_floating_point() or not kept.is_floating_point() or kept.numel() == 0:
                continue  # integers were exact already
            mine, target = _cut(made, name, made.outs[name], golden)
            dtype = dtype_name(kept.dtype)
            if (spec.tol.get((name, dtype)) or EXACT) == EXACT:
                target = target.to(kept.dtype)
            expected = to_numpy(target)
            if dtype in ("bfloat16", "float16"):
                expected = overflowed(expected, dtype)
            if (recorded.op, name) in PAIRED:
                ids = PAIRED[recorded.op, name]
                expected = pair_with(to_numpy(widened[ids]), to_numpy(made.golden[ids]), expected, to_numpy(kept))
            context = self._context(made, name, FLOAT64, to_numpy(mine), expected)
            results.append(judge_output(replace(context, decides=not _rounds(recorded))))
        return results

    def _context(self, made: _Made, name: str, golden: str, actual: Array, expected: Array) -> OutputContext:
        recorded, spec = made.recorded, get_spec(made.recorded.op)
        ids = PAIRED.get((recorded.op, name))
        if ids is not None and actual.shape == expected.shape:
            actual = pair_with(to_numpy(made.outs[ids]), to_numpy(made.golden[ids]), actual, expected)
        dtype = dtype_name(made.outs[name].dtype)
        is_ranked = name in spec.choices and self.standard == TOLERANCE
        scores = choice_scores(recorded.op, made.before, dict(recorded.attrs)) if is_ranked else {}
        return OutputContext(
            op=recorded.op,
            implementation=self._implementation or recorded.implementation,
            dtype=compute_dtype(recorded),
            case=case_name(recorded),
            kind=RECORDED,
            output=name,
            golden=golden,
            actual=actual,
            expected=expected,
            output_dtype=dtype,
            tolerance=spec.tol.get((name, dtype), EXACT) if expected.dtype.kind == "f" else EXACT,
            allow_constant=True,  # a run has what it has; that something varies is looked at over all calls
            choice_gap=spec.choices.get(name),
            scores=scores.get(name),
        )


def case_name(recorded: RecordedCall) -> str:
    """What reports call a recorded call."""
    return f"call {recorded.number}: step {recorded.step} {recorded.graph} {recorded.node}"


def compute_dtype(recorded: RecordedCall) -> str:
    """Of the first floating result, else of the first floating argument."""
    tensors = [*recorded.outs.values(), *(tensor for tensor in recorded.args.values() if tensor is not None)]
    return next((t.dtype for t in tensors if t.dtype.startswith(("float", "bfloat"))), tensors[0].dtype)


def _rounds(recorded: RecordedCall) -> bool:
    """Whether rounding in mid-operator makes float64 another answer."""
    is_coarse = recorded.op == "step_metadata" or (recorded.op == "compress_kv" and recorded.attrs["rounding"] != "none")
    return is_coarse or (get_spec(recorded.op).rounds_inside and compute_dtype(recorded) != "float32")


def _defined_rows(recorded: RecordedCall, tensors: Arguments, golden: Mapping[str, Tensor]) -> dict[str, int]:
    """Rows past the counts of the experts hold nothing."""
    if recorded.op == "moe_dispatch":
        return dict.fromkeys(("rows", "row_weights"), int(golden["counts"].sum()))
    if recorded.op == "expert_mlp":
        counts = tensors["counts"]
        assert counts is not None
        return {"y": int(counts.sum())}
    return {}


def _cut(made: _Made, name: str, mine: Tensor, golden: Tensor) -> tuple[Tensor, Tensor]:
    """What there is to compare: defined rows, and of a written argument the blocks that anybody changed."""
    if name in made.rows:
        return mine[: made.rows[name]], golden[: made.rows[name]]
    if name not in get_spec(made.recorded.op).mutates:
        return mine, golden
    before = made.recorded.args[name]
    assert before is not None
    touched = changed_rows(before, made.outs[name], made.recorded.written[name])
    return mine[touched], golden[touched]


def _num_differing(left: Tensor, right: Tensor) -> int:
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        return right.numel()
    integers: dict[int, Any] = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = [tensor.contiguous().view(integers[tensor.element_size()]) for tensor in (left, right)]
    return int((bits[0] != bits[1]).sum())


def _differences(capsule: Capsule) -> str:
    """What is not here as it was where the capsule was recorded, if it can change bits."""
    recorded = {**capsule.manifest["versions"], **capsule.manifest["processor"]}
    here = {**versions(), **processor()}
    decisive = ("ascend_dsv4", "torch", "machine", "capability", "mkldnn")
    others = [f"{name} {recorded.get(name)}, here {here[name]}" for name in decisive if recorded.get(name) != here[name]]
    if not others:
        return ""
    return f"; recorded with {'; '.join(others)}, which may round otherwise: --tolerance judges by the operator's tolerance"


def _recorded_environment(capsule: Capsule) -> dict[str, str]:
    made, on, model = (capsule.manifest[name] for name in ("versions", "processor", "model"))
    state = "complete" if capsule.is_complete else "incomplete: its process ended before the recording did"
    return {
        "recorded by": f"ascend-dsv4 {made.get('ascend_dsv4')}, torch {made.get('torch')}, numpy {made.get('numpy')}",
        "recorded on": f"{on.get('machine')}, {on.get('capability')}, {on.get('num_threads')} threads",
        "recorded model": f"{model.get('family')}, configuration {str(model.get('config_sha256'))[:12]}",
        "capsule": "; ".join(filter(None, (f"{state}, {len(capsule.calls)} calls", str(capsule.manifest["ended"])))),
    }
