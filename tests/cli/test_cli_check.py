# SPDX-License-Identifier: Apache-2.0
"""`check`: published cache and parameter figures, damaged checkpoints, and a report that fits a terminal."""

from __future__ import annotations

import json
import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from ascend_dsv4 import LLM
from ascend_dsv4.cli.check import caches
from ascend_dsv4.cli.report import runs
from ascend_dsv4.config import EngineConfig, ModelConfig
from ascend_dsv4.model.probe import probe
from ascend_dsv4.ops import OP_NAMES
from tests.cli.conftest import Run

MODELS = Path(__file__).parents[2] / "configs" / "models"
MILLION = 1_048_576

# Public figures of the caches at 2^20 tokens: (model, format, paged bytes, state bytes, bytes of the drafter's window).
CACHES = [
    ("v4_flash", "bf16", 7_219_838_976, 12_206_080, 131_072),
    ("v4_pro", "bf16", 10_334_371_840, 18_710_528, 131_072),
    ("v4_flash", "packed", 3_688_172_544, 12_206_080, 128 * 584),
    ("v4_pro", "packed", 5_280_404_480, 18_710_528, 128 * 584),
    ("v4_flash_0731", "bf16", 7_219_838_976, 12_206_080, 393_216),
    ("v4_pro_0813", "bf16", 10_334_371_840, 18_710_528, 393_216),
]


@pytest.fixture
def folder(golden_v4: Path, tmp_path: Path) -> Path:
    copy = shutil.copytree(golden_v4 / "fp8_fp4", tmp_path / "model", copy_function=shutil.copyfile)
    copy.chmod(0o755)
    return copy


def check(run: Run, *args: object, code: int = 0) -> dict[str, Any]:
    result = run("check", *args, "--json")
    assert (result.code, result.err) == (code, "")
    report: dict[str, Any] = json.loads(result.out)
    return report


def test_environment(run: Run) -> None:
    report = check(run)
    for name in ("torch", "numpy", "deepseek-recipe", "tokenizers", "safetensors"):
        assert report["versions"][name] == metadata.version(name)
    assert report["operators"] == {
        "ops": "auto",
        "implementation": "reference",
        "resolved": dict.fromkeys(sorted(OP_NAMES), "reference"),
    }
    assert report["backends"]["cpu"] is None and report["backends"]["null"] is None
    assert "backend='npu'" in report["backends"]["npu"]
    assert 0 < report["machine"]["free_memory_bytes"] <= report["machine"]["memory_bytes"]
    assert report["problems"] == []
    assert report["engine"]["max_num_seqs"] == 1


def test_optional_packages_are_not_imported(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch_npu.py").write_text("raise ImportError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert check(run)["versions"]["torch-npu"] == "unknown version"


def test_a_backend_that_does_not_run(run: Run) -> None:
    for args in (["--backend", "npu"], ["--backend", "npu", "--model", "v4_flash"]):
        report = check(run, *args, code=1)
        assert report["problems"] == [report["backends"]["npu"]]
    assert run("check", "--ops", "fastest").code == 2


@pytest.mark.parametrize(("model", "form", "paged", "state", "draft"), CACHES)
def test_published_cache_sizes(model: str, form: str, paged: int, state: int, draft: int, run: Run) -> None:
    args = ("--model", MODELS / f"{model}.json", "--kv-cache", form, "--max-model-len", MILLION)
    cache = check(run, *args)["cache"]
    assert (cache["tokens"], cache["paged_bytes"], cache["state_bytes"]) == (MILLION, paged, state)
    assert cache["draft"]["needed_bytes"] == draft
    uses = cache["caches"]
    for use in [*uses, cache["draft"]]:
        assert use["needed_bytes"] == use["layers"] * use["rows"] * use["row_bytes"]
        assert use["allocated_bytes"] == use["layers"] * use["blocks"] * use["block_rows"] * use["row_bytes"]
        assert use["rounding_loss_bytes"] == use["allocated_bytes"] - use["needed_bytes"] >= 0
    assert sum(use["needed_bytes"] for use in uses) == paged + state
    assert sum(use["allocated_bytes"] for use in uses) == cache["allocated_bytes"]


def test_sequences_have_windows_and_states_of_their_own(run: Run) -> None:
    args = ("--model", "v4_flash", "--kv-cache", "bf16", "--max-model-len", 4096, "--max-total-tokens", 16384)
    one, three = (check(run, *args, "--max-num-seqs", count)["cache"] for count in (1, 3))
    assert (one["state_bytes"], three["state_bytes"]) == (12_206_080, 3 * 12_206_080)
    assert three["paged_bytes"] - one["paged_bytes"] == 2 * 43 * 128 * 1024  # entries are shared out, windows are not
    assert all(use["rounding_loss_bytes"] >= 0 for use in three["caches"])


@pytest.mark.parametrize(("form", "growth"), [("packed", 890), ("bf16", 3200)])
def test_v41_cache_sizes(form: Any, growth: int) -> None:
    """Published: bytes per token, and per sequence 43 windows of 128 rows with those of three draft stages."""
    config = ModelConfig.from_file(MODELS / "v41_flash.json")
    cache = caches(config, EngineConfig(kv_cache=form, max_num_seqs=1))
    row = {"packed": 528, "bf16": 1024}[form]
    windows, pairs = 43 * 128 * row, 3 * 2 * 2 * 512 * 4  # an open pair: two rows of kv and gate in float32
    assert cache["bytes_per_token"] == growth
    assert cache["bytes_per_sequence"] == windows + pairs
    assert cache["state_bytes"] == pairs and cache["draft"]["needed_bytes"] == 3 * 128 * row
    assert cache["paged_bytes"] == growth * MILLION + 40 * 128 * row
    found = {(use["name"], use["ratio"]): (use["layers"], use["rows"]) for use in cache["caches"]}
    assert found == {
        ("win_kv", 0): (40, 128), ("cmp_kv", 1): (1, MILLION), ("cmp_kv", 2): (3, MILLION // 2),
        ("idx_kv", 1): (1, MILLION), ("idx_kv", 2): (3, MILLION // 2), ("pair_state", 0): (3, 2),
    }  # fmt: skip
    three = caches(config, EngineConfig(kv_cache=form, max_num_seqs=3, max_model_len=4096))
    assert (three["bytes_per_token"], three["bytes_per_sequence"]) == (growth, windows + pairs)


def test_v32_cache_sizes() -> None:
    """61 layers of 656 and 132 bytes a token; nothing has a fixed size."""
    config = ModelConfig.from_file(MODELS / "v32.json")
    cache = caches(config, EngineConfig(kv_cache="packed", max_num_seqs=1))
    assert (cache["bytes_per_token"], cache["bytes_per_sequence"]) == (48_068, 0)
    assert cache["paged_bytes"] == 48_068 * 163_840
    assert caches(config, EngineConfig(kv_cache="bf16"))["bytes_per_token"] == 61 * 2 * (576 + 128)


def test_v41_as_text(run: Run) -> None:
    text = run("check", "--model", MODELS / "v41_flash.json", "--kv-cache", "packed").out
    assert "model: 552B total, 16B active" in text
    assert re.search(r"parameters +551,880,835,184 in the backbone\n +16,130,588,784 of them active per token\n", text)
    assert re.search(r" 196,613,849,600 in n-gram tables\n +485,268,480 for images\n +763,205,315,794 in all files\n", text)
    assert re.search(r"images +32 blocks of 1024, patches of 14 pixels", text)
    assert "layers: 40\n" in text
    assert re.search(r" reuse:2/moe +15  3-7, 9-13, 15-19\n", text)
    assert re.search(r" reindex:1/moe/candidates:use +4  24, 28, …, 36\n", text)
    assert "n-gram tables: fp8, in the checkpoint as it lies, mapped\n" in text
    assert re.search(r" layer 14 +384,016,682 +264 +101,380,404,048\n", text)
    assert re.search(r" all +768,022,850 +202,758,032,400\n", text)
    assert "24 of each table, 12,672 B together" in text
    assert re.search(r"per token +890 B that a sequence grows by\n", text)
    assert re.search(r"per sequence +2,930,688 B at any length: windows, draft stages, open entries\n", text)
    assert re.search(r"cmp_kv \(full:2\) +3 +524,288 +288 +452,984,832\n", text)
    v32 = run("check", "--model", "v32").out
    assert "n-gram" not in v32 and "images" not in v32 and "per sequence" not in v32 and "window" not in v32


def test_where_tables_live(run: Run, golden_v41: Path, tmp_path: Path) -> None:
    folder = golden_v41 / "fp8_fp4"
    size = 1362 + 1552  # rows
    for args, resident in (((), 0), (("--engram-tier", "host"), size * 33)):
        report = check(run, "--model", folder, *args)
        tables = report["tables"]
        assert (tables["format"], tables["row_bytes"], tables["num_bytes"]) == ("fp8", 33, size * 33)
        assert tables["layers"] == {"1": {"rows": 1362, "bytes": 1362 * 33}, "4": {"rows": 1552, "bytes": 1552 * 33}}
        assert tables["resident_bytes"] == report["memory"]["table_bytes"] == resident
        memory = report["memory"]
        assert memory["needed_bytes"] == memory["weight_bytes"] + report["cache"]["allocated_bytes"] + resident
    for layer in (1, 4):
        (tmp_path / f"engram.layer{layer}.int4.table").touch()
    args = ("--model", folder, "--engram-tier", "disk", "--engram-tables", tmp_path, "--engram-cache-rows", 1400)
    tables = check(run, *args)["tables"]
    assert (tables["format"], tables["row_bytes"], tables["resident_bytes"]) == ("int4", 17, (1362 + 1400) * 17)
    text = run("check", *args).out
    assert "n-gram tables: int4, in table files, read row by row" in text and str(tmp_path) in "".join(text.split())
    missing = run("check", "--model", folder, "--engram-tables", tmp_path / "nowhere")
    assert missing.code == 2 and "found no table file" in missing.err


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([0], "0"), ([0, 1], "0-1"), ([2, 8], "2, 8"), ([1, 3, 5], "1, 3, 5"), ([1, 3, 5, 7], "1, 3, …, 7"),
     ([0, 2, 3, 4, 9], "0, 2-4, 9"), ([3, 4, 6, 8, 10, 12], "3-4, 6, 8, …, 12"), ([], "")],
)  # fmt: skip
def test_runs(numbers: list[int], text: str) -> None:
    assert runs(numbers) == text


@pytest.mark.parametrize("name", ["v41/fp8_fp4", "v32/fp8"])
def test_probe_of_other_families(name: str, run: Run, golden_v41: Path, golden_v32: Path) -> None:
    report = check(run, "--model", golden_v41.parent / name, "--probe")
    assert report["files"]["valid"] and report["files"]["has_draft"] and report["problems"] == []
    found = report["probe"]
    assert found["is_expected"] and not found["unreadable"] and len(found["blocks"]) == 16 and found["first_layer"]
    text = run("check", "--model", golden_v41.parent / name, "--probe").out
    assert all(f"  {line}\n" in text for line in found["lines"])


def test_cache_sizes_as_text(run: Run) -> None:
    result = run("check", "--model", MODELS / "v4_flash.json", "--kv-cache", "bf16", "--max-model-len", MILLION)
    assert result.code == 0
    assert re.search(r"paged caches +7,219,838,976 B = 6.724 GiB\n", result.out)
    assert re.search(r"state +12,206,080 B = 11.641 MiB\n", result.out)
    assert re.search(r"draft cache +131,072 B needed", result.out)
    assert re.search(r"cmp_kv \(csa\) +21 +262,144 +1,024 +5,637,144,576\n", result.out)


def test_flash_rows_per_cache(run: Run) -> None:
    """Window of 128 rows, an entry per 4 or 128 tokens, 8 and 128 rows of state; 21 CSA and 20 HCA layers."""
    caches = check(run, "--model", "v4_flash", "--kv-cache", "bf16", "--max-model-len", MILLION)["cache"]["caches"]
    found = {(use["name"], use["layer_type"]): (use["layers"], use["rows"], use["row_bytes"]) for use in caches}
    assert found == {
        ("win_kv", "all"): (43, 128, 1024),
        ("cmp_kv", "csa"): (21, MILLION // 4, 1024), ("cmp_kv", "hca"): (20, MILLION // 128, 1024),
        ("idx_kv", "csa"): (21, MILLION // 4, 256),
        ("cmp_state", "csa"): (21, 8, 2 * 1024 * 4), ("idx_state", "csa"): (21, 8, 2 * 256 * 4),
        ("cmp_state", "hca"): (20, 128, 2 * 512 * 4),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model", "name", "backbone", "tensors"),
    [
        ("v4_flash", "284B total, 13B active", 284_332_240_471, 69_187),
        ("v4_pro", "1.6T total, 49B active", 1_572_997_201_763, None),
    ],
)
def test_published_parameters(model: str, name: str, backbone: int, tensors: int | None, run: Run) -> None:
    report = check(run, "--model", model)
    assert report["model"]["parameters"]["name"] == name
    assert report["model"]["parameters"]["backbone"] == backbone
    assert tensors in (None, report["inventory"]["num_tensors"])
    assert "does not fit" not in "".join(report["problems"])  # no weights, so nothing is going to be loaded


def test_model_summary(run: Run) -> None:
    model = check(run, "--model", "v4_flash")["model"]
    assert model["layer_types"] == {"sliding/hash_moe": 2, "csa/hash_moe": 1, "hca/moe": 20, "csa/moe": 20}
    assert (model["draft_method"], model["draft_stages"]) == ("mtp", 1)


def test_what_is_allocated_is_what_is_printed(run: Run, demo_folder: Path) -> None:
    llm = LLM(demo_folder, max_model_len=8192, max_num_seqs=1)
    args = ("--model", demo_folder, "--max-model-len", 8192)
    report = check(run, *args)
    assert report["cache"]["allocated_bytes"] == llm.runner.cache_bytes()
    assert f"allocated     {llm.runner.cache_bytes():,} B" in run("check", *args).out
    by_name: dict[str, int] = {}
    for layer in llm.runner.caches:
        for name, tensor in layer.items():
            by_name[name] = by_name.get(name, 0) + tensor.nbytes
    for use in report["cache"]["caches"]:
        by_name[use["name"]] -= use["allocated_bytes"]
    assert set(by_name.values()) == {0}
    assert report["memory"]["fits"] and report["files"]["valid"]


def test_a_valid_folder(run: Run, golden_v4: Path) -> None:
    folder = golden_v4 / "fp8_fp4"
    files = check(run, "--model", folder)["files"]
    stored = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert (files["valid"], files["num_tensors"], files["num_shards"]) == (True, len(stored), 2)
    assert files["has_draft"] and files["layout"] == "released"
    assert "files   valid: " in run("check", "--model", folder).out


def test_a_folder_without_weights(run: Run, folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    report = check(run, "--model", folder, code=1)
    assert not report["files"]["valid"] and "no *.safetensors file" in report["problems"][0]
    assert check(run, "--model", folder / "config.json")["files"] is None


def test_damaged_weights(run: Run, folder: Path) -> None:
    shard = folder / "model-00002-of-00002.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    report = check(run, "--model", folder, code=1)
    assert not report["files"]["valid"]
    assert any("truncated" in problem for problem in report["problems"])
    result = run("check", "--model", folder)
    assert result.code == 1
    assert "INVALID" in result.out and "problem: " in result.out and "truncated" in result.out
    shard.unlink()
    assert "shards missing on disk" in check(run, "--model", folder, code=1)["problems"][0]


def test_weights_of_another_model(run: Run, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"moe_intermediate_size": 64}))
    (problem,) = check(run, "--model", folder, code=1)["problems"]
    assert "wrong shape" in problem and "layers.0.ffn.experts.0.w1.weight" in problem


def test_options_that_cannot_run_the_weights(run: Run, golden_v4: Path) -> None:
    folder = golden_v4 / "fp8_fp4"
    report = check(run, "--model", folder, "--kv-cache", "packed", "--weights", "w8a8", code=1)
    assert [problem.split(":")[0] for problem in report["problems"]] == ["kv_cache='packed'", "weights='w8a8'"]
    assert report["cache"]["caches"] and report["files"]["valid"]
    too_many = check(run, "--model", folder, "--max-total-tokens", 1 << 32, code=1)
    assert not too_many["memory"]["fits"]
    assert run("check", "--model", folder, "--max-model-len", 4096).code == 2


def test_memory_counts_resident_weights(run: Run, golden_v4: Path) -> None:
    """Decoding FP4 and FP8 while loading takes more memory than the files."""
    sizes = {
        form: check(run, "--model", golden_v4 / "fp8_fp4", "--weights", form)["memory"]["weight_bytes"]
        for form in ("released", "bf16", "fp32")
    }
    assert sizes["released"] < sizes["bf16"] / 2 < sizes["fp32"] / 2


def test_probe(run: Run, folder: Path) -> None:
    report = check(run, "--model", folder, "--probe")["probe"]
    expected = probe(folder)
    assert report == json.loads(json.dumps(expected.to_dict() | {"lines": expected.lines()}))
    text = run("check", "--model", folder, "--probe").out
    assert all(f"  {line}\n" in text for line in expected.lines())
    (folder / "config.json").write_text("{}")
    broken = check(run, "--model", folder, "--probe", code=1)
    assert broken["probe"]["config_error"] and "model" not in broken
    assert run("check", "--model", folder).code == 2


def test_probe_needs_a_folder(run: Run) -> None:
    for args in ((), ("--model", "v4_flash")):
        result = run("check", "--probe", *args)
        assert (result.code, result.out) == (2, "")
        assert "expected a checkpoint folder" in result.err


@pytest.mark.parametrize(("width", "tokens"), [(80, 1 << 26), (120, 1 << 26), (20, 1 << 32)])
def test_the_report_fits_the_terminal(width: int, tokens: int, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = run("check", "--model", "v4_flash", "--max-num-seqs", 256, "--max-total-tokens", tokens).out.splitlines()
    assert not any("\x1b" in line or line != line.rstrip() for line in lines)
    row = rf" +cmp_kv \(csa\) +21 +{tokens // 4:,} +2,048 +{21 * tokens // 4 * 2048:,}"
    assert any(re.fullmatch(row, line) for line in lines)
    if width >= 80:
        assert max(len(line) for line in lines if not line.startswith("note: ")) <= width
