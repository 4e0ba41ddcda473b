# SPDX-License-Identifier: Apache-2.0
"""Number formats and small functions that the oracles share, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Args = dict[str, Any]
Oracle = Callable[[Args, dict[str, Any], str], dict[str, Array]]

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
# 0x7F, which would be 480, is the NaN.
E4M3 = [m / 8 * 2.0**-6 for m in range(8)] + [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)][:-1]


def round_to(x: Array, dtype: str) -> Array:
    """Nearest value of a float type, ties to even."""
    if dtype == "float64":
        return x
    single = np.asarray(x, dtype=np.float32)
    if dtype == "float32":
        return single.astype(np.float64)
    if dtype == "float16":
        return single.astype(np.float16).astype(np.float64)
    assert dtype == "bfloat16"
    bits = single.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
    return np.where(np.isnan(single), np.nan, rounded).astype(np.float64)


def decode(weight: Array, scale: Array | None, block: tuple[int, int]) -> Array:
    """Real values of a plain, FP8 or FP4 matrix, which are float32 numbers."""
    if scale is None:
        return weight
    out = np.zeros((weight.shape[0], weight.shape[1] * (2 if weight.dtype == np.int8 else 1)))
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            if weight.dtype == np.int8:
                byte = int(weight[i, j // 2]) & 0xFF
                code = byte >> 4 if j % 2 else byte & 15
                value, factor = (-1) ** (code >> 3) * E2M1[code & 7], scale[i, j // 32]
            else:
                code = int(weight[i, j])
                value, factor = (-1) ** (code >> 7) * E4M3[code & 127], scale[i // block[0], j // block[1]]
            if scale.dtype == np.uint8:
                factor = 2.0 ** (int(factor) - 127)
            out[i, j] = np.float32(value * factor)
    return out


def nearest(values: Array, grid: list[float]) -> Array:
    """The nearest values of a grid, at most its last; of two equally near, the one of even code."""
    distance = np.abs(np.minimum(np.abs(values), grid[-1])[:, None] - np.array(grid))
    code = distance.argmin(1)
    following = np.minimum(code + 1, len(grid) - 1)
    rows = np.arange(len(code))
    tied = (distance[rows, code] == distance[rows, following]) & (code % 2 == 1)
    return np.asarray(np.copysign(np.array(grid)[np.where(tied, following, code)], values))


def power_of_two(amax: float, largest: float) -> float:
    """The smallest power of two that is not below the float32 product amax · (1 / largest)."""
    mantissa, exponent = math.frexp(float(np.float32(amax) * np.float32(1 / largest)))
    return 2.0 ** (exponent - (mantissa == 0.5))


def e4m3(amax: float, largest: float) -> float:
    return float(nearest(np.array([float(np.float32(amax) / np.float32(largest))]), E4M3)[0])


def grid_round(
    row: Array, group: int, grid: list[float], floor: float, scale_rule: Callable[[float, float], float] = power_of_two
) -> Array:
    """Groups of a row to the nearest multiple of their scale that the grid has."""
    out = row.copy()
    for start in range(0, len(row), group):
        part = row[start : start + group]
        scale = scale_rule(max(np.abs(part).max(), floor), grid[-1])
        out[start : start + group] = nearest(part / scale, grid) * scale
    return out


@cache
def sylvester(size: int) -> Array:
    """His matrix of ±1; `size` is a power of two."""
    if size == 1:
        return np.ones((1, 1))
    half = sylvester(size // 2)
    return np.block([[half, half], [half, -half]])


def hadamard(row: Array) -> Array:
    """Sylvester's matrix times a row, over the root of its size."""
    return np.asarray(sylvester(len(row)) @ row * len(row) ** -0.5)


def stored(row: Array, rounding: str, rope_dim: int, dtype: str) -> Array:
    """A row as the cache holds it."""
    if rounding == "fp8":
        split = len(row) - rope_dim
        return np.concatenate([grid_round(row[:split], 64, E4M3, float(np.float32(1e-4))), row[split:]])
    if rounding == "hadamard_fp4":
        return grid_round(round_to(hadamard(row), dtype), 32, E2M1, 6 * 2.0**-126)
    if rounding == "fp8_b32":
        return grid_round(row, 32, E4M3, float(np.float32(1e-4)))
    if rounding == "fp4_b32":
        return grid_round(row, 32, E2M1, 6 * 2.0**-126)
    if rounding == "fp4_b16_e4m3":
        return grid_round(row, 16, E2M1, 6 * 2.0**-9, e4m3)
    assert rounding == "none"
    return row


def normed(row: Array, weight: Array | None, eps: float) -> Array:
    y = row / math.sqrt((row * row).sum() / len(row) + eps)
    return y if weight is None else y * weight


def turned(row: Array, cos: Array, sin: Array, first: int, layout: str) -> Array:
    """2·len(cos) channels from `first` on, pair by pair."""
    out, half = row.copy(), len(cos)
    for i, (c, s) in enumerate(zip(cos, sin, strict=True)):
        left, right = {"adjacent": (2 * i, 2 * i + 1), "halves": (i, i + half)}[layout]
        a, b = row[first + left], row[first + right]
        out[first + left], out[first + right] = a * c - b * s, a * s + b * c
    return out


def silu(x: Array) -> Array:
    return np.asarray(x / (1 + np.exp(-x)))
