# SPDX-License-Identifier: Apache-2.0
"""One output against one golden: verdict, figures, worst element, where the errors are. Framework-free."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.accuracy.choices import compare_choices
from ascend_dsv4.accuracy.figures import Array, figures
from ascend_dsv4.accuracy.results import BINS, PARTS, OutputResult, Worst
from ascend_dsv4.accuracy.standards import Asked, Verdict, judge
from ascend_dsv4.ops.compare import Question
from ascend_dsv4.ops.spec import Tolerance

_BIN_EDGES = (0.001, 0.01, 0.1, 0.5, 1.0, 2.0, 10.0)


@dataclass(frozen=True, slots=True)
class OutputContext:
    """An output, its golden, and what they are. Arrays hold only rows that the contract says anything about."""

    op: str
    implementation: str
    dtype: str
    case: str
    kind: str
    output: str
    golden: str
    actual: Array
    expected: Array
    output_dtype: str
    tolerance: Tolerance
    decides: bool = True
    """False: figures without a verdict."""
    allow_constant: bool = False
    choice_gap: float | None = None
    """Of a choice, see `OpSpec.choices`."""
    scores: Array | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    """More than those of `accuracy.figures`."""
    without: Collection[str] = ()


def judge_output(
    context: OutputContext, baseline: Array | None = None, standard: str = "tolerance", level: str = "L0"
) -> OutputResult:
    """The result of one output. `baseline` is the same output of another implementation, for opbase-double."""
    asked = Asked(
        context.actual, context.expected, context.output_dtype, context.tolerance, context.allow_constant, baseline, level,
        context.without,
    )  # fmt: skip
    verdict = judge(standard, asked)
    more: dict[str, float] = dict(context.figures)
    worst: Worst | None = None
    if context.choice_gap is not None and verdict.check == "elements":
        choice = compare_choices(context.actual, context.expected, context.scores, context.choice_gap)
        more, ratio = {**more, **choice.figures}, math.inf if choice.reason else 0.0
        verdict = Verdict("fail" if choice.reason else "pass", choice.reason, "choices" if choice.reason else "", ratio)
        worst = None if choice.worst is None else Worst((choice.worst[0],), *choice.worst[1:])
    if not context.decides:
        verdict = Verdict("noted", verdict.reason, verdict.check, verdict.ratio)
    comparable = context.actual.shape == context.expected.shape and context.expected.size > 0
    question = Question(context.actual, context.expected, context.tolerance, True) if comparable else None
    return OutputResult(
        op=context.op, implementation=context.implementation, dtype=context.dtype, case=context.case, kind=context.kind,
        output=context.output, golden=context.golden, standard=standard, status=verdict.status, reason=verdict.reason,
        check=verdict.check, ratio=verdict.ratio, num_elements=int(context.expected.size),
        figures={**({} if question is None else figures(question.pair, context.output_dtype)), **more},
        worst=worst or (None if question is None else _worst(question)),
        histogram=() if question is None else histogram(_element_ratios(question)),
        by_position=() if question is None else by_position(_element_ratios(question)),
    )  # fmt: skip


def _worst(question: Question) -> Worst:
    index = question.worst
    return Worst(index, float(question.actual[index]), float(question.expected[index]))


def _element_ratios(question: Question) -> NDArray[np.float64]:
    return np.where(question.pair.nonfinite_differ, np.inf, question.ratios)


def histogram(ratios: NDArray[np.float64]) -> tuple[int, ...]:
    """Elements by `results.BINS`."""
    bins = np.where(ratios == 0, 0, 1 + np.searchsorted(_BIN_EDGES, ratios))
    return tuple(int(count) for count in np.bincount(bins.reshape(-1), minlength=len(BINS)))


def by_position(ratios: NDArray[np.float64]) -> tuple[float, ...]:
    """The largest ratio in each of up to `results.PARTS` equal parts of the first axis."""
    rows = ratios.reshape(ratios.shape[0] if ratios.ndim else 1, -1)
    return tuple(float(part.max(initial=0.0)) for part in np.array_split(rows, min(PARTS, len(rows))))
