# SPDX-License-Identifier: Apache-2.0
"""The address-space check takes a correct kernel and reports each `__gm__` cast removed from it, for the core it belongs to."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ascend_dsv4.errors import UnsupportedError

ROOT = Path(__file__).parents[2]
CHECKER = ROOT / "cann_kernels" / "twin" / "syntax" / "check_address_spaces.py"

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
CORES_OF_CAST = [{"AIV"}, {"AIC", "AIV"}, {"AIC", "AIV"}, {"AIV"}, {"AIC"}]


@pytest.fixture(scope="module")
def checker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_address_spaces", CHECKER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def clang(checker: ModuleType) -> str:
    """A clang that can check; without one the tests are skipped on a developer's machine and fail in CI."""
    try:
        return checker.find_clang()
    except UnsupportedError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


def _findings(checker: ModuleType, clang: str, folder: Path, kernel: str) -> list:
    (folder / "api").mkdir()
    (folder / "api" / "api.h").write_text(API, encoding="utf-8")
    source = folder / "kernel.cpp"
    source.write_text(kernel, encoding="utf-8")
    return [found for core in checker.CORES for found in checker.check_source(source, core, clang, [folder / "api"])]


def test_correct_kernel_has_no_finding(checker: ModuleType, clang: str, tmp_path: Path) -> None:
    assert _findings(checker, clang, tmp_path, KERNEL) == []


@pytest.mark.parametrize(("span", "cores"), list(zip(CASTS, CORES_OF_CAST, strict=True)))
def test_removed_gm_is_found_at_its_line(
    checker: ModuleType, clang: str, tmp_path: Path, span: tuple[int, int], cores: set[str]
) -> None:
    broken = KERNEL[: span[0]] + KERNEL[span[1] :]
    found = _findings(checker, clang, tmp_path, broken)
    assert {finding.core for finding in found} == cores
    assert {finding.line for finding in found} == {KERNEL.count("\n", 0, span[0]) + 1}
    assert {Path(finding.path).name for finding in found} == {"kernel.cpp"}


def test_missing_header_is_a_finding(checker: ModuleType, clang: str, tmp_path: Path) -> None:
    found = _findings(checker, clang, tmp_path, '#include "absent.h"\n')
    assert ["absent.h" in finding.message for finding in found] == [True, True]


def test_command_line_without_clang_exits_2(
    checker: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checker.main([str(tmp_path / "kernel.cpp")]) == 2
    assert "no clang++ on PATH" in capsys.readouterr().err


def test_command_line_reports_and_exits_1(
    checker: ModuleType, clang: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "kernel.cpp"
    source.write_text("float* bad(__gm__ char* x) { return (float*)x; }\n", encoding="utf-8")
    assert checker.main([str(source)]) == 1
    assert [line.split(":")[1] for line in capsys.readouterr().out.splitlines()] == ["1", "1"]
    source.write_text("__gm__ float* good(__gm__ char* x) { return (__gm__ float*)x; }\n", encoding="utf-8")
    assert checker.main([str(source)]) == 0
