# SPDX-License-Identifier: Apache-2.0
"""What the page's script needs to show details, as JSON that is safe inside a script element."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from ascend_dsv4.accuracy.report.summary import Cell, Point, Ranked
from ascend_dsv4.accuracy.report.wording import index_text, printable, ratio_text, value_text
from ascend_dsv4.accuracy.results import OutputResult

KEPT_OBJECTIONS = 12
KEPT_PASSES = 3
"""Results of a cell that are kept with all details; of the others one line each."""


def page_data(bins: Sequence[str], cells: Sequence[Cell], ranked: Sequence[Ranked], steps: dict[int, list[Point]]) -> str:
    """The JSON document; numbers are rounded, and null where they are not finite.

    bins    names of BINS
    cells   in the order of their numbers in the page
    ranked  nodes, likewise
    steps   points of the steps that are drawn
    """
    nodes = []
    for rank in ranked:
        node = rank.worst
        title = f"{node.graph} {node.node}"
        about = f"{node.output}, step {node.step}, {node.state}, in {node.scope} at {node.where}"
        nodes.append({"title": title, "about": about, "kept": [_kept(node.introduced), _kept(node.total)]})
    content = {
        "bins": bins,
        "cells": [_cell(cell) for cell in cells],
        "nodes": nodes,
        "steps": {str(step): [_point(point) for point in points] for step, points in steps.items()},
    }
    text = json.dumps(_shown(content), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _shown(value: Any) -> Any:
    """Texts without control characters."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: _shown(item) for key, item in value.items()}
    return [_shown(item) for item in value] if isinstance(value, list | tuple) else value


def _cell(cell: Cell) -> dict[str, Any]:
    kept = kept_results(cell)
    numbers = {id(result): i for i, result in enumerate(kept)}
    return {
        "title": cell.op,
        "about": f"{cell.dtype}, {cell.implementation}",
        "status": cell.status,
        "histogram": cell.histogram,
        "position": _numbers(cell.by_position),
        "kept": [_kept(result) for result in kept],
        "rows": [_row(result, numbers.get(id(result), -1)) for result in cell.results],
        "errors": [[error.case, error.message.splitlines(), error.command] for error in cell.errors],
    }


def kept_results(cell: Cell) -> list[OutputResult]:
    """Those of a cell whose details the page holds: what speaks against it, and what came closest to its limit."""
    wrong = [result for result in cell.results if not result.passed][:KEPT_OBJECTIONS]
    return wrong + [result for result in cell.results if result.passed][:KEPT_PASSES]


def _row(result: OutputResult, kept: int) -> list[Any]:
    return [result.status, result.case, result.kind, result.output, result.golden, ratio_text(result.ratio), kept]


def _kept(result: OutputResult) -> dict[str, Any]:
    worst = result.worst
    return {
        "status": result.status,
        "name": f"{result.case} ({result.kind}), {result.output} against {result.golden}",
        "reason": result.reason,
        "check": result.check,
        "ratio": ratio_text(result.ratio),
        "elements": result.num_elements,
        "worst": [index_text(worst.index), value_text(worst.actual), value_text(worst.golden)] if worst else None,
        "figures": [[name, value_text(float(f"{value:.4g}"))] for name, value in result.figures.items()],
        "histogram": result.histogram,
        "position": _numbers(result.by_position),
        "command": result.command,
    }


def _numbers(ratios: Sequence[float]) -> list[float | None]:
    return [float(f"{ratio:.3g}") if math.isfinite(ratio) else None for ratio in ratios]


def _point(point: Point) -> list[str]:
    return [point.graph, point.node, ratio_text(point.introduced), ratio_text(point.total), point.state]
