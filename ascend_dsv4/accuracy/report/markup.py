# SPDX-License-Identifier: Apache-2.0
"""HTML and SVG elements as text. Whatever is not markup already is escaped, so foreign names cannot become elements."""

from __future__ import annotations

import html
from collections.abc import Iterable

from ascend_dsv4.accuracy.report.wording import printable

_VOID = frozenset(("br", "input", "path", "line", "rect", "circle"))


class Markup(str):
    """Text that is markup and stays as it is."""

    __slots__ = ()


def escaped(text: str) -> Markup:
    """Text as the content of an element or attribute; markup as it is."""
    return text if isinstance(text, Markup) else Markup(html.escape(printable(text)))


def joined(parts: Iterable[str]) -> Markup:
    """Parts one after the other, each escaped unless it is markup."""
    return Markup("".join(map(escaped, parts)))


def tag(name: str, /, *children: str, **attributes: str | float | bool | None) -> Markup:
    """An element. In names of attributes a trailing `_` is dropped and other ones are dashes; None and False leave one out,
    True has no value.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        shown = f"{value:.6g}" if isinstance(value, float) else str(value)
        parts.append(key if value is True else f'{key}="{escaped(shown)}"')
    opening = " ".join(parts)
    return Markup(f"<{opening}/>" if name in _VOID else f"<{opening}>{joined(children)}</{name}>")
