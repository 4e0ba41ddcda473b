# SPDX-License-Identifier: Apache-2.0
"""Numbers, indices and foreign text as every report shows them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from ascend_dsv4.accuracy.results import OutputResult
from ascend_dsv4.errors import ConfigError

_PICTURES = {code: chr(0x2400 + code) for code in range(0x20)} | {0x7F: "\u2421"}
_PICTURES |= dict.fromkeys((*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\ufffd")
_PICTURES |= dict.fromkeys((*range(0xD800, 0xE000), 0xFFFE, 0xFFFF), "\ufffd")


def printable(text: str) -> str:
    """Text on one line, without what steers a terminal, turns the writing direction, or is no character of XML.

    Control characters become their pictures (U+2400 …), the rest U+FFFD.
    """
    return text.translate(_PICTURES)


def ratio_text(ratio: float) -> str:
    """A metric over its limit in few characters; what is beyond 1 never reads as 1."""
    if math.isnan(ratio):
        return "NaN"
    if math.isinf(ratio):
        return "∞" if ratio > 0 else "-∞"
    if 0.995 < ratio < 1.005 and ratio != 1:
        return f"{ratio:.6f}".rstrip("0") if abs(ratio - 1) >= 1e-6 else f"1{'+' if ratio > 1 else '-'}{abs(ratio - 1):.0e}"
    return short(ratio)


def short(number: float) -> str:
    """A figure with about three digits."""
    if not math.isfinite(number):
        return "NaN" if math.isnan(number) else "∞" if number > 0 else "-∞"
    if number == 0:
        return "0"
    if not 1e-3 <= abs(number) < 1e5:
        mantissa, exponent = f"{number:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"


def value_text(value: float) -> str:
    """A value of a tensor: nine digits tell any two float32 apart."""
    return short(value) if not math.isfinite(value) else f"{value:.9g}"


def index_text(index: Sequence[int]) -> str:
    """An index as it is written in Python."""
    return f"[{', '.join(map(str, index))}]" if index else "[] (a scalar)"


def worst_text(result: OutputResult) -> str:
    """The worst element in words; empty if there is none."""
    worst = result.worst
    if worst is None:
        return ""
    return f"{index_text(worst.index)}: {value_text(worst.actual)} instead of {value_text(worst.golden)}"


def seconds_text(seconds: float) -> str:
    """A duration: 0.84 s, 12.3 s, 4 min 09 s."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s"


def count_text(number: int, singular: str, plural: str = "") -> str:
    """1 case, 2,000 cases."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def write_file(what: str, path: str | Path, text: str) -> None:
    """Write a report as UTF-8. Raises ConfigError if the file cannot be written."""
    try:
        Path(path).write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        because = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        message = f"{what} {printable(str(path))}: cannot be written ({because}), expected a file in an existing folder that"
        raise ConfigError(
            f"{message} this user may write to, because the comparison is kept there. Name another file."
        ) from error


def check_writable(path: str | Path) -> None:
    """Raises ConfigError for a file that could not be written: told before minutes of work, not after."""
    folder = Path(path).parent
    if Path(path).is_dir() or not folder.is_dir() or not os.access(Path(path) if Path(path).exists() else folder, os.W_OK):
        raise ConfigError(f"{path}: cannot be written; expected a file in a folder that exists. Name another one.")
