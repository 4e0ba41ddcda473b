# SPDX-License-Identifier: Apache-2.0
"""The status page: its three files fit together, the answer of /status and a Content-Security-Policy of 'self'."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "ascend_dsv4" / "server" / "page"
HTML, JS, CSS = ((PAGE / name).read_text(encoding="utf-8") for name in ("index.html", "status.js", "status.css"))

PERCENTILES = dict.fromkeys(("p50", "p90", "p99"), "number or null")
RATES = dict.fromkeys(("prompt_tokens_per_second", "generation_tokens_per_second"), "number")
OPTIONS = ("backend", "ops", "implementation", "dtype", "weights", "kv_cache", "cache_rounding")
SHAPE: dict[str, Any] = {
    "model": {"name": "text", "num_hidden_layers": "number", "max_model_len": "number", "vocab_size": "number"},
    "engine": {**dict.fromkeys(OPTIONS, "text"), "max_num_seqs": "number", "max_num_batched_tokens": "number"},
    "version": "text",
    "state": "text",
    "uptime_seconds": "number",
    "requests": {
        **dict.fromkeys(("running", "waiting", "max_running", "preemptions"), "number"),
        "max_waiting": "number or null",
        "finished": dict.fromkeys(("stop", "length", "abort", "error", "timeout"), "number"),
    },
    "tokens": {"prompt": "number", "generation": "number"},
    "speculation": {
        "method": "text",
        **dict.fromkeys(("num_speculative_tokens", "drafts", "draft_tokens", "accepted_tokens"), "number"),
    },
    "throughput": {**RATES, "window_seconds": "number"},
    "caches": [{"group": "text", "used_blocks": "number", "num_blocks": "number"}],
    "latency_ms": {"ttft": PERCENTILES, "itl": PERCENTILES},
    "history": [{**RATES, "running": "number", "waiting": "number"}],
}
"""The answer of /status. A list stands for any number of such items."""
VARIABLES = {"status": SHAPE, "cache": SHAPE["caches"][0], "sample": SHAPE["history"][0]}
"""Names by which status.js calls the answer and the items of its lists; it uses these names for nothing else."""
REQUEST_FIELDS = {"max_tokens"}
"""Words with underscores in status.js that are no fields of /status: those of the example request."""
LINKS = {"page/status.css", "page/status.js", "docs", "metrics", "health", "status"}
SVG_NAMESPACE = "http://www.w3.org/2000/svg"
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Element:
    """A tag with its attributes, the text inside it, and the tags around it."""

    def __init__(self, tag: str, attributes: dict[str, str], parents: list[Element]) -> None:
        self.tag, self.attributes, self.parents, self.text = tag, attributes, parents, ""

    def get(self, name: str) -> str:
        return self.attributes.get(name, "")

    def __repr__(self) -> str:
        return f"<{self.tag} {self.attributes}>"


class Document(HTMLParser):
    """The elements of index.html in order; refuses tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(HTML)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs}, list(self._open))
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data


ELEMENTS = Document().elements
IDS = [element.get("id") for element in ELEMENTS if "id" in element.attributes]
CLASSES = {name for element in ELEMENTS for name in element.get("class").split()}
SHOWING = [element for element in ELEMENTS if "data-field" in element.attributes]
FIELDS = [(element.get("data-field"), element.get("data-format") or "text") for element in SHOWING]


def leaves(shape: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Paths of all values, with their kinds; an item of a list has the path of its list."""
    if isinstance(shape, str):
        yield path, shape
        return
    for key, part in (shape if isinstance(shape, dict) else shape[0]).items():
        yield from leaves(part, f"{path}.{key}" if path else key)


def keys(shape: Any) -> Iterator[str]:
    """Names of all fields, at any depth."""
    if not isinstance(shape, str):
        item = shape if isinstance(shape, dict) else shape[0]
        yield from item
        for part in item.values():
            yield from keys(part)


def script_paths() -> list[tuple[str, list[str]]]:
    """What status.js reads of the answer: `status.requests.running` as ("status", ["requests", "running"])."""
    found = re.findall(r"(?<![\w.])(" + "|".join(VARIABLES) + r")((?:\??\.\w+)+)", JS)
    return [(root, re.findall(r"\w+", path)) for root, path in found]


def formats() -> list[str]:
    table = re.search(r"const FORMATS = \{(.+?)\};", JS)
    assert table
    return [entry.split(":")[0].strip().strip('"') for entry in table[1].split(",")]


def test_the_folder_has_three_files() -> None:
    assert {path.name for path in PAGE.iterdir()} == {"index.html", "status.js", "status.css"}
    assert all("SPDX-License-Identifier: Apache-2.0" in text for text in (HTML, JS, CSS))
    assert max(text.count("\n") for text in (HTML, JS, CSS)) <= 600


def test_ids_are_unique_and_all_that_is_looked_up_exists() -> None:
    assert len(IDS) == len(set(IDS))
    looked_up = re.findall(r'byId\("([^"]+)"\)', JS)
    assert set(looked_up) <= set(IDS)
    assert JS.count("byId(") == len(looked_up) + 1, "an id that is no literal cannot be checked"
    assert JS.count("getElementById(") == 1
    selectors = re.findall(r'querySelector(?:All)?\("([^"]+)"\)', JS)
    assert len(selectors) == JS.count("querySelector")
    assert {selector[1:] for selector in selectors if selector[0] == "."} <= CLASSES
    assert {selector for selector in selectors if selector[0] != "."} == {"[data-field]"}


def test_fields_in_the_page_exist_and_have_a_fitting_format() -> None:
    kinds = dict(leaves(SHAPE))
    assert len(FIELDS) > 30
    for field, form in FIELDS:
        assert field in kinds, f"{field} is not in /status"
        assert form in formats()
        assert (form == "text") == (kinds[field] == "text"), f"{field} is a {kinds[field]}, shown as {form}"
    assert set(formats()) == {form for _, form in FIELDS}


def test_fields_in_the_script_exist() -> None:
    assert len(script_paths()) > 10
    for root, path in script_paths():
        shape = VARIABLES[root]
        for key in path:
            if not isinstance(shape, dict):
                break  # a method of a list or of a value
            assert key in shape, f"status.js: {root}.{'.'.join(path)}"
            shape = shape[key]
    assert set(re.findall(r"\b[a-z]+(?:_[a-z0-9]+)+\b", JS)) <= set(keys(SHAPE)) | REQUEST_FIELDS


def test_every_field_is_shown() -> None:
    prefixes = {"status": "", "cache": "caches.", "sample": "history."}
    shown = {field for field, _ in FIELDS} | {prefixes[root] + ".".join(path) for root, path in script_paths()}
    assert {path for path, _ in leaves(SHAPE)} <= shown


def test_nothing_comes_from_elsewhere() -> None:
    for element in ELEMENTS:
        assert not element.attributes.keys() & {"srcset", "poster", "action", "formaction", "data", "ping"}, element
        for address in (element.get("src"), element.get("href")):
            assert address in LINKS | {""} or address.startswith("data:image/svg+xml,"), element
    for text in (HTML, JS, CSS):
        assert not re.search(r"//\w", text.replace(SVG_NAMESPACE, ""))
    assert not re.search(r"url\(|@import|@font-face|src:", CSS)
    assert not re.search(r"\bimport\b|importScripts|XMLHttpRequest|WebSocket|EventSource|sendBeacon", JS)
    assert re.findall(r"fetch\(`?([^`,]+)`, ", JS) == ["${BASE}status"]
    assert JS.count("fetch(`") == 1


def test_nothing_is_inline() -> None:
    for element in ELEMENTS:
        assert element.tag not in {"style", "iframe", "object", "embed", "base", "form"}
        assert not [name for name in element.attributes if name == "style" or name.startswith("on")], element
        assert not element.get("href").lower().startswith("javascript:")
        if element.tag == "script":
            assert element.get("src") and not element.text.strip()
    assert 'setAttribute("style"' not in JS


def test_data_never_becomes_markup_or_code() -> None:
    assert not re.search(r"(?:inner|outer|set)HTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment", JS)
    assert not re.search(r"\beval\b|\bFunction\(", JS)
    assert not re.search(r"set(?:Timeout|Interval)\(\s*[\"'`]", JS)
    assert "setAttribute(`on" not in JS and 'setAttribute("on' not in JS


def test_labels() -> None:
    assert next(element for element in ELEMENTS if element.tag == "html").get("lang") == "en"
    viewport = next(element for element in ELEMENTS if element.get("name") == "viewport").get("content")
    assert "width=device-width" in viewport
    assert not re.search(r"user-scalable|maximum-scale", viewport)
    for element in ELEMENTS:
        for name in ("aria-labelledby", "aria-describedby", "aria-controls", "for"):
            assert set(element.get(name).split()) <= set(IDS), element
        made_by_script = any(parent.tag == "template" for parent in element.parents)
        if element.get("role") in {"slider", "meter", "region"} and not made_by_script:
            assert element.get("aria-label"), element
        if element.tag in {"section", "nav"}:
            assert element.get("aria-labelledby") or element.get("aria-label"), element
        if element.tag == "button":
            assert element.get("type") == "button" and element.text.strip()
        assert element.get("tabindex") in {"", "0"}
    assert [element.tag for element in ELEMENTS].count("h1") == 1


def test_only_rare_changes_are_read_out() -> None:
    """Figures change every second; a live region around one would never be silent."""
    live = [element for element in ELEMENTS if element.get("aria-live") or element.get("role") in {"status", "alert", "log"}]
    assert {element.get("id") for element in live} == {"state", "copy-result"}
    for element in SHOWING:
        assert not {id(part) for part in [element, *element.parents]} & {id(part) for part in live}, element


def custom_properties(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{6});", block))


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


SCHEMES = re.search(r":root \{(.+?)\n\}.*?prefers-color-scheme: dark\) \{\s*:root \{(.+?)\}", CSS, re.DOTALL)
assert SCHEMES
LIGHT, DARK = custom_properties(SCHEMES[1]), custom_properties(SCHEMES[2])


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast(colours: dict[str, str]) -> None:
    """Text 4.5 : 1, curves and bars 3 : 1 (WCAG 2.2, 1.4.3 and 1.4.11)."""
    assert colours.keys() == LIGHT.keys()
    for name in ("text", "muted", "link", "good", "warn", "bad", "stale"):
        for ground in ("page", "panel"):
            assert contrast(colours[name], colours[ground]) >= 4.5, f"{name} on {ground}"
    for name in ("generation", "prompt", "running", "waiting", "cache", "stale"):
        for ground in ("panel", "track"):
            assert contrast(colours[name], colours[ground]) >= 3, f"{name} on {ground}"


def test_colours_are_defined_and_used() -> None:
    defined = set(re.findall(r"(?<![\w-])--([\w-]+):", CSS))
    assert set(re.findall(r"var\(--([\w-]+)\)", CSS)) == defined
    outside = CSS.replace(SCHEMES[1], "").replace(SCHEMES[2], "") if SCHEMES else ""
    assert not re.search(r"#[0-9a-f]{3,8}\b|rgba?\(|gradient", outside), "a colour outside the two tables has no dark twin"
