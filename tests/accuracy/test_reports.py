# SPDX-License-Identifier: Apache-2.0
"""What terminal, receipt and JUnit XML must show, whatever a comparison holds."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from ascend_dsv4.accuracy.report import print_report, read_receipt, write_junit, write_page, write_receipt
from ascend_dsv4.accuracy.report.summary import Cell, first_introduced, matrix, ranking, selection
from ascend_dsv4.accuracy.report.wording import ratio_text
from ascend_dsv4.accuracy.results import (
    MutantResult,
    OutputResult,
    Report,
)
from ascend_dsv4.errors import ConfigError
from tests.accuracy.reports import (
    EMPTY,
    OPS,
    first_objections,
    hostile_report,
    model_report,
    mutants_report,
    ops_report,
    output_result,
)


class TestSummary:
    """What all reports take from a comparison."""

    def cell(self, *results: OutputResult) -> Cell:
        (cell,) = matrix(Report("", "", {}, "", results)).cells.values()
        return cell

    def result(self, ratio: float, **changes: object) -> OutputResult:
        return output_result(random.Random(1), "rope", "native", "float16", "a", ratio, **changes)

    def test_the_gravest_result_decides(self) -> None:
        good, refused, bad = self.result(0.4), self.result(0.0, status="refused"), self.result(3.0)
        assert self.cell(good).status == "pass"
        assert self.cell(good, refused).status == "refused"
        assert self.cell(good, refused, bad).status == "fail"
        assert self.cell(refused, bad, good).results == (bad, refused, good)

    def test_nan_is_worse_than_any_number(self) -> None:
        cell = self.cell(self.result(3.0), self.result(math.nan, status="fail"), self.result(50.0))
        assert math.isnan(cell.ratio)
        assert math.isnan(cell.results[0].ratio)

    def test_noted_results_do_not_decide(self) -> None:
        noted = self.result(9.0, status="noted")
        cell = self.cell(self.result(0.25), noted)
        assert (cell.status, cell.ratio) == ("pass", 0.25)
        assert (self.cell(noted).status, self.cell(noted).ratio) == ("noted", 9.0)

    def test_histograms_add_up_and_positions_are_stretched(self) -> None:
        first = self.result(0.5, histogram=(1, 2, 3, 4, 5, 6, 0, 0, 0), by_position=(0.1, 0.9))
        second = self.result(0.5, histogram=(1,) * 9, by_position=(0.5,))
        cell = self.cell(first, second, self.result(0.1, histogram=(), by_position=()))
        assert cell.histogram == (2, 3, 4, 5, 6, 7, 1, 1, 1)
        assert cell.by_position == (0.5,) * 16 + (0.9,) * 16

    def test_the_first_introduced_divergence_comes_before_larger_ones(self) -> None:
        report = model_report()
        first = first_introduced(report.nodes)
        assert first is not None and (first.step, first.graph, first.node) == (0, "layer3", "hc_pre.1")
        ranked = ranking(report.nodes)
        assert [rank.worst.graph for rank in ranked[:2]] == ["layer6", "layer3"], "by introduced error, over all steps"
        assert ranked[0].steps == (0, 1, 2)
        assert first_introduced(model_report(fault=False).nodes) is None

    @pytest.mark.parametrize(
        ("ratio", "text"),
        [
            (0.0, "0"),
            (1.0, "1"),
            (1.0004, "1.0004"),
            (1 + 1e-9, "1+1e-09"),
            (0.9996, "0.9996"),
            (math.inf, "∞"),
            (math.nan, "NaN"),
            (59.04, "59"),
            (123456.0, "1.2e5"),
            (2.5e-5, "2.5e-5"),
            (0.4321, "0.432"),
        ],
    )
    def test_ratios_as_text(self, ratio: float, text: str) -> None:
        assert ratio_text(ratio) == text


def printed(report: Report, *, terminal: bool = False, verbose: bool = False, width: int = 80) -> str:
    out = io.StringIO()
    print_report(
        report, Console(file=out, force_terminal=terminal, width=width, color_system="truecolor" if terminal else None), verbose
    )
    return out.getvalue()


class TestTerminal:
    """Tables at 80 columns, and whole lines in pipes."""

    def test_matrix_and_failures(self) -> None:
        report = ops_report(cases=6)
        text = printed(report)
        rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith("  ") and "✓" in line}
        assert rows.keys() >= set(OPS)
        assert rows["gelu"].count("refused") == 1, "the last table with the operator is that of native"
        for result in selection(first_objections(report), 2, 20):
            assert result.worst is not None
            assert f"{result.op}  {result.dtype}  {result.implementation}  case {result.case}  output {result.output}\n" in text
            assert f"worst at [{result.worst.index[0]}, {result.worst.index[1]}]: actual {result.worst.actual:.9g}" in text
            assert f"    {result.command}\n" in text
        assert text.endswith("COULD NOT RUN\n")
        assert "1 case broke off" in text and "CapacityError: 2,147,483,648 bytes" in text

    @pytest.mark.parametrize("report", [ops_report(cases=8), model_report(), mutants_report()], ids=["ops", "model", "mutants"])
    def test_fits_80_columns(self, report: Report) -> None:
        for line in printed(report, terminal=True).splitlines():
            shown = re.sub(r"\x1b\[[\d;]*m", "", line)
            assert len(shown) <= 80 or "ascend-dsv4 compare" in shown, shown
        plain = printed(report)
        assert "\x1b" not in plain
        assert not re.search(" $", plain, re.MULTILINE)
        assert "…\n" not in plain.replace("  …", ""), "nothing is cut in a file"

    def test_verbose_shows_every_failure(self) -> None:
        report = ops_report(cases=20)
        commands = {result.command for result in first_objections(report)}
        shown, all_shown = printed(report), printed(report, verbose=True)
        assert sum(command in shown for command in commands) < len(commands) and "--verbose shows all" in shown
        assert all(command in all_shown for command in commands)
        assert "max_abs" in all_shown and "torch" in all_shown
        listed = all_shown[all_shown.index("\nall outputs\n") :].split("\n\n")[0].splitlines()[3:]
        assert [line.split()[:4] for line in listed] == [[r.op, r.implementation, r.case, r.dtype] for r in report.results]

    def test_model(self) -> None:
        text = printed(model_report())
        assert "first introduced divergence: layer3, hc_pre.1" in text
        table = text[text.index("nodes by the error") :].splitlines()
        assert table[2].split()[:2] == ["layer6", "sparse_attention.2"] and table[2].endswith("introduced")
        assert "plain text" in text and "98.30%" in text and "32/32" in text and "12/32" in text
        assert "✗ 2" in text and "· 3" in text, "a broken promise, and none to break"
        assert "✗ v4 planted  0.31 of at most 0.00252" in text and "2 bfloat16 bars: 1 exceeded" in text
        assert "  layer3/hc_pre.1  out        0  [5, 17]   0.125        0.75   9.16    3/64\n" in text
        assert text.endswith("FAIL\n")

    def test_mutants(self) -> None:
        text = printed(mutants_report())
        assert text.count("✓") == 44 and "44 of 45 mutants caught" in text
        assert (
            "✗ not caught" in text
            and "half-split instead of interleaved RoPE" in text
            and "not caught: no check objects" in text
        )

    @pytest.mark.parametrize(
        ("original", "ratio", "check", "said"),
        [
            (0.966, 9e8, "elements", "the original is at 0.966, not below 0.5"),
            (0.1, 1.5, "elements", "at 1.5, not above 2"),
            (math.nan, math.nan, "", "the original is at NaN, not below 0.5"),
            (0.1, 0.7, "", "no check objects"),
        ],
    )
    def test_why_a_mutant_does_not_count(self, original: float, ratio: float, check: str, said: str) -> None:
        mutant = MutantResult("rope/halves", "rope", "rotated by halves", original, ratio, "random float32 y", check, False)
        assert f"not caught: {said}\n" in printed(dataclasses.replace(EMPTY, mutants=(mutant,)))

    def test_refused_is_no_pass(self) -> None:
        (result,) = ops_report(1, 1, faults=False).results[:1]
        text = printed(
            dataclasses.replace(EMPTY, results=(dataclasses.replace(result, status="refused", reason="refused: constant"),))
        )
        assert "⊘ refused  adjust_logits  float32" in text and "✓" not in text and text.endswith("FAIL\n")

    def test_nothing_is_no_pass(self) -> None:
        assert printed(EMPTY).endswith("nothing was compared\nCOULD NOT RUN\n")

    def test_foreign_text_steers_nothing(self) -> None:
        text = printed(hostile_report(), verbose=True)
        assert not set(text) & {"\x1b", "\x00", "\x9b", "\ud800", "\u202e"}
        assert "[red]␛[31m" in text

    def test_a_terminal_without_unicode(self) -> None:
        raw = io.BytesIO()
        with io.TextIOWrapper(raw, encoding="ascii") as out:
            print_report(ops_report(cases=8), Console(file=out, width=80))
            out.flush()
            text = raw.getvalue().decode("ascii")
        assert "x    59" in re.sub(r"x +5\d\.?\d*", "x    59", text) and "+ " in text and "?" not in text


class TestReceipt:
    """Written and read back without loss; changes that show are refused."""

    @pytest.mark.parametrize(
        "make", [lambda: ops_report(34, 3), lambda: model_report(4, 20), mutants_report, hostile_report, lambda: EMPTY]
    )
    def test_round_trip(self, make: Callable[[], Report], tmp_path: Path) -> None:
        report = make()
        write_receipt(report, tmp_path / "receipt.json")
        again = read_receipt(tmp_path / "receipt.json")
        assert repr(again) == repr(report), "NaN is not equal to itself, but looks the same"
        content = json.loads((tmp_path / "receipt.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
        assert (content["format"], content["version"], content["exit_code"]) == ("ascend-dsv4 comparison", 1, report.exit_code)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"version": 2}, "version is 2, expected 1"),
            ({"format": "x"}, "format is 'x'"),
            ({"exit_code": 0}, "exit_code is 0, expected 1"),
            ({"mutants": 3}, "mutants is 3"),
            ({"seconds": "soon"}, "seconds is 'soon'"),
            ({"extra": 1}, "expected the keys"),
            ({"findings": [1]}, r"findings\[0\] is 1"),
            ({"title": None}, "title is None"),
        ],
    )
    def test_changed(self, change: dict[str, object], said: str, tmp_path: Path) -> None:
        path = tmp_path / "receipt.json"
        write_receipt(mutants_report(), path)
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(ConfigError, match=said):
            read_receipt(path)

    def test_damaged_inside(self, tmp_path: Path) -> None:
        path = tmp_path / "receipt.json"
        write_receipt(ops_report(1, 1), path)
        text = path.read_text()
        for wrong, said in (
            (text[: len(text) // 2], "cannot be read"),
            (text.replace('"pass"', '"good"', 1), "status is 'good', expected one of"),
            (text.replace('"num_elements"', '"elements"', 1), r"results\[0\]"),
            ("[]", "format is None"),
            ("", "cannot be read"),
        ):
            path.write_text(wrong)
            with pytest.raises(ConfigError, match=said):
                read_receipt(path)
        with pytest.raises(ConfigError, match="No such file"):
            read_receipt(tmp_path / "absent.json")


def junit(report: Report, folder: Path) -> ElementTree.Element:
    write_junit(report, folder / "junit.xml")
    return ElementTree.parse(folder / "junit.xml").getroot()


class TestJUnit:
    """Counts, names and messages as CI systems read them."""

    def test_operators(self, tmp_path: Path) -> None:
        report = ops_report(cases=12)
        root = junit(report, tmp_path)
        assert root.tag == "testsuites"
        assert [suite.get("name") for suite in root] == list(OPS)
        assert int(root.get("tests", "")) == len(root.findall(".//testcase")) == len(report.results) + 1
        assert int(root.get("failures", "")) == len(root.findall(".//failure")) == len(first_objections(report))
        assert int(root.get("errors", "")) == len(root.findall(".//error")) == 1
        for suite in root:
            for tag, count in (("testcase", "tests"), ("failure", "failures"), ("error", "errors")):
                assert int(suite.get(count, "")) == len(suite.findall(f".//{tag}")), (suite.get("name"), tag)
        names = [(case.get("classname"), case.get("name")) for case in root.iter("testcase")]
        assert len(set(names)) == len(names)

    def test_a_failure_says_where_and_how_to_repeat_it(self, tmp_path: Path) -> None:
        report = ops_report(cases=12)
        wrong = next(result for result in report.results if result.op == "hc_pre" and result.status == "fail")
        root = junit(report, tmp_path)
        (case,) = (
            case
            for case in root.iter("testcase")
            if case.get("classname") == "hc_pre.native"
            and (case.get("name") or "").startswith(f"{wrong.case} {wrong.dtype} out ")
        )
        failure = case.find("failure")
        assert failure is not None and failure.text and wrong.worst
        assert (failure.get("type"), failure.get("message")) == ("elementwise", wrong.reason)
        assert (
            f"worst element [{wrong.worst.index[0]}, {wrong.worst.index[1]}]: {wrong.worst.actual:.9g} instead of"
            in failure.text
        )
        assert f"reproduce: {wrong.command}" in failure.text

    def test_refused_is_a_failure(self, tmp_path: Path) -> None:
        root = junit(ops_report(cases=3), tmp_path)
        kinds = [failure.get("type") for failure in root.iter("failure")]
        assert kinds.count("refused") == 3
        assert not root.findall(".//skipped")

    def test_model_sweeps_mutants(self, tmp_path: Path) -> None:
        suites = {suite.get("name"): suite for suite in junit(model_report(), tmp_path)}
        assert suites.keys() == {"model", "end metrics", "bfloat16 bar", "sweeps"}
        assert [case.get("name") for case in suites["bfloat16 bar"] if case.find("failure") is not None] == ["v4 planted"]
        wrong = [case.get("name") for case in suites["model"] if case.find("failure") is not None]
        assert wrong == [f"step {step} {graph}" for step in range(3) for graph in ("layer3", "layer6")]
        assert [case.get("name") for case in suites["sweeps"] if case.find("failure") is not None] == ["batch size"]
        (mutants,) = junit(mutants_report(), tmp_path)
        assert (mutants.get("tests"), mutants.get("failures")) == ("45", "1")

    def test_time_is_counted_once_a_case(self, tmp_path: Path) -> None:
        result = dataclasses.replace(ops_report(1, 1, faults=False).results[0], seconds=0.25)
        outputs = (result, dataclasses.replace(result, output="state"), dataclasses.replace(result, case="other"))
        root = junit(dataclasses.replace(EMPTY, results=outputs, seconds=2.0), tmp_path)
        assert [case.get("time") for case in root.iter("testcase")] == ["0.250", "0.000", "0.250"]
        assert (root[0].get("time"), root.get("time")) == ("0.500", "2.000")

    def test_empty_and_hostile(self, tmp_path: Path) -> None:
        assert junit(EMPTY, tmp_path).get("errors") == "1"
        root = junit(hostile_report(), tmp_path)
        assert {suite.get("name") for suite in root} >= {"model", "sweeps", "mutants", "findings"}


@pytest.mark.parametrize("write", [write_receipt, write_junit, write_page])
@pytest.mark.parametrize("where", ["absent/report", ".", "nul\x00"])
def test_unwritable_paths(write: Callable[[Report, Path], None], where: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written .*, expected a file in an existing folder"):
        write(EMPTY, tmp_path / where)
