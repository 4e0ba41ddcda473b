# SPDX-License-Identifier: Apache-2.0
"""`compare ops`: what passes, what is caught, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ascend_dsv4.accuracy.calls import load_cases
from ascend_dsv4.accuracy.matrix import Selection, compare_ops
from ascend_dsv4.accuracy.operators import FLOAT64, SPECIFIED, dtypes_of, judge_case, prepare, prepared_cases
from ascend_dsv4.accuracy.results import EndMetrics, OutputResult
from ascend_dsv4.errors import ConfigError, UnsupportedError
from ascend_dsv4.ops import OP_NAMES, registry
from ascend_dsv4.ops.registry import get_implementation


def run(op: str, function: Callable[..., Any], dtype: str = "float32", **options: Any) -> list[OutputResult]:
    """Results of all cases of an operator."""
    results = []
    for case in load_cases(op):
        if dtype in dtypes_of(op, case):
            results += judge_case(prepare(op, case, dtype), "mine", function, **options)
    return results


def checks(results: list[OutputResult]) -> set[str]:
    return {result.check for result in results if not result.passed}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_reference_passes(dtype: str) -> None:
    report = compare_ops(Selection(dtypes=(dtype,)))
    assert [result for result in report.results if not result.passed] == []
    assert (report.exit_code, report.errors, report.findings) == (0, (), ())
    judged = {result.op for result in report.results if result.status == "pass"}
    if dtype == "float32":
        assert judged == set(OP_NAMES)
        assert {result.golden for result in report.results} == {FLOAT64, SPECIFIED, "expected"}
    assert all(result.command.startswith("ascend-dsv4 compare ops --op ") for result in report.results)


def test_goldens_that_decide() -> None:
    """Where an operator rounds in mid-operator, unrounded float64 is shown without a verdict."""
    statuses = {(result.dtype, result.golden): result.status for result in compare_ops(Selection(ops=("expert_mlp",))).results}
    assert statuses["bfloat16", FLOAT64] == "noted" and statuses["bfloat16", SPECIFIED] == "pass"
    assert statuses["float32", FLOAT64] == "pass"


def rms_norm(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
    return get_implementation("rms_norm", "reference")(x, weight, eps=eps)  # type: ignore[no-any-return]


class TestCaught:
    def test_values(self) -> None:
        results = run("rms_norm", lambda x, weight, *, eps: rms_norm(x, weight, eps=eps) * 1.01)
        assert "elements" in checks(results)
        failed = next(result for result in results if result.status == "fail")
        assert failed.worst is not None and failed.ratio > 2
        assert failed.histogram[-1] > 0 and max(failed.by_position) == failed.ratio

    def test_nan(self) -> None:
        def poisoned(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
            y = rms_norm(x, weight, eps=eps)
            return y.index_fill(-1, torch.tensor([0]), torch.nan)

        assert "nonfinite" in checks(run("rms_norm", poisoned))

    def test_dtype_and_shape(self) -> None:
        assert checks(run("rms_norm", lambda x, weight, *, eps: rms_norm(x, weight, eps=eps).double())) == {"types"}
        assert "types" in checks(run("rms_norm", lambda x, weight, *, eps: rms_norm(x, weight, eps=eps)[None]))

    def test_number_of_outputs(self) -> None:
        assert checks(run("rms_norm", lambda x, weight, *, eps: (x, x))) == {"names"}
        assert checks(run("rms_norm", lambda x, weight, *, eps: None)) == {"names"}

    def test_an_overwritten_argument(self) -> None:
        def in_place(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
            y = rms_norm(x, weight, eps=eps)
            x.copy_(y)
            return y

        assert "arguments" in checks(run("rms_norm", in_place))

    def test_an_argument_returned(self) -> None:
        assert "alias" in checks(run("concat", lambda x, y: torch.cat([x, y], -1)[..., :]) + run("gelu", lambda x: x))

    def test_other_bits_on_a_second_call(self) -> None:
        calls = []

        def drifting(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
            calls.append(x)
            return rms_norm(x, weight, eps=eps) * (1 + 1e-6 * (len(calls) % 2))

        assert checks(run("rms_norm", drifting)) == {"repeat"}

    def test_checks_can_be_left_out(self) -> None:
        double = run("rms_norm", lambda x, weight, *, eps: rms_norm(x, weight, eps=eps).double(), without=("types",))
        assert checks(double) == set()


class TestRefused:
    def test_unknown_things(self) -> None:
        with pytest.raises(ConfigError, match="rms_norms"):
            Selection(ops=("rms_norms",))
        with pytest.raises(ConfigError, match="--standard loose"):
            Selection(standard="loose")
        with pytest.raises(ConfigError, match="--dtype int8"):
            Selection(dtypes=("int8",))
        with pytest.raises(UnsupportedError, match="unknown implementation 'fast'"):
            compare_ops(Selection(ops=("rms_norm",), implementations=("fast",)))
        with pytest.raises(ConfigError, match="no_such_module"):
            compare_ops(Selection(ops=("rms_norm",), implementations=("no_such_module:f",)))

    def test_a_baseline_that_is_the_candidate(self) -> None:
        with pytest.raises(ConfigError, match="measured by itself"):
            compare_ops(Selection(ops=("rms_norm",), standard="opbase-double", baseline="reference"))
        with pytest.raises(ConfigError, match="measured by itself"):
            Selection(ops=("rms_norm",), standard="opbase-double", baseline="naive")

    def test_no_case_is_not_a_pass(self) -> None:
        assert compare_ops(Selection(ops=("rms_norm",), cases=("no-such-case",))).exit_code == 2
        assert compare_ops(Selection(ops=("rms_norm",), cases=("tokens-0",))).exit_code == 2

    def test_a_pattern_that_matches_nothing(self) -> None:
        report = compare_ops(Selection(ops=("gelu",), dtypes=("float32",), cases=("tokens-3", "token-4")))
        assert report.findings == ("--case token-4: matches no case of gelu",) and report.exit_code == 1

    def test_figures_without_a_verdict(self) -> None:
        report = compare_ops(Selection(ops=("gelu",), dtypes=("float32",), cases=("tokens-3",)))
        noted = tuple(replace(result, status="noted") for result in report.results)
        assert replace(report, results=noted).exit_code == 2
        assert replace(report, results=(*noted, report.results[0])).exit_code == 0
        end = EndMetrics("prompt", 3, 9.0, 9.0, 0.0, 0, 1, 2.0, 9.0, 9.0)
        assert replace(report, results=(), ends=(end,)).exit_code == 2

    def test_what_an_implementation_lacks_is_left_out_and_said(self) -> None:
        report = compare_ops(
            Selection(ops=("gelu", "hc_post"), implementations=("reference", "ascendc-twin"), cases=("random",))
        )
        assert report.omissions == ("ascendc-twin: there is none of gelu",)
        found = {(result.op, result.implementation) for result in report.results}
        assert found == {("gelu", "reference"), ("hc_post", "reference"), ("hc_post", "ascendc-twin")}
        with pytest.raises(UnsupportedError, match="'gelu': it has no implementation 'ascendc-twin', expected one of ref"):
            compare_ops(Selection(ops=("gelu", "rope"), implementations=("ascendc-twin",)))

    def test_a_dtype_that_an_implementation_lacks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        get_implementation("hc_post", "ascendc-twin")
        monkeypatch.setitem(registry._DTYPES, ("hc_post", "ascendc-twin"), frozenset({"bfloat16"}))
        names = ("reference", "ascendc-twin")
        report = compare_ops(Selection(ops=("hc_post",), implementations=names, dtypes=("float32",)))
        assert report.omissions == ("ascendc-twin: that of hc_post takes no float32",)
        assert report.exit_code == 0 and {r.implementation for r in report.results} == {"reference"}

    def test_an_exception_could_not_run(self) -> None:
        report = compare_ops(Selection(ops=("gelu",), implementations=("math:sin",), cases=("random",), dtypes=("float32",)))
        assert report.exit_code == 2
        assert report.errors[0].case == "random" and "--case random" in report.errors[0].command


@pytest.mark.parametrize("error", [AssertionError, MemoryError, OSError, StopIteration, SystemExit, UserWarning])
def test_whatever_an_implementation_raises_is_a_case_error(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def broken(*tensors: Tensor, **attrs: Any) -> Tensor:
        raise error(0)

    monkeypatch.setattr("ascend_dsv4.accuracy.matrix.get_implementation", lambda op, name: broken)
    report = compare_ops(Selection(ops=("rms_norm",), dtypes=("float32",), cases=("tokens-3",)))
    assert report.exit_code == 2 and error.__name__ in report.errors[0].message


@pytest.mark.parametrize("content", ["def f(x,:", "import sys; sys.exit(0)", "assert False"])
def test_a_file_that_cannot_be_imported(tmp_path: Path, content: str) -> None:
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(ConfigError, match="cannot be imported"):
        compare_ops(Selection(ops=("rms_norm",), implementations=(f"{tmp_path}/mine.py:f",)))


def test_any_of_equal_choices_will_do() -> None:
    """Also where the answer comes from elsewhere."""

    def last_of_equals(logits: Tensor, *others: Tensor | None, **attrs: Any) -> tuple[Tensor, Tensor]:
        reference = get_implementation("route", "reference")
        if others[0] is not None or others[1] is not None or others[3] is not None or attrs["n_group"] > 1:
            return reference(logits, *others, **attrs)  # type: ignore[no-any-return]
        ids, weights = reference(logits.flip(1), *others, **attrs)
        return (logits.shape[1] - 1 - ids).int(), weights

    report = [judge_case(case, "mine", last_of_equals) for case in prepared_cases("route", ("float32",))]
    results = [result for found in report for result in found]
    assert any(result.figures.get("tied_rows") and result.golden == "expected" for result in results)
    assert not checks(results)


def test_outputs_with_gradients_are_outputs() -> None:
    assert not checks(run("rms_norm", lambda x, weight, *, eps: rms_norm(x, weight, eps=eps).requires_grad_()))


def test_double_benchmark_by_the_naive_composition() -> None:
    """In 16 bits the reference, which adds in float32, errs less than the naive composition."""
    report = compare_ops(
        Selection(
            ops=("rms_norm", "linear", "hc_pre"), dtypes=("bfloat16",), standard="opbase-double", baseline="naive", level="L2",
            cases=("hidden", "tokens-127"),
        )
    )  # fmt: skip
    assert report.exit_code == 0 and {result.standard for result in report.results} == {"opbase-double"}
    worse = compare_ops(
        Selection(ops=("linear",), implementations=("naive",), dtypes=("bfloat16",), standard="opbase-double",
                  baseline="reference", level="L2", cases=("tokens-127",))
    )  # fmt: skip
    assert {result.op for result in worse.results} == {"linear"}
