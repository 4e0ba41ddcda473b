# SPDX-License-Identifier: Apache-2.0
"""Deletes each synchronising statement of each kernel in turn: the twin must report every one that is gone.

    python tools/check_synchronisation.py                      # all kernels
    python tools/check_synchronisation.py hc_post route --jobs 2

A statement is a call of SetFlag, WaitFlag, PipeBarrier, EnQue, DeQue, CrossCoreSetFlag, CrossCoreWaitFlag or SyncAll, or of a
helper of ours that does nothing but such calls; a set and its wait are deleted one at a time. The kernel is compiled once, with
a switch before each statement, so that a mutant is a run: of the operator's cases, in every number format, on 1 and on 4 vector
cores, until the twin says something or an output differs; then of the kernel's own tests, `tests/cann_kernels/test_<op>.py`,
which also call what no case of the operator does.

    reported      the twin says what is wrong
    compiler      without the statement there is no program: a DeQue that declares or returns its tensor (not tried)
    other result  nothing was said, but the outputs are wrong
    survived      nothing happened: the statement is not needed, or no case needs it

Survivors that are right have a reason in `synchronisation_survivors.json`, by kernel and then by file, function, statement and
its number there. Exit code: 0 if nothing else survived, 1 if something did or a reason is out of date, 2 if a kernel does not
run as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import importlib
import io
import json
import multiprocessing
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table

from ascend_dsv4.accuracy.calls import CALL_ERRORS, CaseCall, load_cases, make_inputs
from ascend_dsv4.accuracy.operators import dtypes_of as case_dtypes
from ascend_dsv4.ops import OP_NAMES
from ascend_dsv4.ops.registry import dtypes_of, has_implementation
from ascend_dsv4.twin import kernel_library
from ascend_dsv4.twin.kernel_library import KERNELS, KernelError, KernelLibrary, build, settings

IMPLEMENTATION = "ascendc-twin"
PRIMITIVES = ("SetFlag", "WaitFlag", "PipeBarrier", "EnQue", "DeQue", "CrossCoreSetFlag", "CrossCoreWaitFlag", "SyncAll")
EVENT_IDS = ("FetchEventID", "AllocEventID", "ReleaseEventID")
"""What a helper may call beside them."""
SURVIVORS = Path(__file__).with_name("synchronisation_survivors.json")
CORES = (1, 4)
TESTS = Path(__file__).parents[1] / "tests" / "cann_kernels"
TIMEOUT_SECONDS = 600
SWITCH = "skipped_statement"
ALARMING = ("survived", "other result")


@dataclass(frozen=True, slots=True)
class Statement:
    """A synchronising statement: characters [start, end) of a file."""

    file: str
    line: int
    start: int
    end: int
    function: str
    text: str
    number: int
    """Among equal statements of the function, from 1."""
    declares: bool
    """Whether it declares a variable that is used behind it, or returns a value: without it there is no program."""

    @property
    def name(self) -> str:
        """What a reason is kept by."""
        return f"{self.file} {self.function} {self.text} #{self.number}"


def without_comments(text: str) -> str:
    """The same text with blanks in the place of comments, strings and preprocessor lines, so that places stay what they are."""
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|^[ \t]*#[^\n]*'
    return re.sub(pattern, lambda found: re.sub(r"[^\n]", " ", found.group()), text, flags=re.DOTALL | re.MULTILINE)


def closing(text: str, at: int) -> int:
    """Where the bracket that opens at `at` closes."""
    pairs = {"(": ")", "{": "}"}
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] == text[at]) - (text[i] == pairs[text[at]])
        if depth == 0:
            return i
    raise ValueError(f"a bracket at {at} does not close")


def functions(text: str) -> Iterator[tuple[str, int, int]]:
    """(name, begin, end) of the body of every device function; text without comments."""
    for found in re.finditer(r"__aicore__\s+[^(){};]*?(\w+)\s*\(", text):
        after = closing(text, found.end() - 1) + 1
        body = re.compile(r"\s*(?:const\s*)?(?::[^{;]*)?\{").match(text, after)
        if body:
            yield found.group(1), body.end() - 1, closing(text, body.end() - 1)


def helpers(texts: Sequence[str]) -> set[str]:
    """Names of functions that call nothing but primitives, and event ids for them."""
    found = set()
    for text in texts:
        for name, begin, end in functions(text):
            called = re.findall(r"(\w+)\s*(?:<[^<>;()]*>)?\s*\(", text[begin:end])
            if set(called) & set(PRIMITIVES) and set(called) <= {*PRIMITIVES, *EVENT_IDS}:
                found.add(name)
    return found


def statements(file: str, text: str, names: Sequence[str]) -> list[Statement]:
    """Every statement of a file that calls one of `names`, in order."""
    code = without_comments(text)
    bodies = list(functions(code))
    found: list[Statement] = []
    seen: Counter[tuple[str, str]] = Counter()
    for call in re.finditer(rf"\b(?:{'|'.join(names)})\b\s*(?:<[^;(){{}}]*>)?\s*\(", code):
        function = next((name for name, begin, end in bodies if begin < call.start() < end), None)
        end = closing(code, call.end() - 1) + 1
        after = re.compile(r"\s*;").match(code, end)
        if function is None or after is None:
            continue  # a declaration
        start = max(code.rfind(mark, 0, call.start()) for mark in ";{})") + 1
        start += len(re.compile(r"\s*(?:else\b\s*)?").match(code, start).group())  # type: ignore[union-attr]
        said = " ".join(text[start : after.end()].split())
        seen[function, said] += 1
        line = text.count("\n", 0, start) + 1
        declared = re.match(r"(?:const\s+)?[\w:]+(?:<[^;=]*>)?\s+(\w+)\s*=", code[start : after.end()])
        rest = code[after.end() : next(end for name, begin, end in bodies if begin < call.start() < end)]
        declares = declared is not None and re.search(rf"\b{declared.group(1)}\b", rest) is not None
        declares = declares or re.match(r"return\b", said) is not None
        found.append(Statement(file, line, start, after.end(), function, said, seen[function, said], declares))
    return found


def sources(op: str) -> dict[str, str]:
    """Headers that an operator's kernel is made of: its own, and those of `common` that they include."""
    found = {path.name: path.read_text(encoding="utf-8") for path in sorted((KERNELS / op).glob("*.h"))}
    waiting = list(found.values())
    while waiting:
        for name in re.findall(r'#include "([\w.]+)"', waiting.pop()):
            path = KERNELS / "common" / name
            if name not in found and path.is_file():
                found[name] = path.read_text(encoding="utf-8")
                waiting.append(found[name])
    return found


def all_statements(op: str) -> list[Statement]:
    """Those of an operator's kernel."""
    texts = sources(op)
    names = [*PRIMITIVES, *sorted(helpers([without_comments(text) for text in texts.values()]))]
    return [statement for file, text in texts.items() for statement in statements(file, text, names)]


class Mutants:
    """The kernel of one operator in a library in which any one of its statements can be left out when it runs.

    raises  UnsupportedError if it does not compile
    """

    def __init__(self, op: str, everything: Sequence[Statement], folder: Path) -> None:
        self.op = op
        self._numbers = {one: number for number, one in enumerate(everything, 1) if not one.declares}
        self._wrapper = importlib.import_module(f"ascend_dsv4.ops.{op}.ascendc")
        there = dtypes_of(op, IMPLEMENTATION)
        cases = [case for case in load_cases(op) if case.kind == "typical"]
        cases += [case for case in load_cases(op) if case.kind != "typical"]
        self._calls = [
            (make_inputs(op, case), dtype) for case in cases for dtype in case_dtypes(op, case) if dtype in there
        ]
        self._right: list[str] = []
        self._library = self._built(folder)

    def _built(self, folder: Path) -> Path:
        shutil.copytree(KERNELS / self.op, folder / self.op)
        for file, text in sources(self.op).items():
            for one in sorted(self._numbers, key=lambda one: -one.start):
                if one.file == file:
                    kept = f"{{ if ({SWITCH} != {self._numbers[one]}) {{ {text[one.start : one.end]} }} }}"
                    text = text[: one.start] + kept + text[one.end :]
            (folder / self.op / file).write_text(text, encoding="utf-8")
        source = folder / self.op / f"{self.op}_launch_twin.cpp"
        source.write_text(f'extern "C" {{ int {SWITCH} = 0; }}\n{source.read_text(encoding="utf-8")}', encoding="utf-8")
        return build([source], folder / "objects")

    def judge(self, statement: Statement | None) -> tuple[str, str]:
        """Outcome and what was said. None runs the kernel as it is, whose outputs are right from then on."""
        if statement is not None and statement.declares:
            return "compiler", "it declares what later statements use, or returns it"
        skipped = 0 if statement is None else self._numbers[statement]
        ctypes.c_int.in_dll(ctypes.CDLL(str(self._library)), SWITCH).value = skipped
        library = KernelLibrary(self._library)
        for module in (self._wrapper, kernel_library):
            module.kernel_library = lambda: library  # type: ignore[attr-defined]
        try:
            outcome, said = self._run(statement is not None)
            return (outcome, said) if statement is None or outcome != "survived" else self._run_tests()
        except CALL_ERRORS as error:
            told = isinstance(error.__cause__, KernelError)
            return ("reported", str(error.__cause__)) if told else ("other result", f"{type(error).__name__}: {error}")

    def _run(self, compared: bool) -> tuple[str, str]:
        number = 0
        for cores in CORES:
            for inputs, dtype in self._calls:
                with settings(vector_cores=cores, seed=number, yield_one_in=4):
                    outs = CaseCall(self.op, inputs, dtype).run(IMPLEMENTATION)
                digest = hashlib.sha256()
                for out, tensor in outs.items():
                    keep = inputs.defined.get(out)
                    kept = tensor if keep is None else tensor[torch.from_numpy(keep)]
                    digest.update(kept.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
                if not compared:
                    self._right.append(digest.hexdigest())
                elif self._right[number] != digest.hexdigest():
                    return "other result", f"run {number}: other bits than those of the whole kernel"
                number += 1
        return "survived", ""

    def _run_tests(self) -> tuple[str, str]:
        tests = TESTS / f"test_{self.op}.py"
        if not tests.is_file():
            return "survived", ""
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            failed = pytest.main(["-q", "-x", "-n0", "-p", "no:cacheprovider", f"--rootdir={TESTS.parents[1]}", str(tests)])
        if failed != pytest.ExitCode.TESTS_FAILED:
            return "survived", ""
        told = next((line for line in printed.getvalue().splitlines() if "KernelError: " in line), "")
        return ("reported", told.partition("KernelError: ")[2]) if told else ("other result", f"{tests.name} fails")


def run_all(mutants: Mutants, chosen: Sequence[Statement], jobs: int) -> Iterator[tuple[Statement, str, str]]:
    """Judge statements in processes of their own, a few at a time, in the order in which they end."""
    context = multiprocessing.get_context("fork")  # inputs are made once; a mutant may take its process down with it
    waiting, running = list(chosen), {}  # type: ignore[var-annotated]
    while waiting or running:
        while waiting and len(running) < jobs:
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_send, args=(mutants, waiting[0], theirs))
            process.start()
            theirs.close()
            running[mine] = process, waiting.pop(0), time.monotonic()
        ended = list(wait(list(running), timeout=1))
        for mine, (process, statement, started) in list(running.items()):
            late = time.monotonic() - started > TIMEOUT_SECONDS
            if mine not in ended and not late:
                continue
            outcome = _received(mine) if mine in ended else ("other result", f"no end after {TIMEOUT_SECONDS} s")
            process.kill()
            process.join()
            del running[mine]
            yield statement, *outcome


def _send(mutants: Mutants, statement: Statement, to: Connection) -> None:
    to.send(mutants.judge(statement))


def _received(connection: Connection) -> tuple[str, str]:
    try:
        outcome: tuple[str, str] = connection.recv()
    except EOFError:
        return "other result", "the process died"
    return outcome


def check(op: str, reasons: dict[str, str], options: argparse.Namespace, console: Console) -> int:
    """One operator: prints its table, returns the exit code."""
    everything = all_statements(op)
    chosen = [one for one in everything if not options.line or f"{one.file}:{one.line}" in options.line]
    if unknown := set(options.line or ()) - {f"{one.file}:{one.line}" for one in chosen}:
        console.print(f"{op}: no synchronising statement at {', '.join(sorted(unknown))}", markup=False)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        mutants = Mutants(op, everything, Path(folder))
        torch.set_num_threads(1)  # threads would not live through a fork
        outcome, said = mutants.judge(None)
        if outcome != "survived":
            console.print(f"{op} as it is: {outcome}: {said}", markup=False)
            return 2
        found = {}
        for statement, outcome, said in run_all(mutants, chosen, options.jobs):
            found[statement] = outcome, said
            console.print(f"{op} {statement.file}:{statement.line} {outcome}", markup=False, highlight=False)
    draw(op, [(one, *found[one]) for one in chosen], reasons, console)
    alarming = {one.name for one in chosen if found[one][0] in ALARMING}
    stale = reasons.keys() - (alarming if not options.line else {one.name for one in everything})
    for name in sorted(stale):
        console.print(f"{op}: the reason for {name} is out of date: no such statement survives", markup=False)
    return 1 if alarming - reasons.keys() or stale else 0


def draw(op: str, rows: Sequence[tuple[Statement, str, str]], reasons: dict[str, str], console: Console) -> None:
    """The table of an operator, then what survived, in full."""
    counts = Counter(outcome for _, outcome, _ in rows)
    table = Table(title=f"{op}: {len(rows)} deletions; " + ", ".join(f"{n} {name}" for name, n in counts.items()))
    for column in ("place", "in", "statement", "outcome", "said"):
        table.add_column(column, overflow="fold")
    for one, outcome, said in rows:
        told = reasons.get(one.name, "no reason is known") if outcome in ALARMING else said[:120]
        table.add_row(f"{one.file}:{one.line}", one.function, one.text, outcome, told)
    console.print(table)
    for one, outcome, said in rows:
        if outcome in ALARMING:
            console.print(f"{outcome}: {one.name}\n    {reasons.get(one.name) or said or 'no reason is known'}", markup=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    there = [op for op in OP_NAMES if has_implementation(op, IMPLEMENTATION)]
    parser = argparse.ArgumentParser(description="Delete each synchronising statement of each kernel in turn.")
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"operators (default: {', '.join(there)})")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time (default: 2)")
    parser.add_argument("--line", action="append", metavar="FILE:LINE", help="only the statements that begin there")
    parser.add_argument("--survivors", type=Path, default=SURVIVORS, metavar="JSON", help="reasons of survivors")
    options = parser.parse_args(arguments)
    if unknown := [op for op in options.ops if op not in there]:
        parser.error(f"{', '.join(unknown)}: no kernel, expected one of {', '.join(there)}")
    reasons: dict[str, Any] = json.loads(options.survivors.read_text(encoding="utf-8"))
    console = Console(width=180 if not sys.stdout.isatty() else None)
    return max(check(op, reasons.get(op, {}), options, console) for op in options.ops or there)


if __name__ == "__main__":
    sys.exit(main())
