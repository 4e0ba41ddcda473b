# SPDX-License-Identifier: Apache-2.0
"""One recorded output against what it should be: figures as msprobe defines them, and a verdict by dtype or by operator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.accuracy.msprobe.dump import STATISTICS, Leaf
from ascend_dsv4.accuracy.msprobe.examination import PRECISION, SUM_ERROR
from ascend_dsv4.accuracy.results import BINS, PARTS, OutputResult, Worst
from ascend_dsv4.ops.compare import Comparison, compare
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
MSPROBE = (0.99, 0.001, 0.9, 1.0)
"""Cosine above and largest error below which msprobe accepts; cosine below or largest error above which it rejects."""


def tolerance_for(dtypes: tuple[str, ...], op: str = "", output: str = "") -> Tolerance:
    """The operator's tolerance if one is named and has one for the coarsest of these dtypes, or else the dtype's.

    Integers and booleans are exact; a dtype without a line counts as float32.
    """
    floats = [name for name in dtypes if name.startswith(("float", "bfloat", "complex"))]
    if not floats:
        return EXACT
    known = [name for name in floats if name in TOLERANCES]
    coarsest = max(known, key=COARSENESS.index) if known else "float32"
    own = get_spec(op).tol if op else {}
    return own.get((output, coarsest), TOLERANCES[coarsest])


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
    cosine, error = found.get("Cosine", 1.0), found.get("MaxAbsErr", 0.0)
    good_cosine, good_error, bad_cosine, bad_error = MSPROBE
    if math.isnan(cosine) or math.isnan(error) or cosine < bad_cosine or error > bad_error:
        return "error"
    return "pass" if cosine > good_cosine and error < good_error else "warning"


def judge_values(actual: Array, expected: Array, tolerance: Tolerance, identity: Mapping[str, Any], zero: str) -> OutputResult:
    """A verdict on two arrays.

    identity  fields of OutputResult that say what is compared
    zero      status of a pair that is zero throughout on both sides: refused, or noted where zeros are no surprise
    """
    if actual.shape == expected.shape and expected.size == 0:
        return OutputResult(**identity, status="noted", reason="no elements")
    if actual.shape == expected.shape and not actual.any() and not expected.any():
        return OutputResult(
            **identity, status="refused" if zero == "refused" else "noted", check="zero", num_elements=expected.size,
            reason="all zero on both sides, which says nothing", ratio=math.inf if zero == "refused" else 0.0,
        )  # fmt: skip
    floating = "f" in (actual.dtype.kind, expected.dtype.kind)
    if floating:
        actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    # A scalar as one element; constants other than zero can differ, so they are no refusal here.
    found = compare(np.atleast_1d(actual), np.atleast_1d(expected), tolerance, allow_constant=True)
    fits = actual.shape == expected.shape
    return OutputResult(
        **identity,
        status="pass" if found.passed else "fail", reason=found.reason, check=found.check, ratio=found.ratio,
        num_elements=found.num_elements, figures=figures(actual, expected) if fits else {},
        worst=Worst(found.worst_index, found.worst_actual, found.worst_expected) if fits else None,
        **_distribution(actual, expected, tolerance, found) if fits and floating else {},
    )  # fmt: skip


def _distribution(actual: Array, expected: Array, tolerance: Tolerance, found: Comparison) -> dict[str, Any]:
    """Histogram and position of errors over their limits, for the pages that draw them."""
    if found.passed and found.max_abs == 0:
        return {"histogram": (found.num_elements, *(0 for _ in BINS[1:])), "by_position": ()}
    a, e = np.atleast_1d(actual), np.atleast_1d(expected)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        error = np.abs(a - e)
        ratio = np.where(a == e, 0.0, error / (tolerance.abs + tolerance.rel * np.abs(e)))
    ratio = np.where(np.isnan(ratio), np.where(np.isnan(a) & np.isnan(e), 0.0, np.inf), ratio)
    edges = [0.0, 1e-3, 1e-2, 0.1, 0.5, 1.0, 2.0, 10.0]
    counts = np.bincount(np.searchsorted(edges, ratio.reshape(-1), side="left"), minlength=len(BINS))
    parts = np.array_split(ratio.reshape(ratio.shape[0], -1), min(PARTS, ratio.shape[0]))
    by_position = tuple(float(part.max(initial=0.0)) for part in parts)
    return {"histogram": tuple(int(count) for count in counts), "by_position": by_position}


def judge_statistics(
    actual: Leaf, expected: Leaf, tolerance: Tolerance, identity: Mapping[str, Any], zero: str
) -> OutputResult:
    """A verdict on the recorded statistics of two tensors.

    The limits follow from that of the elements: if every element is within abs + rel·|e| of the other, then so are the largest
    and smallest, the mean within abs + rel·(mean of |e|), the norm within abs·√n + rel·‖e‖; and what summing and rounding may
    add. Statistics within them do not show that the tensors agree.
    """
    left, right = actual.statistics, expected.statistics
    if actual.shape != expected.shape:
        reason = f"actual has shape {list(actual.shape)}, expected has {list(expected.shape)}"
        return OutputResult(**identity, status="fail", reason=reason, check="misfit", ratio=math.inf)
    pairs = {key: (left.get(key), right.get(key)) for key in STATISTICS}
    numbers = {key: (a, e) for key, (a, e) in pairs.items() if a is not None and e is not None}
    count = expected.num_elements
    if not numbers:
        return OutputResult(**identity, status="noted", reason="no statistics recorded", num_elements=count)
    if all(a == e == 0 for a, e in numbers.values()):
        return OutputResult(
            **identity, status="refused" if zero == "refused" else "noted", check="zero", num_elements=count,
            reason="all zero on both sides, which says nothing", ratio=math.inf if zero == "refused" else 0.0,
        )  # fmt: skip
    precision = max(PRECISION.get(dtype, 2.0**-23) for dtype in (actual.dtype, expected.dtype))
    ratios = {key: _ratio(key, a, e, tolerance, right.get("Norm"), count, precision) for key, (a, e) in numbers.items()}
    worst = max(ratios, key=lambda key: ratios[key])
    reason = f"{worst} is {numbers[worst][0]:g}, expected {numbers[worst][1]:g}" if ratios[worst] > 1 else ""
    return OutputResult(
        **identity, status="fail" if reason else "pass", reason=reason, check=worst if reason else "", ratio=ratios[worst],
        num_elements=count, figures=_differences(numbers),
    )  # fmt: skip


def _ratio(
    key: str, a: float, e: float, limit: Tolerance, norm: float | None, count: int, precision: float
) -> float:
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
