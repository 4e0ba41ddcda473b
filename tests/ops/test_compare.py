# SPDX-License-Identifier: Apache-2.0
"""The comparison against answers worked out by hand, and everything it must refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ascend_dsv4.ops.cases import f32, i32
from ascend_dsv4.ops.compare import Pair, compare, compare_sets, cosine_distance, max_abs, max_rel
from ascend_dsv4.ops.spec import EXACT, Tolerance

LOOSE = Tolerance(abs=0.1, rel=0.01, cos=0.0)
NAN, INF = float("nan"), float("inf")


class TestFigures:
    def test_by_hand(self) -> None:
        """Errors 0.5, 0, 0.25, 1 on expected 2, -4, 0, 8: relative ones 0.25, 0, none, 0.125."""
        result = compare(f32([[2.5, -4], [0.25, 7]]), f32([[2, -4], [0, 8]]), LOOSE)
        assert not result.passed
        assert result.reason == "3 of 4 elements outside abs 0.1, rel 0.01"
        assert (result.num_elements, result.num_over) == (4, 3)
        assert (result.max_abs, result.max_rel) == (1.0, 0.25)
        # Margins beyond 0.1 + 0.01·|e|: 0.38, -0.14, 0.15, 0.82.
        assert (result.worst_index, result.worst_actual, result.worst_expected) == ((1, 1), 7.0, 8.0)
        assert result.nonfinite_equal

    def test_cosine_by_hand(self) -> None:
        """(3, 4) and (4, 3): cos = 24/25. Opposite vectors: 2. Perpendicular ones: 1."""
        pairs = [((3, 4), (4, 3), 1 / 25), ((1, 2), (-1, -2), 2.0), ((1, 0), (0, 5), 1.0), ((1, 2), (10, 20), 0.0)]
        for actual, expected, distance in pairs:
            assert cosine_distance(Pair(f32(actual), f32(expected))) == pytest.approx(distance, abs=1e-15)

    def test_cosine_of_zero_vectors(self) -> None:
        assert cosine_distance(Pair(f32([0, 0]), f32([0, 0]))) == 0.0
        assert cosine_distance(Pair(f32([0, 0]), f32([0, 1]))) == 1.0
        assert cosine_distance(Pair(f32([1, 0]), f32([0, 0]))) == 1.0

    def test_cosine_keeps_small_angles(self) -> None:
        """Half the squared angle, where 1 - cos in float64 would be 0."""
        angle = 1e-9
        distance = cosine_distance(Pair(np.array([1.0, angle]), np.array([1.0, 0.0])))
        assert distance == pytest.approx(angle**2 / 2, rel=1e-6)

    def test_cosine_does_not_overflow(self) -> None:
        assert cosine_distance(Pair(np.array([3e300, 4e300]), np.array([4e300, 3e300]))) == pytest.approx(1 / 25)

    def test_float64_differences_of_float32(self) -> None:
        """One last bit of 2^24 is 2."""
        assert max_abs(Pair(f32([2**24 + 2, 1]), f32([2**24, 1]))) == 2.0
        assert max_rel(Pair(f32([1, 3]), np.array([1.0, 4.0]))) == 0.25

    def test_worst_when_all_is_well(self) -> None:
        """The element that comes closest to its limit, not the one with the largest error."""
        result = compare(f32([1.09, 1001]), f32([1.0, 1000.0]), Tolerance(0.1, 0.01, 0))
        assert result.passed and result.reason == ""
        assert result.worst_index == (0,)
        assert result.max_abs == 1.0


class TestVerdict:
    def test_the_limit_itself_passes(self) -> None:
        assert compare(f32([1.5, 3]), f32([1, 2]), Tolerance(abs=0.5, rel=0.25, cos=0)).passed
        assert not compare(f32([1.5, 3.25]), f32([1, 2]), Tolerance(abs=0.5, rel=0.25, cos=0)).passed

    def test_relative_to_expected(self) -> None:
        limit = Tolerance(abs=0, rel=0.5, cos=0)
        assert compare(f32([1, 7]), f32([2, 7]), limit).passed
        assert not compare(f32([2, 7]), f32([1, 7]), limit).passed

    def test_cosine_limit(self) -> None:
        pair = f32([3, 4]), f32([4, 3])
        assert compare(*pair, Tolerance(1, 0, 0.05)).passed
        refused = compare(*pair, Tolerance(1, 0, 0.03))
        assert not refused.passed and refused.num_over == 0
        assert refused.reason == "1 - cos = 0.04 exceeds 0.03"
        assert compare(*pair, Tolerance(1, 0, 0)).passed, "a limit of 0 leaves the verdict to the elements"

    def test_nonfinite_at_the_same_places(self) -> None:
        expected = f32([1, NAN, INF, -INF, 2])
        assert compare(expected.copy(), expected, EXACT).passed

    @pytest.mark.parametrize("actual", [[1, 5, INF, -INF], [NAN, NAN, INF, -INF], [1, NAN, -INF, -INF], [1, INF, INF, -INF]])
    def test_nonfinite_elsewhere(self, actual: list[float]) -> None:
        result = compare(f32(actual), f32([1, NAN, INF, -INF]), LOOSE)
        assert not result.passed and not result.nonfinite_equal
        assert result.num_over == 1
        assert result.reason == "NaN or infinity differs at 1 positions"
        assert not math.isclose(result.worst_actual, result.worst_expected)

    def test_a_large_finite_number_is_not_infinity(self) -> None:
        assert not compare(f32([3.4e38, 1]), f32([INF, 1]), Tolerance(1, 0.9, 0)).passed

    def test_integers_are_exact(self) -> None:
        assert compare(i32([1, 2]), np.array([1, 2], dtype=np.int64), LOOSE).passed
        result = compare(i32([1, 2, 9]), i32([1, 3, 4]), Tolerance(100, 0.5, 0))
        assert not result.passed and result.num_over == 2
        assert result.worst_index == (2,)
        assert result.reason == "2 of 3 elements differ"

    def test_integers_beyond_float64(self) -> None:
        expected = np.array([2**60, 0], dtype=np.int64)
        result = compare(expected + np.array([1, 0]), expected, EXACT)
        assert (result.passed, result.num_over, result.worst_index) == (False, 1, (0,))

    def test_booleans(self) -> None:
        assert not compare(np.array([True, False]), np.array([True, True]), EXACT, allow_constant=True).passed
        assert compare(np.array([True, False]), np.array([True, False]), EXACT).passed

    def test_a_single_element(self) -> None:
        assert compare(f32([1]), f32([1]), EXACT).passed
        assert compare(f32(1), f32(1), EXACT).worst_index == ()
        assert not compare(f32([2]), f32([1]), EXACT).passed


class TestRefusals:
    """A comparison that cannot fail has not passed."""

    def refused(self, reason: str, actual: np.ndarray, expected: np.ndarray, tolerance: Tolerance = LOOSE) -> None:
        result = compare(actual, expected, tolerance)
        assert not result.passed
        assert result.reason.startswith(f"refused: {reason}"), result.reason

    def test_empty(self) -> None:
        self.refused("no elements", f32([]), f32([]))
        self.refused("no elements", np.zeros((0, 4)), np.zeros((0, 4)))

    @pytest.mark.parametrize("value", [0.0, 1.0, -3.5, NAN, INF])
    def test_constant(self, value: float) -> None:
        expected = np.full((2, 3), value)
        self.refused(f"expected is {value} throughout", expected.copy(), expected)
        assert compare(expected.copy(), expected, LOOSE, allow_constant=True).passed
        changed = expected.copy()
        changed[1, 2] = 9.0
        assert not compare(changed, expected, LOOSE, allow_constant=True).passed

    def test_constant_integers_and_signed_zeros(self) -> None:
        self.refused("expected is 7 throughout", i32([7, 7]), i32([7, 7]))
        self.refused("expected is", f32([0, 0]), f32([0, -0.0]))

    def test_one_object(self) -> None:
        array = f32([1, 2, 3])
        self.refused("actual and expected are the same memory", array, array)
        self.refused("actual and expected are the same memory", array[:2], array[1:])
        self.refused("actual and expected are the same memory", array.reshape(3, 1), array[:, None])
        assert compare(array.copy(), array, LOOSE).passed

    def test_interleaved_views_are_apart(self) -> None:
        both = f32([[1, 1], [2, 2]])
        assert compare(both[:, 0], both[:, 1], EXACT).passed

    @pytest.mark.parametrize("limits", [(INF, 0, 0), (NAN, 0, 0), (0, 1, 0), (-1, 0, 0), (0, 0, NAN), (0, 0, INF)])
    def test_tolerances_that_admit_anything(self, limits: tuple[float, float, float]) -> None:
        self.refused("Tolerance", f32([1, 2]), f32([1, 2]), Tolerance(*limits))

    def test_what_cannot_be_compared(self) -> None:
        for actual, expected, reason in (
            (f32([1, 2]), f32([[1, 2]]), "actual has shape [2], expected has [1, 2]"),
            (f32([1, 2]), i32([1, 2]), "actual is float32, expected is int32"),
            (np.array(["a"]), f32([1]), "actual has dtype <U1"),
            (f32([1]), np.array([1j]), "expected has dtype complex128"),
            ([1.0], f32([1]), "actual is a list"),
        ):
            result = compare(actual, expected, LOOSE)
            assert not result.passed
            assert result.reason.startswith(reason), result.reason


class TestSets:
    def test_order_and_padding_do_not_matter(self) -> None:
        result = compare_sets(i32([[5, -1, 2], [-1, -1, 0]]), i32([[2, 5, -1], [0, -1, -1]]))
        assert result.passed and (result.num_rows, result.num_tied) == (2, 0)

    def test_a_wrong_row(self) -> None:
        result = compare_sets(i32([[1, 2, 3], [4, 9, 8]]), i32([[3, 2, 1], [4, 5, 6]]))
        assert not result.passed
        assert (result.num_wrong, result.first_wrong, result.missing, result.surplus) == (1, 1, (5, 6), (8, 9))
        assert result.reason == "1 of 2 rows differ, first row 1: missing (5, 6), surplus (8, 9)"

    def test_a_repeated_choice(self) -> None:
        assert not compare_sets(i32([[1, 1]]), i32([[1, -1]])).passed
        assert not compare_sets(i32([[1, 1]]), i32([[1, 2]]), f32([[0, 5, 5, 1]])).passed

    def test_too_few_and_too_many(self) -> None:
        assert not compare_sets(i32([[1, -1]]), i32([[1, 2]])).passed
        assert not compare_sets(i32([[1, 2]]), i32([[1, -1]])).passed
        scores = f32([[0, 5, 5, 5]])
        assert not compare_sets(i32([[1, -1]]), i32([[1, 2]]), scores).passed, "equal scores do not excuse a missing choice"

    def test_ties_at_the_boundary(self) -> None:
        """Best two of 9, 4, 4, 1: token 0 for certain, then 1 or 2."""
        scores = f32([[9, 4, 4, 1]])
        result = compare_sets(i32([[2, 0]]), i32([[0, 1]]), scores)
        assert result.passed and result.num_tied == 1
        assert not compare_sets(i32([[2, 0]]), i32([[0, 1]])).passed, "without scores there are no ties"
        assert not compare_sets(i32([[0, 3]]), i32([[0, 1]]), scores).passed, "a lower score"
        assert not compare_sets(i32([[1, 2]]), i32([[0, 1]]), scores).passed, "above the boundary nothing may be missing"

    def test_near_ties(self) -> None:
        scores = f32([[9, 4, 3.75, 1]])
        assert not compare_sets(i32([[0, 2]]), i32([[0, 1]]), scores).passed
        assert compare_sets(i32([[0, 2]]), i32([[0, 1]]), scores, tie=0.25).passed

    def test_nan_ranks_last(self) -> None:
        scores = f32([[9, -INF, NAN, 1]])
        assert compare_sets(i32([[0, 3, 2]]), i32([[0, 3, 1]]), scores).passed
        assert not compare_sets(i32([[0, 2, 1]]), i32([[0, 3, 1]]), scores).passed

    def test_indices_out_of_range(self) -> None:
        scores = f32([[5, 5, 1]])
        assert not compare_sets(i32([[7]]), i32([[0]]), scores).passed
        assert not compare_sets(i32([[-2]]), i32([[0]]), scores).passed
        assert "expected index 7 has no score" in compare_sets(i32([[0]]), i32([[7]]), scores).reason

    def test_refusals(self) -> None:
        array = i32([[1, 2]])
        for result, reason in (
            (compare_sets(array, array), "refused: actual and expected are the same memory"),
            (compare_sets(i32([[]]), i32([[]])), "refused: no elements"),
            (compare_sets(i32([[-1, -1]]), i32([[-1, -1]])), "refused: any choice of this size would do"),
            (compare_sets(i32([[0]]), i32([[1]]), f32([[3, 3, 3]])), "refused: any choice of this size would do"),
            (compare_sets(i32([[0]]), i32([[1]]), f32([[3, 4, 5]]), tie=9.0), "refused: any choice of this size would do"),
            (compare_sets(array, i32([[1, 2, 3]])), "actual has shape [1, 2]"),
            (compare_sets(f32([[1]]), f32([[1]])), "indices are float32"),
            (compare_sets(i32(1), i32(1)), "indices are int32 with 0 axes"),
            (compare_sets(i32([[0]]), i32([[1]]), f32([3, 4])), "scores have shape [2]"),
        ):
            assert not result.passed
            assert result.reason.startswith(reason), result.reason

    def test_one_row_that_decides_is_enough(self) -> None:
        assert compare_sets(i32([[-1], [0]]), i32([[-1], [0]]), f32([[3, 3], [3, 4]])).passed
