# SPDX-License-Identifier: Apache-2.0
"""One recorded output against what it should be: figures as msprobe defines them, and a verdict by dtype or by operator."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.accuracy.judging import OutputContext, judge_output
from ascend_dsv4.accuracy.msprobe.dump import STATISTICS, Leaf
from ascend_dsv4.accuracy.msprobe.examination import PRECISION, SUM_ERROR
from ascend_dsv4.accuracy.results import OutputResult
from ascend_dsv4.accuracy.standards import MSPROBE_ACCURATE, MSPROBE_WRONG, SINGLE_THRESHOLD
from ascend_dsv4.ops.registry import get_spec
from ascend_dsv4.ops.spec import EXACT, Tolerance

Array = NDArray[Any]

TOLERANCES = {
    "float64": Tolerance(1e-5, 1e-5, 1e-10),
    "float32": Tolerance(1e-5, 1e-5, 1e-10),
    "float16": Tolerance(1e-3, 2 / 1024, 5e-6),
    "bfloat16": Tolerance(1e-3, 2 / 128, 5e-6),
    "float8_e4m3fn": Tolerance(2.0**-9, 2.0**-3, 0.0),
    "float8_e5m2": Tolerance(2.0**-16, 2.0**-2, 0.0),
}
"""Dtype → tolerance of an output of any operator: that of a matrix product here, the widest of our contracts; of 8-bit floats,
the neighbouring code."""
COARSENESS = tuple(TOLERANCES)
"""Dtypes from fine to coarse."""
STATISTICS_STANDARD = "statistics"
"""What results of recorded statistics name as their standard."""


def tolerance_for(dtypes: tuple[str, ...], op: str = "", output: str = "") -> Tolerance:
    """The operator's tolerance if one is named and has one for the coarsest of these dtypes, or else the dtype's.

    Integers and booleans are exact; a dtype without a line counts as float32.
    """
    if not any(name.startswith(("float", "bfloat", "complex")) for name in dtypes):
        return EXACT
    dtype = coarsest(dtypes)
    own = get_spec(op).tol if op else {}
    return own.get((output, dtype), TOLERANCES.get(dtype, TOLERANCES["float32"]))


def coarsest(dtypes: tuple[str, ...]) -> str:
    """The one with the fewest digits; the first if none is a float that has a line."""
    known = [name for name in dtypes if name in TOLERANCES]
    return max(known, key=COARSENESS.index) if known else dtypes[0]


def figures(actual: Array, expected: Array) -> dict[str, float]:
    """Of two arrays of one shape, by the names of msprobe's columns. Where NaN and ∞ sit at the same places, they count as 0;
    where they do not, every figure is NaN. What msprobe does not compute for so few elements is left out.

    MaxRelativeErr and the ratios add 2^-52 to both where the expected one is 0, as msprobe does.
    """
    a, e = np.array(actual, dtype=np.float64), np.array(expected, dtype=np.float64)
    names = ("Cosine", "EucDist", "MaxAbsErr", "MaxRelativeErr", "One Thousandth Err Ratio", "Five Thousandths Err Ratio")
    if not np.array_equal(np.isnan(a), np.isnan(e)) or not np.array_equal(np.isinf(a), np.isinf(e)):
        return dict.fromkeys(names, math.nan)
    odd = ~np.isfinite(a)
    a[odd] = e[odd] = 0
    room = np.where(e == 0, np.finfo(np.float64).eps, 0.0)
    with np.errstate(over="ignore"):
        error = np.abs(a - e)
        relative = error / np.abs(e + room)
        found = {"MaxAbsErr": float(error.max(initial=0.0)), "MaxRelativeErr": float(relative.max(initial=0.0))}
        if a.ndim:
            found["EucDist"] = float(np.linalg.norm(error.reshape(-1)))
            found["One Thousandth Err Ratio"] = float(np.mean(relative < 0.001))
            found["Five Thousandths Err Ratio"] = float(np.mean(relative < 0.005))
        if a.ndim and a.size > 1:
            found["Cosine"] = _cosine(a.reshape(-1), e.reshape(-1))
    return {name: found[name] for name in names if name in found}


def _cosine(a: Array, e: Array) -> float:
    """Of two zero vectors 1, of one NaN, as msprobe has it."""
    top_a, top_e = float(np.abs(a).max()), float(np.abs(e).max())
    if top_a == 0 or top_e == 0:
        return 1.0 if top_a == top_e else math.nan
    a, e = a / top_a, e / top_e
    return float(np.dot(a, e) / (np.linalg.norm(a) * np.linalg.norm(e)))


def threshold_verdict(found: Mapping[str, float]) -> str:
    """pass, warning or error by msprobe's thresholds of cosine and largest absolute error. A figure that is missing does not
    count; NaN is an error."""
    angle, error = found.get("Cosine", 1.0), found.get("MaxAbsErr", 0.0)
    if math.isnan(angle) or math.isnan(error) or angle < MSPROBE_WRONG[0] or error > MSPROBE_WRONG[1]:
        return "error"
    return "pass" if angle > MSPROBE_ACCURATE[0] and error < MSPROBE_ACCURATE[1] else "warning"


def judge_values(
    actual: Array, expected: Array, dtype: str, tolerance: Tolerance, identity: Mapping[str, Any], *, standard: str,
    zero: str = "refused", choice_gap: float | None = None, scores: Array | None = None,
) -> OutputResult:  # fmt: skip
    """A verdict on two arrays.

    dtype     of the output, in which units of the last place are counted
    identity  fields of OutputResult that say what is compared
    zero      status of a pair that is zero throughout on both sides: refused, or noted where zeros are no surprise
    choice_gap, scores  of chosen numbers, see `accuracy.judging`
    """
    same_shape = actual.shape == expected.shape
    if same_shape and expected.size == 0:
        return OutputResult(**identity, standard=standard, status="noted", reason="no elements")
    if same_shape and not actual.any() and not expected.any():
        return both_zero(identity, standard, zero, expected.size)
    if "f" in (actual.dtype.kind, expected.dtype.kind):
        actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    # A standard has limits for some dtypes only. Constants other than zero can differ, so they are no refusal here.
    standard = standard if dtype in SINGLE_THRESHOLD else "tolerance"
    names = ("op", "implementation", "dtype", "case", "kind", "output", "golden")
    context = OutputContext(
        **{name: identity[name] for name in names}, actual=np.atleast_1d(actual), expected=np.atleast_1d(expected),
        output_dtype=dtype, tolerance=tolerance, allow_constant=True, choice_gap=choice_gap, scores=scores,
    )  # fmt: skip
    return dataclasses.replace(judge_output(context, standard=standard), command=identity["command"])


def both_zero(identity: Mapping[str, Any], standard: str, zero: str, count: int) -> OutputResult:
    """The result of two tensors that are zero throughout."""
    return OutputResult(
        **identity, standard=standard, status="refused" if zero == "refused" else "noted", check="zero", num_elements=count,
        reason="all zero on both sides, which says nothing", ratio=math.inf if zero == "refused" else 0.0,
    )  # fmt: skip


def judge_statistics(
    actual: Leaf, expected: Leaf, tolerance: Tolerance, identity: Mapping[str, Any], zero: str
) -> OutputResult:
    """A verdict on the recorded statistics of two tensors.

    The limits follow from that of the elements: if every element is within abs + rel·|e| of the other, then so are the largest
    and smallest, the mean within abs + rel·(mean of |e|), the norm within abs·√n + rel·‖e‖; and what summing and rounding may
    add. Statistics within them do not show that the tensors agree.
    """
    left, right = actual.statistics, expected.statistics
    labels = {**identity, "standard": STATISTICS_STANDARD}
    if actual.shape != expected.shape:
        reason = f"actual has shape {list(actual.shape)}, expected has {list(expected.shape)}"
        return OutputResult(**labels, status="fail", reason=reason, check="misfit", ratio=math.inf)
    pairs = {key: (left.get(key), right.get(key)) for key in STATISTICS}
    numbers = {key: (a, e) for key, (a, e) in pairs.items() if a is not None and e is not None}
    count = expected.num_elements
    if not numbers:
        return OutputResult(**labels, status="noted", reason="no statistics recorded", num_elements=count)
    if all(a == e == 0 for a, e in numbers.values()):
        return both_zero(identity, STATISTICS_STANDARD, zero, count)
    precision = max(PRECISION.get(dtype, 2.0**-23) for dtype in (actual.dtype, expected.dtype))
    ratios = {key: _ratio(key, a, e, tolerance, right.get("Norm"), count, precision) for key, (a, e) in numbers.items()}
    worst = max(ratios, key=lambda key: ratios[key])
    reason = f"{worst} is {numbers[worst][0]:g}, expected {numbers[worst][1]:g}" if ratios[worst] > 1 else ""
    return OutputResult(
        **labels, status="fail" if reason else "pass", reason=reason, check=worst if reason else "", ratio=ratios[worst],
        num_elements=count, figures=_differences(numbers),
    )  # fmt: skip


def _ratio(key: str, a: float, e: float, limit: Tolerance, norm: float | None, count: int, precision: float) -> float:
    if a == e or math.isnan(a) and math.isnan(e):
        return 0.0
    if not math.isfinite(a) or not math.isfinite(e):
        return math.inf
    # By Cauchy and Schwarz the mean of |e| is at most ‖e‖/√n.
    mean_abs = norm / math.sqrt(count) if norm is not None and math.isfinite(norm) and count else abs(e)
    if key == "Mean":
        accepted = limit.abs + (limit.rel + SUM_ERROR) * mean_abs + 2 * precision * abs(e)
    elif key == "Norm":
        accepted = limit.abs * math.sqrt(count) + (limit.rel + SUM_ERROR + 2 * precision) * abs(e)
    else:
        accepted = limit.abs + limit.rel * abs(e)
    return abs(a - e) / accepted if accepted else math.inf


def _differences(numbers: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """By the names of msprobe's columns: X diff, and XRelativeErr as a share."""
    found: dict[str, float] = {}
    for key, (a, e) in numbers.items():
        found[f"{'L2norm' if key == 'Norm' else key} diff"] = a - e
        found[f"{key}RelativeErr"] = abs((a - e) / e) if e else math.inf if a != e else 0.0
    return found
