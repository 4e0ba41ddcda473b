# SPDX-License-Identifier: Apache-2.0
"""The sections of the page as HTML. Tables and charts are complete without the script, which only adds details to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ascend_dsv4.accuracy.report.charts import histogram_chart, level, margin_chart, position_chart
from ascend_dsv4.accuracy.report.markup import Markup, escaped, joined, tag
from ascend_dsv4.accuracy.report.summary import (
    MARGINS,
    MARKS,
    MEANINGS,
    Cell,
    Matrix,
    counts,
    mutant_problem,
    objections_by_operator,
    selection,
    verdict,
)
from ascend_dsv4.accuracy.report.wording import count_text, index_text, ratio_text, seconds_text, short, value_text
from ascend_dsv4.accuracy.results import BINS, BarResult, EndMetrics, MutantResult, OutputResult, Report, SweepResult

_MOST_PER_CELL = 2
_MOST_CARDS = 24
_MOST_CLOSE = 6
_LISTED = 12


def panel(name: str, title: str, *children: str, unit: str = "", kind: str = "") -> Markup:
    """A section with a heading; `name` is its anchor."""
    heading = tag("h2", title, *([" ", tag("span", unit, class_="unit")] if unit else []), id=f"{name}-title")
    return tag("section", heading, *children, id=name, class_=f"panel {kind}".strip(), aria_labelledby=f"{name}-title")


def head(report: Report) -> Markup:
    """Title, verdict, what it rests on, and what is needed to do it again."""
    ended = verdict(report)
    state = tag("p", ended.word, class_="state", role="status", data_state=ended.word)
    about = {"standard": report.standard, "took": seconds_text(report.seconds), "exit code": str(report.exit_code)}
    about |= report.environment
    return tag(
        "header",
        tag("div", tag("h1", report.title or "comparison"), state, class_="name-line"),
        tag("ul", *(tag("li", sentence) for sentence in ended.sentences), class_="sentences"),
        _tiles(report),
        tag("dl", *(tag("div", tag("dt", name), tag("dd", text)) for name, text in about.items() if text), class_="subtitle"),
        command_block(report.command, "The command of this report"),
        class_="top",
    )


def _tiles(report: Report) -> Markup:
    if not report.results and not report.errors:
        return Markup("")
    names = {"pass": "passed", "fail": "failed", "refused": "refused", "noted": "noted", "error": "broke off"}
    tiles = []
    for status, number in counts(report).items():
        if number or status in ("pass", "fail", "refused"):
            mark = tag("span", MARKS[status], class_="mark", aria_hidden="true")
            name = tag("span", mark, " ", names[status], class_="tile-name")
            figure = tag("b", f"{number:,}", class_="number")
            tiles.append(tag("li", name, figure, tag("span", MEANINGS[status], class_="meaning"),
                             class_=f"tile {status if number else 'none'}"))  # fmt: skip
    return tag("ul", *tiles, class_="tiles")


def command_block(command: str, label: str = "Command") -> Markup:
    """A command in a box of its own; the script adds a button that copies it."""
    if not command:
        return Markup("")
    return tag("div", tag("pre", tag("code", command), tabindex="0", role="region", aria_label=label), class_="command")


def against(report: Report) -> Markup:
    """What speaks against it: cases that broke off, findings, failures and refusals by operator."""
    items = []
    for error in report.errors:
        name = [error.op, error.dtype, error.implementation, f"case {error.case}"]
        lines = tag("pre", joined_lines(error.message), class_="message", tabindex="0") if error.message else ""
        items.append(_item("error", name, "broke off", lines, command_block(error.command)))
    items += [_item("fail", ["finding"], text) for text in report.findings]
    for objection in objections_by_operator(report.results):
        worst = objection.worst
        name = [objection.op, objection.implementation, ", ".join(objection.dtypes)]
        if objection.status == "refused":
            said = f"{count_text(objection.num_outputs, 'output')} refused: {worst.reason.removeprefix('refused: ')}"
        else:
            said = f"{count_text(objection.num_outputs, 'output')} failed, at worst {ratio_text(worst.ratio)} × the limit"
            said += f" ({worst.case}, {worst.dtype}, {worst.output}): {worst.reason or worst.check}"
        items.append(_item(objection.status, name, said))
    if not items:
        return Markup("")
    shown, rest = items[:_LISTED], items[_LISTED:]
    more = [tag("details", tag("summary", f"{len(rest):,} more"), tag("ul", *rest, class_="against"))] if rest else []
    return panel("against", "What speaks against it", tag("ul", *shown, class_="against"), *more, kind="notice")


def omitted(report: Report) -> Markup:
    """What was left out."""
    if not report.omissions:
        return Markup("")
    return panel("omitted", "Left out", tag("ul", *(tag("li", text) for text in report.omissions), class_="sentences"))


def joined_lines(text: str) -> Markup:
    """Text in which line ends stay what they are."""
    return Markup("\n".join(map(escaped, text.splitlines())))


def _item(status: str, name: Sequence[str], said: str, *rest: str) -> Markup:
    mark = tag("span", MARKS[status], class_="mark", title=MEANINGS[status])
    first, *others = [part for part in name if part]
    heading = tag("p", tag("b", first), *(tag("span", part, class_="meaning") for part in others), class_="item-name")
    return tag("li", mark, tag("div", heading, tag("p", said), *rest), class_=status)


def matrix_panel(held: Matrix, numbers: dict[int, int]) -> Markup:
    """Operators × implementations and dtypes. numbers: the number in the page's data of each cell, by its id."""
    columns = held.columns()
    spans = [(name, [dtype for other, dtype in columns if other == name]) for name in held.implementations]
    first = [tag("th", "Operator", rowspan="2", scope="col", class_="row-name")]
    first += [tag("th", name or "–", colspan=str(len(dtypes)), scope="colgroup", class_="group") for name, dtypes in spans]
    second = [tag("th", dtype or "–", scope="col", class_="first" if i == 0 else None)
              for _, dtypes in spans for i, dtype in enumerate(dtypes)]  # fmt: skip
    starts = {(name, dtypes[0]) for name, dtypes in spans if dtypes}
    rows = []
    for op in held.ops:
        cells = [held.cells.get((op, *column)) for column in columns]
        grave = any(cell and cell.status in ("fail", "refused", "error") for cell in cells)
        drawn = [_matrix_cell(cell, numbers, column in starts) for cell, column in zip(cells, columns, strict=True)]
        name = tag("th", op, scope="row", class_="row-name")
        rows.append(tag("tr", name, *drawn, data_op=op, data_grave="yes" if grave else "no"))
    table = tag("table", tag("thead", tag("tr", *first), tag("tr", *second)), tag("tbody", *rows), class_="matrix")
    views = [("ratio", "Worst ratio"), ("histogram", "Distribution"), ("position", "Position")]
    switch = [
        tag("label", tag("input", type="radio", name="view", id=f"view-{key}", checked=i == 0), tag("span", text))
        for i, (key, text) in enumerate(views)
    ]
    tools = tag(
        "div",
        tag("fieldset", tag("legend", "Cells show", class_="unseen"), *switch, class_="switch"),
        tag(
            "div",
            tag("label", "Find ", tag("input", type="search", id="find", size="14", placeholder="operator")),
            tag("label", tag("input", type="checkbox", id="grave"), " only what speaks against it"),
            class_="filters",
            hidden=True,
        ),
        class_="tools",
    )
    box = tag("div", table, class_="scroll", tabindex="0", role="region", aria_label="Matrix of operators")
    return panel("matrix", "Operators", tools, _legend(held), box, unit="largest metric over its limit, and number of cases")


def _matrix_cell(cell: Cell | None, numbers: dict[int, int], is_first: bool) -> Markup:
    edge = "first" if is_first else ""
    if cell is None:
        return tag("td", tag("span", "not compared", class_="unseen"), class_=f"absent {edge}".strip())
    mark = tag("span", MARKS[cell.status], class_="mark", aria_hidden="true")
    said = {"error": "error", "refused": "refused"}.get(cell.status) or ratio_text(cell.ratio)
    ratio = tag("span", mark if cell.status != "pass" else "", tag("b", said), class_="ratio")
    number = tag("small", str(cell.num_cases), title=count_text(cell.num_cases, "case"))
    about = f"{cell.op}, {cell.implementation}, {cell.dtype}: {MEANINGS[cell.status]}, worst ratio {ratio_text(cell.ratio)}"
    button = tag(
        "button",
        tag("span", ratio, number, class_="as-ratio"),
        histogram_chart(cell.histogram),
        position_chart(cell.by_position),
        type="button",
        data_cell=str(numbers[id(cell)]),
        aria_label=f"{about}, {count_text(cell.num_cases, 'case')}",
    )
    tone = f"l{level(cell.ratio)}" if cell.status in ("pass", "fail") else cell.status
    return tag("td", button, class_=f"cell {tone} {edge}".strip())


def bin_names() -> list[str]:
    """BINS as they are shown."""
    return ["equal", *(name.replace("<=", "≤") for name in BINS[1:])]


def _legend(held: Matrix) -> Markup:
    """The colours, each with its bin; the signs; what the small charts show."""
    names = bin_names()
    steps = [tag("span", name, class_=f"step l{i}") for i, name in enumerate(names)]
    present = {cell.status for cell in held.cells.values()} - {"pass"}
    signs = [tag("span", tag("span", MARKS[status], class_="mark"), " ", MEANINGS[status], class_=f"sign {status}")
             for status in MARKS if status in present]  # fmt: skip
    ratio = tag("p", tag("span", *steps, class_="steps"), *signs, class_="legend as-ratio")
    bins = ", ".join(names)
    histogram = tag("p", f"Elements by error over limit, log of their count: {bins}. Right of the line: beyond the limit.",
                    class_="legend as-histogram")  # fmt: skip
    along = (
        "Largest error over limit along the first axis, from its begin to its end, log scale. Above the line: beyond the limit."
    )
    position = tag("p", along, class_="legend as-position")
    return joined([ratio, histogram, position])


def worst_panel(results: Sequence[OutputResult]) -> Markup:
    """Cards of the worst cases; if nothing failed, of those closest to their limits."""
    wrong = [result for result in results if not result.passed]
    if wrong:
        chosen = selection(wrong, _MOST_PER_CELL, _MOST_CARDS)
        rest = len(wrong) - len(chosen)
        unit = f"at most {_MOST_PER_CELL} of each operator, implementation and dtype"
        more = (
            [tag("p", f"{rest:,} more failed or were refused; the cells of the matrix hold them.", class_="hint")]
            if rest
            else []
        )
        return panel("worst", "Worst cases", cards(chosen), *more, unit=unit)
    judged = [result for result in results if result.status == "pass"]
    if not judged:
        return Markup("")
    return panel("worst", "Closest to their limits", cards(selection(judged, 1, _MOST_CLOSE)), unit="nothing failed")


def cards(results: Iterable[OutputResult]) -> Markup:
    """A list of results with all that is needed to look into them."""
    return tag("ul", *map(card, results), class_="cards")


def card(result: OutputResult) -> Markup:
    """One result: names, reason, worst element, the two small charts, command."""
    mark = tag("span", MARKS[result.status], class_="mark", title=MEANINGS[result.status])
    about = f"{result.dtype}, {result.implementation}"
    ratio = "refused" if result.status == "refused" else f"{ratio_text(result.ratio)} ×"
    title = tag("h3", mark, " ", result.op, " ", tag("span", about, class_="meaning"), tag("span", ratio, class_="ratio"))
    case = f"case {result.case} ({result.kind}), output {result.output} against {result.golden}"
    said = result.reason.removeprefix("refused: ") if result.status == "refused" else result.reason
    parts = [title, tag("p", case, class_="about")]
    if said or result.check:
        check = [tag("span", f" check: {result.check}", class_="meaning")] if result.check else []
        parts.append(tag("p", said, *check, class_="reason"))
    if result.worst is not None:
        worst = result.worst
        figures = {"worst at": index_text(worst.index), "actual": value_text(worst.actual), "golden": value_text(worst.golden)}
        parts.append(
            tag("dl", *(tag("div", tag("dt", name), tag("dd", text)) for name, text in figures.items()), class_="element")
        )
    charts = [
        ("error over limit", histogram_chart(result.histogram)),
        ("along the first axis", position_chart(result.by_position)),
    ]
    drawn = [tag("figure", chart, tag("figcaption", name)) for name, chart in charts if chart]
    parts += [tag("div", *drawn, class_="charts")] if drawn else []
    parts.append(command_block(result.command))
    return tag("li", *parts, class_=f"card {result.status}")


def table(name: str, columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> Markup:
    """A table that scrolls in its own box, and on a narrow screen sets each row as a card; numbers: columns set flush right."""
    kinds = ["number" if i in numbers else None for i in range(len(columns))]
    top = [tag("th", column, scope="col", class_=kind) for column, kind in zip(columns, kinds, strict=True)]
    body = []
    for first, *rest in rows:
        cells = zip(rest, columns[1:], kinds[1:], strict=True)
        body.append(tag("tr", tag("th", first, scope="row"),
                        *(tag("td", cell, class_=kind, data_label=column) for cell, column, kind in cells)))  # fmt: skip
    drawn = tag("table", tag("thead", tag("tr", *top)), tag("tbody", *body), class_="plain stacking")
    return tag("div", drawn, class_="scroll", tabindex="0", role="region", aria_label=name)


def signed(status: str, text: str) -> Markup:
    """Text behind the mark of a status."""
    mark = tag("span", MARKS[status], class_="mark", aria_hidden="true")
    return tag("span", mark, " ", text, class_=f"sign {status}")


def ends_panel(ends: Sequence[EndMetrics]) -> Markup:
    """End metrics of a model, one prompt a row."""
    if not ends:
        return Markup("")
    columns = (
        "Prompt",
        "Tokens",
        "KL mean",
        "KL max",
        "Top-1 equal",
        "Greedy equal",
        "Perplexity reference",
        "candidate",
        "Max abs",
    )
    rows = []
    for end in ends:
        same = "all" if end.greedy_divergence is None else f"{end.greedy_divergence:,}"
        rows.append((
            end.name, f"{end.num_tokens:,}", short(end.kl_mean), short(end.kl_max), f"{100 * end.top1_agreement:.2f} %",
            f"{same} of {end.greedy_tokens:,}", value_text(round(end.perplexity_reference, 4)),
            value_text(round(end.perplexity_candidate, 4)), short(end.max_abs),
        ))  # fmt: skip
    drawn = table("End of the model", columns, rows, range(1, len(columns)))
    return panel("ends", "End of the model", drawn, unit="logits of candidate and reference; KL in nats")


def bars_panel(bars: Sequence[BarResult]) -> Markup:
    """How far bfloat16 is from float32, here and in another implementation."""
    if not bars:
        return Markup("")
    columns = ("Model", "KL", "Limit", "KL of the other", "Prompts", "Positions", "Verdict", "The other")
    rows = []
    for bar in bars:
        numbers = (short(bar.kl), short(bar.limit), short(bar.kl_baseline), f"{bar.num_prompts:,}", f"{bar.num_positions:,}")
        reason = [tag("span", bar.reason, class_="meaning under")] if bar.reason else []
        said = joined([signed(bar.status, {"pass": "passed", "fail": "failed"}.get(bar.status, bar.status)), *reason])
        rows.append((bar.name, *numbers, said, tag("span", bar.baseline, class_="ways")))
    unit = "bfloat16 here and in another implementation, each measured from float32; KL in nats"
    return panel("bars", "Bfloat16 bar", table("Bfloat16 bar", columns, rows, range(1, 6)), unit=unit)


def sweeps_panel(sweeps: Sequence[SweepResult]) -> Markup:
    """What should not matter, and whether it does."""
    if not sweeps:
        return Markup("")
    rows = []
    for sweep in sweeps:
        status = "pass" if sweep.num_distinct == 1 else "fail" if sweep.promised else "noted"
        promise = "one output" if sweep.promised else "nothing"
        ways = tag("span", ", ".join(sweep.values), class_="ways")
        rows.append(
            (
                sweep.name,
                ways,
                signed(status, f"{sweep.num_distinct:,} of {len(sweep.values):,}"),
                promise,
                short(sweep.max_abs),
            )
        )
    drawn = table("Sweeps", ("Sweep", "Ways", "Distinct outputs", "Promised", "Max abs"), rows, (4,))
    return panel("sweeps", "Sweeps", drawn, unit="the same tokens in ways that should not matter")


def mutants_panel(mutants: Sequence[MutantResult]) -> Markup:
    """Mutants, those that nothing caught first."""
    if not mutants:
        return Markup("")
    rows = []
    for mutant in sorted(mutants, key=lambda mutant: mutant.caught):
        name = joined([tag("b", mutant.name), tag("span", mutant.what, class_="meaning under")])
        problem = mutant_problem(mutant)
        check = signed("fail", problem) if problem else signed("pass", mutant.check)
        where = tag("span", mutant.case, class_="meaning under")
        chart = margin_chart(mutant.original, mutant.mutant, MARGINS)
        rows.append((name, mutant.op, ratio_text(mutant.original), ratio_text(mutant.mutant), chart, joined([check, where])))
    columns = ("Mutant", "Operator", "Original", "Mutant", "0.001 to 1000, log", "Caught by")
    unit = f"largest metric over its limit: originals stay below {MARGINS[0]:g}, mutants exceed {MARGINS[1]:g}"
    return panel("mutants", "Mutants", table("Mutants", columns, rows, (2, 3)), unit=unit)
