# SPDX-License-Identifier: Apache-2.0
"""A comparison as one HTML file that needs nothing else: style, script and data are inside, and nothing may be fetched.

Its Content-Security-Policy admits the two by their hashes, so not even markup that slipped through could run or load anything.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Final

from ascend_dsv4.accuracy.report.data import page_data
from ascend_dsv4.accuracy.report.markup import escaped, joined, tag
from ascend_dsv4.accuracy.report.sections import (
    against,
    bars_panel,
    bin_names,
    ends_panel,
    head,
    matrix_panel,
    mutants_panel,
    omitted,
    panel,
    sweeps_panel,
    worst_panel,
)
from ascend_dsv4.accuracy.report.summary import matrix, points, ranking, verdict
from ascend_dsv4.accuracy.report.walk import MOST_RANKED, drawn_steps, model_panels
from ascend_dsv4.accuracy.report.wording import write_file
from ascend_dsv4.accuracy.results import Report

_TEMPLATE: Final = Path(__file__).with_name("template")


def write_page(report: Report, path: str | Path) -> None:
    """Write the page. Raises ConfigError if it cannot be written."""
    write_file("page", path, render_page(report))


def render_page(report: Report) -> str:
    """The page as text. All results are counted; details are kept of those that matter (`data.kept_results`)."""
    held = matrix(report)
    cells = list(held.cells.values())
    steps, ranked = points(report.nodes), ranking(report.nodes)
    body = [head(report), against(report), omitted(report), *model_panels(report, steps, ranked)]
    body += [ends_panel(report.ends), bars_panel(report.bars), sweeps_panel(report.sweeps)]
    if cells:
        body += [matrix_panel(held, {id(cell): i for i, cell in enumerate(cells)}), worst_panel(report.results)]
    body.append(mutants_panel(report.mutants))
    if not any(body[1:]):
        body.append(
            panel("nothing", "Nothing was compared", tag("p", "So nothing is shown, and nothing is proven."), kind="notice")
        )
    style, script = (_TEMPLATE.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    parts = {
        "title": escaped(f"{verdict(report).word}: {report.title}"),
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "style": style,
        "script": script,
        "body": joined(body),
        "data": page_data(bin_names(), cells, ranked[:MOST_RANKED], drawn_steps(steps)),
    }
    template = _TEMPLATE.joinpath("page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
