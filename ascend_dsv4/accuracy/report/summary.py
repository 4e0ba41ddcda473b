# SPDX-License-Identifier: Apache-2.0
"""Results put together: a verdict, the matrix of operators, the walk through a model. What all reports show the same way."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ascend_dsv4.accuracy.report.wording import count_text, ratio_text
from ascend_dsv4.accuracy.results import BINS, PARTS, CaseError, MutantResult, NodeResult, OutputResult, Report

CellStatus = Literal["pass", "fail", "refused", "noted", "error"]
Key = tuple[str, str, str]
"""Operator, implementation, dtype."""
MARKS: dict[str, str] = {"pass": "✓", "fail": "✗", "refused": "⊘", "noted": "·", "error": "!"}
MEANINGS: dict[str, str] = {
    "pass": "within every limit",
    "fail": "beyond a limit",
    "refused": "nothing could have failed",
    "noted": "figures without a verdict",
    "error": "broke off",
}
MARGINS = (0.5, 2.0)
"""What an unchanged operator stays below and a mutant must exceed: those of `accuracy.selftest`."""
_GRAVITY = ("noted", "pass", "refused", "fail", "error")


def order(ratio: float) -> float:
    """For sorting by ratio: NaN is as bad as ∞."""
    return math.inf if math.isnan(ratio) else ratio


def worst_first(results: Iterable[OutputResult]) -> list[OutputResult]:
    """Failures, refusals, passes, noted; each by falling ratio."""
    return sorted(results, key=lambda result: (_GRAVITY.index(result.status), order(result.ratio)), reverse=True)


def objections(results: Iterable[OutputResult]) -> list[OutputResult]:
    """What failed or was refused, worst first."""
    return worst_first(result for result in results if not result.passed)


@dataclass(frozen=True, slots=True)
class Objection:
    """All failures, or all refusals, of one operator in one implementation."""

    status: Literal["fail", "refused"]
    op: str
    implementation: str
    dtypes: tuple[str, ...]
    num_outputs: int
    worst: OutputResult


def objections_by_operator(results: Iterable[OutputResult]) -> list[Objection]:
    """Failures before refusals, each by falling ratio."""
    held: dict[tuple[str, str, str], list[OutputResult]] = defaultdict(list)
    for result in objections(results):
        held[result.status, result.op, result.implementation].append(result)
    return [
        Objection(
            status="refused" if status == "refused" else "fail",
            op=op,
            implementation=implementation,
            dtypes=tuple(dict.fromkeys(result.dtype for result in group)),
            num_outputs=len(group),
            worst=group[0],
        )
        for (status, op, implementation), group in held.items()
    ]


def selection(results: Iterable[OutputResult], most_per_cell: int, most: int) -> list[OutputResult]:
    """Worst first, but only a few of each cell, since one fault shows in many cases."""
    taken: dict[Key, int] = defaultdict(int)
    chosen: list[OutputResult] = []
    for result in worst_first(results):
        key = (result.op, result.implementation, result.dtype)
        taken[key] += 1
        if taken[key] <= most_per_cell and len(chosen) < most:
            chosen.append(result)
    return chosen


@dataclass(frozen=True, slots=True)
class Cell:
    """One operator in one implementation at one dtype."""

    op: str
    implementation: str
    dtype: str
    status: CellStatus
    """The gravest of its results."""
    ratio: float
    """The largest of the results that decide."""
    num_cases: int
    results: tuple[OutputResult, ...]
    """Worst first."""
    errors: tuple[CaseError, ...]

    @property
    def deciding(self) -> tuple[OutputResult, ...]:
        """Those with a verdict; all if none has one."""
        return tuple(result for result in self.results if result.status != "noted") or self.results

    @property
    def histogram(self) -> tuple[int, ...]:
        """Elements by BINS over all results that decide; empty if none has a histogram."""
        held = [result.histogram for result in self.deciding if len(result.histogram) == len(BINS)]
        return tuple(map(sum, zip(*held, strict=True)))

    @property
    def by_position(self) -> tuple[float, ...]:
        """Largest ratio in each of PARTS parts of the first axis, over all results that decide; empty if none has positions.

        An output with fewer parts has each of them over several.
        """
        held = [result.by_position for result in self.deciding if result.by_position]
        if not held:
            return ()
        stretched = [[parts[i * len(parts) // PARTS] for i in range(PARTS)] for parts in held]
        return tuple(max(column, key=order) for column in zip(*stretched, strict=True))


@dataclass(frozen=True, slots=True)
class Matrix:
    """Operators down, implementations and dtypes across, each in the order in which they came."""

    ops: tuple[str, ...]
    implementations: tuple[str, ...]
    dtypes: tuple[str, ...]
    cells: dict[Key, Cell]

    def columns(self) -> list[tuple[str, str]]:
        """Pairs of implementation and dtype of which there is any cell."""
        present = {key[1:] for key in self.cells}
        return [(name, dtype) for name in self.implementations for dtype in self.dtypes if (name, dtype) in present]


def matrix(report: Report) -> Matrix:
    """Cells of all results and errors."""
    results: dict[Key, list[OutputResult]] = defaultdict(list)
    errors: dict[Key, list[CaseError]] = defaultdict(list)
    for result in report.results:
        results[result.op, result.implementation, result.dtype].append(result)
    for error in report.errors:
        errors[error.op, error.implementation, error.dtype].append(error)
    keys = list(dict.fromkeys([*results, *errors]))
    ops, implementations, dtypes = (tuple(dict.fromkeys(key[i] for key in keys)) for i in range(3))
    return Matrix(ops, implementations, dtypes, {key: _cell(key, results[key], errors[key]) for key in keys})


def _cell(key: Key, results: Sequence[OutputResult], errors: Sequence[CaseError]) -> Cell:
    states = ["error"] if errors else [result.status for result in results]
    ratios = [result.ratio for result in results if result.status != "noted"] or [result.ratio for result in results]
    return Cell(
        op=key[0],
        implementation=key[1],
        dtype=key[2],
        status=max(states, key=_GRAVITY.index),  # type: ignore[arg-type]
        ratio=max(ratios, key=order, default=math.nan),
        num_cases=len({result.case for result in results} | {error.case for error in errors}),
        results=tuple(worst_first(results)),
        errors=tuple(errors),
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the comparison ended."""

    word: Literal["pass", "fail", "could not run"]
    sentences: tuple[str, ...]
    """What was counted, one for each kind of result."""


def counts(report: Report) -> dict[str, int]:
    """Outputs by status, and cases that broke off as error; zeros included."""
    held = dict.fromkeys(("pass", "fail", "refused", "noted"), 0)
    for result in report.results:
        held[result.status] += 1
    return held | {"error": len(report.errors)}


def verdict(report: Report) -> Verdict:
    """The exit code as a word, and what it rests on."""
    sentences = []
    words = {"pass": "passed", "fail": "failed", "refused": "refused", "noted": "noted without a verdict"}
    if report.results:
        held = counts(report)
        cases = len({(result.op, result.implementation, result.dtype, result.case) for result in report.results})
        parts = [f"{held[status]:,} {word}" for status, word in words.items() if held[status] or status in ("pass", "fail")]
        sentences.append(f"{count_text(len(report.results), 'output')} of {count_text(cases, 'case')}: {', '.join(parts)}")
    if report.errors:
        sentences.append(f"{count_text(len(report.errors), 'case')} broke off")
    if report.nodes:
        states: dict[str, int] = dict.fromkeys(("same", "within", "inherited", "introduced"), 0)
        for node in report.nodes:
            states[node.state] += 1
        parts = [f"{number:,} {state}" for state, number in states.items() if number or state == "introduced"]
        sentences.append(f"{count_text(len(report.nodes), 'node output')}: {', '.join(parts)}")
    if report.bars:
        beyond = sum(bar.status == "fail" for bar in report.bars)
        sentences.append(f"{count_text(len(report.bars), 'bfloat16 bar')}: {beyond:,} exceeded")
    if report.sweeps:
        broken = sum(sweep.promised and sweep.num_distinct != 1 for sweep in report.sweeps)
        sentences.append(f"{count_text(len(report.sweeps), 'sweep')}: {broken:,} broke a promise of equal outputs")
    if report.mutants:
        caught = sum(mutant.caught for mutant in report.mutants)
        sentences.append(f"{caught:,} of {count_text(len(report.mutants), 'mutant')} caught")
    if report.findings:
        sentences.append(count_text(len(report.findings), "further finding"))
    if not (report.results or report.nodes or report.ends or report.sweeps or report.mutants):
        sentences.append("nothing was compared")
    elif not report.is_decided:
        sentences.append("nothing was decided")
    words_by_code: tuple[Literal["pass", "fail", "could not run"], ...] = ("pass", "fail", "could not run")
    return Verdict(words_by_code[report.exit_code], tuple(sentences))


def mutant_problem(mutant: MutantResult) -> str:
    """Why a mutant does not count as caught; empty if it does."""
    if mutant.caught:
        return ""
    if not mutant.original < MARGINS[0]:
        return f"the original is at {ratio_text(mutant.original)}, not below {MARGINS[0]:g}"
    return f"at {ratio_text(mutant.mutant)}, not above {MARGINS[1]:g}" if mutant.check else "no check objects"


@dataclass(frozen=True, slots=True)
class Point:
    """A node of the model in one step, all its outputs together."""

    step: int
    number: int
    graph: str
    node: str
    state: str
    """The gravest of its outputs."""
    introduced: float
    total: float


_STATES = ("same", "within", "inherited", "introduced")


def points(nodes: Iterable[NodeResult]) -> dict[int, list[Point]]:
    """Nodes of each step in order of execution."""
    held: dict[tuple[int, int], list[NodeResult]] = defaultdict(list)
    for node in nodes:
        held[node.step, node.number].append(node)
    steps: dict[int, list[Point]] = {}
    for (step, number), outputs in sorted(held.items()):
        point = Point(
            step=step,
            number=number,
            graph=outputs[0].graph,
            node=outputs[0].node,
            state=max((output.state for output in outputs), key=_STATES.index),
            introduced=max((output.introduced.ratio for output in outputs), key=order),
            total=max((output.total.ratio for output in outputs), key=order),
        )
        steps.setdefault(step, []).append(point)
    return steps


def first_introduced(nodes: Iterable[NodeResult]) -> NodeResult | None:
    """The first node, in order of execution, that errs by itself; of its outputs the worst."""
    own = [node for node in nodes if node.state == "introduced"]
    return min(own, key=lambda node: (node.step, node.number, -order(node.introduced.ratio)), default=None)


@dataclass(frozen=True, slots=True)
class Ranked:
    """An output of a node over all steps in which it differs."""

    worst: NodeResult
    """The step in which it introduced most."""
    steps: tuple[int, ...]
    """Those in which it is in the state of the worst."""

    def steps_text(self) -> str:
        """3, or 0-2, or 5 steps for what has gaps."""
        first, last = self.steps[0], self.steps[-1]
        if last - first + 1 != len(self.steps):
            return f"{len(self.steps)} steps"
        return str(first) if first == last else f"{first}-{last}"


def ranking(nodes: Iterable[NodeResult]) -> list[Ranked]:
    """Outputs of nodes that differ, those that introduced an error first, by what they introduced."""
    held: dict[tuple[str, str, str], list[NodeResult]] = defaultdict(list)
    for node in nodes:
        if node.state != "same":
            held[node.graph, node.node, node.output].append(node)
    ranked = []
    for outputs in held.values():
        worst = max(outputs, key=_blame)
        ranked.append(Ranked(worst, tuple(sorted(node.step for node in outputs if node.state == worst.state))))
    return sorted(ranked, key=lambda rank: _blame(rank.worst), reverse=True)


def _blame(node: NodeResult) -> tuple[bool, float]:
    return node.state == "introduced", order(node.introduced.ratio)


@dataclass(frozen=True, slots=True)
class GraphSummary:
    """A graph of the model over all steps: how its nodes' outputs came out."""

    graph: str
    states: dict[str, int]
    introduced: float
    total: float


def graphs(nodes: Sequence[NodeResult]) -> list[GraphSummary]:
    """One line for each graph, in order of execution."""
    held: dict[str, list[NodeResult]] = defaultdict(list)
    for node in sorted(nodes, key=lambda node: (node.step, node.number)):
        held[node.graph].append(node)
    return [
        GraphSummary(
            graph=graph,
            states={state: sum(output.state == state for output in outputs) for state in _STATES},
            introduced=max((output.introduced.ratio for output in outputs), key=order),
            total=max((output.total.ratio for output in outputs), key=order),
        )
        for graph, outputs in held.items()
    ]
