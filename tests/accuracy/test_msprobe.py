# SPDX-License-Identifier: Apache-2.0
"""Dumps of msprobe: what is read, what speaks against a dump, what is computed again, how two are compared."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ascend_dsv4.accuracy.msprobe.dump import read_dump
from ascend_dsv4.accuracy.msprobe.importing import import_msprobe
from ascend_dsv4.accuracy.msprobe.judging import figures, threshold_verdict, tolerance_for
from ascend_dsv4.accuracy.msprobe.table import judge_rows, make_row
from ascend_dsv4.accuracy.results import OutputResult, Report
from ascend_dsv4.errors import ConfigError, DumpError
from tests.accuracy.msprobe_writer import DumpWriter, finding, run, write_one, write_run

TENSOR_HEADER = (
    "NPU Name,Bench Name,NPU Dtype,Bench Dtype,NPU Tensor Shape,Bench Tensor Shape,NPU Requires_grad,Bench Requires_grad,"
    "Cosine,EucDist,MaxAbsErr,MaxRelativeErr,One Thousandth Err Ratio,Five Thousandths Err Ratio,"
    "NPU max,NPU min,NPU mean,NPU l2norm,Bench max,Bench min,Bench mean,Bench l2norm,"
    "Requires_grad Consistent,Result,Err_message,NPU_Stack_Info,Data_name"
)
STATISTICS_HEADER = (
    "NPU Name,Bench Name,NPU Dtype,Bench Dtype,NPU Tensor Shape,Bench Tensor Shape,NPU Requires_grad,Bench Requires_grad,"
    "Max diff,Min diff,Mean diff,L2norm diff,MaxRelativeErr,MinRelativeErr,MeanRelativeErr,NormRelativeErr,"
    "NPU max,NPU min,NPU mean,NPU l2norm,Bench max,Bench min,Bench mean,Bench l2norm,"
    "Requires_grad Consistent,Result,Err_message,NPU_Stack_Info"
)
CHECKSUM_HEADER = (
    "NPU Name,Bench Name,NPU Dtype,Bench Dtype,NPU Tensor Shape,Bench Tensor Shape,NPU Requires_grad,Bench Requires_grad,"
    "NPU MD5,BENCH MD5,Requires_grad Consistent,Result,Err_message,NPU_Stack_Info"
)
SWIGLU = "NPU.npu_swiglu"


def by_place(report: Report) -> dict[str, OutputResult]:
    return {f"{result.case} {result.output}": result for result in report.results}


def failed(report: Report) -> list[str]:
    return [f"{result.case} {result.output}" for result in report.results if result.status == "fail"]


def table(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and wrong dumps of two steps and two ranks. Wrong ones have one wrong operator in the last dump alone."""
    folder = tmp_path_factory.mktemp("runs")
    wrong = {SWIGLU: lambda y: y * 1.01}
    write_run(folder / "good")
    write_run(folder / "wrong", wrong=wrong, noise=1e-7)
    write_run(folder / "good_statistics", task="statistics", checksum=True)
    write_run(folder / "wrong_statistics", task="statistics", wrong=wrong, noise=1e-7)
    return folder


class TestRecomputing:
    """One dump: recorded calls against our references in float64."""

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_a_good_dump_passes(self, tmp_path: Path, dtype: torch.dtype) -> None:
        report = import_msprobe(write_run(tmp_path / "dump", 1, 1, dtype=dtype))
        assert report.exit_code == 0, failed(report) or report.findings
        assert {result.op for result in report.results} == {
            "Functional.embedding", "Functional.gelu", "Functional.layer_norm", "Functional.linear", "Functional.silu",
            "NPU.npu_moe_gating_top_k", "NPU.npu_rms_norm", "NPU.npu_rotary_mul", "NPU.npu_swiglu", "Torch.bmm", "Torch.cat",
        }  # fmt: skip

    def test_several_steps_and_ranks(self, runs: Path) -> None:
        report = import_msprobe(runs / "good")
        assert report.exit_code == 0, failed(report) or report.findings
        places = {result.case.rsplit("/", 1)[0] for result in report.results}
        assert places == {f"step{step}/rank{rank}" for step in (0, 1) for rank in (0, 1)}
        assert by_place(report)["step0/rank1/Functional.linear.0.forward output.0"].dtype == "float32"

    def test_the_wrong_operator_is_named_and_no_other(self, runs: Path) -> None:
        report = import_msprobe(runs / "wrong")
        assert (report.exit_code, failed(report)) == (1, [f"step1/rank1/{SWIGLU}.0.forward output.0"])
        result = by_place(report)[f"step1/rank1/{SWIGLU}.0.forward output.0"]
        assert result.golden == "float64" and result.check == "elements" and result.ratio > 100
        assert result.command.endswith(f"--name {SWIGLU}.0.forward")

    @pytest.mark.parametrize(
        ("api", "break_it"),
        [
            ("Functional.linear", lambda y: y.roll(1, 0)),
            ("NPU.npu_rms_norm", lambda pair: (pair[0] * 1.02, pair[1])),
            ("NPU.npu_rotary_mul", lambda y: y.flip(-1)),
            ("NPU.npu_moe_gating_top_k", lambda three: (three[0] * 2, *three[1:])),
            ("NPU.npu_moe_gating_top_k", lambda three: (three[0], 7 - three[1], None)),
            ("Functional.embedding", lambda y: y.roll(1, 0)),
            ("Functional.layer_norm", lambda y: y + 0.05),
            ("Functional.gelu", lambda y: torch.nn.functional.gelu(y)),
            ("Functional.silu", lambda y: y * 1.05),
            ("Torch.bmm", lambda y: y.transpose(0, 1).reshape(y.shape)),
            ("Torch.cat", lambda y: y.roll(1, -1)),
        ],
    )
    def test_every_known_api_can_fail(self, tmp_path: Path, api: str, break_it: Callable[[Any], Any]) -> None:
        report = import_msprobe(write_run(tmp_path / "dump", 1, 1, dtype=torch.bfloat16, wrong={api: break_it}))
        assert report.exit_code == 1
        assert {result.op for result in report.results if result.status == "fail"} == {api}

    def test_experts_in_another_order_are_no_error(self, tmp_path: Path) -> None:
        swap = {"NPU.npu_moe_gating_top_k": lambda three: (three[0].flip(-1), three[1].flip(-1), None)}
        assert import_msprobe(write_run(tmp_path / "dump", 1, 1, wrong=swap)).exit_code == 0

    def test_another_form_of_a_call_is_said_to_be_left_out(self, tmp_path: Path) -> None:
        writer = DumpWriter(tmp_path / "rank0")
        x = torch.randn(3, 8)
        writer.api("Functional.gelu", x, approximate="tanh", returns=torch.nn.functional.gelu(x, approximate="tanh"))
        writer.api("Functional.silu", x, returns=torch.nn.functional.silu(x))
        writer.close()
        gelu, silu = import_msprobe(tmp_path).results
        assert (gelu.status, silu.status) == ("noted", "pass")
        assert gelu.reason == "not computed again: approximate='tanh', ours is exact"

    def test_matrix_products_and_modules(self, tmp_path: Path) -> None:
        writer = DumpWriter(tmp_path / "rank0", level="mix")
        x, weight, bias = torch.randn(2, 3, 8), torch.randn(5, 8), torch.randn(5)
        writer.module("mlp.up.Linear", 0, x, {"weight": weight, "bias": bias}, x @ weight.t() + bias)
        writer.api("Torch.matmul", x, weight.t().contiguous(), returns=x @ weight.t())
        writer.api("Torch.addmm", bias, x[0], weight.t().contiguous(), returns=x[0] @ weight.t() + bias)
        writer.api("Tensor.__matmul__", x[0], weight.t().contiguous(), returns=x[0] @ weight.t() * 1.1)
        writer.close()
        statuses = {result.case: result.status for result in import_msprobe(tmp_path / "rank0").results}
        assert list(statuses.values()) == ["pass", "pass", "pass", "fail"] and "Module.mlp.up.Linear.forward.0" in statuses

    def test_calls_below_the_functions_of_modules(self, tmp_path: Path) -> None:
        """What torch.nn.functional calls itself is recorded beside it, under other names and with its arguments in order."""
        writer = DumpWriter(tmp_path / "rank0")
        x, ids, table, ones = torch.randn(3, 8), torch.tensor([4, 0]), torch.randn(9, 8), torch.ones(8)
        norm = torch.nn.functional.layer_norm(x, (8,))
        writer.api("Torch.embedding", table, ids, -1, False, False, returns=table[ids])
        writer.api("Functional.embedding", ids, table, None, None, 2.0, False, False, returns=table[ids])
        writer.api("Torch.layer_norm", x, torch.Size([8]), None, None, 1e-5, True, returns=norm)
        writer.api("NPU.npu_linear", x, table, returns=x @ table.t())
        writer.api("Torch.mm", x, mat2=table.t().contiguous(), returns=x @ table.t())
        both = x + norm
        scale = torch.rsqrt(both.square().mean(-1, keepdim=True) + 1e-5)
        writer.api("NPU.npu_add_rms_norm", x, norm, ones, 1e-5, returns=(both * scale, scale, both))
        writer.close()
        report = import_msprobe(tmp_path)
        assert [result.status for result in report.results] == ["pass"] * 6, report.results

    def test_statistics_alone_cannot_be_computed_again(self, runs: Path) -> None:
        report = import_msprobe(runs / "good_statistics")
        assert report.exit_code == 2 and "nothing was compared" in report.findings[-1]


class TestComparing:
    """Two dumps: pairs by step, rank, name and position."""

    @pytest.mark.parametrize("level", ["tensor", "statistics"])
    def test_the_first_divergence_is_named(self, runs: Path, tmp_path: Path, level: str) -> None:
        names = ("wrong", "good") if level == "tensor" else ("wrong_statistics", "good_statistics")
        report = import_msprobe(runs / names[0], bench=runs / names[1], csv=tmp_path / "table.csv")
        assert report.exit_code == 1
        place = f"step1/rank1/{SWIGLU}.0.forward"
        assert finding(report, "first divergence").startswith(f"first divergence of 1: {place} output.0")
        assert failed(report) == [f"{place} output.0"]
        passed_on = by_place(report)["step1/rank1/Functional.linear.2.forward input.0"]
        assert passed_on.status == "noted" and passed_on.reason.startswith("as the output it comes from")
        later = by_place(report)["step1/rank1/Functional.linear.2.forward output.0"]
        assert later.status == "noted" and later.reason.startswith("inherited")
        own = by_place(report)[f"{place} output.0"].reason
        assert not own.startswith("inherited")
        assert own.endswith("msprobe: warning, error" if level == "tensor" else "msprobe: pass")
        assert {result.standard for result in report.results} == {"tolerance" if level == "tensor" else "statistics"}
        rows = table(tmp_path / "table_step1_rank1.csv")
        assert ",".join(rows[0]) == (TENSOR_HEADER if level == "tensor" else STATISTICS_HEADER)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            f"table_step{step}_rank{rank}.csv" for step in (0, 1) for rank in (0, 1)
        ]

    def test_rows_of_the_table(self, runs: Path, tmp_path: Path) -> None:
        import_msprobe(
            runs / "wrong/step1/rank1", bench=runs / "good/step1/rank1", csv=tmp_path / "t.csv", names=[f"{SWIGLU}.*"]
        )
        source, dim, output = table(tmp_path / "t.csv")
        assert [row["NPU Name"].removeprefix(f"{SWIGLU}.0.forward.") for row in (source, dim, output)] == [
            "input.0", "input.dim", "output.0",
        ]  # fmt: skip
        assert (dim["NPU Dtype"], dim["NPU Tensor Shape"], dim["Bench max"]) == ("<class 'int'>", "[]", "-1")
        assert dim["Cosine"] == "unsupported"
        assert output["NPU Dtype"] == "torch.float32" and output["NPU Tensor Shape"] == "[6, 24]"
        assert float(output["MaxRelativeErr"]) == pytest.approx(0.01, rel=0.01)
        assert float(output["Cosine"]) == pytest.approx(1, abs=1e-9) and float(output["One Thousandth Err Ratio"]) == 0
        assert output["Result"] == "error" and "thousandth" in output["Err_message"]
        name = f"{SWIGLU}.0.forward.output.0.pt"
        assert output["Data_name"] == str([name, name])
        assert source["NPU_Stack_Info"].startswith("File /run/model.py, line 7") and source["Result"] == "pass"

    def test_two_runs_that_agree_pass(self, runs: Path, tmp_path: Path) -> None:
        assert import_msprobe(write_run(tmp_path / "again", noise=1e-7), bench=runs / "good").exit_code == 0

    def test_msprobe_passes_what_we_do_not(self, tmp_path: Path) -> None:
        for name, off in (("mine", 1.2), ("bench", 1.0)):
            writer = DumpWriter(tmp_path / name)
            x = torch.linspace(1e-4, 2e-3, 100)
            writer.api("Tensor.mul", x, 2.0, returns=x * torch.where(torch.arange(100) < 8, off, 1.0))
            writer.close()
        report = import_msprobe(tmp_path / "mine", bench=tmp_path / "bench", csv=tmp_path / "t.csv")
        assert failed(report) == ["Tensor.mul.0.forward output.0"]
        assert finding(report, "msprobe").startswith("1 of 1 outputs beyond the tolerance of their dtype pass by msprobe's")
        assert [row["Result"] for row in table(tmp_path / "t.csv")] == ["pass"] * 3
        lenient = import_msprobe(tmp_path / "mine", bench=tmp_path / "bench", standard="msprobe")
        assert not failed(lenient) and {result.standard for result in lenient.results} == {"msprobe"}

    def test_unmatched_names_never_pass(self, tmp_path: Path) -> None:
        for name, extra in (("mine", "Tensor.add"), ("bench", "Tensor.sub")):
            writer = DumpWriter(tmp_path / name, "statistics")
            writer.api("Torch.exp", torch.arange(4.0), returns=torch.arange(4.0).exp())
            writer.api(extra, torch.arange(4.0), returns=torch.arange(4.0) + 1)
            writer.close()
        report = import_msprobe(tmp_path / "mine", bench=tmp_path / "bench", csv=tmp_path / "t.csv")
        assert report.exit_code == 1 and not failed(report)
        assert finding(report, "Tensor.add.0.forward.input.0").startswith("2 of 4 values have no partner in the bench")
        assert finding(report, "Tensor.sub.0.forward.input.0").startswith("2 of 4 values of the bench have no partner")
        alone = [row for row in table(tmp_path / "t.csv") if row["Bench Name"] == "N/A"]
        assert [row["NPU Name"] for row in alone] == ["Tensor.add.0.forward.input.0", "Tensor.add.0.forward.output.0"]
        assert "No bench data matched." in alone[0]["Err_message"]

    def test_a_value_without_partner_in_a_call_that_has_one(self, tmp_path: Path) -> None:
        x = torch.arange(4.0)
        for name, extra in (("mine", ()), ("bench", (x + 1,))):
            writer = DumpWriter(tmp_path / name, "statistics")
            writer.api("Torch.exp", x, returns=(x.exp(), *extra))
            writer.close()
        report = import_msprobe(tmp_path / "mine", bench=tmp_path / "bench")
        assert report.exit_code == 1 and not failed(report)
        assert finding(report, "Torch.exp.0.forward.output.1").startswith("1 of 3 values of the bench have no partner")

    def test_an_input_that_comes_from_nowhere_recorded_fails(self, tmp_path: Path) -> None:
        for name, off in (("mine", 1.1), ("bench", 1.0)):
            writer = DumpWriter(tmp_path / name)
            x = torch.arange(1.0, 5.0)
            y = writer.api("Torch.exp", x, returns=x.exp() * off)
            z = writer.api("Torch.mul", y, x * off, returns=y * x)
            writer.api("Torch.sub", z, 1.0, returns=z - (z.mean() if name == "mine" else 1.0) * 100)
            writer.close()
        report = import_msprobe(tmp_path / "mine", bench=tmp_path / "bench")
        assert failed(report) == ["Torch.exp.0.forward output.0", "Torch.mul.0.forward input.1", "Torch.sub.0.forward output.0"]
        assert "times theirs" in by_place(report)["Torch.sub.0.forward output.0"].reason

    def test_a_missing_step_is_said(self, runs: Path, tmp_path: Path) -> None:
        one = write_run(tmp_path / "one", 1, 2, noise=1e-7)
        assert finding(import_msprobe(one, bench=runs / "good"), "in the bench only").endswith("step1/rank0, step1/rank1")

    def test_nothing_in_common(self, tmp_path: Path, runs: Path) -> None:
        writer = DumpWriter(tmp_path / "step7" / "rank9", "statistics")
        writer.api("Torch.exp", torch.arange(4.0), returns=torch.arange(4.0).exp())
        writer.close()
        with pytest.raises(DumpError, match="no value is in both dumps"):
            import_msprobe(tmp_path, bench=runs / "good/step0/rank0")
        write_run(tmp_path / "two", 1, 2, task="statistics")
        with pytest.raises(DumpError, match="no step and rank in both"):
            import_msprobe(runs / "good" / "step0", bench=tmp_path / "two")

    def test_process_numbers_do_not_have_to_agree(self, tmp_path: Path) -> None:
        for run_name, process in (("mine", "proc17"), ("bench", "proc4242")):
            for step in (0, 1):
                writer = DumpWriter(tmp_path / run_name / f"step{step}" / process, "statistics")
                run(writer, seed=step, noise=1e-7 if run_name == "mine" else 0.0)
                writer.close()
        assert import_msprobe(tmp_path / "mine", bench=tmp_path / "bench").exit_code == 0

    def test_a_dump_against_itself_is_refused(self, runs: Path, tmp_path: Path) -> None:
        good = runs / "good_statistics/step0/rank0"
        with pytest.raises(DumpError, match="the same file"):
            import_msprobe(good, bench=good)
        (tmp_path / "link").symlink_to(good)
        with pytest.raises(DumpError, match="the same file"):
            import_msprobe(tmp_path / "link", bench=good, identical=True)
        (tmp_path / "dump.json").write_bytes((good / "dump.json").read_bytes())
        with pytest.raises(DumpError, match="equal byte for byte"):
            import_msprobe(tmp_path / "dump.json", bench=good)
        assert import_msprobe(tmp_path / "dump.json", bench=good, identical=True).exit_code == 0

    def test_one_tensor_file_under_two_names_is_refused(self, tmp_path: Path) -> None:
        for name in ("mine", "bench"):
            write_one(tmp_path / name, task="tensor")
        output = "dump_tensor_data/Functional.silu.0.forward.output.0.pt"
        (tmp_path / "mine" / output).unlink()
        os.link(tmp_path / "bench" / output, tmp_path / "mine" / output)
        file = tmp_path / "mine" / "dump.json"
        file.write_text(file.read_text() + " ")
        source, result = import_msprobe(tmp_path / "mine", bench=tmp_path / "bench").results
        assert (source.status, result.status, result.reason) == ("pass", "refused", "both names lead to one file")

    @pytest.mark.parametrize(
        "dtype",
        [torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.int64, torch.int8, torch.bool],
        ids=str,
    )
    def test_every_dtype_and_tensors_of_equal_statistics(self, tmp_path: Path, dtype: torch.dtype) -> None:
        x = torch.tensor([0.0, 1.0, 0.0, 2.0]).to(dtype)
        for name, order in (("mine", [0, 1, 2, 3]), ("same", [0, 1, 2, 3]), ("bench", [3, 0, 1, 2])):
            writer = DumpWriter(tmp_path / name)
            writer.api("Torch.roll", x, 1, returns=x[order])
            writer.close()
        assert failed(import_msprobe(tmp_path / "mine", bench=tmp_path / "bench")) == ["Torch.roll.0.forward output.0"]
        with pytest.raises(DumpError, match="equal byte for byte"):
            import_msprobe(tmp_path / "mine", bench=tmp_path / "same")
        assert import_msprobe(tmp_path / "mine", bench=tmp_path / "same", identical=True).exit_code == 0

    def test_zeros_on_both_sides_are_refused(self, tmp_path: Path) -> None:
        for task in ("tensor", "statistics"):
            for name, x in (("mine", 1.0), ("bench", 2.0)):
                writer = DumpWriter(tmp_path / task / name, task)
                writer.api("Tensor.mul", torch.zeros(3), x, returns=torch.zeros(2, 3))
                writer.close()
            report = import_msprobe(tmp_path / task / "mine", bench=tmp_path / task / "bench")
            result = by_place(report)["Tensor.mul.0.forward output.0"]
            assert (result.status, result.check, report.exit_code) == ("refused", "zero", 1)
            assert by_place(report)["Tensor.mul.0.forward input.0"].status == "noted"
            assert by_place(report)["Tensor.mul.0.forward input.1"].reason == "is float 1.0, expected float 2.0"

    def test_memory_as_it_is_is_not_compared(self, tmp_path: Path) -> None:
        for name, value in (("mine", math.nan), ("bench", 0.0)):
            writer = DumpWriter(tmp_path / name)
            writer.api("Torch.empty", 3, returns=torch.full((3,), value))
            writer.api("Torch.zeros", 3, returns=torch.zeros(3))
            writer.api("Torch.exp", torch.arange(3.0), returns=torch.arange(3.0).exp())
            writer.close()
        report = import_msprobe(tmp_path / "mine", bench=tmp_path / "bench")
        statuses = {result.case: result.status for result in report.results if result.output == "output.0"}
        assert list(statuses.values()) == ["noted", "noted", "pass"] and report.exit_code == 0, report.findings

    def test_checksums(self, tmp_path: Path) -> None:
        for name, value in (("mine", 3), ("bench", 2)):
            writer = DumpWriter(tmp_path / name, "statistics", checksum=True)
            x = torch.tensor([1, value, 2, 5])
            writer.api("Torch.sort", x, returns=(x.sort().values, x))
            writer.api("Torch.abs", torch.arange(5), name, returns=torch.arange(5))
            writer.close()
        report = import_msprobe(tmp_path / "mine", bench=tmp_path / "bench", csv=tmp_path / "t.csv")
        assert by_place(report)["Torch.abs.0.forward output.0"].standard == "checksum"
        rows = table(tmp_path / "t.csv")
        results = {row["NPU Name"]: row for row in rows}
        assert ",".join(rows[0]) == CHECKSUM_HEADER
        assert results["Torch.sort.0.forward.input.0"]["Result"] == "error"
        assert results["Torch.abs.0.forward.output.0"]["Result"] == "pass"

    def test_options_that_do_not_go_together(self, runs: Path) -> None:
        with pytest.raises(ConfigError, match="csv without bench"):
            import_msprobe(runs / "good", csv="t.csv")
        with pytest.raises(ConfigError, match="opbase-double"):
            import_msprobe(runs / "good", standard="opbase-double")
        with pytest.raises(DumpError, match="no record is called Torch.fft"):
            import_msprobe(runs / "good", names=["Torch.fft"])


class TestFigures:
    """msprobe's figures and verdicts against hand-computed answers."""

    def test_by_hand(self) -> None:
        found = figures(np.array([3.0, 4.002, 0.0]), np.array([3.0, 4.0, 0.0]))
        assert found["EucDist"] == found["MaxAbsErr"] == pytest.approx(0.002, rel=1e-9)
        assert found["MaxRelativeErr"] == pytest.approx(0.0005, rel=1e-9)
        assert found["Cosine"] == pytest.approx((9 + 16.008) / (5 * math.sqrt(9 + 4.002**2)), rel=1e-12)
        assert found["One Thousandth Err Ratio"] == found["Five Thousandths Err Ratio"] == 1.0
        half = figures(np.array([1.0, 2.003, 4.1, 1e-3]), np.array([1.0, 2.0, 4.0, 0.0]))
        assert (half["One Thousandth Err Ratio"], half["Five Thousandths Err Ratio"]) == (0.25, 0.5)
        assert half["MaxRelativeErr"] == pytest.approx(1e-3 / 2.0**-52)

    def test_zeros_scalars_and_infinities(self) -> None:
        zero, one = np.zeros(3), np.ones(3)
        assert figures(zero, zero)["Cosine"] == 1.0 and math.isnan(figures(one, zero)["Cosine"])
        assert figures(np.array(2.0), np.array(1.0)) == {"MaxAbsErr": 1.0, "MaxRelativeErr": 1.0}
        assert "Cosine" not in figures(np.array([2.0]), np.array([1.0]))
        odd = np.array([math.inf, math.nan, 1.0])
        assert figures(odd, odd.copy())["MaxAbsErr"] == 0
        assert math.isnan(figures(odd, one)["MaxAbsErr"]) and threshold_verdict(figures(odd, one)) == "error"

    @pytest.mark.parametrize(
        ("cosine", "error", "verdict"),
        [(0.995, 0.0009, "pass"), (0.99, 0.0, "warning"), (1.0, 0.001, "warning"), (1.0, 1.0, "warning"),
         (1.0, 1.1, "error"), (0.9, 0.0, "warning"), (0.89, 0.0, "error"), (math.nan, 0.0, "error")],
    )  # fmt: skip
    def test_thresholds(self, cosine: float, error: float, verdict: str) -> None:
        assert threshold_verdict({"Cosine": cosine, "MaxAbsErr": error}) == verdict

    def test_tolerances(self) -> None:
        assert tolerance_for(("int64", "bool")).abs == 0
        assert tolerance_for(("float32", "bfloat16")) == tolerance_for(("bfloat16", "bfloat16"))
        assert tolerance_for(("float32",), "rms_norm", "y").abs == 1e-6 and tolerance_for(("float32",)).abs == 1e-5

    @pytest.mark.parametrize(
        ("output", "result"),
        [({"Cosine": 0.95, "One Thousandth Err Ratio": 0.5}, "pass"), ({"Cosine": 0.89}, "warning"),
         ({"One Thousandth Err Ratio": 0.09}, "error"), ({"NPU max": math.inf}, "error"), ({"NPU Dtype": "int8"}, "error")],
    )  # fmt: skip
    def test_rules_of_the_result_column(self, tmp_path: Path, output: dict[str, Any], result: str) -> None:
        file, _ = write_one(tmp_path / "dump")
        leaves = read_dump(file).records["Functional.silu.0.forward"].leaves
        same = {"Cosine": 1.0, "One Thousandth Err Ratio": 1.0}
        rows = [make_row("tensor", leaf, leaf, same) for leaf in leaves]
        rows[1].update(output)
        judge_rows("tensor", rows)
        assert [row["Result"] for row in rows] == ["pass", result]

    def test_a_text_that_a_spreadsheet_would_run(self, tmp_path: Path) -> None:
        for name, text in (("mine", "=1+1"), ("bench", "x")):
            writer = DumpWriter(tmp_path / name, "statistics")
            writer.api("Torch.exp", torch.arange(3.0), text, returns=torch.arange(3.0).exp())
            writer.close()
        import_msprobe(tmp_path / "mine", bench=tmp_path / "bench", csv=tmp_path / "t.csv")
        assert table(tmp_path / "t.csv")[1]["NPU max"] == "'=1+1"
