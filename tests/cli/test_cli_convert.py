# SPDX-License-Identifier: Apache-2.0
"""`convert`: tables in every format, what they lose, and a model that reads them from every tier."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest

from ascend_dsv4 import LLM
from ascend_dsv4.cli.convert import FORMATS
from ascend_dsv4.engram.rows import RowFormat
from ascend_dsv4.engram.table_file import read_header
from ascend_dsv4.model.checkpoint import Checkpoint
from tests.cli.conftest import Run

IDS = list(range(3, 43))


@pytest.fixture
def folder(golden_v41: Path) -> Path:
    return golden_v41 / "fp8_fp4"


def convert(run: Run, folder: Path, out: Path, form: str) -> dict[str, Any]:
    result = run("convert", "--model", folder, "--out", out, "--engram", form, "--json")
    assert (result.code, result.err) == (0, "")
    report: dict[str, Any] = json.loads(result.out)
    return report


def logits(folder: Path, **options: Any) -> np.ndarray:
    return LLM(folder, progress=False, max_model_len=64, max_num_seqs=1, **options).logits(IDS)


def test_formats_are_those_of_the_rows() -> None:
    assert set(FORMATS) == set(get_args(RowFormat))


def test_released_bytes_from_every_tier(run: Run, folder: Path, tmp_path: Path) -> None:
    """fp8 keeps every bit, wherever its rows are read; bf16 holds the same values."""
    expected = logits(folder)
    for form in ("fp8", "bf16"):
        report = convert(run, folder, tmp_path / form, form)
        assert [table["layer"] for table in report["tables"]] == [1, 4]
        assert [table["rows"] for table in report["tables"]] == [1362, 1552]
        for table in report["tables"]:
            errors = (table["max_abs_error"], table["rms_error"], table["worst_block_error"])
            assert errors == (0, 0, 0) and table["cosine"] == pytest.approx(1)
            file = tmp_path / form / table["file"]
            assert table["bytes"] == file.stat().st_size == read_header(file).file_bytes
        for tier in ("disk", "mmap", "host") if form == "fp8" else ("disk",):
            found = logits(folder, engram_tables=str(tmp_path / form), engram_tier=tier, engram_cache_rows=8)
            assert np.array_equal(found, expected), (form, tier)


def test_a_smaller_format_loses_what_it_says(run: Run, folder: Path, tmp_path: Path) -> None:
    (eight, four) = (convert(run, folder, tmp_path / form, form)["tables"] for form in ("int8", "int4"))
    for fine, coarse in zip(eight, four, strict=True):
        assert 0 < fine["max_abs_error"] < coarse["max_abs_error"]
        assert 0 < fine["rms_error"] < fine["max_abs_error"] and fine["rms_error"] < coarse["rms_error"]
        assert 0 < fine["worst_block_error"] < coarse["worst_block_error"] < 0.5
        assert 1 > fine["cosine"] > coarse["cosine"] > 0.98
        values = Checkpoint.open(folder).read_float32(f"layers.{fine['layer']}.engram.embed.weight", (1, 32))
        assert fine["max_abs_error"] <= np.abs(values).max() / 127
        assert coarse["bytes"] < fine["bytes"]
    expected = logits(folder)
    off = [np.abs(logits(folder, engram_tables=str(tmp_path / form), engram_tier="disk") - expected).max()
           for form in ("int8", "int4")]  # fmt: skip
    assert 0 < off[0] < off[1]


def test_text(run: Run, folder: Path, tmp_path: Path) -> None:
    result = run("convert", "--model", folder, "--out", tmp_path / "a" / "b", "--engram", "int4")
    assert result.code == 0 and "int4: 2 tables" in result.out
    for layer, rows in ((1, "1,362"), (4, "1,552")):
        size = (tmp_path / "a" / "b" / f"engram.layer{layer}.int4.table").stat().st_size
        assert re.search(rf"layer {layer} +{rows} +{size:,} +\S+e[+-]0\d +\S+e-0\d +\S+e-0\d +0\.9\d+\n", result.out)
    assert "--engram-tier disk" in " ".join(result.err.split())
    assert run("convert", "--model", folder, "--out", tmp_path / "a" / "b", "--engram", "int4").code == 0  # replaced
    other = run("convert", "--model", folder, "--out", tmp_path / "a" / "b", "--engram", "fp8")
    assert other.code == 2 and "expected no tables of another format than fp8" in " ".join(other.err.split())


def test_what_cannot_be_converted(
    run: Run, folder: Path, golden_v4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: object) -> str:
        result = run("convert", *args)
        assert (result.code, result.out) == (2, "")
        return " ".join(result.err.split())

    out = ("--out", tmp_path / "out", "--engram", "fp8")
    assert "expected a model with n-gram tables" in refused("--model", golden_v4 / "fp8_fp4", *out)
    assert "expected one with a checkpoint" in refused("--model", "v41_flash", *out)
    assert "invalid choice" in refused("--model", folder, "--out", tmp_path, "--engram", "fp4")
    assert "required" in refused("--model", folder, "--out", tmp_path)
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "cannot be written" in refused("--model", folder, "--out", place, "--engram", "fp8")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100_000))
    assert "100,000 bytes free, expected 106,496" in refused("--model", folder, *out)
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1 << 40))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["engram_num_embeddings"] = [1362, 1553]
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).symlink_to(path) if path.name != "config.json" else None
    (copy / "config.json").write_text(json.dumps(config))
    assert "1,552 rows, expected 1,553" in refused("--model", copy, *out)
    assert not list((tmp_path / "out").glob("*.partial"))
