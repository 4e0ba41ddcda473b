# SPDX-License-Identifier: Apache-2.0
"""The address-space check takes correct kernels and reports each `__gm__` cast removed from one, for the core it belongs to."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from ascend_dsv4.errors import UnsupportedError
from ascend_dsv4.twin.address_spaces import CORES, Finding, check_source, find_clang, main
from ascend_dsv4.twin.kernel_library import KERNELS

API = """
#pragma once
#define __aicore__
#define __global__
typedef __gm__ unsigned char* GM_ADDR;
template <class T> struct GlobalTensor {
  void SetGlobalBuffer(__gm__ T* start, unsigned long size);
};
"""
KERNEL = """
#include "api.h"
struct Tiling { unsigned rows; };
template <class T> __aicore__ inline T First(GM_ADDR x) {
  return *((__gm__ T*)x);
}
extern "C" __global__ __aicore__ void copy_rows(GM_ADDR x, GM_ADDR y, GM_ADDR tiling) {
  unsigned rows = ((__gm__ Tiling*)tiling)->rows;
  GlobalTensor<float> from, to;
  from.SetGlobalBuffer((__gm__ float*)x, rows);
#ifdef __DAV_VEC__
  to.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(y), rows + First<int>(x));
#else
  unsigned seen = ((__gm__ Tiling*)tiling)->rows;
#endif
}
"""
CASTS = [match.span() for match in re.finditer("__gm__ ", KERNEL)]
OUR_KERNELS = sorted(KERNELS.glob("*/*_kernel.h"))
GM_CAST = re.compile(r"__gm__ (?=[\w: ]+\*+[)>])")
"""The qualifier in `(__gm__ T*)x` and `reinterpret_cast<__gm__ T*>(x)`."""
CORES_OF_CAST = [{"AIC", "AIV"}, {"AIC", "AIV"}, {"AIC", "AIV"}, {"AIV"}, {"AIC"}]


@pytest.fixture(scope="module", autouse=True)
def clang() -> None:
    """Without clang the check is skipped on a developer's machine and fails in CI."""
    try:
        find_clang()
    except UnsupportedError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


def _findings(folder: Path, kernel: str) -> list:
    (folder / "api").mkdir()
    (folder / "api" / "api.h").write_text(API, encoding="utf-8")
    source = folder / "kernel.cpp"
    source.write_text(kernel, encoding="utf-8")
    return [found for core in CORES for found in check_source(source, core, [folder / "api"])]


def test_correct_kernel_has_no_finding(tmp_path: Path) -> None:
    assert _findings(tmp_path, KERNEL) == []


@pytest.mark.parametrize(("span", "cores"), list(zip(CASTS, CORES_OF_CAST, strict=True)))
def test_removed_gm_is_found_at_its_line(tmp_path: Path, span: tuple[int, int], cores: set[str]) -> None:
    broken = KERNEL[: span[0]] + KERNEL[span[1] :]
    found = _findings(tmp_path, broken)
    assert {finding.core for finding in found} == cores
    assert {finding.line for finding in found} == {KERNEL.count("\n", 0, span[0]) + 1}
    assert {Path(finding.path).name for finding in found} == {"kernel.cpp"}


def _check(kernel: Path) -> list[Finding]:
    return [found for core in CORES for found in check_source(kernel, core, [KERNELS / "twin/include"], [KERNELS / "common"])]


@pytest.mark.parametrize("kernel", OUR_KERNELS, ids=lambda path: path.stem)
def test_our_kernels(kernel: Path) -> None:
    assert _check(kernel) == []


@pytest.mark.parametrize("folder", sorted({kernel.parent for kernel in OUR_KERNELS}), ids=lambda path: path.name)
def test_our_kernels_with_a_cast_broken(folder: Path, tmp_path: Path) -> None:
    """Each in turn would be slow: all of them at once, each of which is found at its own line."""
    copy = shutil.copytree(folder, tmp_path / folder.name)
    casts = set()
    for header in copy.glob("*.h"):
        text = header.read_text(encoding="utf-8")
        casts |= {(header.name, line) for line, row in enumerate(text.splitlines(), 1) if GM_CAST.search(row)}
        header.write_text(GM_CAST.sub("", text), encoding="utf-8")
    assert casts
    found = [finding for kernel in sorted(copy.glob("*_kernel.h")) for finding in _check(kernel)]
    assert {(Path(finding.path).name, finding.line) for finding in found} >= casts


def test_missing_header_is_a_finding(tmp_path: Path) -> None:
    found = _findings(tmp_path, '#include "absent.h"\n')
    assert ["absent.h" in finding.message for finding in found] == [True, True]


def test_command_line_without_clang_exits_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "clang", None)
    assert main([str(tmp_path / "kernel.cpp")]) == 2
    assert "libclang is not installed" in capsys.readouterr().err


def test_command_line_reports_and_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "kernel.cpp"
    source.write_text("float* bad(__gm__ char* x) { return (float*)x; }\n", encoding="utf-8")
    assert main([str(source)]) == 1
    assert [line.split(":")[1] for line in capsys.readouterr().out.splitlines()] == ["1", "1"]
    source.write_text("__gm__ float* good(__gm__ char* x) { return (__gm__ float*)x; }\n", encoding="utf-8")
    assert main([str(source)]) == 0
