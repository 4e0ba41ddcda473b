# SPDX-License-Identifier: Apache-2.0
"""`ascend-dsv4 compare` as people type it: exit codes, written reports, the README's own kernel."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from ascend_dsv4.cli import main
from ascend_dsv4.ops.registry import _load_file

README = Path(__file__).parents[2] / "README.md"


def run(*words: str) -> int:
    try:
        return main(["compare", *words])
    except SystemExit as ended:
        return int(ended.code or 0)


@pytest.fixture
def own_kernels(tmp_path: Path) -> Path:
    """The file that the README shows."""
    text = re.search(r"```python\n(# my_kernels\.py\n.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert text is not None
    path = tmp_path / "my_kernels.py"
    path.write_text(text[1], encoding="utf-8")
    return path


def test_the_kernel_of_the_readme_passes(own_kernels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ops", "--op", "rms_norm", "--impl", f"{own_kernels}:rms_norm") == 0
    assert "PASS" in capsys.readouterr().out


def test_a_wrong_kernel_fails(own_kernels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own_kernels.write_text(own_kernels.read_text(encoding="utf-8").replace("+ eps", ""), encoding="utf-8")
    assert run("ops", "--op", "rms_norm", "--impl", f"{own_kernels}:rms_norm", "--dtype", "float32") == 1
    out = capsys.readouterr().out
    command = re.search(r"ascend-dsv4 compare (ops .*--case \S+)", out)
    assert "FAIL" in out and command is not None
    assert run(*command[1].split()) == 1, "the command of a failure repeats it"


def test_a_broken_kernel_could_not_run(own_kernels: Path) -> None:
    own_kernels.write_text("def rms_norm(x):\n    return x\n", encoding="utf-8")
    assert run("ops", "--op", "rms_norm", "--impl", f"{own_kernels}:rms_norm", "--dtype", "float32") == 2


@pytest.mark.parametrize(("text", "said"), [
    ("def rms_norm(x):\n    return x\n", "it is called as rms_norm(x, weight, *, eps)"),
    ("def rms_norm(x, weight, *, eps):\n    return y\n", "NameError: name 'y' is not defined (my_kernels.py:2)"),
    ("def rms_norm(x, weight, *, eps):\n    assert weight is None and False, 'no'\n", "AssertionError: no (my_kernels.py:2)"),
    ("def rms_norm(x:\n", "SyntaxError"),
    ("rms_norm = 1 / 0\n", "ZeroDivisionError: division by zero (line 1)"),
    ("rms_norm = 5\n", "is of type int, which nobody can call"),
])  # fmt: skip
def test_a_broken_kernel_is_told_where_it_broke(
    own_kernels: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    own_kernels.write_text(text, encoding="utf-8")
    _load_file.cache_clear()
    assert run("ops", "--op", "rms_norm", "--impl", f"{own_kernels}:rms_norm", "--dtype", "float32") == 2
    printed = capsys.readouterr()
    text = " ".join((printed.out + printed.err).split())
    assert said in text and text.count(said) == 1, "once, and not for every case"


@pytest.mark.parametrize(("words", "near"), [
    (("--op", "rms_nrom"), "did you mean rms_norm?"), (("--op", "gelu", "--case", "veiw"), "did you mean view?"),
])  # fmt: skip
def test_a_slip_of_the_finger(words: tuple[str, ...], near: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ops", *words) == 2 and near in capsys.readouterr().err


def test_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON on stdout and in the receipt are the same; XML and page name the operator."""
    paths = {name: tmp_path / name for name in ("receipt", "junit", "html")}
    options = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    assert run("ops", "--op", "gelu", "--dtype", "float32", "--json", *options) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["exit_code"] == 0 and {result["op"] for result in printed["results"]} == {"gelu"}
    assert json.loads(paths["receipt"].read_text(encoding="utf-8"))["results"] == printed["results"]
    suites = ElementTree.parse(paths["junit"]).getroot()
    assert len(suites.findall(".//testcase")) == len(printed["results"])
    page = paths["html"].read_text(encoding="utf-8")
    assert "gelu" in page and not re.search(r"(src|href)=[\"']?(https?:)?//", page)


@pytest.mark.parametrize("words", [
    ("ops", "--op", "no_such_op"),
    ("ops", "--op", "gelu", "--impl", "nowhere.py:gelu"),
    ("ops", "--op", "gelu", "--impl", "math:no_such_function"),
    ("ops", "--impl", "math:sin"),
    ("ops", "--op", "gelu", "--case", "no-such-case"),
    ("ops", "--op", "gelu", "--seed", "-1"),
    ("ops", "--op", "gelu", "--seeds", "0"),
    ("ops", "--op", "gelu", "--threads", "0"),
    ("model", "--model", "v4_flash", "--random", "0"),
    ("ops", "--op", "gelu", "--impl", "math:pi"),
    ("ops", "--op", "gelu", "--html", "/no/such/folder/page.html"),
    ("ops", "--op", "gelu", "--standard", "opbase-double"),
    ("selftest", "--mutants", "/no/such/file.py"),
    ("selftest", "--without", "no-such-check"),
    ("replay", "/no/such/folder"),
    ("import-msprobe", "/no/such/folder"),
    ("model", "--model", "/no/such/folder"),
    ("model", "--model", "v4_flash", "--impl", "hc_pre=nowhere:f"),
    (),
])  # fmt: skip
def test_what_cannot_run(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2
    assert "Traceback" not in capsys.readouterr().err
