# SPDX-License-Identifier: Apache-2.0
"""The device build as far as a machine without CANN goes: its launchers agree with those of the twin, it says what it lacks."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from ascend_dsv4.ops import OP_NAMES
from ascend_dsv4.ops.registry import has_implementation
from ascend_dsv4.twin.kernel_library import KERNELS, compiler

OPS = [op for op in OP_NAMES if has_implementation(op, "ascendc-twin")]


def read(op: str, suffix: str) -> str:
    return (KERNELS / op / f"{op}_launch{suffix}").read_text(encoding="utf-8")


def launchers(text: str) -> dict[str, str]:
    """Kernel → text of its launcher."""
    parts = re.split(r'extern "C" int (\w+)_launch', text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def places(text: str) -> dict[str, str]:
    """Variable → the argument it comes from, as in[3]."""
    found = re.findall(r"(?:GM_ADDR|uint8_t\*) (\w+) = ([^;]*);", text)
    sources = {name: re.search(r"\b(?:in|out)\[\d\]|\boptional\(\"\w+\", (\d)", value) for name, value in found}
    return {name: f"in[{at.group(1)}]" if at.group(1) else at.group() for name, at in sources.items() if at}


def arguments(text: str, call: str) -> list[str]:
    found = re.search(rf"\b{call}\((.*?)\);", text, re.DOTALL)
    assert found is not None
    return [part.strip() for part in found.group(1).split(",")]


@pytest.mark.parametrize("op", OPS)
def test_launchers_hand_over_the_same_arguments(op: str) -> None:
    """Those of a second kernel in the folder too."""
    twin, device = launchers(read(op, "_twin.cpp")), launchers(read(op, ".asc"))
    assert twin.keys() == device.keys() and op in twin
    for name, text in device.items():
        assert places(text) == places(twin[name])
        mine = arguments(text, rf"{name}<<<[^>]*>>>")
        assert mine == arguments(twin[name][twin[name].index("launch.Run") :], name)
        assert [one for one in mine if one in places(text)] and mine[-1] in ("tiling", "t")


@pytest.mark.parametrize("op", OPS)
def test_launchers_are_c_plus_plus_but_for_the_launch(op: str, tmp_path: Path) -> None:
    """`kernel<<<blocks, 0, stream>>>(...)` becomes a call; everything else is checked as it stands."""
    source = tmp_path / "launch.cpp"
    text = re.sub(r"\b(\w+)<<<([\w.]+), 0, stream>>>\(", r"(void)\2, (void)stream, \1(", read(op, ".asc"))
    source.write_text(text, encoding="utf-8")
    assert "<<<" not in text
    folders = [f"-I{KERNELS / name}" for name in ("twin/include", "common", op)]
    command = [compiler(), "-std=c++17", "-fsyntax-only", *folders, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def build(environment: dict[str, str], *arguments: str) -> tuple[int, str]:
    kept = {name: value for name, value in os.environ.items() if name != "ASCEND_HOME_PATH"}
    command = ["bash", str(KERNELS / "build.sh"), *arguments]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=False)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_build_says_everything_that_is_missing(tmp_path: Path) -> None:
    status, said = build({})
    assert status == 1 and "ASCEND_HOME_PATH: not set; source the toolkit's set_env.sh" in said
    status, said = build({"ASCEND_HOME_PATH": str(tmp_path / "none")}, "--torch")
    assert status == 1 and f"{tmp_path}/none is not a folder" in said and "torch_npu: not installed" in said
    status, said = build({"ASCEND_HOME_PATH": str(tmp_path)})
    assert status == 1 and "bisheng: neither on PATH nor in" in said and "--ops ascendc-twin" in said


@pytest.mark.parametrize("option", [("--way", "C"), ("--soc",), ("--fast",)])
def test_build_refuses_other_options(option: tuple[str, ...]) -> None:
    status, said = build({}, *option)
    assert status == 2 and said.startswith("build.sh: ")


@pytest.mark.parametrize(("way", "reason"), [("A", "has no CMake package ASC"), ("B", "the toolkit is not a development kit")])
def test_cmake_says_what_a_toolkit_lacks(tmp_path: Path, way: str, reason: str) -> None:
    (tmp_path / "bin").mkdir()
    bisheng = tmp_path / "bin" / "bisheng"
    bisheng.touch(mode=0o755)
    status, said = build({"ASCEND_HOME_PATH": str(tmp_path)}, "--way", way, "--build-dir", str(tmp_path / "build"))
    assert status != 0 and reason in said
