# SPDX-License-Identifier: Apache-2.0
"""Compare an output with what it should be: figures and a verdict. Framework-free; types numpy lacks arrive as float32 arrays.

A comparison that could not have failed counts as failed, with a reason that begins with "refused": an empty array, an
expected array that holds one value throughout, two names for one memory, a tolerance that admits anything.

Every figure is a function of a `Pair`, so a report with more figures adds functions and leaves the verdict as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.ops.spec import EXACT, Tolerance

Array = NDArray[Any]


@dataclass(frozen=True)
class Pair:
    """Two arrays of one shape, ready for figures. Differences and ratios are formed in float64 over the finite elements."""

    actual: Array
    expected: Array

    @cached_property
    def finite(self) -> NDArray[np.bool_]:
        """Where both are finite."""
        both: NDArray[np.bool_] = np.isfinite(self.actual) & np.isfinite(self.expected)
        return both

    @cached_property
    def error(self) -> NDArray[np.float64]:
        """|actual − expected|, 0 where not both are finite."""
        return np.abs(self._wide(self.actual) - self._wide(self.expected))

    @cached_property
    def magnitude(self) -> NDArray[np.float64]:
        """|expected|, 0 where not both are finite."""
        return np.abs(self._wide(self.expected))

    @cached_property
    def nonfinite_differ(self) -> NDArray[np.bool_]:
        """Where one is NaN, +∞ or −∞ and the other is not the same."""
        differ: NDArray[np.bool_] = nonfinite_kinds(self.actual) != nonfinite_kinds(self.expected)
        return differ

    def _wide(self, array: Array) -> NDArray[np.float64]:
        return np.where(self.finite, array, 0).astype(np.float64)


def nonfinite_kinds(array: Array) -> NDArray[np.int8]:
    """0 for a finite number, 1 for NaN, 2 for +∞, 3 for −∞."""
    kinds: NDArray[np.int8] = (np.isnan(array) + 2 * np.isposinf(array) + 3 * np.isneginf(array)).astype(np.int8)
    return kinds


def max_abs(pair: Pair) -> float:
    """Largest |actual − expected|."""
    return float(pair.error.max(initial=0.0))


def max_rel(pair: Pair) -> float:
    """Largest |actual − expected| / |expected| where expected is not 0."""
    nonzero = pair.magnitude > 0
    return float((pair.error[nonzero] / pair.magnitude[nonzero]).max(initial=0.0))


def cosine_distance(pair: Pair) -> float:
    """1 − cos of the angle between the two as vectors; 0 for two zero vectors, 1 for one.

    Taken from the distance of the unit vectors, which keeps the digits that 1 − cos loses near 0.
    """
    a, e = pair.actual[pair.finite].astype(np.float64), pair.expected[pair.finite].astype(np.float64)
    # Divided by the largest element first: squares of float64 values may overflow.
    top_a, top_e = np.abs(a).max(initial=0.0), np.abs(e).max(initial=0.0)
    if top_a == 0 or top_e == 0:
        return float(top_a != top_e)
    a, e = a / top_a, e / top_e
    # Sums instead of products of vectors: those start threads, which on a busy machine take longer than the sums.
    difference = a / np.sqrt(np.square(a).sum()) - e / np.sqrt(np.square(e).sum())
    return float(0.5 * np.square(difference).sum())


@dataclass(frozen=True, slots=True)
class Comparison:
    """One output against one expected array. The worst element is the one whose error is the most times its limit."""

    passed: bool
    reason: str
    """Why it failed; empty if it passed."""
    num_elements: int
    num_over: int
    """Elements outside the tolerance, those with differing NaN and ∞ included."""
    max_abs: float = 0.0
    max_rel: float = 0.0
    worst_index: tuple[int, ...] = ()
    worst_actual: float = 0.0
    worst_expected: float = 0.0
    cosine_distance: float = 0.0
    nonfinite_equal: bool = True
    """NaN, +∞ and −∞ sit at the same positions."""
    ratio: float = 0.0
    """Largest metric over its limit: of any element, and of the angle. ∞ where something without a limit differs."""
    check: str = ""
    """Which of CHECKS failed; empty if none did."""


def compare(
    actual: Array,
    expected: Array,
    tolerance: Tolerance,
    *,
    allow_constant: bool = False,
    without: Collection[str] = (),
) -> Comparison:
    """Hold an output against its expected value: |a − e| ≤ abs + rel·|e| for every element, and 1 − cos ≤ cos over all.

    actual, expected  arrays of one shape, both floating or both integer; integers and booleans must be equal
    tolerance         ignored for integers; with cos = 0 the angle is not looked at, since the elements then decide
    allow_constant    accept an expected array that holds a single value: for outputs that must be constant
    without           checks that are left out, by name: how a self-test shows that each is needed
    """
    question = Question(actual, expected, tolerance, allow_constant)
    for name, ask in PRECONDITIONS.items():
        if name not in without and (reason := ask(question)):
            return Comparison(False, reason, num_elements=int(np.size(expected)), num_over=0, ratio=math.inf, check=name)
    if expected.size == 0:
        return Comparison(True, "", 0, 0)
    pair = question.pair
    answers = {name: ask(question) for name, ask in VERDICTS.items() if name not in without}
    failed, reason = next(((name, reason) for name, (_, reason) in answers.items() if reason), ("", ""))
    worst = question.worst
    return Comparison(
        passed=not reason,
        reason=reason,
        num_elements=expected.size,
        num_over=int(question.over.sum()),
        max_abs=max_abs(pair),
        max_rel=max_rel(pair),
        worst_index=worst,
        worst_actual=float(actual[worst]),
        worst_expected=float(expected[worst]),
        cosine_distance=question.distance,
        nonfinite_equal=not pair.nonfinite_differ.any(),
        ratio=max((ratio for ratio, _ in answers.values()), default=0.0),
        check=failed,
    )


@dataclass(frozen=True)
class Question:
    """Two arrays and what is asked of them. What is derived presumes that the arrays fit each other."""

    actual: Array
    expected: Array
    tolerance: Tolerance
    allow_constant: bool

    @cached_property
    def pair(self) -> Pair:
        return Pair(self.actual, self.expected)

    @cached_property
    def is_float(self) -> bool:
        return bool(self.expected.dtype.kind == "f")

    @cached_property
    def limit(self) -> NDArray[np.float64]:
        """Largest accepted error of every element."""
        return self.tolerance.abs + self.tolerance.rel * self.pair.magnitude

    @cached_property
    def margin(self) -> NDArray[np.float64]:
        """By how much every element is beyond its limit."""
        if not self.is_float:
            return self.pair.error
        return np.where(self.pair.nonfinite_differ, np.inf, self.pair.error - self.limit)

    @cached_property
    def over(self) -> NDArray[np.bool_]:
        """What is beyond its limit, differing NaN and ∞ included."""
        if not self.is_float:
            differ: NDArray[np.bool_] = self.actual != self.expected
            return differ
        return self.margin > 0

    @cached_property
    def ratios(self) -> NDArray[np.float64]:
        """Error of every element over its limit; ∞ where there is none, 0 where nothing differs."""
        if not self.is_float:
            return np.where(self.over, np.inf, 0.0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.where(self.pair.error == 0, 0.0, self.pair.error / self.limit)

    @cached_property
    def worst(self) -> tuple[int, ...]:
        """Where the error is the most times its limit; of elements without one, such as integers, the furthest off."""
        ratios = np.where(self.pair.nonfinite_differ, np.inf, self.ratios)
        at = np.unravel_index(int(np.argmax(np.where(ratios == ratios.max(), self.margin, -np.inf))), ratios.shape)
        return tuple(int(i) for i in at)

    @cached_property
    def distance(self) -> float:
        return cosine_distance(self.pair)


def _nonfinite(asked: Question) -> tuple[float, str]:
    count = int(asked.pair.nonfinite_differ.sum())
    return (math.inf, f"NaN or infinity differs at {count} positions") if count else (0.0, "")


def _elements(asked: Question) -> tuple[float, str]:
    top, count = float(asked.ratios.max(initial=0.0)), int((asked.over & ~asked.pair.nonfinite_differ).sum())
    if not count:
        return top, ""
    if not asked.is_float:
        return top, f"{count} of {asked.expected.size} elements differ"
    return top, f"{count} of {asked.expected.size} elements outside abs {asked.tolerance.abs:g}, rel {asked.tolerance.rel:g}"


def _angle(asked: Question) -> tuple[float, str]:
    limit = asked.tolerance.cos
    if not asked.is_float or limit == 0:
        return 0.0, ""
    beyond = asked.distance > limit
    return asked.distance / limit, f"1 - cos = {asked.distance:.3g} exceeds {limit:g}" if beyond else ""


def _misfit(asked: Question) -> str:
    """Why two arrays have nothing to compare."""
    kinds = []
    for name, array in (("actual", asked.actual), ("expected", asked.expected)):
        if not isinstance(array, np.ndarray):
            return f"{name} is a {type(array).__name__}, expected a numpy array"
        if array.dtype.kind not in "fiub":
            return f"{name} has dtype {array.dtype}, expected floats, integers or booleans; pass other floats as float32"
        kinds.append("float" if array.dtype.kind == "f" else "integer")
    if kinds[0] != kinds[1]:
        return f"actual is {asked.actual.dtype}, expected is {asked.expected.dtype}"
    if asked.actual.shape != asked.expected.shape:
        return f"actual has shape {list(asked.actual.shape)}, expected has {list(asked.expected.shape)}"
    return ""


def _empty(asked: Question) -> str:
    return "refused: no elements" if asked.expected.size == 0 else ""


def _same_memory(asked: Question) -> str:
    return "refused: actual and expected are the same memory" if np.shares_memory(asked.actual, asked.expected) else ""


def _limit(asked: Question) -> str:
    limits = (asked.tolerance.abs, asked.tolerance.rel, asked.tolerance.cos)
    if all(np.isfinite(limit) and limit >= 0 for limit in limits) and asked.tolerance.rel < 1:
        return ""
    return f"refused: {asked.tolerance} is not a limit; each must be finite and not negative, rel below 1"


def _constant(asked: Question) -> str:
    expected = asked.expected
    if asked.allow_constant or expected.size <= 1 or not is_constant(expected):
        return ""
    return f"refused: expected is {expected.flat[0]} throughout; pass allow_constant=True if that is the right answer"


def is_constant(array: Array) -> bool:
    """Whether a single value, or NaN, fills an array that is not empty."""
    first = array.flat[0]
    if first != first:
        return bool(np.isnan(array).all())
    return bool((array == first).all())


PRECONDITIONS: Mapping[str, Callable[[Question], str]] = {
    "misfit": _misfit, "empty": _empty, "same-memory": _same_memory, "limit": _limit, "constant": _constant,
}  # fmt: skip
"""Why two arrays cannot be compared, or could not have failed; in order, the first reason counts."""
VERDICTS: Mapping[str, Callable[[Question], tuple[float, str]]] = {
    "nonfinite": _nonfinite, "elements": _elements, "angle": _angle,
}  # fmt: skip
"""Metric over limit of two comparable arrays, and why they are not equal enough."""
CHECKS = (*PRECONDITIONS, *VERDICTS)
"""All checks of `compare` by name."""


@dataclass(frozen=True, slots=True)
class SetComparison:
    """Chosen indices, row by row, as sets."""

    passed: bool
    reason: str
    num_rows: int
    num_tied: int = 0
    """Rows that differ, but only by equal scores."""
    num_wrong: int = 0
    first_wrong: int = -1
    """The first wrong row, counted over all leading axes."""
    missing: tuple[int, ...] = ()
    """What it should have chosen besides."""
    surplus: tuple[int, ...] = ()
    """What it should not have chosen; an index chosen twice counts."""


def compare_sets(actual: Array, expected: Array, scores: Array | None = None, *, tie: float = 0.0) -> SetComparison:
    """Hold top-k indices against the expected ones. Order within a row does not matter; −1 stands for no choice.

    actual, expected  integers [..., k]
    scores            [..., num_candidates]: a chosen index may be replaced by one whose score is as good as the lowest
                      expected one. Without scores the sets must be equal. NaN ranks as −∞
    tie               scores this close to that lowest one count as equal to it
    """
    asked = Question(actual, expected, EXACT, allow_constant=True)
    reason = _misfit(asked)
    if not reason and (expected.dtype.kind not in "iu" or expected.ndim == 0):
        reason = f"indices are {expected.dtype} with {expected.ndim} axes, expected rows of integers"
    if not reason and scores is not None and scores.shape[:-1] != expected.shape[:-1]:
        reason = f"scores have shape {list(scores.shape)}, expected {[*expected.shape[:-1], 'num_candidates']}"
    if not reason:
        reason = _empty(asked) or _same_memory(asked)
    if not reason and scores is not None and int(expected.max()) >= scores.shape[-1]:
        reason = f"expected index {int(expected.max())} has no score among {scores.shape[-1]}"
    if reason:
        return SetComparison(False, reason, num_rows=0)
    rows = zip(actual.reshape(-1, actual.shape[-1]), expected.reshape(-1, expected.shape[-1]), strict=True)
    ranked = None if scores is None else np.where(np.isnan(scores), -np.inf, scores).reshape(-1, scores.shape[-1])
    tied, wrong, can_fail = 0, [], False
    for at, (mine, right) in enumerate(rows):
        choices, wanted = mine[mine != -1].tolist(), set(right[right != -1].tolist())
        missing = wanted - set(choices)
        surplus = [index for index in choices if index not in wanted or choices.count(index) > 1]
        row_scores = None if ranked is None else ranked[at]
        can_fail |= _row_can_fail(wanted, row_scores, tie)
        if not missing and not surplus:
            continue
        if row_scores is not None and _equally_good(choices, wanted, row_scores, tie):
            tied += 1
        else:
            wrong.append((at, tuple(sorted(missing)), tuple(sorted(surplus))))
    num_rows = expected.size // expected.shape[-1]
    if not can_fail:
        return SetComparison(False, "refused: any choice of this size would do", num_rows, tied)
    if not wrong:
        return SetComparison(True, "", num_rows, tied)
    first, missing_there, surplus_there = wrong[0]
    reason = f"{len(wrong)} of {num_rows} rows differ, first row {first}: missing {missing_there}, surplus {surplus_there}"
    return SetComparison(False, reason, num_rows, tied, len(wrong), first, missing_there, surplus_there)


def _row_can_fail(wanted: set[int], scores: NDArray[Any] | None, tie: float) -> bool:
    """Whether some choice of the right size would be wrong."""
    if not wanted or scores is None:
        return bool(wanted)
    boundary = min(scores[index] for index in wanted)
    return bool(((scores < boundary - tie) | (scores > boundary + tie)).any())


def _equally_good(choices: list[int], wanted: set[int], scores: NDArray[Any], tie: float) -> bool:
    """Whether two different choices of one size differ only by scores tied with the lowest expected one."""
    chosen = set(choices)
    if not wanted or not len(chosen) == len(choices) == len(wanted) or not chosen <= set(range(len(scores))):
        return False
    boundary = min(scores[index] for index in wanted)
    return all(scores[index] == boundary or abs(scores[index] - boundary) <= tie for index in chosen ^ wanted)
