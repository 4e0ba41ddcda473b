# SPDX-License-Identifier: Apache-2.0
"""Figures of rows rounded to a grid: how many codes apart two of them are, and how far their scales. Framework-free.

Caches hold such rows as values (code × scale), so the scale of a group is found again from its values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.accuracy.figures import Array
from ascend_dsv4.accuracy.oracles.numerics import E2M1, E4M3


@dataclass(frozen=True, slots=True)
class Grid:
    """A rounding of `store_kv`."""

    group: int
    """Channels that share a scale."""
    values: NDArray[np.float64]
    """What codes stand for, from 0 up."""
    rotary_tail: bool = False
    """Whether the last rope_dim channels are left as they are."""
    any_scale: bool = False
    """Scales are no powers of two."""


GRIDS: Mapping[str, Grid] = {
    "fp8": Grid(64, np.array(E4M3), rotary_tail=True),
    "hadamard_fp4": Grid(32, np.array(E2M1)),
    "fp8_b32": Grid(32, np.array(E4M3)),
    "fp4_b32": Grid(32, np.array(E2M1)),
    "fp4_b16_e4m3": Grid(16, np.array(E2M1), any_scale=True),
}


def grid_figures(actual: Array, golden: Array, rounding: str, rope_dim: int) -> dict[str, float]:
    """Rows [num_rows, width] against golden ones, with the scales of the golden ones; a last group may be partial.

    code_distance  largest number of grid points between two elements; codes_differ  share of elements that are not on the same
    point; off_grid  elements of `actual` on no point; scale_steps  largest |log2| of a group's scale over the golden one
    """
    grid = GRIDS[rounding]
    width = golden.shape[1] - (rope_dim if grid.rotary_tail else 0)
    size = min(grid.group, width)
    fill = ((0, 0), (0, -width % size))  # zeros on both sides, which are no difference
    mine, right = (np.pad(rows[:, :width].astype(np.float64), fill).reshape(-1, size) for rows in (actual, golden))
    scale, my_scale = scales(right, grid), scales(mine, grid)
    points, my_points = places(right / scale, grid), places(mine / scale, grid)
    on_own = grid.values[np.abs(places(mine / my_scale, grid))]
    with np.errstate(divide="ignore"):
        steps = np.abs(np.log2(my_scale / scale))
    distance = np.abs(my_points - points)
    return {
        "code_distance": float(distance.max(initial=0)),
        "codes_differ": float((distance > 0).sum()) / max(len(golden) * width, 1),
        "off_grid": float((on_own * my_scale != np.abs(mine)).sum()),
        "scale_steps": float(steps.max(initial=0.0)),
    }


def scales(groups: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
    """Scale of every group [num_groups, 1]: the smallest under which its largest value fits the grid; 1 for zeros."""
    top = np.abs(groups).max(axis=1, keepdims=True, initial=0.0)
    exact = np.where(top > 0, top, grid.values[-1]) / grid.values[-1]
    found: NDArray[np.float64] = exact if grid.any_scale else np.exp2(np.ceil(np.log2(exact)))
    return found


def places(multiples: NDArray[np.float64], grid: Grid) -> NDArray[np.int64]:
    """Signed number of the nearest grid point."""
    edges = (grid.values[1:] + grid.values[:-1]) / 2
    return np.searchsorted(edges, np.abs(multiples)) * np.where(multiples < 0, -1, 1)
