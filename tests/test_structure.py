# SPDX-License-Identifier: Apache-2.0
"""The shape of the repository: rooms, import edges, sizes, complete operator folders."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from ascend_dsv4.ops import OP_NAMES

ROOT = Path(__file__).parents[1]
TOP_LEVEL = {
    "setup.py", "README.md", "LICENSE", "ascend_dsv4", "ops", "cann_kernels", "configs", "tests", "tools",
    ".ci", ".gitignore", "pyproject.toml", "constraints.txt", "docs",
}  # fmt: skip
FRAMEWORKS = {"torch", "torch_npu", "mindspore"}
MAY_IMPORT_TORCH = (
    "ascend_dsv4/graph/trace.py", "ascend_dsv4/backend/cpu.py", "ascend_dsv4/backend/npu.py", "ascend_dsv4/quant/*",
    "ascend_dsv4/accuracy/*", "ascend_dsv4/twin/*", "ops/*/reference.py", "ops/*/native.py", "ops/*/npu.py",
    "ops/*/ascendc.py", "ops/native/*", "ops/rowwise.py", "ops/library.py",
)  # fmt: skip
MAY_IMPORT_TORCH_NPU = ("ascend_dsv4/backend/npu.py", "ops/*/npu.py")
MAY_IMPORT_MINDSPORE = ("ascend_dsv4/backend/mindspore.py", "ops/*/mindspore.py")
EDGES: dict[str, set[str]] = {
    "errors": set(),
    "user_cache": set(),
    "config": {"errors"},
    "quant": {"errors"},
    "ops": {"quant", "twin", "errors"},
    "twin": {"errors", "user_cache"},
    "graph": {"ops", "errors"},
    "model": {"config", "graph", "ops", "quant", "errors"},
    "kv_cache": {"config", "ops", "errors"},
    "engram": {"config", "model", "quant", "errors"},
    "backend": {"config", "graph", "ops", "errors"},
    "runner": {"backend", "config", "engram", "graph", "kv_cache", "model", "ops", "vision", "errors"},
    "spec_decode": {"backend", "config", "kv_cache", "model", "runner", "errors"},
    "engine": {"backend", "config", "kv_cache", "runner", "spec_decode", "errors"},
    "tokenizer": {"errors"},
    "vision": {"config", "errors"},
    "server": {"engine", "config", "runner", "tokenizer", "vision", "errors"},
    "bench": {"errors"},
    "accuracy": {"backend", "config", "engine", "engram", "graph", "kv_cache", "model", "ops", "runner", "errors"},
    "demo": {"config", "engram", "model", "quant", "tokenizer", "errors", "user_cache"},
}
"""Room → rooms it may import. Modules of the package itself (llm, cli, …) may import any room."""
ANY_ROOM = {"llm", "cli", "__init__", "__main__"}
BOUNDARIES = {"ascend_dsv4/engine/loop.py", "ascend_dsv4/server/transport.py"}
"""Where something must be answered whatever happens: one `except Exception` each, which logs the traceback."""
MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 80

SOURCES = sorted([*(ROOT / "ascend_dsv4").rglob("*.py"), *(ROOT / "ops").rglob("*.py")])
ALL_PYTHON = sorted({*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "tools").rglob("*.py"), ROOT / "setup.py"})


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return "ops" if parts[0] == "ops" else parts[1].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Absolute names of everything a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}:{node.lineno}: relative import"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)


def ids(path: Path) -> str:
    return relative(path)


def test_top_level() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    assert {line.split("/")[0] for line in tracked if line} <= TOP_LEVEL


def test_rooms() -> None:
    rooms = {room_of(path) for path in SOURCES}
    assert rooms <= EDGES.keys() | ANY_ROOM, f"a room without a line in the table: {rooms - EDGES.keys() - ANY_ROOM}"


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_frameworks_stay_in_their_files(path: Path) -> None:
    allowed = {"torch": MAY_IMPORT_TORCH, "torch_npu": MAY_IMPORT_TORCH_NPU, "mindspore": MAY_IMPORT_MINDSPORE}
    used = {name.split(".")[0] for name in imports(path)} & FRAMEWORKS
    wrong = [name for name in used if not any(fnmatch(relative(path), pattern) for pattern in allowed[name])]
    assert not wrong


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_import_edges(path: Path) -> None:
    room = room_of(path)
    own = [name.split(".") for name in imports(path) if name.split(".")[0] == "ascend_dsv4"]
    assert not {name.split(".")[0] for name in imports(path)} & {"tests", "tools", "ops", "configs"}
    if room in ANY_ROOM:
        return
    reached = {parts[1] for parts in own if len(parts) > 1} - {"__version__"}
    assert reached <= EDGES[room] | {room}, f"{relative(path)} may not import {reached - EDGES[room] - {room}}"


@pytest.mark.parametrize("name", OP_NAMES)
def test_operators_share_only_through_references(name: str) -> None:
    """An operator's contract imports no implementation, and no operator imports another's backend file."""
    for path in (ROOT / "ops" / name).glob("*.py"):
        for imported in imports(path):
            parts = imported.split(".")
            if parts[:2] == ["ascend_dsv4", "ops"] and len(parts) > 3 and parts[2] in OP_NAMES and parts[2] != name:
                assert path.stem != "__init__"
                assert parts[3] in {"reference", "SPEC"}, f"{relative(path)} imports {imported}"


def test_operator_folders_are_complete() -> None:
    folders = {path.name for path in (ROOT / "ops").iterdir() if (path / "__init__.py").exists()}
    assert folders - {"native"} == set(OP_NAMES)
    for name in OP_NAMES:
        assert {"__init__.py", "reference.py", "cases.py"} <= {path.name for path in (ROOT / "ops" / name).iterdir()}
    assert list(OP_NAMES) == sorted(OP_NAMES)


@pytest.mark.parametrize("path", ALL_PYTHON, ids=ids)
def test_sizes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert text.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{relative(path)}:{node.lineno}: {node.name} has {length} lines"


def test_exceptions_are_caught_by_name() -> None:
    """`except Exception` is for the two boundaries that must answer whatever happens, and for cleaning up before re-raising."""
    found = []
    boundaries = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)} if node.type else {"Exception"}
            broad = caught & {"Exception", "BaseException"}
            if broad:
                reraises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
                if not reraises and relative(path) in BOUNDARIES:
                    boundaries.append(relative(path))
                elif not reraises:
                    found.append(f"{relative(path)}:{node.lineno}")
    assert not found
    assert sorted(boundaries) == sorted(BOUNDARIES)


def test_importing_the_package_loads_no_framework() -> None:
    code = "import sys, ascend_dsv4, ascend_dsv4.ops.registry; print([n for n in ('torch', 'mindspore') if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_operator_folder_has_one_name() -> None:
    result = subprocess.run([sys.executable, "-c", "import ops"], cwd=ROOT, capture_output=True, text=True)
    assert "imported as `ascend_dsv4.ops`" in result.stderr


def test_documents_are_finished() -> None:
    for path in (ROOT / "README.md", ROOT / "docs" / "architecture.md", ROOT / "cann_kernels" / "README.md"):
        assert "@@" not in path.read_text(encoding="utf-8")
