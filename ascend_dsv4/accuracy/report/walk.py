# SPDX-License-Identifier: Apache-2.0
"""The walk through a model as sections of the page: first divergence, curves, ranking, graphs."""

from __future__ import annotations

from collections.abc import Sequence

from ascend_dsv4.accuracy.report.charts import divergence_chart
from ascend_dsv4.accuracy.report.markup import Markup, tag
from ascend_dsv4.accuracy.report.sections import card, panel, table
from ascend_dsv4.accuracy.report.summary import Point, Ranked, first_introduced, graphs
from ascend_dsv4.accuracy.report.wording import index_text, ratio_text, value_text
from ascend_dsv4.accuracy.results import NodeElement, NodeResult, Report

MOST_RANKED = 40
_MOST_STEPS = 4
_STATES = ("same", "within", "inherited", "introduced")


def drawn_steps(steps: dict[int, list[Point]]) -> dict[int, list[Point]]:
    """The steps whose curves are drawn: that of the first divergence, and the first ones."""
    broken = [step for step, held in steps.items() if any(point.state == "introduced" for point in held)]
    chosen = list(dict.fromkeys([*broken[:1], *steps]))[:_MOST_STEPS]
    return {step: steps[step] for step in sorted(chosen)}


def model_panels(report: Report, steps: dict[int, list[Point]], ranked: Sequence[Ranked]) -> list[Markup]:
    """Sections of a model comparison; none without nodes."""
    nodes = report.nodes
    if not nodes:
        return []
    first = first_introduced(nodes)
    panels = [_first_panel(first), _curves_panel(steps, first), _ranking_panel(ranked)]
    return [*panels, _elements_panel(report.elements), _graphs_panel(nodes)]


def _first_panel(first: NodeResult | None) -> Markup:
    if first is None:
        said = "No operator errs beyond its limit on the reference's inputs."
        return panel("first", "First introduced divergence: none", tag("p", said))
    where = f"step {first.step}, node {first.number}, output {first.output}, in {first.scope or 'the model'}, {first.where}"
    cards = tag("ul", card(first.introduced), class_="cards")
    return panel("first", f"First introduced divergence: {first.graph}, {first.node}", tag("p", where, class_="about"), cards)


def _curves_panel(steps: dict[int, list[Point]], first: NodeResult | None) -> Markup:
    at = None
    if first is not None:
        at = next(point for point in steps[first.step] if point.number == first.number)
    names = [("total", "error of the candidate's own run"), ("own", "error introduced on the reference's inputs"),
             ("introduced", "introduced beyond the limit"), ("shade", "behind the first divergence: inherited")]  # fmt: skip
    legend = [tag("span", tag("span", class_=f"key {key}", aria_hidden="true"), text) for key, text in names]
    figures = []
    shown = drawn_steps(steps)
    for step, held in shown.items():
        is_later = at is not None and step >= at.step
        drawn = tag(
            "div",
            divergence_chart(held, at if is_later else None),
            class_="scroll curve",
            tabindex="0",
            role="slider",
            data_step=str(step),
            aria_label=f"Nodes of step {step}",
            aria_valuemin="0",
            aria_valuemax=str(len(held) - 1),
            aria_valuenow="0",
            aria_valuetext="arrow keys read the nodes",
        )
        readout = tag("p", f"{len(held):,} nodes in order of execution, by graph", class_="readout number")
        figures.append(tag("figure", tag("h3", f"Step {step}"), drawn, readout))
    more = [tag("p", f"{len(shown)} of {len(steps)} steps are drawn.", class_="hint")] if len(shown) < len(steps) else []
    return panel(
        "curves", "Divergence node by node", tag("p", *legend, class_="legend"), *figures, *more, unit="error over limit"
    )


def _ranking_panel(ranked: Sequence[Ranked]) -> Markup:
    if not ranked:
        return Markup("")
    rows = []
    for i, rank in enumerate(ranked[:MOST_RANKED]):
        node = rank.worst
        name = tag("button", f"{node.graph} {node.node}", type="button", class_="plain-button", data_node=str(i))
        ratios = (ratio_text(node.introduced.ratio), ratio_text(node.total.ratio))
        rows.append(
            (name, node.output, rank.steps_text(), *ratios, _state(node.state), tag("span", node.where, class_="where"))
        )
    columns = ("Node", "Output", "Steps", "Introduced", "Total", "State", "In the model at")
    unit = f"the {MOST_RANKED} largest of {len(ranked):,}" if len(ranked) > MOST_RANKED else ""
    return panel("ranking", "Nodes by the error that they introduce", table("Ranking", columns, rows, (2, 3, 4)), unit=unit)


def _elements_panel(elements: Sequence[NodeElement]) -> Markup:
    """The worst elements of the nodes that were asked for."""
    if not elements:
        return Markup("")
    columns = (
        "Node",
        "Output",
        "Step",
        "Index",
        "Token",
        "Golden",
        "Introduced",
        "Ratio",
        "Beyond in its row",
        "Reference",
        "Candidate",
    )
    rows = []
    for element in elements:
        token = "–" if element.position is None else str(element.position)
        own = (value_text(element.golden), value_text(element.introduced), ratio_text(element.ratio))
        in_row = f"{element.row_over:,} of {element.row_elements:,}"
        runs = (value_text(element.reference), value_text(element.candidate))
        index = tag("span", index_text(element.index), class_="sign")
        rows.append((element.node, element.output, str(element.step), index, token, *own, in_row, *runs))
    unit = "golden and introduced: on the reference's inputs; reference and candidate: in their own runs"
    drawn = table("Elements", columns, rows, (2, 4, 5, 6, 7, 8, 9, 10))
    return panel("elements", "Elements of the nodes asked for", drawn, unit=unit)


def _graphs_panel(nodes: Sequence[NodeResult]) -> Markup:
    rows = []
    for graph in graphs(nodes):
        numbers = [f"{graph.states[state]:,}" if graph.states[state] else "–" for state in _STATES]
        numbers[3] = _state("introduced", numbers[3]) if graph.states["introduced"] else numbers[3]
        rows.append((graph.graph, *numbers, ratio_text(graph.introduced), ratio_text(graph.total)))
    columns = ("Graph", "Same", "Within", "Inherited", "Introduced", "Largest introduced", "Largest total")
    return panel("graphs", "Layer by layer", table("Layers", columns, rows, range(1, 7)), unit="outputs of nodes, all steps")


def _state(state: str, text: str = "") -> Markup:
    signs = {"introduced": "✗", "inherited": "↳", "within": "≈", "same": "="}
    return tag("span", tag("span", signs[state], class_="mark", aria_hidden="true"), " ", text or state, class_=f"sign {state}")
