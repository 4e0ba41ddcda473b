# SPDX-License-Identifier: Apache-2.0
"""Verdicts on an output by the standards in use. A result names the one that was applied; they are never mixed. Framework-free.

All of them first refuse what could not fail, and hold NaN and ∞ to the same places; integers are exact in all.

tolerance       the operator's own: every element within abs + rel·|golden|, and the angle (`ops.compare`)
opbase-single   one golden: MERE below a threshold of the dtype, MARE below ten times that
opbase-double   a golden and a baseline: MARE, MERE and RMSE at most so many times the baseline's
mixed           99 % of the elements within atol + rtol·|golden|, and none far off
msprobe         cosine and largest difference; what lies between accurate and wrong is a warning
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.accuracy.figures import FORMATS, Array, cosine, mare, mere, overflowed, rmse, ulp
from ascend_dsv4.accuracy.results import Status
from ascend_dsv4.ops.compare import Comparison, Pair, compare, is_constant, max_abs
from ascend_dsv4.ops.spec import Tolerance


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a standard says of one output."""

    status: Status
    reason: str = ""
    check: str = ""
    ratio: float = 0.0
    """Largest metric over its limit."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One output, ready for a standard."""

    actual: Array
    golden: Array
    dtype: str
    """Of the output."""
    tolerance: Tolerance
    allow_constant: bool = False
    baseline: Array | None = None
    """The same output of another implementation, for opbase-double."""
    level: str = "L0"
    """Of opbase-double."""
    without: Collection[str] = ()
    """Checks of `ops.compare` to leave out."""


SINGLE_THRESHOLD = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-13, "float8_e4m3fn": 2.0**-3}
"""MERE of opbase-single; MARE may be ten times that. Source: opbase, ecosystem operators."""
DOUBLE_LIMITS = {"L0": (10.0, 2.0, 2.0), "L1": (5.0, 1.5, 1.5), "L2": (2.0, 1.2, 1.2)}
"""Level → largest ratio of MARE, MERE and RMSE to the baseline's. Source: opbase accuracy standard V2.1."""
DOUBLE_CASES = {"L0": 5_000, "L1": 10_000, "L2": 30_000}
"""Level → cases that the standard asks for."""
SMALL_VALUE = {
    "float16": (2.0**-11, 2.0**-16),
    "bfloat16": (2.0**-8, 2.0**-16),
    "float32": (2.0**-14, 2.0**-30),
    "float8_e4m3fn": (2.0**-4, 2.0**-6),
}
"""Dtype → |golden| below which an element is small, and the error above which a small one counts."""
SMALL_COUNT_RATIO = 2.0
MIXED_TOLERANCE = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-13, "float8_e4m3fn": 2.0**-3}
"""atol and rtol of mixed. Source: opbase, September 2026."""
MIXED_SHARE = 0.99
MIXED_LARGEST = {"float16": 1e-1, "bfloat16": 1e-1, "float32": 1e-2, "float8_e4m3fn": 1.0}
MIXED_ULP = 32
"""No element may be further off than MIXED_LARGEST or so many last places, whichever is more."""
MSPROBE_ACCURATE = (0.99, 0.001)
"""Cosine above, largest difference below. Source: msprobe 26.2.0."""
MSPROBE_WRONG = (0.9, 1.0)
"""Cosine below, or largest difference above."""


def judge(standard: str, asked: Asked) -> Verdict:
    """The verdict of a standard of STANDARDS."""
    result = compare(asked.actual, asked.golden, asked.tolerance, allow_constant=asked.allow_constant, without=asked.without)
    if standard == "tolerance":
        return _by_tolerance(result)
    if result.check and result.check not in ("elements", "angle"):
        return _by_tolerance(result)  # refused, or NaN and ∞ elsewhere
    if asked.golden.dtype.kind != "f":
        return _by_tolerance(result)
    if _is_constant_for_many(asked):
        reason = f"refused: actual is {asked.actual.flat[0]:g} throughout, golden is not"
        return Verdict("refused", reason, "constant", math.inf)
    return _STANDARDS[standard](asked)


def _is_constant_for_many(asked: Asked) -> bool:
    """Whether a single value, such as 0, stands where the golden has normal numbers that even the widest relative tolerance
    tells apart: absolute tolerances and cosines would let that pass."""
    if asked.golden.size <= 1 or not is_constant(asked.actual) or asked.dtype not in MIXED_TOLERANCE:
        return False
    golden = asked.golden[np.isfinite(asked.golden)].astype(np.float64)
    top = float(np.abs(golden).max(initial=0.0))
    is_normal = top >= 2.0 ** FORMATS[asked.dtype][1]
    return is_normal and float(np.ptp(golden)) > 2 * MIXED_TOLERANCE[asked.dtype] * top


def _by_tolerance(result: Comparison) -> Verdict:
    status: Status = "pass" if result.passed else "refused" if result.reason.startswith("refused") else "fail"
    return Verdict(status, result.reason, result.check, result.ratio)


def _limits(asked: Asked, found: Sequence[tuple[str, float, float]]) -> Verdict:
    """(name, metric, limit): all must hold."""
    ratios = [_over(metric, limit) for _, metric, limit in found]
    worst = int(np.argmax(ratios))
    name, metric, limit = found[worst]
    if ratios[worst] > 1:
        return Verdict("fail", f"{name} {metric:.3g} exceeds {limit:.3g}", name, ratios[worst])
    return Verdict("pass", ratio=ratios[worst])


def _over(metric: float, limit: float) -> float:
    return 0.0 if metric == 0 else math.inf if limit == 0 else metric / limit


def _single(asked: Asked) -> Verdict:
    pair, threshold = _finite_pair(asked), SINGLE_THRESHOLD[asked.dtype]
    return _limits(asked, [("MERE", mere(pair), threshold), ("MARE", mare(pair), 10 * threshold)])


def _double(asked: Asked) -> Verdict:
    if asked.baseline is None:
        return Verdict("refused", "refused: opbase-double needs a baseline", "baseline", math.inf)
    if asked.baseline.shape != asked.golden.shape:
        return Verdict("refused", f"refused: the baseline has shape {list(asked.baseline.shape)}", "baseline", math.inf)
    found = double_ratios(asked.actual, asked.baseline, asked.golden, asked.dtype)
    limits = (*DOUBLE_LIMITS[asked.level], SMALL_COUNT_RATIO)
    return _limits(asked, [(name, ratio, limit) for (name, ratio), limit in zip(found.items(), limits, strict=True)])


def double_ratios(actual: Array, baseline: Array, golden: Array, dtype: str) -> dict[str, float]:
    """Errors as multiples of the baseline's: MARE, MERE and RMSE of ordinary values, and how many small ones are off.

    Where both are free of error the ratio is 0; where only the baseline is, ∞.
    """
    bound, accepted = SMALL_VALUE[dtype]
    small = np.abs(golden) < bound
    mine, theirs = Pair(actual[~small], golden[~small]), Pair(baseline[~small], golden[~small])
    ratios = {
        f"{name} ratio": _over(figure(mine), figure(theirs))
        for name, figure in (("MARE", mare), ("MERE", mere), ("RMSE", rmse))
    }
    off = [int((np.abs(values[small] - golden[small]) > accepted).sum()) for values in (actual, baseline)]
    return ratios | {"small-value count ratio": off[0] / max(off[1], 1)}


def _mixed(asked: Asked) -> Verdict:
    pair, bound = _finite_pair(asked), MIXED_TOLERANCE[asked.dtype]
    share_over = float((pair.error > bound + bound * pair.magnitude).mean())
    furthest = np.maximum(MIXED_LARGEST[asked.dtype], MIXED_ULP * ulp(pair.expected, asked.dtype))
    at = int(np.argmax(pair.error / furthest))
    return _limits(asked, [
        ("share of elements over", share_over, 1 - MIXED_SHARE),
        ("largest error", float(pair.error.flat[at]), float(furthest.flat[at])),
    ])  # fmt: skip


def _msprobe(asked: Asked) -> Verdict:
    pair = _finite_pair(asked)
    angle, largest = cosine(pair), max_abs(pair)
    ratio = max(_over(1 - angle, 1 - MSPROBE_ACCURATE[0]), _over(largest, MSPROBE_ACCURATE[1]))
    text = f"cosine {angle:.6g}, largest difference {largest:.3g}"
    if angle < MSPROBE_WRONG[0] or largest > MSPROBE_WRONG[1]:
        return Verdict("fail", text, "msprobe", ratio)
    if angle > MSPROBE_ACCURATE[0] and largest < MSPROBE_ACCURATE[1]:
        return Verdict("pass", ratio=ratio)
    return Verdict("noted", f"warning: {text}", "msprobe", ratio)


def _finite_pair(asked: Asked) -> Pair:
    return Pair(asked.actual, overflowed(asked.golden, asked.dtype))


_STANDARDS: Mapping[str, Callable[[Asked], Verdict]] = {
    "opbase-single": _single, "opbase-double": _double, "mixed": _mixed, "msprobe": _msprobe,
}  # fmt: skip
STANDARDS = ("tolerance", *_STANDARDS)


def recheck(ratios: Sequence[float], limit: float, *, valid: int = 200, resamples: int = 2000, seed: int = 0) -> bool:
    """Whether a case that failed opbase-double passes after all: ratios of the same case under other seeds, one each.

    Fails with fewer than `valid` finite ratios, or if the lower end of the 95 % bootstrap interval of their median, over the
    limit, exceeds 1. Infinite ratios, where only the baseline was free of error, count in the median: they excuse nothing.
    """
    known = np.array([ratio for ratio in ratios if not math.isnan(ratio)])
    if int(np.isfinite(known).sum()) < valid:
        return False
    rng = np.random.default_rng(seed)
    # Ranks are drawn instead of values: the mean of ∞ and a number would be none.
    ranked = np.sort(known)
    ranks = np.sort(rng.integers(0, len(known), (resamples, len(known))), axis=1)
    medians: NDArray[np.float64] = ranked[ranks[:, len(known) // 2]]
    return bool(np.quantile(medians, 0.025, method="lower") / limit <= 1.0)
