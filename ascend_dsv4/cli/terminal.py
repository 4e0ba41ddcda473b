# SPDX-License-Identifier: Apache-2.0
"""What the commands print: answers on stdout as they come, everything else on stderr. No colours outside a terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

_DIM, _CYAN, _PLAIN = "\x1b[2m", "\x1b[36m", "\x1b[0m"

# A model may write any character; those that steer a terminal are shown as their pictures (U+2400 …) or U+FFFD.
_PICTURES = {code: 0x2400 + code for code in range(0x20)} | {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
_PICTURES = {code: picture for code, picture in _PICTURES.items() if chr(code) not in "\n\t"}


class Answer:
    """Pieces of text written to stdout at once; reasoning is dimmed, or set in <think> tags outside a terminal."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._is_terminal = self._out.isatty()
        self._has_colour = self._is_terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self._in_reasoning = False
        self._at_line_start = True

    def content(self, text: str) -> None:
        """A piece of the answer."""
        self._leave_reasoning()
        self._write(text)

    def reasoning(self, text: str) -> None:
        """A piece of what the model thinks before it answers."""
        if not self._in_reasoning:
            self._in_reasoning = True
            if not self._has_colour:
                self._write("<think>\n")
        self._write(text, _DIM)

    def tool_call(self, name: str, arguments: str) -> None:
        """A call that the model makes, on a line of its own."""
        self.end()
        self._write(f"[tool call] {name} {arguments}\n", _CYAN)

    def end(self) -> None:
        """Finish the last line."""
        self._leave_reasoning()
        if not self._at_line_start:
            self._write("\n")

    def _leave_reasoning(self) -> None:
        if self._in_reasoning:
            self._in_reasoning = False
            ending = "" if self._has_colour else "</think>\n"
            self._write(("" if self._at_line_start else "\n") + ending)

    def _write(self, text: str, colour: str = "") -> None:
        if not text:
            return
        self._at_line_start = text.endswith("\n")
        shown = printable(text) if self._is_terminal else text
        self._out.write(f"{colour}{shown}{_PLAIN}" if colour and self._has_colour else shown)
        self._out.flush()


def printable(text: str) -> str:
    """Text without characters that steer a terminal."""
    return text.translate(_PICTURES)


def note(message: str, style: str = "dim") -> None:
    """A remark on stderr."""
    _print_line(Text(printable(message), style))


def print_error(message: str) -> None:
    """An error on stderr."""
    _print_line(Text.assemble(("error: ", "bold red"), printable(message)))


def print_json(content: Any) -> None:
    """A JSON document on stdout."""
    print(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))


@contextmanager
def progress(total: int | None = None) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal's stderr, elsewhere nothing. Yields what is told each of `total` steps before it begins."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), *((BarColumn(),) if total else ()), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        begun = 0

        def advance(what: str) -> None:
            nonlocal begun
            bar.update(task, description=printable(what), completed=begun)
            begun += 1

        yield advance


def _print_line(text: Text) -> None:
    console = Console(stderr=True)
    console.print(text, soft_wrap=not console.is_terminal)
