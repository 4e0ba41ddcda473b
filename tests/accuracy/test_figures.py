# SPDX-License-Identifier: Apache-2.0
"""Figures against answers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ascend_dsv4.accuracy.figures import FIGURES, figures, overflowed, ulp, ulp_error
from ascend_dsv4.accuracy.grids import GRIDS, grid_figures, places, scales
from ascend_dsv4.ops.cases import f32, i32
from ascend_dsv4.ops.compare import Pair

INF, NAN = math.inf, math.nan


def f64(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def test_every_figure_by_hand() -> None:
    """Errors 0.5, 0, 0.25, 1 on golden 2, -4, 0, 8; the vectors' dot product is 77, their squared lengths 71.3125 and 84."""
    pair = Pair(f32([2.5, -4, 0.25, 7]), f32([2, -4, 0, 8]))
    expected = {
        "max_abs": 1.0,
        "mean_abs": 1.75 / 4,
        "max_rel": 0.25,
        "mean_rel": (0.25 + 0 + 0.125) / 3,
        "rmse": math.sqrt((0.25 + 0 + 0.0625 + 1) / 4),
        "mare": 0.25 / 1e-7,
        "mere": (0.5 / 2.0000001 + 0 + 2_500_000 + 1 / 8.0000001) / 4,
        "euclidean": math.sqrt(1.3125),
        "cosine": 77 / math.sqrt(71.3125 * 84),
        "over_1/1000": 0.75,
        "over_5/1000": 0.75,
        "nonfinite": 0.0,
    }
    assert {name: figure(pair) for name, figure in FIGURES.items()} == pytest.approx(expected)


def test_thousandths_by_hand() -> None:
    """Relative errors 0.0005, 0.003, 0.006, and an infinity that should not be one."""
    pair = Pair(f64(1000.5, 1003, 1006, INF), f64(1000, 1000, 1000, 1000))
    assert FIGURES["over_1/1000"](pair) == 0.75
    assert FIGURES["over_5/1000"](pair) == 0.5
    assert FIGURES["nonfinite"](pair) == 1.0


def test_means_leave_out_what_is_not_finite() -> None:
    pair = Pair(f64(1.5, NAN, INF), f64(1, NAN, INF))
    assert FIGURES["mean_abs"](pair) == 0.5
    assert FIGURES["rmse"](pair) == 0.5
    assert FIGURES["nonfinite"](pair) == 0.0


def test_rmse_does_not_overflow() -> None:
    assert FIGURES["rmse"](Pair(f64(1e300, 0), f64(0, 0))) == pytest.approx(1e300 / math.sqrt(2))


class TestUlp:
    """Units of the last place: of the golden's binade, down to the smallest subnormal."""

    @pytest.mark.parametrize(("value", "dtype", "size"), [
        (1.0, "float32", 2.0**-23), (1.9999, "float32", 2.0**-23), (2.0, "float32", 2.0**-22), (-3.0, "float32", 2.0**-22),
        (0.9999, "float32", 2.0**-24), (1.0, "bfloat16", 2.0**-7), (255.0, "bfloat16", 1.0), (256.0, "bfloat16", 2.0),
        (1.0, "float16", 2.0**-10), (65504.0, "float16", 32.0), (1.0, "float8_e4m3fn", 0.125), (448.0, "float8_e4m3fn", 32.0),
        (2.0**-14, "float16", 2.0**-24), (2.0**-15, "float16", 2.0**-24), (2.0**-24, "float16", 2.0**-24),
        (0.0, "float16", 2.0**-24),
        (2.0**-126, "float32", 2.0**-149), (2.0**-149, "float32", 2.0**-149), (0.0, "float32", 2.0**-149),
        (2.0**-126, "bfloat16", 2.0**-133), (0.0, "float8_e4m3fn", 2.0**-9),
    ])  # fmt: skip
    def test_size(self, value: float, dtype: str, size: float) -> None:
        assert ulp(f64(value), dtype)[0] == size

    def test_neighbours_are_one_apart(self) -> None:
        """In each binade, and from the largest subnormal to the smallest normal number."""
        golden = f32([1, 1.5, 2, 1e-3, 1e30, 2.0**-126, 2.0**-127, 2.0**-149])
        above = np.nextafter(golden, np.float32(np.inf), dtype=np.float32)
        assert ulp_error(above, golden, "float32").tolist() == [1.0] * 8

    def test_across_a_binade(self) -> None:
        """Below 1 numbers lie half as far apart, so the one before 1 is half a unit of 1 away; 4 is 2^23 units of 2 from 2."""
        assert ulp_error(f32([np.nextafter(np.float32(1), np.float32(0))]), f32([1]), "float32")[0] == 0.5
        assert ulp_error(f32([4]), f32([2]), "float32")[0] == 2.0**23

    def test_of_a_real_number(self) -> None:
        """1/3 lies between 0.333251953125 and 0.33349609375 in float16, one unit of 2^-12, a third of it above the former."""
        distance = ulp_error(f64(0.333251953125, 0.33349609375), f64(1 / 3, 1 / 3), "float16")
        assert distance.tolist() == pytest.approx([1 / 3, 2 / 3], rel=1e-9)

    def test_infinities_and_nan(self) -> None:
        """Equal ones are 0 apart; a finite number where there should be none is infinitely far, and the other way round."""
        actual, golden = f64(INF, -INF, NAN, INF, 1, NAN, 1), f64(INF, -INF, NAN, -INF, INF, 1, NAN)
        assert ulp_error(actual, golden, "float32").tolist() == [0, 0, 0, INF, INF, INF, INF]

    def test_overflow_of_the_format(self) -> None:
        """65504 is float16's largest number; from 65520 on the nearest is ∞."""
        golden = f64(65504, 65519.9, 65520, -70000, INF)
        assert overflowed(golden, "float16").tolist() == [65504, 65519.9, INF, -INF, INF]
        assert ulp_error(f64(INF, 65504), f64(65520, 65519.9), "float16").tolist() == pytest.approx([0, 15.9 / 32])

    def test_ties(self) -> None:
        """Half-way between two numbers either is half a unit away."""
        assert ulp_error(f64(1, 1 + 2.0**-7), f64(1 + 2.0**-8, 1 + 2.0**-8), "bfloat16").tolist() == [0.5, 0.5]


def test_integers_have_few_figures() -> None:
    assert figures(Pair(i32([1, 5, 3]), i32([1, 2, 3])), "int32") == {"max_abs": 3.0, "mean_abs": 1.0, "differ": 1.0}


class TestGrids:
    def test_scale_by_hand(self) -> None:
        """E4M3 ends at 448, E2M1 at 6: the smallest power of two that fits the largest value; E4M3 scales fit it exactly."""
        assert scales(f64(448, -1).reshape(1, 2), GRIDS["fp8_b32"]).item() == 1.0
        assert scales(f64(449, 0).reshape(1, 2), GRIDS["fp8_b32"]).item() == 2.0
        assert scales(f64(-3, 0).reshape(1, 2), GRIDS["fp4_b32"]).item() == 0.5
        assert scales(f64(9, 0).reshape(1, 2), GRIDS["fp4_b16_e4m3"]).item() == 1.5

    def test_places_by_hand(self) -> None:
        """0, 0.5, 1, 1.5, 2, 3, 4, 6."""
        assert places(f64(0, 0.5, -1, 3, -6), GRIDS["fp4_b32"]).tolist() == [0, 1, -2, 5, -7]

    def test_code_distance_by_hand(self) -> None:
        """Scale 1: 2 for 3 is one code off, -4 for 4 is twelve, 2.5 is on no point; the second group has scale 4 for 1."""
        golden, actual = np.zeros((2, 32)), np.zeros((2, 32))
        golden[0, :4], actual[0, :4] = (6, 3, 4, 2), (6, 2, -4, 2.5)
        golden[1, :2], actual[1, :2] = (6, 1), (24, 4)
        found = grid_figures(actual, golden, "fp4_b32", 0)
        assert found == {"code_distance": 12.0, "codes_differ": 3 / 64, "off_grid": 1.0, "scale_steps": 2.0}

    def test_a_partial_group_is_looked_at(self) -> None:
        """Six elements behind a whole group; 448 and 0 are 126 points apart."""
        golden = np.full((1, 80), 448.0)
        actual = golden.copy()
        actual[0, 65] = 0.0
        found = grid_figures(actual, golden, "fp8", 10)
        assert found == {"code_distance": 126.0, "codes_differ": 1 / 70, "off_grid": 0.0, "scale_steps": 0.0}

    def test_the_rotary_tail_is_left_out(self) -> None:
        golden = np.full((1, 80), 448.0)
        actual = golden.copy()
        actual[0, 64:] = 1.2345
        assert grid_figures(actual, golden, "fp8", 16)["code_distance"] == 0.0
