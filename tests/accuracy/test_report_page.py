# SPDX-License-Identifier: Apache-2.0
"""The page of a comparison: complete, small, alone, and no foreign text becomes markup."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import ascend_dsv4.accuracy.report
from ascend_dsv4.accuracy.report.page import render_page
from ascend_dsv4.accuracy.report.summary import MARGINS, selection
from ascend_dsv4.accuracy.results import BINS, PARTS, Report
from ascend_dsv4.accuracy.selftest import MUTANT_ABOVE, ORIGINAL_BELOW
from tests.accuracy.reports import EMPTY, OPS, first_objections, hostile_report, model_report, mutants_report, ops_report


class Page(HTMLParser):
    """Elements of a page in order; refuses tags that are not closed in order."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self.source = render_page(report)
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.text: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}, list(self._open)))
        if tag not in {"meta", "link"}:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}, list(self._open)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.text.append((self._open[-1] if self._open else "", data))

    def all(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        return [attrs for name, attrs, _ in self.elements if name == tag and wanted.items() <= attrs.items()]

    def shown(self) -> str:
        return " ".join(data for tag, data in self.text if tag not in {"script", "style"})

    def scripts(self) -> list[str]:
        return [data for tag, data in self.text if tag == "script"]

    def data(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.scripts()[0], parse_constant=pytest.fail)
        return content


@functools.cache
def whole_matrix() -> Report:
    return ops_report()


@pytest.fixture(scope="module")
def ops_page() -> Page:
    return Page(whole_matrix())


REPORTS: dict[str, Callable[[], Report]] = {
    "ops": lambda: ops_report(cases=4),
    "model": lambda: model_report(4, 20),
    "mutants": mutants_report,
    "empty": lambda: EMPTY,
    "hostile": hostile_report,
}


class TestPage:
    """One file that shows everything, fetches nothing and lets no text become markup."""

    def test_the_whole_matrix_is_small(self, ops_page: Page) -> None:
        assert len(ops_page.source) < 2_000_000
        assert len(ops_page.all("button", type="button")) == len(OPS) * 6

    @pytest.mark.parametrize("name", REPORTS)
    def test_needs_nothing_else(self, name: str) -> None:
        page = Page(REPORTS[name]())
        assert "{{" not in page.shown()
        for _, attrs, _ in page.elements:
            assert not attrs.keys() & {"src", "srcset", "action", "style", "onclick", "onerror"}
            assert attrs.get("href", "data:").startswith("data:")
        assert not re.search(r"url\(|@import|fetch\(|XMLHttp|import\(", page.source.split("<body>")[0] + page.scripts()[1])
        ids = [attrs["id"] for _, attrs, _ in page.elements if "id" in attrs]
        assert len(set(ids)) == len(ids)

    @pytest.mark.parametrize("name", REPORTS)
    def test_only_its_own_script_and_style_may_run(self, name: str) -> None:
        page = Page(REPORTS[name]())
        (policy,) = (attrs["content"] for attrs in page.all("meta") if attrs.get("http-equiv") == "Content-Security-Policy")
        styles = [data for tag, data in page.text if tag == "style"]
        assert len(styles) == 1 and len(page.scripts()) == 2
        for kind, text in (("style", styles[0]), ("script", page.scripts()[1])):
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"{kind}-src 'sha256-{digest}'" in policy
        assert policy.startswith("default-src 'none'")

    def test_foreign_text_stays_text(self) -> None:
        page = Page(hostile_report())
        assert not page.all("img")
        assert not set(page.scripts()[0]) & set("<>&"), "also </script followed by a space, and <!--"
        assert "</script><img src=x onerror=alert(1)>&amp;\"'[red]␛[31m␀��" in page.shown()
        assert page.data()["cells"][0]["title"].startswith("</script><img")
        assert not set(page.source) & {"\x1b", "\x00", "\x9b", "\ud800", "\u202e"}

    def test_complete_without_script(self, ops_page: Page) -> None:
        shown = ops_page.shown()
        report = whole_matrix()
        assert "could not run" in shown and "15 failed" in shown and "20 refused" in shown
        assert report.command in shown and "2.13.0" in shown and "3 min 07 s" in shown
        rows = [attrs for attrs in ops_page.all("tr") if "data-op" in attrs]
        assert [row["data-op"] for row in rows] == list(OPS)
        grave = {row["data-op"] for row in rows if row["data-grave"] == "yes"}
        assert grave == {"gelu", "hc_pre", "index_topk", "rope", "store_kv", "swiglu"}
        for result in selection(first_objections(report), 2, 24):
            assert result.worst is not None
            assert result.command in shown and f"{result.worst.actual:.9g}" in shown and f"{result.worst.golden:.9g}" in shown
        assert "CapacityError" in shown

    def test_cells_are_coloured_by_ratio_but_only_with_a_verdict(self, ops_page: Page) -> None:
        names = {}
        for i, (tag, attrs, _) in enumerate(ops_page.elements):
            if tag == "button" and "data-cell" in attrs:
                before = next(other for name, other, _ in reversed(ops_page.elements[:i]) if name == "td")
                names[attrs["aria-label"].split(":")[0]] = (before["class"].split()[1], attrs["aria-label"])
        assert names["gelu, native, bfloat16"][0] == "refused"
        assert names["store_kv, native, bfloat16"][0] == "error"
        assert names["index_topk, native, float32"][0] == names["rope, native, float16"][0] == "l8"
        assert names["swiglu, native, bfloat16"][0] == "l6"
        assert names["concat, native, float32"][0] == "l0"
        assert "beyond a limit, worst ratio ∞, 20 cases" in names["index_topk, native, float32"][1]

    def test_details_of_what_matters(self, ops_page: Page) -> None:
        data = ops_page.data()
        numbers = {(cell["title"], cell["about"]): i for i, cell in enumerate(data["cells"])}
        cell = data["cells"][numbers["hc_pre", "bfloat16, native"]]
        assert [kept["status"] for kept in cell["kept"]] == ["fail"] * 5 + ["pass"] * 3
        assert len(cell["rows"]) == 20 and [row[-1] for row in cell["rows"][:6]] == [0, 1, 2, 3, 4, 5]
        key = ("hc_pre", "native", "bfloat16")
        held = [r.histogram for r in whole_matrix().results if (r.op, r.implementation, r.dtype) == key]
        assert cell["histogram"] == [sum(column) for column in zip(*held, strict=True)]
        assert len(cell["position"]) == PARTS
        endless = data["cells"][numbers["index_topk", "float32, native"]]
        assert None in endless["position"] and endless["kept"][0]["ratio"] == "∞"
        for button in ops_page.all("button", type="button"):
            title = data["cells"][int(button["data-cell"])]
            assert button["aria-label"].startswith(f"{title['title']}, ")

    def test_model(self) -> None:
        page = Page(model_report())
        shown = page.shown()
        assert "First introduced divergence: layer3, hc_pre.1" in shown and "first introduced: layer3 hc_pre.1" in shown
        curves = page.all("svg", **{"class": "divergence"})
        assert len(curves) == 3 and len(page.all("rect", **{"class": "shade"})) == 3
        assert len(page.all("path", **{"class": "introduced"})) == 6
        assert len(page.all("path", **{"class": "boundary"})) == 30
        assert {step: len(points) for step, points in page.data()["steps"].items()} == {"0": 324, "1": 324, "2": 324}
        assert "one output" in shown and "2 of 3" in shown and "12 of 32" in shown and "98.30 %" in shown
        assert "0.31 exceeds 0.00252" in shown and "layer3/hc_pre.1" in shown and "0.7500002" in shown
        clean = Page(model_report(fault=False))
        assert "First introduced divergence: none" in clean.shown() and not clean.all("rect", **{"class": "shade"})

    def test_many_steps_are_not_all_drawn(self) -> None:
        page = Page(model_report(2, 4, 9))
        assert len(page.all("svg", **{"class": "divergence"})) == 4
        assert "4 of 9 steps are drawn" in page.shown()

    def test_mutants(self) -> None:
        page = Page(mutants_report())
        assert len(page.all("svg", **{"class": "margin"})) == 45
        assert "✗" in page.shown() and page.shown().index("logits_mutant_17") < page.shown().index("adjust_logits_mutant_0")

    def test_margins_are_those_of_the_self_test(self) -> None:
        assert MARGINS == (ORIGINAL_BELOW, MUTANT_ABOVE)

    def test_nothing_is_no_pass(self) -> None:
        shown = Page(EMPTY).shown()
        assert "could not run" in shown and "Nothing was compared" in shown
        assert not Page(EMPTY).all("p", **{"data-state": "pass"})

    def test_close_calls_where_nothing_failed(self) -> None:
        page = Page(ops_report(6, 4, faults=False))
        assert "Closest to their limits" in page.shown() and "What speaks against it" not in page.shown()
        assert page.all("p", **{"data-state": "pass"})


TEMPLATE = Path(ascend_dsv4.accuracy.report.__file__).parent / "template"
CSS = (TEMPLATE / "page.css").read_text(encoding="utf-8")
SCHEMES = re.search(r":root \{(.+?)\n\}.*?prefers-color-scheme: dark\) \{\s*:root \{(.+?)\}", CSS, re.DOTALL)
assert SCHEMES
LIGHT, DARK = (dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{6});", block)) for block in SCHEMES.groups())


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


class TestTemplate:
    """The parts of the page fit together."""

    @pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
    def test_contrast(self, colours: dict[str, str]) -> None:
        """Text 4.5 : 1, curves and bars 3 : 1 (WCAG 2.2, 1.4.3 and 1.4.11)."""
        assert colours.keys() == LIGHT.keys()
        for name in ("text", "muted", "link", "good", "warn", "bad", "broken"):
            for ground in ("page", "panel"):
                assert contrast(colours[name], colours[ground]) >= 4.5, f"{name} on {ground}"
        for name in ("within", "own", "bad"):
            for ground in ("panel", "shade"):
                assert contrast(colours[name], colours[ground]) >= 3, f"{name} on {ground}"
        for i in range(1, 8):
            assert contrast(colours["text"], colours[f"l{i}"]) >= 4.5, f"text on l{i}"
        assert contrast(colours["on-deep"], colours["l8"]) >= 4.5
        assert contrast(colours["muted"], colours["shade"]) >= 4.5

    def test_colours_are_defined_and_used(self) -> None:
        defined = set(re.findall(r"(?<![\w-])--([\w-]+):", CSS))
        assert set(re.findall(r"var\(--([\w-]+)\)", CSS)) == defined

    def test_the_script_finds_what_it_asks_for(self, ops_page: Page) -> None:
        script = (TEMPLATE / "page.js").read_text(encoding="utf-8")
        ids = {attrs["id"] for _, attrs, _ in ops_page.elements if "id" in attrs}
        assert set(re.findall(r'getElementById\("([\w-]+)"\)', script)) <= ids
        assert "innerHTML" not in script and "</script" not in script.lower()
        constants = {name: int(value) for name, value in re.findall(r"const (\w+) = (\d+);", script)}
        assert (constants["WITHIN_BINS"], constants["WIDTH"], constants["HEIGHT"]) == (BINS.index("<= 1") + 1, 96, 24)
        (box,) = {attrs["viewbox"] for attrs in Page(model_report()).all("svg", **{"class": "divergence"})}
        assert box == "0 0 1200 280" and "CURVE = { width: 1200, left: 46, right: 12, top: 26, bottom: 250 }" in script

    def test_the_template_is_installed(self) -> None:
        setup = (Path(__file__).parents[2] / "setup.py").read_text(encoding="utf-8")
        assert "accuracy/report/template/*" in setup
        assert {path.name for path in TEMPLATE.iterdir()} == {"page.html", "page.css", "page.js"}
