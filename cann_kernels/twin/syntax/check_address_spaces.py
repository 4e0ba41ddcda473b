# SPDX-License-Identifier: Apache-2.0
"""Type-checks kernel sources for AIC and AIV with address spaces as clang sees them: nothing is built or run.

On the device `__gm__` and its relatives are part of a pointer's type; the executable build of the twin defines them as nothing,
so a missing `__gm__` shows only here. clang rejects an implicit conversion between address spaces, but takes an explicit one
such as `(float*)x` of a `GM_ADDR` without a word. Hence the second half of the check: every conversion of a pointer from one
address space to another in the syntax tree, template instantiations included, is a finding.

    python cann_kernels/twin/syntax/check_address_spaces.py -I cann_kernels/twin/include cann_kernels/*/*_kernel.cpp

Exit code: 0 clean, 1 findings (one line each), 2 no clang of version 18 or newer.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ascend_dsv4.errors import UnsupportedError

OLDEST_CLANG = 18
CLANG_NAMES = (*(f"clang++-{version}" for version in range(23, OLDEST_CLANG - 1, -1)), "clang++")
CORES = {"AIC": "__DAV_CUBE__", "AIV": "__DAV_VEC__"}
"""Core → the macro that the device compiler defines while it compiles for that core."""
ADDRESS_SPACES = Path(__file__).with_name("address_spaces.h")
_LOCATION = re.compile(r"([^\s<>,]+):(\d+):\d+")
_DIAGNOSTIC = re.compile(r"(?P<path>[^\s:]+):(?P<line>\d+):\d+: (?:fatal )?error: (?P<message>.*)")


@dataclass(frozen=True, order=True)
class Finding:
    """One fault: where it is and for which core (`AIC`, `AIV`) it was met."""

    path: str
    line: int
    core: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.core}: {self.message}"


def find_clang() -> str:
    """Path of the newest clang++ found; `UnsupportedError` when none is new enough."""
    seen = []
    for name in CLANG_NAMES:
        path = shutil.which(name)
        if path is None:
            continue
        version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
        match = re.search(r"clang version (\d+)", version)
        if match and int(match[1]) >= OLDEST_CLANG:
            return path
        seen.append(f"{path} ({version.splitlines()[0]})")
    raise UnsupportedError(
        f"address-space check of kernels: got {', '.join(seen) or 'no clang++ on PATH'}; expected clang++ {OLDEST_CLANG} or "
        "newer, because g++ has no address spaces and would miss a forgotten __gm__. Install it, on Debian with "
        "`apt-get install clang-19`."
    )


def check_source(source: Path, core: str, clang: str, include_dirs: Sequence[Path] = ()) -> list[Finding]:
    """Faults of one translation unit compiled for one core (`AIC`, `AIV`), in order of place, each once.

    Conversions are reported for files in the directory of `source` only: library code may convert as it needs.
    """
    includes = [f"-I{directory}" for directory in include_dirs]
    command = [
        clang, "-x", "c++", "-std=c++17", "-fsyntax-only", "-ferror-limit=0", "-w", "-fno-color-diagnostics",
        "-include", str(ADDRESS_SPACES), "-D__NPU_ARCH__=2201", "-D__CCE_AICORE__=220", f"-D{CORES[core]}", *includes,
        "-Xclang", "-ast-dump", str(source.resolve()),
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    found = {
        Finding(match["path"], int(match["line"]), core, match["message"])
        for match in map(_DIAGNOSTIC.match, run.stderr.splitlines())
        if match
    }
    if run.returncode and not found:
        found.add(Finding(str(source), 1, core, f"clang stopped with exit code {run.returncode}: {run.stderr.strip()[-400:]}"))
    here = str(source.resolve().parent)
    for path, line, kind in _conversions(run.stdout.splitlines()):
        if str(Path(path).parent) == here:
            found.add(Finding(path, line, core, f"pointer cast to {kind} leaves its address space: is a __gm__ missing?"))
    return sorted(found)


def _conversions(tree: Sequence[str]) -> Iterator[tuple[str, int, str]]:
    """(file, line, new type) of each conversion between address spaces in clang's dump of a syntax tree.

    The dump names a file or a line only where it differs from the one printed before, so every line of it is read.
    """
    path, line = "", 0
    for row in tree:
        span, _, tail = row.partition("<")[2].partition("> ")
        begin, _, end = span.partition(", ")
        path, line = _moved(begin, path, line)
        if "<AddressSpaceConversion>" in row:
            kind = re.search(r"'([^']*)'", row)
            yield path, line, kind[1] if kind else "another type"
        path, line = _moved(end, path, line)
        path, line = _moved(tail.partition(" '")[0], path, line)


def _moved(text: str, path: str, line: int) -> tuple[str, int]:
    """The (file, line) that holds after `text` of the dump was printed, given the one before it."""
    for name, number in _LOCATION.findall(text):
        path, line = (path if name == "line" else name), int(number)
    return path, line


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; findings go to standard output."""
    parser = argparse.ArgumentParser(description="Type-check kernel sources with address spaces, for AIC and AIV.")
    parser.add_argument("sources", nargs="+", type=Path, help="kernel sources, one translation unit each")
    parser.add_argument("-I", dest="include_dirs", action="append", default=[], type=Path, help="directory of headers")
    options = parser.parse_args(arguments)
    try:
        clang = find_clang()
    except UnsupportedError as error:
        print(error, file=sys.stderr)
        return 2
    units = [(source, core) for source in options.sources for core in CORES]
    found = [finding for source, core in units for finding in check_source(source, core, clang, options.include_dirs)]
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
