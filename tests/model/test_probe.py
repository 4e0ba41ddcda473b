# SPDX-License-Identifier: Apache-2.0
"""The probe's report against figures computed here from the plain copy of the same weights."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ascend_dsv4.errors import CheckpointError
from ascend_dsv4.model.checkpoint import INDEX_NAME, Checkpoint
from ascend_dsv4.model.probe import BlockSample, probe

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def folder(golden_v4: Path, tmp_path: Path) -> Path:
    target = tmp_path / "release"
    target.mkdir()
    for path in (golden_v4 / "fp8_fp4").iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def flip(path: Path, tensor: str, position: int, value: int) -> None:
    """Overwrite one byte of a tensor."""
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    content[8 + length + header[tensor]["data_offsets"][0] + position] = value
    path.write_bytes(content)


def test_headers_and_files(folder: Path) -> None:
    report = probe(folder)
    assert report.is_expected
    assert (report.folder, report.layout, report.has_draft) == ("release", "released", True)
    assert report.total_bytes == json.loads((folder / INDEX_NAME).read_text())["metadata"]["total_size"]
    assert report.shards == {shard: (folder / shard).stat().st_size for shard in SHARDS}
    raw = []
    for shard in SHARDS:
        content = (folder / shard).read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        raw += [entry for name, entry in header.items() if name != "__metadata__"]
    for dtype in ("BF16", "F32", "F8_E4M3", "F8_E8M0", "I8", "I64"):
        sizes = [entry["data_offsets"][1] - entry["data_offsets"][0] for entry in raw if entry["dtype"] == dtype]
        assert (report.dtypes[dtype].num_tensors, report.dtypes[dtype].num_bytes) == (len(sizes), sum(sizes))
    assert sum(count.num_tensors for count in report.dtypes.values()) == report.num_tensors == len(raw)
    for name in ("config.json", "tokenizer.json"):
        content = (folder / name).read_bytes()
        assert report.files[name].num_bytes == len(content)
        assert report.files[name].sha256 == hashlib.sha256(content).hexdigest()
    assert report.aliases == {"mtp.0.emb.tok_emb.weight": "identical", "mtp.0.head.weight": "identical"}


def block_of(sample: BlockSample, values: np.ndarray) -> np.ndarray:
    row, column = sample.block_index
    rows, cols = (128, 128) if sample.dtype == "F8_E4M3" else (1, 32)
    return values[row * rows : (row + 1) * rows, column * cols : (column + 1) * cols].astype(np.float64)


def test_blocks_equal_the_plain_copy(folder: Path, full_golden_v4: Path) -> None:
    plain, quantised = Checkpoint.open(full_golden_v4 / "bf16"), Checkpoint.open(folder)
    report = probe(folder, num_blocks=40)
    assert len(report.blocks) == 40
    assert [sample.dtype for sample in report.blocks].count("I8") == 20
    assert len({(sample.name, sample.block_index) for sample in report.blocks}) > 20
    for sample in report.blocks:
        values = block_of(sample, plain.read_float32(sample.name))
        assert values.size > 0
        assert sample.stats.min == values.min()
        assert sample.stats.max == values.max()
        assert sample.stats.rms == pytest.approx(np.sqrt((values**2).mean()), rel=1e-12)
        assert sample.zero_fraction == (values == 0).mean()
        assert (sample.num_nan, sample.stats.num_non_finite) == (0, 0)
        code = quantised.array(sample.name.removesuffix("weight") + "scale")[sample.block_index]
        assert sample.scale_exponent == int(code) - 127


def test_first_layer_equals_the_plain_copy(folder: Path, full_golden_v4: Path) -> None:
    plain = Checkpoint.open(full_golden_v4 / "bf16")
    report = probe(folder)
    expected = [name for name in plain.names() if name.startswith("layers.0.")]
    expected = [name for name in expected if ".experts." not in name or ".experts.0." in name]
    assert sorted(sample.name for sample in report.first_layer) == sorted(expected)
    assert not report.unreadable
    for sample in report.first_layer:
        stored = plain.array(sample.name) if sample.dtype == "I64" else plain.read_float32(sample.name)
        values = stored.astype(np.float64)
        assert (sample.stats.min, sample.stats.max) == (values.min(), values.max())
        assert sample.stats.mean == pytest.approx(values.mean(), rel=1e-9, abs=1e-15)
        assert sample.stats.rms == pytest.approx(np.sqrt((values**2).mean()), rel=1e-12)


def test_the_seed_decides_which_blocks(folder: Path) -> None:
    places = [[(b.name, b.block_index) for b in probe(folder, seed=seed).blocks] for seed in (0, 0, 1)]
    assert places[0] == places[1]
    assert places[0] != places[2]
    assert len(places[0]) == 16
    assert probe(folder, num_blocks=0).blocks == ()


def test_nan_is_counted_and_json_stays_finite(folder: Path) -> None:
    flip(folder / SHARDS[0], "layers.0.attn.wq_a.weight", 77, 0x7F)
    flip(folder / SHARDS[0], "layers.0.ffn.experts.0.w1.scale", 0, 255)
    flip(folder / SHARDS[0], "layers.0.attn.wkv.scale", 0, 255)
    report = probe(folder, num_blocks=2000)
    stats = {sample.name: sample.stats for sample in report.first_layer}
    assert stats["layers.0.attn.wq_a.weight"].num_non_finite == 1
    assert stats["layers.0.ffn.experts.0.w1.weight"].num_non_finite == 32
    wkv = stats["layers.0.attn.wkv.weight"]
    assert (wkv.num_non_finite, wkv.min, wkv.rms) == (96 * 128, None, None)
    poisoned = next(block for block in report.blocks if block.name == "layers.0.attn.wkv.weight")
    assert (poisoned.scale_exponent, poisoned.num_nan) == (None, 96 * 128)
    json.dumps(report.to_dict(), allow_nan=False)


def test_json_and_text_name_no_place(folder: Path) -> None:
    report = probe(folder)
    written = json.dumps(report.to_dict(), allow_nan=False)
    text = "\n".join(report.lines())
    assert json.loads(written)["is_expected"] is True
    assert json.loads(written)["blocks"][0]["stats"]["rms"] == report.blocks[0].stats.rms
    for shown in (written, text):
        assert "release" in shown
        assert str(folder.parent) not in shown
        assert socket.gethostname() not in shown
    for part in ("inventory: equal", "598 tensors", "sha256", "layers.0.attn.wq_a.weight (F8_E4M3)", "scale=2^"):
        assert part in text


def test_differences_are_reported_not_raised(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_routed_experts": 12, "moe_intermediate_size": 96}))
    report = probe(folder)
    assert not report.is_expected
    assert report.inventory_differences is not None
    assert len(report.inventory_differences.missing) == 4 * 7 * 6  # experts of 7 layers, three weights and scales each
    assert any("(got [8], expected [12])" in text for text in report.inventory_differences.misshapen)
    assert "inventory: 168 missing" in report.lines()
    assert "  ... and 148 more" in report.lines()
    assert report.blocks


def test_wrong_block_size_is_named_per_tensor(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["weight_block_size"] = [64, 128]
    (folder / "config.json").write_text(json.dumps(config))
    report = probe(folder)
    assert any(reason.startswith("layers.0.attn.wq_a.weight: fp8 decoder") for reason in report.unreadable)
    assert any(sample.name == "layers.0.ffn.experts.0.w1.weight" for sample in report.first_layer)


@pytest.mark.parametrize("text", ['{"architectures": ["Other"]}', "{", None])
def test_unusable_config(folder: Path, text: str | None) -> None:
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    report = probe(folder)
    assert report.inventory_differences is None
    assert not report.is_expected
    assert report.config_error is not None
    assert "release/config.json" in report.config_error
    assert str(folder.parent) not in json.dumps(report.to_dict())
    assert any(line.startswith("inventory: not compared") for line in report.lines())


def test_differing_alias(folder: Path) -> None:
    flip(folder / SHARDS[1], "mtp.0.head.weight", 5, 0)
    flip(folder / SHARDS[1], "mtp.0.head.weight", 7, 1)
    report = probe(folder)
    assert report.aliases["mtp.0.head.weight"] == "different"
    assert not report.is_expected
    assert "alias mtp.0.head.weight: different" in report.lines()


def test_plain_checkpoint(full_golden_v4: Path) -> None:
    report = probe(full_golden_v4 / "bf16")
    assert report.is_expected
    assert report.blocks == ()
    assert len(report.first_layer) > 20


def test_damaged_checkpoint_is_an_error(folder: Path) -> None:
    os.truncate(folder / SHARDS[0], 50_000)
    with pytest.raises(CheckpointError, match="truncated"):
        probe(folder)


def test_only_the_needed_pages_are_read(folder: Path) -> None:
    """A process that probes a file with 2 GiB of tensors that no sample needs stays far below that in memory."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc/self/status")
    size = 1 << 30
    content = (folder / SHARDS[0]).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    for name in ("layers.0.ffn.experts.99.w1.weight", "layers.99.other"):
        end = max(entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__")
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
    text = json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    os.truncate(path, path.stat().st_size + 2 * size)
    (folder / INDEX_NAME).unlink()
    code = (
        "import sys; from ascend_dsv4.model.probe import probe; report = probe(sys.argv[1]); print(report.total_bytes);"
        "print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    total_bytes, peak_kib = map(int, done.stdout.split())
    assert total_bytes > 2 * size
    assert peak_kib < 300 * 1024


def test_v41_tables(full_golden_v41: Path) -> None:
    """A row of an n-gram table has scales of its own: 1 x 32 values each, whatever the blocks of the matrices."""
    report = probe(full_golden_v41 / "fp8_fp4", num_blocks=2000)
    plain = Checkpoint.open(full_golden_v41 / "bf16")
    assert report.is_expected and not report.unreadable
    tables = [block for block in report.blocks if ".engram.embed." in block.name]
    assert {block.name for block in tables} == {f"layers.{layer}.engram.embed.weight" for layer in (1, 4)}
    for block in tables:
        row, column = block.block_index
        values = plain.read_float32(block.name)[row, column * 32 : (column + 1) * 32].astype(np.float64)
        assert (block.stats.min, block.stats.max) == (values.min(), values.max())
        assert block.stats.rms == pytest.approx(np.sqrt(np.square(values).mean()), rel=1e-12)


def test_v32_first_layer(full_golden_v32: Path) -> None:
    report = probe(full_golden_v32 / "fp8")
    plain = Checkpoint.open(full_golden_v32 / "bf16")
    assert report.is_expected and not report.unreadable
    found = {sample.name: sample.stats for sample in report.first_layer}
    assert found.keys() == {name for name in plain.names() if name.startswith("model.layers.0.")}
    for name, stats in found.items():
        values = plain.read_float32(name).astype(np.float64)
        assert (stats.min, stats.max) == (values.min(), values.max()), name
        assert stats.rms == pytest.approx(np.sqrt(np.square(values).mean()), rel=1e-9)
