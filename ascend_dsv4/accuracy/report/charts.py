# SPDX-License-Identifier: Apache-2.0
"""Charts of the page as SVG. Ratios are drawn on a log scale with the limit at 1; what is not finite touches the top."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ascend_dsv4.accuracy.report.markup import Markup, joined, tag
from ascend_dsv4.accuracy.report.summary import Point
from ascend_dsv4.accuracy.report.wording import ratio_text
from ascend_dsv4.accuracy.results import BINS

WITHIN_BINS = BINS.index("<= 1") + 1
_EDGES = (0.0, 1e-3, 1e-2, 0.1, 0.5, 1.0, 2.0, 10.0)
_SMALL = (96, 24)
"""Width and height of the charts in cells."""
_LEAST_POSITION, _MOST_POSITION = -3.0, 1.3
"""Decades that a chart of positions shows."""
_WIDTH, _HEIGHT = 1200, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 26, 30
_FLOOR = -4
"""Lowest decade of the divergence curve; smaller ratios lie on it."""
_HIGHEST = 12
"""Highest one; larger ratios lie on it."""


def level(ratio: float) -> int:
    """Position of a ratio in BINS; NaN is in the last."""
    return next((i for i, edge in enumerate(_EDGES) if ratio <= edge), len(_EDGES))


def histogram_chart(counts: Sequence[int]) -> Markup:
    """A bar for each bin, its height by the log of its count; the line is the limit."""
    if not any(counts):
        return Markup("")
    width, height = _SMALL
    step, most = width / len(BINS), math.log1p(max(counts))
    bars: list[list[str]] = [[], []]
    for i, count in enumerate(counts):
        if count:
            tall = 2 + (height - 2) * math.log1p(count) / most
            bars[i >= WITHIN_BINS].append(_bar(i * step + 0.5, step - 1, tall, height))
    beyond = sum(counts[WITHIN_BINS:])
    label = f"{sum(counts):,} elements, {beyond:,} beyond the limit"
    return _small_chart("histogram", label, bars, tag("path", class_="limit", d=f"M{step * WITHIN_BINS:.1f} 0V{height}"))


def position_chart(parts: Sequence[float]) -> Markup:
    """A bar for each part of the first axis, its height by the log of the largest ratio in it; the line is the limit."""
    if not parts:
        return Markup("")
    width, height = _SMALL
    step = width / len(parts)
    span = _MOST_POSITION - _LEAST_POSITION
    bars: list[list[str]] = [[], []]
    for i, ratio in enumerate(parts):
        beyond = not ratio <= 1
        share = 1.0 if not math.isfinite(ratio) else (math.log10(max(ratio, 1e-9)) - _LEAST_POSITION) / span
        if ratio != 0:
            bars[beyond].append(_bar(i * step, step - 0.5, 1 + (height - 1) * min(max(share, 0.0), 1.0), height))
    at = height - 1 - (height - 1) * -_LEAST_POSITION / span
    label = "largest ratio along the first axis, from its begin to its end"
    return _small_chart("position", label, bars, tag("path", class_="limit", d=f"M0 {at:.1f}H{width}"))


def _bar(left: float, wide: float, tall: float, height: float) -> str:
    return f"M{left:.1f} {height}v{-tall:.1f}h{wide:.1f}V{height}z"


def _small_chart(kind: str, label: str, bars: Sequence[Sequence[str]], limit: Markup) -> Markup:
    drawn = [
        tag("path", class_=name, d="".join(paths)) for name, paths in zip(("within", "beyond"), bars, strict=True) if paths
    ]
    width, height = _SMALL
    return tag("svg", *drawn, limit, class_=f"small {kind}", viewBox=f"0 0 {width} {height}", role="img", aria_label=label,
               preserveAspectRatio="none")  # fmt: skip


def margin_chart(original: float, mutant: float, margins: tuple[float, float]) -> Markup:
    """Original (ring) and mutant (disc) on a log scale from 1/1000 to 1000; the lines are the margins."""
    width, height = 160, 16

    def at(ratio: float) -> float:
        share = 1.0 if not math.isfinite(ratio) else (math.log10(max(ratio, 1e-3)) + 3) / 6
        return 6 + (width - 12) * min(max(share, 0.0), 1.0)

    label = f"original {ratio_text(original)}, mutant {ratio_text(mutant)}"
    return tag(
        "svg",
        *(tag("path", class_="limit", d=f"M{at(margin):.1f} 0V{height}") for margin in margins),
        tag("path", class_="link", d=f"M{at(original):.1f} 8H{at(mutant):.1f}"),
        tag("circle", class_="original" if original < margins[0] else "original beyond", cx=round(at(original), 1), cy=8, r=4),
        tag("circle", class_="mutant" if mutant > margins[1] else "mutant beyond", cx=round(at(mutant), 1), cy=8, r=4),
        class_="margin", viewBox=f"0 0 {width} {height}", width=width, height=height, role="img", aria_label=label,
    )  # fmt: skip


def divergence_chart(points: Sequence[Point], first: Point | None) -> Markup:
    """Ratio of the total error and of the error that each node introduces, over the nodes of one step in order of execution.

    first: where the first error was introduced; what lies behind it is shaded. None if it was in no step up to this one.
    """
    ratios = [ratio for point in points for ratio in (point.introduced, point.total)]
    most = max((ratio for ratio in ratios if math.isfinite(ratio) and ratio > 0), default=1.0)
    is_endless = not all(map(math.isfinite, ratios))
    top = min(max(1, math.ceil(math.log10(most) + 0.2)) + is_endless, _HIGHEST)
    pace = (_WIDTH - _LEFT - _RIGHT) / max(len(points), 1)
    bottom = _HEIGHT - _BOTTOM

    def x(i: int) -> float:
        return _LEFT + pace * (i + 0.5)

    def y(ratio: float) -> float:
        power = top if not math.isfinite(ratio) else math.log10(ratio) if ratio > 0 else _FLOOR
        return bottom - (bottom - _TOP) * (min(max(power, _FLOOR), top) - _FLOOR) / (top - _FLOOR)

    parts = [_shade(points, first, x, bottom), _rules(top, is_endless, y), _boundaries(points, pace, bottom)]
    line = "L".join(f"{x(i):.1f} {y(point.total):.1f}" for i, point in enumerate(points))
    own = "".join(f"M{x(i):.1f} {y(point.introduced):.1f}h0" for i, point in enumerate(points) if point.introduced != 0)
    parts += [tag("path", class_="total", d=f"M{line}"), tag("path", class_="own", d=own)]
    for i, point in enumerate(points):
        if point.state == "introduced":
            across, down = x(i), y(point.introduced)
            parts.append(tag("path", class_="introduced", d=f"M{across:.1f} {down - 6:.1f}l6 6-6 6-6-6z"))
    parts.append(_first_mark(points, first, x, bottom))
    step = points[0].step if points else 0
    label = f"Step {step}: total error and introduced error over their limits, {len(points)} nodes"
    return tag("svg", *parts, class_="divergence", viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=label)


def _rules(top: int, is_endless: bool, y: Callable[[float], float]) -> Markup:
    """Decades, named as far as there is room; the one at 1 is the limit."""
    parts = []
    pace = 1 if top - _FLOOR <= 9 else 2
    for power in range(_FLOOR, top + 1):
        at = y(10.0**power)
        parts.append(tag("path", class_="rule" if power else "limit-rule", d=f"M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}"))
        label = "limit" if power == 0 else f"{10.0**power:g}" if abs(power) < 4 else f"1e{power}"
        label = f"≤{label}" if power == _FLOOR else "∞" if power == top and is_endless else label
        if power % pace == 0 or label == "∞":
            parts.append(tag("text", label, x=_LEFT - 6, y=round(at + 4, 1), text_anchor="end"))
    return joined(parts)


def _boundaries(points: Sequence[Point], pace: float, bottom: float) -> Markup:
    """Where a graph begins, named below as far as there is room."""
    starts = [i for i, point in enumerate(points) if i == 0 or point.graph != points[i - 1].graph]
    parts = []
    free = 0.0
    for start, end in zip(starts, [*starts[1:], len(points)], strict=True):
        left, right = _LEFT + pace * start, _LEFT + pace * end
        parts.append(tag("path", class_="boundary", d=f"M{left:.1f} {_TOP}V{bottom + 5}"))
        name = points[start].graph
        short = name.removeprefix("layer")
        named = name if right - left > 7.0 * len(name) else short
        middle, half = (left + right) / 2, 3.6 * len(named)
        if middle - half >= free and middle + half <= _WIDTH:
            parts.append(tag("text", named, x=round(middle, 1), y=bottom + 18, text_anchor="middle"))
            free = middle + half + 4
    return joined(parts)


def _shade(points: Sequence[Point], first: Point | None, x: Callable[[int], float], bottom: float) -> Markup:
    if first is None or not points:
        return Markup("")
    later = [
        i for i, point in enumerate(points)
        if (point.step, point.number) >= (first.step, first.number) and point.state != "same"
    ]  # fmt: skip
    if not later:
        return Markup("")
    left = x(later[0])
    return tag("rect", class_="shade", x=round(left, 1), y=_TOP, width=round(_WIDTH - _RIGHT - left, 1), height=bottom - _TOP)


def _first_mark(points: Sequence[Point], first: Point | None, x: Callable[[int], float], bottom: float) -> Markup:
    """A line at the first introduced divergence with its name above."""
    at = next((i for i, point in enumerate(points) if first and (point.step, point.number) == (first.step, first.number)), None)
    if at is None or first is None:
        return Markup("")
    across = x(at)
    anchor = "start" if across < _WIDTH / 2 else "end"
    name = f"first introduced: {first.graph} {first.node}, {ratio_text(first.introduced)} × limit"
    line = tag("path", class_="first", d=f"M{across:.1f} {_TOP - 8}V{bottom}")
    return joined([line, tag("text", name, class_="first-name", x=round(across, 1), y=13, text_anchor=anchor)])
