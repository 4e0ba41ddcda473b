# SPDX-License-Identifier: Apache-2.0
"""The op × implementation × dtype × case matrix of `compare ops`."""

from __future__ import annotations

import shlex
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from ascend_dsv4.accuracy.calls import CALL_ERRORS, load_cases, load_expected, told
from ascend_dsv4.accuracy.environment import environment
from ascend_dsv4.accuracy.naive import NAIVE, naive
from ascend_dsv4.accuracy.operators import PreparedCase, judge_case, prepare, prepared_cases
from ascend_dsv4.accuracy.results import CaseError, OutputResult, Report
from ascend_dsv4.accuracy.standards import DOUBLE_CASES, DOUBLE_LIMITS, STANDARDS, recheck
from ascend_dsv4.errors import ConfigError
from ascend_dsv4.ops import OP_NAMES
from ascend_dsv4.ops.registry import (
    IMPLEMENTATION_MODULES,
    did_you_mean,
    get_implementation,
    get_spec,
    has_implementation,
)
from ascend_dsv4.ops.registry import dtypes_of as implemented_dtypes
from ascend_dsv4.ops.spec import Implementation

DTYPES = ("float32", "bfloat16", "float16")
MIN_ELEMENTS = 64
"""Elements that the cases of an operator in one dtype must have together, or the cell says nothing."""
RECHECK_LIMIT = 1000
"""Most seeds of a recheck. Source: opbase accuracy standard V2.1."""


@dataclass(frozen=True)
class Selection:
    """What to compare, and how."""

    ops: Sequence[str] = OP_NAMES
    implementations: Sequence[str] = ("reference",)
    """Names, or module:function for a single operator."""
    dtypes: Sequence[str] = DTYPES
    cases: Sequence[str] = ("*",)
    """Patterns of case names."""
    seeds: Sequence[int] = (0,)
    standard: str = "tolerance"
    level: str = "L0"
    baseline: str | None = None
    """Implementation that opbase-double measures by."""
    recheck: int = 0
    """Seeds to try a case again with that failed opbase-double."""

    def __post_init__(self) -> None:
        """Raises ConfigError for what does not exist or does not fit together."""
        unknown = [name for name in self.ops if name not in OP_NAMES]
        if unknown:
            near = ", ".join(did_you_mean(name, OP_NAMES) for name in unknown)
            raise ConfigError(
                f"--op {near}: no such operator, expected one of {', '.join(OP_NAMES)}, because only these have a contract. "
                "Choose among them."
            )
        for name, value, choices in (
            ("--standard", self.standard, STANDARDS), ("--level", self.level, DOUBLE_LIMITS),
            *(("--dtype", dtype, DTYPES) for dtype in self.dtypes),
        ):  # fmt: skip
            if value not in choices:
                raise ConfigError(f"{name} {value}: expected one of {', '.join(choices)}. Choose among them.")
        if (self.baseline is not None) != (self.standard == "opbase-double"):
            raise ConfigError(
                f"--baseline {self.baseline}, --standard {self.standard}: expected a baseline exactly with opbase-double, "
                "because that standard bounds errors by those of a third implementation. Give both, or neither."
            )
        if self.baseline == NAIVE and "float32" in self.dtypes and "reference" in self.implementations:
            raise ConfigError(
                "--impl reference, --baseline naive: expected --dtype bfloat16 or float16, because in float32 the naive "
                "composition is the reference, which would be measured by itself. Add --dtype, or name another baseline."
            )
        if not 0 <= self.recheck <= RECHECK_LIMIT:
            raise ConfigError(f"--recheck {self.recheck}: expected 0 to {RECHECK_LIMIT} seeds. Give a number in that range.")
        for implementation in self.implementations:
            if ":" in implementation and len(self.ops) != 1:
                raise ConfigError(
                    f"--impl {implementation}: got {len(self.ops)} operators, expected one, because a function implements one. "
                    "Name it with --op."
                )

    def check_cases(self) -> None:
        """Raises ConfigError for a pattern that no case of the chosen operators has."""
        names = [case.name for op in self.ops for case in (*load_cases(op), *load_expected(op))]
        for pattern in self.cases:
            if not any(fnmatchcase(name, pattern) for name in names):
                one = len(self.ops) == 1
                there = f"one of {', '.join(dict.fromkeys(names))}" if one else "a case of one of them"
                raise ConfigError(
                    f"--case {did_you_mean(pattern, names)}: no case of {self.ops[0] if one else 'these operators'} "
                    f"is called so, expected {there}, because nothing would be compared. Correct the name or the pattern."
                )

    def wants(self, case: str) -> bool:
        """Whether a case is chosen."""
        return any(fnmatchcase(case, pattern) for pattern in self.cases)

    def command(self, prepared: PreparedCase, implementation: str) -> str:
        """The command line that runs one case again."""
        parts = ["ascend-dsv4", "compare", "ops", "--op", prepared.op, "--impl", implementation, "--dtype", prepared.dtype,
                 "--case", prepared.name]  # fmt: skip
        if prepared.seed:
            parts += ["--seed", str(prepared.seed)]
        if self.standard != "tolerance":
            parts += ["--standard", self.standard]
        if self.baseline is not None:
            parts += ["--baseline", self.baseline, "--level", self.level]
        return shlex.join(parts)


def compare_ops(selection: Selection, command: str = "", progress: Callable[[str], None] = lambda op: None) -> Report:
    """Run the matrix. `progress` is told each operator before it begins.

    An operator that lacks an implementation, or a dtype of it, is left out there and listed in `Report.omissions`.

    raises  UnsupportedError for an implementation that no operator has, ConfigError for one that would be its own measure
    """
    started = time.perf_counter()
    cells, omissions = _cells(selection)
    functions = {(op, impl): _resolve(op, impl) for op, impl in cells}
    baselines = {op: _resolve(op, selection.baseline) for op in selection.ops} if selection.baseline else {}
    for (op, implementation), function in functions.items():
        if baselines.get(op) is function:
            raise ConfigError(
                f"--impl {implementation}, --baseline {selection.baseline}: {op} would be measured by itself, because both are "
                "the same function. Name another baseline."
            )
    results: list[OutputResult] = []
    errors: list[CaseError] = []
    for op in selection.ops:
        dtypes = {dtype for implementation in selection.implementations for dtype in cells.get((op, implementation), ())}
        if not dtypes:
            continue
        progress(op)
        for prepared in prepared_cases(op, dtypes, selection.wants, selection.seeds):
            for implementation in selection.implementations:
                if prepared.dtype not in cells.get((op, implementation), ()):
                    continue
                _run(selection, prepared, implementation, functions[op, implementation], baselines.get(op), results, errors)
    return Report(
        title="operators",
        command=command,
        environment=environment(),
        standard=selection.standard,
        results=tuple(results),
        errors=tuple(errors),
        omissions=omissions,
        findings=(*_thin_cells(selection, cells, results), *_case_count(selection, results)),
        seconds=time.perf_counter() - started,
    )


def _cells(selection: Selection) -> tuple[dict[tuple[str, str], tuple[str, ...]], tuple[str, ...]]:
    """(operator, implementation) → dtypes to compare, of those that exist; and a sentence for each that does not.

    raises  UnsupportedError if none of the operators has an implementation that was asked for
    """
    cells: dict[tuple[str, str], tuple[str, ...]] = {}
    omissions = []
    for implementation in selection.implementations:
        known = implementation in IMPLEMENTATION_MODULES
        lacking = [op for op in selection.ops if known and not has_implementation(op, implementation)]
        if lacking:
            omissions.append(f"{implementation}: there is none of {', '.join(lacking)}")
        for op in selection.ops:
            if op in lacking:
                continue
            there = implemented_dtypes(op, implementation) if known else DTYPES
            cells[op, implementation] = tuple(dtype for dtype in selection.dtypes if dtype in there)
            if missing := [dtype for dtype in selection.dtypes if dtype not in there and _runs_in(op, (dtype,))]:
                omissions.append(f"{implementation}: that of {op} takes no {', '.join(missing)}")
        if not any(cell[1] == implementation for cell in cells):
            get_implementation(selection.ops[0], implementation)  # raises, and says what there is
    return cells, tuple(omissions)


def _resolve(op: str, implementation: str) -> Implementation:
    if implementation == NAIVE:
        return naive(op)
    try:
        return get_implementation(op, implementation)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"--impl {implementation}: {error}; expected an implementation of {op}. Check the name; module:function is looked "
            "for where Python looks for modules, and PYTHONPATH=folder adds a folder of your own."
        ) from error


def _run(
    selection: Selection,
    prepared: PreparedCase,
    implementation: str,
    function: Implementation,
    baseline: Implementation | None,
    results: list[OutputResult],
    errors: list[CaseError],
) -> None:
    """One case of one implementation. An exception of the implementation is a result too: it could not run."""
    command = selection.command(prepared, implementation)
    started = time.perf_counter()
    try:
        found = judge_case(
            prepared, implementation, function, standard=selection.standard, level=selection.level, baseline=baseline
        )
        if selection.recheck:
            found = [_rechecked(selection, prepared, function, baseline, result) for result in found]
    except CALL_ERRORS as error:
        message = told(error, prepared.spec)
        errors.append(CaseError(prepared.op, implementation, prepared.dtype, prepared.name, message, command))
        return
    seconds = time.perf_counter() - started
    results += [replace(result, command=command, seconds=seconds) for result in found]


def _rechecked(
    selection: Selection,
    prepared: PreparedCase,
    function: Implementation,
    baseline: Implementation | None,
    failed: OutputResult,
) -> OutputResult:
    """A result of opbase-double that failed, looked at again under other seeds."""
    cases = {case.name: case for case in load_cases(prepared.op)}
    if failed.status != "fail" or not failed.check.endswith("ratio") or prepared.name not in cases:
        return failed
    ratios = []
    for seed in range(1, selection.recheck + 1):
        again = prepare(prepared.op, cases[prepared.name], prepared.dtype, seed)
        for result in judge_case(
            again, failed.implementation, function, standard=selection.standard, level=selection.level, baseline=baseline
        ):
            if result.status != "pass" and not result.check.endswith("ratio"):
                return failed  # by something that no other seed excuses, such as a NaN
            if (result.output, result.golden) == (failed.output, failed.golden):
                ratios.append(result.ratio)
    if not recheck(ratios, 1.0):
        return replace(failed, reason=f"{failed.reason}; so it does in {len(ratios)} seeds of a recheck")
    return replace(failed, status="pass", reason=f"{failed.reason}, but not in {len(ratios)} seeds of a recheck", check="")


def _thin_cells(
    selection: Selection, cells: Mapping[tuple[str, str], Sequence[str]], results: Iterable[OutputResult]
) -> list[str]:
    """Cells with too few elements to say anything. A choice of cases is the user's own, unless nothing goes by it."""
    counts: dict[tuple[str, str, str], int] = defaultdict(int)
    for result in results:
        counts[result.op, result.implementation, result.dtype] += result.num_elements
    if tuple(selection.cases) != ("*",):
        names = {case.name for op in selection.ops for case in (*load_cases(op), *load_expected(op))}
        return [
            f"--case {pattern}: matches no case of {', '.join(selection.ops)}"
            for pattern in selection.cases
            if not any(fnmatchcase(name, pattern) for name in names)
        ]
    thin = [
        f"{op} {impl} {dtype}: {count} elements in all cases together, expected at least {MIN_ELEMENTS}"
        for (op, impl, dtype), count in counts.items()
        if count < MIN_ELEMENTS
    ]
    return thin + [
        f"{op} {impl}: no case ran" for (op, impl), dtypes in cells.items()
        if not any(key[:2] == (op, impl) for key in counts) and _runs_in(op, dtypes)
    ]  # fmt: skip


def _runs_in(op: str, dtypes: Sequence[str]) -> bool:
    """Whether an operator has cases in one of these dtypes at all."""
    half = any(dtype == "float16" for _, dtype in get_spec(op).tol)
    return any(set(case.dtypes) & set(dtypes) or (half and "float16" in dtypes) for case in load_cases(op))


def _case_count(selection: Selection, results: Sequence[OutputResult]) -> list[str]:
    """opbase-double asks for thousands of cases; seeds make them."""
    if selection.standard != "opbase-double" or tuple(selection.cases) != ("*",):
        return []
    wanted = DOUBLE_CASES[selection.level]
    cells: dict[tuple[str, str], set[tuple[str, str, str]]] = defaultdict(set)
    for i, result in enumerate(results):
        cells[result.op, result.implementation].add((result.dtype, result.case, result.command or str(i)))
    return [
        f"{op} {implementation}: {len(cases)} cases, {selection.level} asks for {wanted}; add --seeds"
        for (op, implementation), cases in cells.items() if len(cases) < wanted
    ]  # fmt: skip
