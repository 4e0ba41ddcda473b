# SPDX-License-Identifier: Apache-2.0
"""Type-checks kernel sources for AIC and AIV with address spaces as clang sees them: nothing is built or run.

On the device `__gm__` and its relatives are part of a pointer's type; the executable build of the twin defines them as nothing,
so a missing `__gm__` shows only here. clang rejects an implicit conversion between address spaces, but takes an explicit one
such as `(float*)x` of a `GM_ADDR` without a word. Hence the second half of the check: every cast of a pointer from one address
space to another in the kernel's own folder is a finding, in templates too.

    python -m ascend_dsv4.twin.address_spaces -I cann_kernels/twin/include --own cann_kernels/common \\
        cann_kernels/*/*_kernel.h

clang comes as the package `libclang`, which needs the headers of an installed g++.
Exit code: 0 clean, 1 findings (one line each), 2 no libclang or no g++.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascend_dsv4.errors import UnsupportedError
from ascend_dsv4.twin.kernel_library import KERNELS

CORES = {"AIC": "__DAV_CUBE__", "AIV": "__DAV_VEC__"}
"""Core → the macro that the device compiler defines while it compiles for that core."""
ADDRESS_SPACES = KERNELS / "twin" / "syntax" / "address_spaces.h"


@dataclass(frozen=True, order=True)
class Finding:
    """One fault: where it is and for which core (`AIC`, `AIV`) it was met."""

    path: str
    line: int
    core: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.core}: {self.message}"


def find_clang() -> Any:
    """The module `clang.cindex`. Raises UnsupportedError where it or the C library's headers are missing."""
    try:
        from clang import cindex
    except ImportError as error:
        raise UnsupportedError(
            "address-space check of kernels: the package libclang is not installed; expected it, because g++ has no address "
            "spaces and would miss a forgotten __gm__. Install it with `pip install libclang`, or the extra `test`."
        ) from error
    if shutil.which("g++") is None:
        raise UnsupportedError(
            "address-space check of kernels: got no g++ on PATH; expected one, because libclang comes without the headers of "
            "the C and C++ libraries. Install g++."
        )
    return cindex


def check_source(
    source: Path, core: str, include_dirs: Sequence[Path] = (), own_dirs: Sequence[Path] = ()
) -> list[Finding]:
    """Faults of one translation unit compiled for one core (`AIC`, `AIV`), in order of place, each once.

    Headers come from all of these directories and that of `source`. Casts are reported for files in `own_dirs` and in the
    directory of `source`: library code, in `include_dirs`, may convert as it needs. Raises UnsupportedError without clang.
    """
    cindex = find_clang()
    builtin = subprocess.run(["g++", "-print-file-name=include"], capture_output=True, text=True, check=True).stdout.strip()
    headers = [f"-I{directory}" for directory in (*include_dirs, *own_dirs)]
    arguments = [
        "-x", "c++", "-std=c++17", "-ferror-limit=0", "-w", "-include", str(ADDRESS_SPACES), "-D__NPU_ARCH__=2201",
        "-D__CCE_AICORE__=220", f"-D{CORES[core]}", *headers, "-isystem", builtin,
    ]  # fmt: skip
    try:
        unit = cindex.Index.create().parse(str(source.resolve()), args=arguments)
    except cindex.TranslationUnitLoadError:
        return [Finding(str(source), 1, core, "clang cannot read the file")]
    found = set()
    for diagnostic in unit.diagnostics:
        if diagnostic.severity >= cindex.Diagnostic.Error:
            place = diagnostic.location
            found.add(Finding(place.file.name if place.file else str(source), place.line, core, diagnostic.spelling))
    own = {directory.resolve() for directory in (source.resolve().parent, *own_dirs)}
    for top in unit.cursor.get_children():
        if top.location.file and Path(top.location.file.name).resolve().parent in own:
            found |= {
                Finding(path, line, core, f"pointer cast to {kind} leaves its address space: is a __gm__ missing?")
                for path, line, kind in _conversions(cindex, top)
            }
    return sorted(found)


def _conversions(cindex: Any, top: Any) -> Iterator[tuple[str, int, str]]:
    """(file, line, new type) of each explicit conversion of a pointer between address spaces."""
    kinds = (cindex.CursorKind.CSTYLE_CAST_EXPR, cindex.CursorKind.CXX_FUNCTIONAL_CAST_EXPR)
    for node in top.walk_preorder():
        if node.kind not in kinds or not _is_pointer(node.type):
            continue
        *_, operand = node.get_children()
        before = operand.type.get_canonical()
        if _is_pointer(before) and _space(node.type) != _space(before):
            yield node.location.file.name, node.location.line, node.type.spelling


def _is_pointer(type_: Any) -> bool:
    """`TypeKind` raises ValueError for the types that it does not know, `_Float16` among them."""
    return bool(type_.get_canonical().get_pointee().spelling)


def _space(pointer: Any) -> int:
    return int(pointer.get_canonical().get_pointee().get_address_space())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; findings go to standard output."""
    parser = argparse.ArgumentParser(description="Type-check kernel sources with address spaces, for AIC and AIV.")
    parser.add_argument("sources", nargs="+", type=Path, help="kernel sources, one translation unit each")
    parser.add_argument("-I", dest="include_dirs", action="append", default=[], type=Path, help="directory of library headers")
    parser.add_argument("--own", dest="own_dirs", action="append", default=[], type=Path,
                        help="directory of headers whose casts are looked at too")  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        find_clang()
    except UnsupportedError as error:
        print(error, file=sys.stderr)
        return 2
    units = [(source, core, options.include_dirs, options.own_dirs) for source in options.sources for core in CORES]
    found = [finding for unit in units for finding in check_source(*unit)]
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
