# SPDX-License-Identifier: Apache-2.0
"""Verdicts of the standards at and beside their limits, worked out by hand; choices as sets."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ascend_dsv4.accuracy.choices import compare_choices, pair_with
from ascend_dsv4.accuracy.standards import STANDARDS, Asked, double_ratios, judge, recheck
from ascend_dsv4.ops.cases import f32, i32
from ascend_dsv4.ops.spec import Tolerance

INF, NAN = math.inf, math.nan
LIMIT = Tolerance(0.1, 0.0, 0.0)


def asked(actual: np.ndarray, golden: np.ndarray, dtype: str = "bfloat16", **more: object) -> Asked:
    return Asked(actual, golden, dtype, LIMIT, **more)  # type: ignore[arg-type]


class TestAll:
    @pytest.mark.parametrize("standard", STANDARDS)
    def test_zeros_are_refused(self, standard: str) -> None:
        """The metric that called an all-zero tensor clean."""
        verdict = judge(standard, asked(np.zeros(100), np.zeros(100), baseline=np.ones(100)))
        assert (verdict.status, verdict.check) == ("refused", "constant")

    @pytest.mark.parametrize("value", [0, 1e-3])
    @pytest.mark.parametrize("standard", STANDARDS)
    def test_a_constant_for_small_numbers_does_not_pass(self, standard: str, value: float) -> None:
        """Every one of them is within the absolute tolerance of bfloat16."""
        golden = np.linspace(-2e-3, 2e-3, 64)
        verdict = judge(standard, Asked(np.full(64, value), golden, "bfloat16", Tolerance(1e-2, 0, 5e-6), baseline=-golden))
        assert verdict.status in ("fail", "refused") and verdict.ratio > 1

    @pytest.mark.parametrize("standard", STANDARDS)
    def test_a_constant_for_what_the_format_cannot_tell_apart(self, standard: str) -> None:
        golden = np.linspace(1, 1 + 2.0**-10, 64)
        baseline = np.full(64, 1 - 2.0**-8)
        verdict = judge(standard, Asked(np.ones(64), golden, "bfloat16", Tolerance(1e-3, 1e-2, 5e-6), baseline=baseline))
        assert verdict.status in ("pass", "noted")

    @pytest.mark.parametrize("standard", STANDARDS)
    def test_the_same_array_is_refused(self, standard: str) -> None:
        array = f32([1, 2, 3])
        assert judge(standard, asked(array, array, baseline=f32([1, 2, 3]))).status == "refused"

    @pytest.mark.parametrize("standard", STANDARDS)
    def test_nothing_is_refused(self, standard: str) -> None:
        assert judge(standard, asked(f32([]), f32([]), baseline=f32([]))).status == "refused"

    @pytest.mark.parametrize("standard", STANDARDS)
    def test_nan_and_infinity_come_first(self, standard: str) -> None:
        verdict = judge(standard, asked(f32([1, NAN, INF]), f32([1, NAN, 5]), baseline=f32([1, NAN, 5])))
        assert (verdict.status, verdict.check) == ("fail", "nonfinite")
        assert verdict.ratio == INF

    @pytest.mark.parametrize("standard", STANDARDS)
    def test_integers_are_exact(self, standard: str) -> None:
        assert judge(standard, asked(i32([1, 2]), i32([1, 2]), "int32")).status == "pass"
        assert judge(standard, asked(i32([1, 2]), i32([1, 3]), "int32")).status == "fail"


class TestSingle:
    """MERE under 2^-7 and MARE under ten times that, in bfloat16."""

    def test_mean(self) -> None:
        assert judge("opbase-single", asked(f32([1.0078, 2]), f32([1, 2]))).status == "pass"
        verdict = judge("opbase-single", asked(f32([1.016, 2.032]), f32([1, 2])))
        assert (verdict.status, verdict.check) == ("fail", "MERE")
        assert verdict.ratio == pytest.approx(0.016 * 128, rel=1e-4)

    def test_largest(self) -> None:
        """One of a hundred is off by 8 %: the mean is fine, ten thresholds are 7.8125 %."""
        golden = np.linspace(1, 2, 100)
        actual = golden.copy()
        actual[7] *= 1.08
        verdict = judge("opbase-single", asked(actual, golden))
        assert (verdict.status, verdict.check) == ("fail", "MARE")
        actual[7] = golden[7] * 1.078
        assert judge("opbase-single", asked(actual, golden)).status == "pass"


class TestDouble:
    golden = f32([1, 2, 4, 1e-4, 2e-4])
    baseline = f32([1.01, 2, 4, 1e-4, 3e-4])

    def test_ratios_by_hand(self) -> None:
        """float32 counts below 2^-14 as small, so 1e-4 is not; in bfloat16 all below 2^-8 are."""
        actual = f32([1.03, 2, 4, 1e-4 + 2e-5, 2e-4 + 2e-5])
        found = double_ratios(actual, self.baseline, self.golden, "bfloat16")
        assert found == pytest.approx(
            {"MARE ratio": 3, "MERE ratio": 3, "RMSE ratio": 3, "small-value count ratio": 2}, rel=1e-4
        )

    @pytest.mark.parametrize(("error", "level", "status"), [
        (0.019, "L0", "pass"), (0.021, "L0", "fail"), (0.014, "L1", "pass"), (0.016, "L1", "fail"),
        (0.011, "L2", "pass"), (0.013, "L2", "fail"),
    ])  # fmt: skip
    def test_levels(self, error: float, level: str, status: str) -> None:
        """MERE and RMSE at most 2, 1.5 and 1.2 times the baseline's 0.01."""
        actual = f32([1 + error, 2, 4, 1e-4, 2e-4])
        assert judge("opbase-double", asked(actual, self.golden, baseline=self.baseline, level=level)).status == status

    def test_a_baseline_without_errors_bounds_everything(self) -> None:
        exact = self.golden.copy()
        assert judge("opbase-double", asked(f32([1.001, 2, 4, 1e-4, 2e-4]), self.golden, baseline=exact)).ratio == INF
        assert judge("opbase-double", asked(self.golden + np.float32(0), self.golden, baseline=exact)).status == "pass"

    def test_needs_a_baseline(self) -> None:
        assert judge("opbase-double", asked(f32([1, 2]), f32([1, 2]))).status == "refused"

    def test_recheck(self) -> None:
        """A median far below the limit passes, one far above fails, and so do too few seeds."""
        assert recheck([0.5] * 150 + [3.0] * 60, 1.0)
        assert not recheck([3.0] * 150 + [0.5] * 60, 1.0)
        assert not recheck([0.5] * 199, 1.0)
        assert not recheck([0.5] * 199 + [INF] * 100, 1.0)
        assert recheck([0.5] * 200 + [INF] * 100, 1.0)
        assert not recheck([0.5] * 200 + [INF] * 300, 1.0), "what is infinite more often than not"


class TestMixed:
    """99 % of the elements within 2^-7 + 2^-7·|g|, none further off than 0.1 or 32 last places."""

    def test_share(self) -> None:
        golden = np.linspace(1, 2, 200)
        actual = golden.copy()
        actual[:2] += 0.05
        assert judge("mixed", asked(actual, golden)).status == "pass"
        actual[2] += 0.05
        verdict = judge("mixed", asked(actual, golden))
        assert (verdict.status, verdict.check) == ("fail", "share of elements over")
        assert verdict.ratio == pytest.approx(1.5)

    def test_largest(self) -> None:
        """32 last places at 1 are 0.25, at 0.001 much less than 0.1."""
        golden = np.concatenate([np.linspace(1, 1.9, 200), [0.001]])
        actual = golden.copy()
        actual[0] += 0.24
        assert judge("mixed", asked(actual, golden)).status == "pass"
        actual[0] += 0.02
        assert judge("mixed", asked(actual, golden)).check == "largest error"
        actual = golden.copy()
        actual[-1] += 0.11
        assert judge("mixed", asked(actual, golden)).check == "largest error"


class TestMsprobe:
    def test_three_verdicts(self) -> None:
        golden = f32([1, 2, 3])
        assert judge("msprobe", asked(f32([1.0005, 2, 3]), golden)).status == "pass"
        between = judge("msprobe", asked(f32([1.01, 2, 3]), golden))
        assert between.status == "noted" and between.reason.startswith("warning")
        assert judge("msprobe", asked(f32([1, 2, 5]), golden)).status == "fail"
        assert judge("msprobe", asked(f32([0.0005, 0.0001, 0]), f32([0, 0.0001, 0.0005]))).status == "fail", "cosine below 0.9"


class TestChoices:
    scores = np.array([[5, 4, 3, 3, 1], [9, 8, 7, 6, -INF]])
    golden = i32([[0, 1, 2], [0, 1, 2]])

    def test_order_does_not_matter(self) -> None:
        assert compare_choices(i32([[2, 0, 1], [1, 2, 0]]), self.golden, self.scores, 0.0).reason == ""

    def test_ties_are_counted_apart(self) -> None:
        verdict = compare_choices(i32([[0, 1, 3], [0, 1, 2]]), self.golden, self.scores, 0.0)
        assert verdict.reason == ""
        assert verdict.figures["tied_rows"] == 1
        assert verdict.figures["overlap"] == pytest.approx(5 / 6)

    def test_a_worse_choice_is_wrong(self) -> None:
        """Entry 3 scores 6 where the lowest golden one scores 7: a ninth of the row's largest below."""
        verdict = compare_choices(self.golden, i32([[0, 1, 2], [0, 1, 2]]), self.scores, 0.0)
        assert verdict.reason == ""
        wrong = compare_choices(i32([[0, 1, 2], [0, 1, 3]]), self.golden, self.scores, 0.01)
        assert "1 of 2 rows differ" in wrong.reason
        assert wrong.figures["score_gap"] == pytest.approx(1 / 9)
        assert wrong.worst == (1, 3.0, 2.0)
        assert compare_choices(i32([[0, 1, 2], [0, 1, 3]]), self.golden, self.scores, 0.12).reason == ""

    @pytest.mark.parametrize("row", [[0, 1, 4], [0, 1, -1], [0, 1, 1], [0, 1, 77]])
    def test_what_may_not_be_chosen(self, row: list[int]) -> None:
        """What is barred by -∞, nothing where there is something, one thing twice, and what does not exist."""
        assert compare_choices(i32([[0, 1, 2], row]), self.golden, self.scores, 0.5).reason != ""

    def test_readers_stop_at_the_first_gap(self) -> None:
        golden = i32([[0, 1, -1], [0, 1, 2]])
        assert compare_choices(i32([[1, 0, -1], [2, 1, 0]]), golden, None, 0.0).reason == ""
        assert "-1 stands before a choice in 1 rows" in compare_choices(i32([[0, -1, 1], [0, 1, 2]]), golden, None, 0.0).reason

    def test_without_scores_sets_are_exact(self) -> None:
        assert compare_choices(i32([[1, 0, 2], [0, 1, 2]]), self.golden, None, 1.0).reason == ""
        assert compare_choices(i32([[3, 0, 2], [0, 1, 2]]), self.golden, None, 1.0).reason != ""

    def test_weights_follow_their_ids(self) -> None:
        """An id that was not chosen has been judged already, so its weight is not judged again."""
        paired = pair_with(
            i32([[7, 3], [1, 2]]), i32([[3, 7], [1, 5]]), f32([[0.7, 0.3], [0.1, 0.2]]), f32([[0.3, 0.7], [0.1, 0.5]])
        )
        assert paired.tolist() == f32([[0.3, 0.7], [0.1, 0.5]]).tolist()
