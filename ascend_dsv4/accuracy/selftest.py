# SPDX-License-Identifier: Apache-2.0
"""`compare selftest`: does the comparison find bugs? Mutants of the operators must fail, the operators themselves must not.

Each mutant runs through the ordinary cases of its operator, at the default seed and by the operator's own tolerances, as
`compare ops` runs them: typical cases first, until one shows more than MUTANT_ABOVE. The unchanged reference runs through all,
and its largest metric must stay below ORIGINAL_BELOW of its limit, so that no verdict hangs by a thread. Beside the mutants
stand comparisons that must be refused (`vacuity`). Every check of the comparison can be left out, and then some mutant or probe
gets through: WITNESSES names one for each.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from ascend_dsv4.accuracy.calls import CALL_ERRORS, load_cases
from ascend_dsv4.accuracy.environment import environment
from ascend_dsv4.accuracy.judging import OutputContext, judge_output
from ascend_dsv4.accuracy.mutants import Function, Mutant, built_in
from ascend_dsv4.accuracy.mutants.host import HOST_FUNCTIONS, HostCase, engram_hash, host_cases
from ascend_dsv4.accuracy.mutants.loading import load_mutants
from ascend_dsv4.accuracy.operators import CALL_CHECKS, PreparedCase, dtypes_of, judge_case, prepare
from ascend_dsv4.accuracy.results import CaseError, MutantResult, OutputResult, Report
from ascend_dsv4.accuracy.vacuity import PROBES, Probe
from ascend_dsv4.errors import ConfigError
from ascend_dsv4.ops.compare import CHECKS
from ascend_dsv4.ops.registry import get_implementation
from ascend_dsv4.ops.spec import EXACT

ORIGINAL_BELOW = 0.5
"""Largest metric over its limit of an unchanged operator."""
MUTANT_ABOVE = 2.0
"""Least metric over its limit that counts as caught."""
VACUITY = "vacuity"
"""What stands in the place of an operator in the names of probes."""
SWITCHES = (*CHECKS, *CALL_CHECKS)
"""Checks that `without` may name."""
WITNESSES: Mapping[str, str] = {
    "misfit": "vacuity/codes-for-numbers",
    "empty": "vacuity/no-elements",
    "same-memory": "vacuity/two-names-for-one-tensor",
    "limit": "vacuity/infinite-tolerance",
    "constant": "vacuity/all-zero",
    "nonfinite": "adjust_logits/mask-by-product",
    "elements": "moe_dispatch/counts-exclusive",
    "angle": "hc_collapse/six-bits-in-bfloat16",
    "names": "rms_norm/second-output",
    "types": "swiglu/result-in-float32",
    "arguments": "rms_norm/input-overwritten",
    "alias": "place_rows/streams-not-copied",
    "repeat": "linear/sum-order-changes",
}
"""Check → a mutant or probe that no other check catches."""
_KINDS = ("typical", "boundary", "hostile")

Judge = Callable[[Function], list[OutputResult]]
"""Runs a function on one case."""


def selftest(
    mutants: Path | Mapping[str, Mutant] | None = None,
    *,
    names: Sequence[str] = ("*",),
    without: Collection[str] = (),
    command: str = "",
    progress: Callable[[str], None] = lambda op: None,
) -> Report:
    """Try mutants: those given, those of a file, or all of the package and the probes.

    names     patterns of the mutants and probes to try
    without   checks that are left out: the self-test must then fail
    progress  is told each operator before it begins
    raises    ConfigError for an unknown check, for patterns that match nothing, or a file that cannot be used
    """
    unknown = sorted(set(without) - set(SWITCHES))
    if unknown:
        raise ConfigError(
            f"--without {', '.join(unknown)}: no such check; there are: {', '.join(SWITCHES)}. Leave out one of these, because "
            "only checks of the comparison can be switched off."
        )
    started = time.perf_counter()
    given = built_in() if mutants is None else load_mutants(mutants) if isinstance(mutants, Path) else mutants
    chosen = [mutant for mutant in given.values() if _is_named(mutant.name, names)]
    probes = [probe for probe in PROBES if mutants is None and _is_named(f"{VACUITY}/{probe.name}", names)]
    if not chosen and not probes:
        raise ConfigError(
            f"{', '.join(names)}: matches none of {len(given)} mutants, expected one at least, because a self-test that tries "
            "nothing says nothing. Give a pattern such as 'rope/*'."
        )
    results: list[MutantResult] = []
    errors: list[CaseError] = []
    with _one_thread():
        for op in sorted({mutant.op for mutant in chosen}):
            progress(op)
            found, failed = try_mutants(op, [mutant for mutant in chosen if mutant.op == op], without)
            results += found
            errors += failed
        results += [try_probe(probe, without) for probe in probes]
    return Report(
        title="self-test",
        command=command,
        environment=environment(),
        standard="tolerance",
        mutants=tuple(results),
        errors=tuple(errors),
        seconds=time.perf_counter() - started,
    )


def _is_named(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The calls are too small to be worth a second thread, and threads that wait for each other cost more than the sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass
class _Trial:
    """A mutant on its way through the cases."""

    mutant: Mutant
    ratio: float = 0.0
    where: str = ""
    check: str = ""
    errors: list[CaseError] = field(default_factory=list)

    @property
    def is_caught(self) -> bool:
        return self.ratio > MUTANT_ABOVE and bool(self.check)

    def take(self, results: Iterable[OutputResult]) -> None:
        """Keep the result that speaks most against it."""
        for result in results:
            if result.status in ("pass", "fail") and (result.ratio > self.ratio or not self.where):
                self.ratio, self.check = result.ratio, result.check
                self.where = " ".join(part for part in (result.case, result.dtype, result.output) if part)


def try_mutants(
    op: str, mutants: Sequence[Mutant], without: Collection[str] = ()
) -> tuple[list[MutantResult], list[CaseError]]:
    """All mutants of one operator, which share its inputs, its goldens and the original's results."""
    original, top = _original(op), 0.0
    trials = [_Trial(mutant) for mutant in mutants]
    for name, dtype, judge in _judges(op, without):
        for result in judge(original):
            if result.status != "noted":
                top = max(top, math.inf if result.status == "refused" else result.ratio)
        for trial in trials:
            if not trial.is_caught and not trial.errors:
                try:
                    trial.take(judge(trial.mutant.function))
                except CALL_ERRORS as error:
                    message = f"{type(error).__name__}: {error}"
                    trial.errors.append(CaseError(op, trial.mutant.name, dtype, name, message))
    return [_result(trial, top) for trial in trials], [error for trial in trials for error in trial.errors]


def _result(trial: _Trial, original: float) -> MutantResult:
    caught = trial.is_caught and original < ORIGINAL_BELOW
    mutant = trial.mutant
    return MutantResult(mutant.name, mutant.op, mutant.what, original, trial.ratio, trial.where, trial.check, caught)


def try_probe(probe: Probe, without: Collection[str] = ()) -> MutantResult:
    """A comparison that must be refused, and its sound sibling in the place of the original. To break off is not to refuse."""
    original, wrongly = probe.sound(without)
    where = ""
    try:
        ratio, check = probe.vacuous(without)
    except CALL_ERRORS as error:
        ratio, check, where = 0.0, "", f"{type(error).__name__}: {error}"
    caught = original < ORIGINAL_BELOW and not wrongly and ratio > MUTANT_ABOVE and bool(check)
    return MutantResult(f"{VACUITY}/{probe.name}", "comparison", probe.what, original, ratio, where, check, caught)


def _original(op: str) -> Function:
    return engram_hash if op in HOST_FUNCTIONS else get_implementation(op, "reference")


def _judges(op: str, without: Collection[str]) -> Iterator[tuple[str, str, Judge]]:
    """(case, dtype, judge) of every ordinary case, typical ones first."""
    if op in HOST_FUNCTIONS:
        for host_case in host_cases():
            yield host_case.name, "int64", _host_judge(op, host_case, without)
        return
    for case in sorted(load_cases(op), key=lambda case: _KINDS.index(case.kind)):
        for dtype in dtypes_of(op, case):
            yield case.name, dtype, _judge(prepare(op, case, dtype), without)


def _judge(prepared: PreparedCase, without: Collection[str]) -> Judge:
    return lambda function: judge_case(prepared, "mutant", function, without=without)


def _host_judge(op: str, case: HostCase, without: Collection[str]) -> Judge:
    def judge(function: Function) -> list[OutputResult]:
        actual: Any = function(case.hash, case.compressed.copy(), case.history.copy())
        context = OutputContext(
            op=op, implementation="mutant", dtype="int64", case=case.name, kind="typical", output="row_ids", golden="specified",
            actual=actual, expected=case.golden, output_dtype="int64", tolerance=EXACT, without=without,
        )  # fmt: skip
        return [judge_output(context)]

    return judge
