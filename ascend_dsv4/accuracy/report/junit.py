# SPDX-License-Identifier: Apache-2.0
"""A comparison as JUnit XML, as Jenkins and GitLab read it: what is refused counts as a failure, never as skipped."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from ascend_dsv4.accuracy.report.summary import matrix, mutant_problem, objections, points, verdict
from ascend_dsv4.accuracy.report.wording import count_text, printable, ratio_text, value_text, worst_text, write_file
from ascend_dsv4.accuracy.results import CaseError, NodeResult, OutputResult, Report


@dataclass(frozen=True, slots=True)
class _Test:
    """A testcase; problem is what it failed of, with a kind for the attribute `type`."""

    classname: str
    name: str
    tag: str = ""
    """failure or error; empty if it passed."""
    kind: str = ""
    message: str = ""
    details: str = ""
    output: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Suite:
    name: str
    tests: list[_Test] = field(default_factory=list)


def write_junit(report: Report, path: str | Path) -> None:
    """One testsuite for each operator, with a testcase for each case, dtype, output and golden; further suites for what else
    was compared. Raises ConfigError if it cannot be written.
    """
    root = ElementTree.Element("testsuites", name=printable(report.title), time=_seconds(report.seconds))
    suites = [suite for suite in _suites(report) if suite.tests]
    if not suites:
        suites = [
            _Suite(report.title or "comparison", [_Test("comparison", "compare", "error", "empty", "nothing was compared")])
        ]
    for suite in suites:
        _add_suite(root, suite, report)
    for key in ("tests", "failures", "errors", "skipped"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in root)))
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    write_file("junit", path, f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n')


def _suites(report: Report) -> Iterator[_Suite]:
    held = matrix(report)
    suites = {op: _Suite(op) for op in held.ops}
    timed = set()
    for result in report.results:
        case = (result.op, result.implementation, result.dtype, result.case, result.command)
        # The time is that of the case, so its first output has it and sums come out right.
        suites[result.op].tests.append(_of_result(result, 0.0 if case in timed else result.seconds))
        timed.add(case)
    for error in report.errors:
        suites[error.op].tests.append(_of_error(error))
    yield from suites.values()
    yield _Suite("model", list(_of_nodes(report)))
    yield _Suite("end metrics", list(_of_ends(report)))
    yield _Suite("bfloat16 bar", list(_of_bars(report)))
    yield _Suite("sweeps", list(_of_sweeps(report)))
    yield _Suite("mutants", list(_of_mutants(report)))
    yield _Suite("findings", [_Test("findings", text, "failure", "finding", text) for text in report.findings])


def _of_result(result: OutputResult, seconds: float) -> _Test:
    name = f"{result.case} {result.dtype} {result.output} against {result.golden}"
    classname = f"{result.op}.{result.implementation}"
    if result.passed:
        noted = f"noted without a verdict, ratio {ratio_text(result.ratio)}" if result.status == "noted" else ""
        return _Test(classname, name, output=noted, seconds=seconds)
    kind = "refused" if result.status == "refused" else result.check or "failed"
    return _Test(classname, name, "failure", kind, _message(result), _details(result), seconds=seconds)


def _message(result: OutputResult) -> str:
    said = result.reason or result.check or "failed"
    return f"refused: {said.removeprefix('refused: ')}" if result.status == "refused" else said


def _details(result: OutputResult) -> str:
    worst = worst_text(result)
    lines = [
        _message(result),
        f"operator {result.op}, implementation {result.implementation}, dtype {result.dtype}",
        f"case {result.case} ({result.kind}), output {result.output}, golden {result.golden}, standard {result.standard}",
        f"check {result.check}" if result.check else "",
        f"metric over limit {ratio_text(result.ratio)}, {count_text(result.num_elements, 'element')}",
        f"worst element {worst}" if worst else "",
        ", ".join(f"{name} {value_text(value)}" for name, value in result.figures.items()),
        f"reproduce: {result.command}" if result.command else "",
    ]
    return "\n".join(printable(line) for line in lines if line)


def _of_error(error: CaseError) -> _Test:
    details = "\n".join(
        map(printable, [*error.message.splitlines(), *([f"reproduce: {error.command}"] if error.command else [])])
    )
    message = error.message.splitlines()[0] if error.message else "broke off"
    name = f"{error.case} {error.dtype} did not come to an end"
    return _Test(f"{error.op}.{error.implementation}", name, "error", "broke off", message, details)


def _of_nodes(report: Report) -> Iterator[_Test]:
    """One test for each graph of a step: a model has too many nodes to list them all."""
    own: dict[tuple[int, str], list[NodeResult]] = {}
    for node in report.nodes:
        if node.state == "introduced":
            own.setdefault((node.step, node.graph), []).append(node)
    for step, held in points(report.nodes).items():
        for graph in dict.fromkeys(point.graph for point in held):
            name = f"step {step} {graph}"
            wrong = own.get((step, graph), [])
            if not wrong:
                yield _Test("model", name)
                continue
            by_id = {id(node.introduced): node for node in wrong}
            worst = objections(node.introduced for node in wrong) or [wrong[0].introduced]
            first = by_id[id(worst[0])]
            message = (
                f"{first.node} output {first.output} introduced an error of {ratio_text(first.introduced.ratio)} x its limit"
            )
            details = "\n\n".join(
                f"{by_id[id(result)].node} at {by_id[id(result)].where}\n{_details(result)}" for result in worst
            )
            yield _Test("model", name, "failure", "introduced", message, details)


def _of_ends(report: Report) -> Iterator[_Test]:
    for end in report.ends:
        same = "all" if end.greedy_divergence is None else str(end.greedy_divergence)
        output = (
            f"KL mean {value_text(end.kl_mean)} max {value_text(end.kl_max)} nats, top-1 agreement {end.top1_agreement:.4f}, "
            f"{same} of {end.greedy_tokens} greedy tokens equal, perplexity {value_text(end.perplexity_reference)} and "
            f"{value_text(end.perplexity_candidate)}"
        )
        yield _Test("end metrics", end.name, output=output)


def _of_bars(report: Report) -> Iterator[_Test]:
    for bar in report.bars:
        said = f"KL {value_text(bar.kl)} nats, limit {value_text(bar.limit)}, {value_text(bar.kl_baseline)} by {bar.baseline}"
        if bar.status in ("fail", "refused"):
            yield _Test("bfloat16 bar", bar.name, "failure", bar.status, bar.reason or said, said)
        else:
            yield _Test("bfloat16 bar", bar.name, output=f"{said}; {bar.reason}" if bar.reason else said)


def _of_sweeps(report: Report) -> Iterator[_Test]:
    for sweep in report.sweeps:
        said = f"{count_text(sweep.num_distinct, 'distinct output')} of {len(sweep.values)}: {', '.join(sweep.values)}"
        if sweep.promised and sweep.num_distinct != 1:
            said += f"; logits differ by up to {value_text(sweep.max_abs)}, though the implementation promises a single output"
            yield _Test("sweeps", sweep.name, "failure", "not reproducible", said, said)
        else:
            yield _Test("sweeps", sweep.name, output=said)


def _of_mutants(report: Report) -> Iterator[_Test]:
    for mutant in report.mutants:
        ratios = f"original {ratio_text(mutant.original)}, mutant {ratio_text(mutant.mutant)} x the limit"
        said = f"{ratios}, {mutant.check or 'no check'}"
        name = f"{mutant.op} {mutant.name}"
        if mutant.caught:
            yield _Test("mutants", name, output=said)
        else:
            yield _Test(
                "mutants",
                name,
                "failure",
                "not caught",
                f"not caught: {mutant_problem(mutant)}",
                f"{mutant.what}\n{said}\n{mutant.case}",
            )


def _add_suite(root: ElementTree.Element, suite: _Suite, report: Report) -> None:
    number = {tag: sum(test.tag == tag for test in suite.tests) for tag in ("failure", "error")}
    element = ElementTree.SubElement(
        root, "testsuite", name=printable(suite.name), tests=str(len(suite.tests)), failures=str(number["failure"]),
        errors=str(number["error"]), skipped="0", time=_seconds(sum(test.seconds for test in suite.tests)),
    )  # fmt: skip
    properties = ElementTree.SubElement(element, "properties")
    about = {"command": report.command, "standard": report.standard, "verdict": verdict(report).word, **report.environment}
    about |= {"left out": "; ".join(report.omissions)} if report.omissions else {}
    for name, value in about.items():
        ElementTree.SubElement(properties, "property", name=printable(name), value=printable(value))
    taken: Counter[tuple[str, str]] = Counter()
    for test in suite.tests:
        taken[test.classname, test.name] += 1
        repeated = taken[test.classname, test.name]
        _add_test(element, test, test.name if repeated == 1 else f"{test.name} ({repeated})")


def _add_test(suite: ElementTree.Element, test: _Test, name: str) -> None:
    attributes = {"classname": printable(test.classname), "name": printable(name), "time": _seconds(test.seconds)}
    element = ElementTree.SubElement(suite, "testcase", attributes)
    if test.tag:
        problem = ElementTree.SubElement(element, test.tag, type=printable(test.kind), message=printable(test.message))
        problem.text = "\n".join(map(printable, test.details.split("\n")))
    if test.output:
        ElementTree.SubElement(element, "system-out").text = printable(test.output)


def _seconds(seconds: float) -> str:
    return f"{seconds if math.isfinite(seconds) else 0:.3f}"
