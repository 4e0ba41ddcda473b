# SPDX-License-Identifier: Apache-2.0
"""A comparison as tables for a terminal of 80 columns; plain text, with whole lines, in a pipe."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ascend_dsv4.accuracy.report.summary import (
    MARKS,
    MEANINGS,
    Cell,
    Matrix,
    first_introduced,
    graphs,
    matrix,
    mutant_problem,
    objections,
    ranking,
    selection,
    verdict,
)
from ascend_dsv4.accuracy.report.wording import count_text, index_text, printable, ratio_text, seconds_text, short, value_text
from ascend_dsv4.accuracy.results import NodeResult, OutputResult, Report

_MOST_PER_CELL = 2
_MOST = 20
_MOST_RANKED = 10
_STYLES = {"pass": "green", "fail": "bold red", "refused": "yellow", "noted": "dim", "error": "bold magenta"}
_STATE_STYLES = {"introduced": "bold red", "inherited": "yellow", "within": "", "same": "dim"}
_ASCII = str.maketrans(
    {"✓": "+", "✗": "x", "⊘": "o", "·": ".", "∞": "inf", "…": "...", "×": "x", "–": "-", "≤": "<=", "−": "-"}
)


def print_report(report: Report, console: Console, verbose: bool = False) -> None:
    """Print the matrix, then what speaks against it, then the verdict.

    verbose  also every output, every failure with its figures, all graphs of a model, the environment
    """
    with console.capture() as captured:
        _draw_head(console, report, verbose)
        held = matrix(report)
        if held.cells:
            _draw_matrix(console, held)
        if verbose:
            _draw_outputs(console, report)
        _draw_errors(console, report, verbose)
        _draw_objections(console, report, verbose)
        if report.nodes:
            _draw_model(console, report.nodes, verbose)
            _draw_elements(console, report)
        _draw_ends(console, report)
        _draw_bars(console, report)
        _draw_sweeps(console, report)
        _draw_mutants(console, report)
        _draw_verdict(console, report)
    text = re.sub(" +$", "", captured.get(), flags=re.MULTILINE)  # cells are padded to their column
    encoding = console.encoding or "utf-8"
    if not encoding.lower().startswith("utf"):
        text = text.translate(_ASCII).encode(encoding, "replace").decode(encoding)
    console.file.write(text)
    console.file.flush()


def _draw_head(console: Console, report: Report, verbose: bool) -> None:
    pairs = [("command", report.command), ("standard", report.standard), ("time", seconds_text(report.seconds))]
    pairs += list(report.environment.items()) if verbose else []
    _line(console, Text(printable(report.title), "bold"))
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        if value:
            _line(console, Text.assemble(("  " + printable(name).ljust(width) + "  ", "cyan"), printable(value)))


def _draw_matrix(console: Console, held: Matrix) -> None:
    for implementation in held.implementations:
        shown = [dtype for name, dtype in held.columns() if name == implementation]
        _title(console, f"{implementation or 'no implementation'}: largest metric over its limit")
        table = _table("op", *(dtype or "–" for dtype in shown), "cases")
        for op in held.ops:
            cells = [held.cells.get((op, implementation, dtype)) for dtype in shown]
            if any(cells):
                number = max(cell.num_cases for cell in cells if cell)
                _add(table, _name(op), *(_cell_text(cell) for cell in cells), f"{number:,}")
        _print(console, table)
    kinds = [status for status in MARKS if any(cell.status == status for cell in held.cells.values())]
    console.print()
    _sentence(console, ", ".join(f"{MARKS[kind]} {MEANINGS[kind]}" for kind in kinds), "dim", indent=2)


def _cell_text(cell: Cell | None) -> Text:
    if cell is None:
        return Text("")
    said = {"error": "error", "refused": "refused"}.get(cell.status) or ratio_text(cell.ratio)
    return Text(f"{MARKS[cell.status]} {said:>7}", _STYLES[cell.status])


def _draw_outputs(console: Console, report: Report) -> None:
    """Every output, one a line, in the order of the comparison."""
    if not report.results:
        return
    _title(console, "all outputs")
    table = _table("op", "case", "dtype", "output", "golden", "ratio", right=(5,))
    several = len({result.implementation for result in report.results}) > 1
    for result in report.results:
        ratio = Text(f"{MARKS[result.status]} {ratio_text(result.ratio):>7}", _STYLES[result.status])
        op = f"{result.op} {result.implementation}" if several else result.op
        _add(table, _name(op), result.case, result.dtype, result.output, result.golden, ratio)
    _print(console, table)


def _draw_errors(console: Console, report: Report, verbose: bool) -> None:
    """Without verbose the first case of each message, since one fault shows in many cases."""
    if not report.errors:
        return
    _title(console, "broke off")
    firsts = {(error.op, error.implementation, error.message): error for error in reversed(report.errors)}
    shown = report.errors if verbose else [error for error in report.errors if error in firsts.values()]
    for error in shown:
        _head(console, "error", [error.op, error.dtype, error.implementation, f"case {error.case}"])
        for line in error.message.splitlines():
            _sentence(console, line)
        _command(console, error.command)
    if left := len(report.errors) - len(shown):
        _line(console, Text(f"\n  … and {left:,} more, with the same messages: --verbose shows all", "dim"))


def _draw_objections(console: Console, report: Report, verbose: bool) -> None:
    """Failures and refusals; without verbose a few of each cell, since one fault shows in many cases."""
    held = objections(report.results)
    if not held:
        return
    _title(console, "failed or refused, worst first")
    shown = held if verbose else selection(held, _MOST_PER_CELL, _MOST)
    for result in shown:
        about = [result.op, result.dtype, result.implementation, f"case {result.case}", f"output {result.output}"]
        _head(console, result.status, about)
        _draw_details(console, result, verbose)
    if left := len(held) - len(shown):
        _line(
            console,
            Text(f"\n  … and {left:,} more, of these operators and of {_others(held, shown)}: --verbose shows all", "dim"),
        )


def _others(held: Sequence[OutputResult], shown: Sequence[OutputResult]) -> str:
    names = list(dict.fromkeys(result.op for result in held))
    known = {result.op for result in shown}
    rest = [printable(name) for name in names if name not in known]
    return ", ".join(rest[:5]) + (f" and {len(rest) - 5} others" if len(rest) > 5 else "") if rest else "no others"


def _draw_details(console: Console, result: OutputResult, verbose: bool) -> None:
    said = result.reason or "no reason given"
    _sentence(console, f"{result.check}: {said}" if result.check and result.check not in said else said)
    if result.worst is not None:
        worst = result.worst
        values = f"actual {value_text(worst.actual)}, golden {value_text(worst.golden)} ({result.golden})"
        _sentence(console, f"ratio {ratio_text(result.ratio)}, worst at {index_text(worst.index)}: {values}")
    if verbose and result.figures:
        _sentence(console, ", ".join(f"{name} {value_text(value)}" for name, value in result.figures.items()))
    _command(console, result.command)


def _draw_model(console: Console, nodes: Sequence[NodeResult], verbose: bool) -> None:
    first = first_introduced(nodes)
    if first is None:
        _title(console, "first introduced divergence: none")
    else:
        _title(console, f"first introduced divergence: {first.graph}, {first.node}")
        where = f" at {first.where}" if first.where else ""
        _sentence(
            console, f"step {first.step}, node {first.number}, output {first.output}, in {first.scope or 'the model'}{where}"
        )
        _draw_details(console, first.introduced, verbose)
    ranked = ranking(nodes)
    if ranked:
        _title(console, "nodes by the error that they introduce")
        table = _table("node", "output", "steps", "introduced", "total", "state", right=(2, 3, 4))
        for rank in ranked if verbose else ranked[:_MOST_RANKED]:
            node = rank.worst
            ratios = (ratio_text(node.introduced.ratio), ratio_text(node.total.ratio))
            state = Text(node.state, _STATE_STYLES[node.state])
            _add(table, _name(f"{node.graph} {node.node}"), node.output, rank.steps_text(), *ratios, state)
        _print(console, table)
        if not verbose and len(ranked) > _MOST_RANKED:
            _line(console, Text(f"  … and {len(ranked) - _MOST_RANKED:,} more that differ: --verbose shows all", "dim"))
    if verbose:
        _title(console, "graphs in order of execution")
        table = _table("graph", "same", "within", "inherited", "introduced", "largest", "total")
        for graph in graphs(nodes):
            numbers = (str(graph.states[state]) for state in ("same", "within", "inherited", "introduced"))
            _add(table, _name(graph.graph), *numbers, ratio_text(graph.introduced), ratio_text(graph.total))
        _print(console, table)


def _draw_elements(console: Console, report: Report) -> None:
    if not report.elements:
        return
    _title(console, "elements of the nodes asked for, worst first")
    table = _table("node", "output", "step", "index", "golden", "introduced", "ratio", "in row", right=(2, 4, 5, 6, 7))
    for element in report.elements:
        values = (value_text(element.golden), value_text(element.introduced), ratio_text(element.ratio))
        in_row = f"{element.row_over}/{element.row_elements}"
        _add(table, _name(element.node), element.output, str(element.step), index_text(element.index), *values, in_row)
    _print(console, table)


def _draw_bars(console: Console, report: Report) -> None:
    if not report.bars:
        return
    _title(console, "bfloat16 beside another implementation: KL to float32, nats")
    for bar in report.bars:
        _head(console, bar.status, [bar.name, f"{short(bar.kl)} of at most {short(bar.limit)}"])
        _sentence(console, f"{short(bar.kl_baseline)} by {bar.baseline}")
        _sentence(console, f"{count_text(bar.num_prompts, 'prompt')}, {count_text(bar.num_positions, 'position')}")
        if bar.reason:
            _sentence(console, bar.reason)


def _draw_ends(console: Console, report: Report) -> None:
    if not report.ends:
        return
    _title(console, "end of the model: KL in nats, greedy tokens that are equal, perplexity")
    table = _table("prompt", "tokens", "KL mean", "KL max", "top-1", "greedy", "ppl ref", "ppl cand")
    for end in report.ends:
        same = end.greedy_tokens if end.greedy_divergence is None else end.greedy_divergence
        _add(
            table,
            _name(end.name),
            f"{end.num_tokens:,}",
            short(end.kl_mean),
            short(end.kl_max),
            f"{100 * end.top1_agreement:.2f}%",
            f"{same}/{end.greedy_tokens}",
            value_text(round(end.perplexity_reference, 4)),
            value_text(round(end.perplexity_candidate, 4)),
        )
    _print(console, table)


def _draw_sweeps(console: Console, report: Report) -> None:
    if not report.sweeps:
        return
    _title(console, "sweeps: what should not matter")
    table = _table("sweep", "ways", "distinct", "max abs", "promised", right=(1, 2, 3))
    for sweep in report.sweeps:
        status = "pass" if sweep.num_distinct == 1 else "fail" if sweep.promised else "noted"
        distinct = Text(f"{MARKS[status]} {sweep.num_distinct}", _STYLES[status])
        promised = "equal" if sweep.promised else "nothing"
        _add(table, _name(sweep.name), str(len(sweep.values)), distinct, short(sweep.max_abs), promised)
    _print(console, table)


def _draw_mutants(console: Console, report: Report) -> None:
    if not report.mutants:
        return
    _title(console, "mutants: largest metric over its limit")
    table = _table("name", "op", "original", "mutant", "caught by", right=(2, 3))
    for mutant in report.mutants:
        status = "pass" if mutant.caught else "fail"
        caught = Text(f"{MARKS[status]} {printable(mutant.check) if mutant.caught else 'not caught'}", _STYLES[status])
        numbers = (ratio_text(mutant.original), ratio_text(mutant.mutant))
        _add(table, _name(mutant.name), mutant.op, *numbers, caught)
    _print(console, table)
    for mutant in report.mutants:
        if not mutant.caught:
            _head(console, "fail", [mutant.name, mutant.op])
            _sentence(console, mutant.what)
            _sentence(console, f"not caught: {mutant_problem(mutant)}")
            _sentence(console, mutant.case)


def _draw_verdict(console: Console, report: Report) -> None:
    if report.omissions:
        _title(console, "left out")
        for omission in report.omissions:
            _sentence(console, omission)
    if report.findings:
        _title(console, "findings")
        for finding in report.findings:
            _sentence(console, finding)
    ended = verdict(report)
    styles = {"pass": "bold green", "fail": "bold red", "could not run": "bold magenta"}
    console.print()
    for sentence in ended.sentences:
        _line(console, Text(sentence))
    _line(console, Text(ended.word.upper(), styles[ended.word]))


def _title(console: Console, text: str) -> None:
    _line(console, Text("\n" + printable(text), "bold"))


def _head(console: Console, status: str, parts: Sequence[str]) -> None:
    said = "  ".join(printable(part) for part in parts if part)
    word = "refused  " if status == "refused" else ""
    _line(console, Text.assemble("\n  ", (f"{MARKS[status]} {word}", _STYLES[status]), (said, "bold")))


def _sentence(console: Console, text: str, style: str = "", indent: int = 4) -> None:
    """A line below a head; a terminal gets it wrapped between words, a file keeps it whole."""
    shown = " " * indent + printable(text)
    if console.is_terminal:
        shown = textwrap.fill(shown, max(console.width, 40), subsequent_indent=" " * (indent + 2), break_on_hyphens=False)
    _line(console, Text(shown, style))


def _command(console: Console, command: str) -> None:
    """Never wrapped by us, so that it can be copied."""
    if command:
        _line(console, Text("    " + printable(command), "cyan"))


def _line(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=True, highlight=False)


def _name(text: str) -> Text:
    return Text("  " + printable(text), "cyan")


def _table(*columns: str, right: Sequence[int] = ()) -> Table:
    """Names left and cut if they must be, figures right and never cut."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", highlight=False)
    for i, column in enumerate(columns):
        is_figure = i in right if right else i > 0
        least = None if not is_figure else len(column)
        justify: Literal["left", "right"] = "right" if is_figure else "left"
        table.add_column(
            Text(printable(column if i else "  " + column)), justify=justify, no_wrap=True, overflow="ellipsis", min_width=least
        )
    return table


def _add(table: Table, *cells: str | Text) -> None:
    """A row; what is no Text is a foreign one and taken literally."""
    table.add_row(*(cell if isinstance(cell, Text) else Text(printable(cell)) for cell in cells))


def _print(console: Console, table: Table) -> None:
    """A terminal cuts names to its width; a file has whole lines."""
    width = console.width
    if not console.is_terminal:
        console.width = 1000
    console.print(table, crop=False)
    console.width = width
