# SPDX-License-Identifier: Apache-2.0
"""Errors of one array against another in every usual measure: functions of a `Pair`, in float64 over its finite elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.ops.compare import Pair, cosine_distance, max_abs, max_rel

Array = NDArray[Any]

RELATIVE_FLOOR = 1e-7
"""Added to |golden| in MARE and MERE. Source: opbase accuracy standard V2.1."""
FORMATS: Mapping[str, tuple[int, int, float]] = {
    "float64": (52, -1022, float(np.finfo(np.float64).max)),
    "float32": (23, -126, float(np.finfo(np.float32).max)),
    "float16": (10, -14, 65504.0),
    "bfloat16": (7, -126, float.fromhex("0x1.fep127")),
    "float8_e4m3fn": (3, -6, 448.0),
}
"""Dtype → stored mantissa bits, exponent of the smallest normal number, largest finite number."""


def mean_abs(pair: Pair) -> float:
    """Mean |actual − golden|."""
    return _mean(pair.error[pair.finite])


def mean_rel(pair: Pair) -> float:
    """Mean |actual − golden| / |golden| where golden is not 0."""
    nonzero = pair.finite & (pair.magnitude > 0)
    return _mean(pair.error[nonzero] / pair.magnitude[nonzero])


def rmse(pair: Pair) -> float:
    """Root of the mean squared error."""
    top = float(pair.error.max(initial=0.0))  # divided by it first: squares may overflow
    return float(top * math.sqrt(_mean((pair.error[pair.finite] / top) ** 2))) if top > 0 else 0.0


def floored_relative(pair: Pair) -> NDArray[np.float64]:
    """|actual − golden| / (|golden| + 1e-7) of the finite elements."""
    errors: NDArray[np.float64] = pair.error[pair.finite] / (pair.magnitude[pair.finite] + RELATIVE_FLOOR)
    return errors


def mare(pair: Pair) -> float:
    """Largest of `floored_relative`."""
    return float(floored_relative(pair).max(initial=0.0))


def mere(pair: Pair) -> float:
    """Mean of `floored_relative`."""
    return _mean(floored_relative(pair))


def euclidean(pair: Pair) -> float:
    """Euclidean distance."""
    return float(rmse(pair) * math.sqrt(int(pair.finite.sum())))


def cosine(pair: Pair) -> float:
    """Cosine of the angle between the two as vectors."""
    return float(1.0 - cosine_distance(pair))


def share_over(relative: float) -> Callable[[Pair], float]:
    """Share of the elements that err by more than so much of |golden|; those with NaN or ∞ on one side only count as over."""

    def share(pair: Pair) -> float:
        over = (pair.error > relative * pair.magnitude) | pair.nonfinite_differ
        return float(over.mean()) if over.size else 0.0

    return share


def nonfinite(pair: Pair) -> float:
    """How many elements are NaN, +∞ or −∞ on one side and not the same on the other."""
    return float(pair.nonfinite_differ.sum())


FIGURES: Mapping[str, Callable[[Pair], float]] = {
    "max_abs": max_abs,
    "mean_abs": mean_abs,
    "max_rel": max_rel,
    "mean_rel": mean_rel,
    "rmse": rmse,
    "mare": mare,
    "mere": mere,
    "euclidean": euclidean,
    "cosine": cosine,
    "over_1/1000": share_over(1 / 1000),
    "over_5/1000": share_over(5 / 1000),
    "nonfinite": nonfinite,
}


def figures(pair: Pair, dtype: str) -> dict[str, float]:
    """All figures, with "max_ulp" and "mean_ulp" in units of `dtype`. Integers have a subset that means something."""
    if dtype not in FORMATS:
        return {"max_abs": max_abs(pair), "mean_abs": mean_abs(pair), "differ": float((pair.error > 0).sum())}
    found = {name: figure(pair) for name, figure in FIGURES.items()}
    distance = ulp_error(pair.actual, pair.expected, dtype)
    return found | {"max_ulp": float(distance.max(initial=0.0)), "mean_ulp": _mean(distance)}


def ulp(golden: Array, dtype: str) -> NDArray[np.float64]:
    """Size of the last place of `dtype` at these real numbers: 2^(exponent − mantissa bits), constant among subnormals."""
    mantissa, lowest, _ = FORMATS[dtype]
    _, exponent = np.frexp(np.where(np.isfinite(golden), np.abs(golden), 0).astype(np.float64))
    # frexp counts from [0.5, 1); of 0 it says exponent 0, which is the smallest here.
    exponent = np.where(golden == 0, lowest, np.maximum(exponent - 1, lowest))
    size: NDArray[np.float64] = np.ldexp(1.0, exponent - mantissa)
    return size


def ulp_error(actual: Array, golden: Array, dtype: str) -> NDArray[np.float64]:
    """|actual − golden| in last places of `dtype` at golden, a real number that `dtype` need not have.

    A golden value that `dtype` rounds to ∞ is ∞. Equal NaN or ∞ are 0 apart, others ∞.
    """
    golden = overflowed(golden, dtype)
    pair = Pair(actual, golden)
    with np.errstate(over="ignore"):
        distance = pair.error / ulp(golden, dtype)
    return np.where(pair.nonfinite_differ, np.inf, distance)


def overflowed(golden: Array, dtype: str) -> Array:
    """Golden with ±∞ where `dtype` has no finite number that near: beyond half a last place above its largest."""
    mantissa, _, largest = FORMATS[dtype]
    if dtype == "float64":
        return golden
    edge = largest + math.ldexp(1.0, math.frexp(largest)[1] - 2 - mantissa)
    wide = golden.astype(np.float64)
    beyond = np.isfinite(wide) & (np.abs(wide) >= edge)
    result: Array = np.where(beyond, np.copysign(np.inf, wide), wide)
    return result


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else 0.0
