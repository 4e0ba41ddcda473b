# SPDX-License-Identifier: Apache-2.0
"""Reading checkpoints: the golden files as they are, then damaged in every way that a download or an attacker can."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from ascend_dsv4.config import ModelConfig
from ascend_dsv4.errors import CheckpointError
from ascend_dsv4.model import safetensors_file
from ascend_dsv4.model.checkpoint import INDEX_NAME, MAX_INDEX_BYTES, Checkpoint
from ascend_dsv4.model.inventory import inventory, optional_aliases
from ascend_dsv4.model.safetensors_file import SafetensorsFile
from ascend_dsv4.model.tensor_spec import TensorSpec

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
BLOCK = (128, 128)
Header = dict[str, Any]


def write_raw(path: Path, header: bytes, data: bytes) -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def read_raw(path: Path) -> tuple[Header, bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_tensors(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> Path:
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    return write_raw(path, json.dumps(header).encode(), data)


def change_header(path: Path, change: Callable[[Header], None]) -> None:
    header, data = read_raw(path)
    change(header)
    write_raw(path, json.dumps(header).encode(), data)


def change_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    index = json.loads((folder / INDEX_NAME).read_text())
    change(index["weight_map"])
    (folder / INDEX_NAME).write_text(json.dumps(index))


def rename(header: Header, old: str, new: str) -> None:
    header[new] = header.pop(old)


@pytest.fixture
def folder(golden_v4: Path, tmp_path: Path) -> Path:
    """A writable copy of the quantised golden checkpoint."""
    target = tmp_path / "copy"
    target.mkdir()
    for path in (golden_v4 / "fp8_fp4").iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def rewrite_without_index(folder: Path, change: Callable[[dict[str, tuple[str, list[int], bytes]]], None]) -> None:
    """Change the tensors of the second shard (drafts and final norm) and take the index away."""
    header, data = read_raw(folder / SHARDS[1])
    tensors = {
        name: (raw["dtype"], raw["shape"], data[slice(*raw["data_offsets"])])
        for name, raw in header.items()
        if name != "__metadata__"
    }
    change(tensors)
    write_tensors(folder / SHARDS[1], tensors)
    (folder / INDEX_NAME).unlink()


def model_of(folder: Path) -> tuple[list[TensorSpec], dict[str, str]]:
    config = ModelConfig.from_file(folder / "config.json")
    return list(inventory(config)), dict(optional_aliases(config))


def validate(folder: Path) -> None:
    Checkpoint.open(folder).validate(*model_of(folder))


class TestSafetensorsFile:
    @pytest.mark.parametrize("shard", SHARDS)
    def test_equals_the_reader_of_the_format(self, golden_v4: Path, shard: str) -> None:
        file = SafetensorsFile(golden_v4 / "fp8_fp4" / shard)
        with safe_open(golden_v4 / "fp8_fp4" / shard, framework="pt") as expected:
            assert set(file.tensors) == set(expected.keys())
            for tensor in file.tensors:
                other = expected.get_tensor(tensor)
                assert file.tensors[tensor].shape == tuple(other.shape)
                assert file.bytes(tensor).tobytes() == other.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    def test_numpy_dtypes(self, golden_v4: Path) -> None:
        file = SafetensorsFile(golden_v4 / "fp8_fp4" / SHARDS[0])
        dtypes = {entry.dtype: file.array(name).dtype for name, entry in file.tensors.items()}
        assert dtypes == {"I64": "<i8", "F32": "<f4", "BF16": "<u2", "F8_E8M0": "u1", "F8_E4M3": "u1", "I8": "i1"}
        assert file.array("layers.0.ffn.gate.tid2eid").shape == (512, 2)

    def test_views_are_not_copies_and_never_reach_the_file(self, folder: Path) -> None:
        path = folder / SHARDS[0]
        before = path.read_bytes()
        file = SafetensorsFile(path)
        array = file.array("embed.weight")
        assert np.shares_memory(array, file.bytes("embed.weight"))
        tensor = torch.from_numpy(array)  # would warn for a read-only array
        tensor.fill_(1)
        assert (file.array("embed.weight") == 1).all()
        assert path.read_bytes() == before

    def test_header_is_read_without_mapping_the_data(self, folder: Path) -> None:
        if not Path("/proc/self/maps").exists():
            pytest.skip("needs /proc/self/maps")
        checkpoint = Checkpoint.open(folder)
        specs, _ = model_of(folder)
        assert not checkpoint.differences(specs[1:], {}).missing
        assert str(folder) not in Path("/proc/self/maps").read_text()
        checkpoint.array("norm.weight")
        mapped = Path("/proc/self/maps").read_text()
        assert SHARDS[1] in mapped
        assert SHARDS[0] not in mapped

    def test_file_larger_than_memory(self, tmp_path: Path) -> None:
        size = 4 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        tensors = {"big": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
        path = write_raw(tmp_path / "big.safetensors", json.dumps(tensors).encode(), b"")
        try:
            os.truncate(path, path.stat().st_size + size)
        except OSError as error:
            pytest.skip(f"no sparse files here: {error}")
        file = SafetensorsFile(path)
        assert file.bytes("big")[-4:].tolist() == [0, 0, 0, 0]
        file.bytes("big")[-1] = 7  # a private page
        assert file.array("big")[-1] == 7

    def test_unaligned_data_is_copied(self, tmp_path: Path) -> None:
        values = np.arange(5, dtype=np.float32)
        path = write_tensors(tmp_path / "x", {"a": ("U8", [3], b"abc"), "b": ("F32", [5], values.tobytes())})
        assert SafetensorsFile(path).array("b").tolist() == values.tolist()
        assert SafetensorsFile(path).array("b").flags.aligned

    def test_scalars_and_empty_tensors(self, tmp_path: Path) -> None:
        tensors = {"empty": ("F32", [0, 7], b""), "scalar": ("I64", [], (5).to_bytes(8, "little"))}
        file = SafetensorsFile(write_tensors(tmp_path / "x", tensors))
        assert file.array("empty").shape == (0, 7)
        assert file.array("scalar").item() == 5
        assert not SafetensorsFile(write_raw(tmp_path / "y", b"{}", b"")).tensors

    def test_padded_header_and_metadata(self, tmp_path: Path) -> None:
        file = SafetensorsFile(write_raw(tmp_path / "x", b'{"__metadata__": {"format": "pt"}}      ', b""))
        assert not file.tensors


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> bytes:
    return json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()


def two(first: tuple[int, int], second: tuple[int, int]) -> bytes:
    return json.dumps(
        {
            name: {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
            for name, (begin, end) in {"a": first, "b": second}.items()
        }
    ).encode()


BAD_FILES: dict[str, tuple[bytes, bytes, str]] = {
    "not json": (b"{nope", b"", "not valid JSON"),
    "not utf-8": (b'{"\xff": 1}', b"", "not valid JSON"),
    "nested too deep": (b"[" * 200_000, b"", "not valid JSON"),
    "huge number": (b'{"a": ' + b"9" * 10_000 + b"}", b"", "not valid JSON"),
    "json list": (b"[1, 2]", b"", "got a JSON list"),
    "duplicate tensor": (entry()[:-1] + b"," + entry()[1:], bytes(8), "'a' occurs twice"),
    "duplicate field": (b'{"a": {"dtype": "U8", "dtype": "U8"}}', b"", "'dtype' occurs twice"),
    "metadata not a map": (b'{"__metadata__": ["x"]}', b"", "__metadata__ is not a map of strings"),
    "metadata values": (b'{"__metadata__": {"x": 1}}', b"", "__metadata__ is not a map of strings"),
    "entry not an object": (b'{"a": 3}', b"", "got 3, expected an object"),
    "field missing": (b'{"a": {"dtype": "U8", "shape": []}}', b"", "expected an object with dtype"),
    "unknown dtype": (entry("F4"), bytes(8), "got dtype 'F4', expected one of BOOL, U8"),
    "dtype not text": (entry(["F32"]), bytes(8), r"got dtype \['F32'\]"),
    "negative shape": (entry(shape=[-2]), bytes(8), r"got shape \[-2\]"),
    "two negative sizes": (entry(shape=[-1, -2]), bytes(8), r"got shape \[-1, -2\]"),
    "float shape": (entry(shape=[2.0]), bytes(8), r"got shape \[2.0\]"),
    "bool shape": (entry(shape=[True, 2]), bytes(8), r"got shape \[True, 2\]"),
    "shape not a list": (entry(shape=2), bytes(8), "got shape 2"),
    "product past 64 bits": (entry(shape=[2**32, 2**32, 2]), bytes(8), "product up to"),
    "empty but absurd": (entry(shape=[0, 2**58, 2**58], offsets=[0, 0]), b"", "product up to"),
    "too many sizes": (entry(shape=[1] * 33 + [2]), bytes(8), "at most 32 sizes"),
    "negative offset": (entry(offsets=[-8, 0]), bytes(8), r"data_offsets \[-8, 0\]"),
    "one offset": (entry(offsets=[8]), bytes(8), r"got data_offsets \[8\]"),
    "end before begin": (entry(offsets=[8, 0]), bytes(8), "a span of -8 bytes, expected 8 bytes"),
    "size against shape": (entry(shape=[3]), bytes(8), r"a span of 8 bytes, expected 12 bytes for shape \[3\] of F32"),
    "overlap": (two((0, 6), (4, 8)), bytes(8), "'b' overlaps a: it starts at byte .* expected"),
    "same bytes twice": (two((0, 8), (0, 8)), bytes(8), "'b' overlaps a"),
    "hole": (two((0, 4), (6, 8)), bytes(8), "'b' leaves a hole after a"),
    "hole at the start": (two((2, 4), (4, 8)), bytes(8), "'a' leaves a hole after the header"),
    "bytes at the end": (two((0, 4), (4, 8)), bytes(11), "3 bytes at the end belong to no tensor"),
    "no tensors but data": (b"{}", bytes(5), "5 bytes at the end"),
}


class TestDamagedFiles:
    @pytest.mark.parametrize("case", BAD_FILES)
    def test_bad_header(self, tmp_path: Path, case: str) -> None:
        header, data, message = BAD_FILES[case]
        path = write_raw(tmp_path / "bad.safetensors", header, data)
        with pytest.raises(CheckpointError, match=message) as caught:
            SafetensorsFile(path)
        assert str(path) in str(caught.value)
        assert len(str(caught.value)) < 1500

    @pytest.mark.parametrize("kept", [0, 5, 8, 5000, -1, -1_000_000])
    def test_truncated(self, folder: Path, kept: int) -> None:
        path = folder / SHARDS[1]
        size = path.stat().st_size
        header_end = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        left = kept if kept >= 0 else size + kept
        os.truncate(path, left)
        needed = 8 if left < 8 else header_end if left < header_end else size
        with pytest.raises(CheckpointError, match=f"truncated.* {needed - left:,} bytes are missing") as caught:
            SafetensorsFile(path)
        assert "Download this shard again" in str(caught.value)

    def test_oversized_header(self, tmp_path: Path) -> None:
        path = tmp_path / "x.safetensors"
        path.write_bytes((safetensors_file.MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}")
        with pytest.raises(CheckpointError, match="claims 100,000,001 bytes, expected at most 100,000,000"):
            SafetensorsFile(path)
        path.write_bytes(b"\xff" * 64)
        with pytest.raises(CheckpointError, match="expected at most"):
            SafetensorsFile(path)

    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="cannot be read"):
            SafetensorsFile(tmp_path / "nothing.safetensors")
        with pytest.raises(CheckpointError, match="cannot be read"):
            SafetensorsFile(tmp_path)


class TestOpen:
    def test_sharded(self, folder: Path) -> None:
        index = json.loads((folder / INDEX_NAME).read_text())
        checkpoint = Checkpoint.open(folder)
        assert checkpoint.shards == SHARDS
        assert checkpoint.total_bytes == index["metadata"]["total_size"]
        assert list(checkpoint.names()) == sorted(index["weight_map"])
        assert (checkpoint.layout, checkpoint.has_draft) == ("released", True)
        assert checkpoint.entry("embed.weight").shape == (512, 128)

    def test_single_file(self, golden_v4: Path, tmp_path: Path) -> None:
        shutil.copy(golden_v4 / "fp8_fp4" / SHARDS[1], tmp_path / "model.safetensors")
        (tmp_path / "other.safetensors").write_bytes(b"not looked at")
        (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
        checkpoint = Checkpoint.open(tmp_path)
        assert checkpoint.shards == ("model.safetensors",)
        assert len(checkpoint.names()) == 323

    def test_without_index(self, folder: Path) -> None:
        (folder / INDEX_NAME).unlink()
        assert len(Checkpoint.open(folder).names()) == 598
        (folder / SHARDS[1]).unlink()
        with pytest.raises(CheckpointError, match=rf"{SHARDS[1]} \(not on disk\)"):
            Checkpoint.open(folder)

    def test_same_tensor_in_two_shards(self, folder: Path) -> None:
        (folder / INDEX_NAME).unlink()
        shutil.copy(folder / SHARDS[0], folder / "extra.safetensors")
        with pytest.raises(CheckpointError, match=r"275 stored twice[^~]* hc_head_fn \(in extra.safetensors and"):
            Checkpoint.open(folder)

    def test_shard_missing_on_disk(self, folder: Path) -> None:
        (folder / SHARDS[0]).unlink()
        with pytest.raises(CheckpointError, match=rf"shards missing on disk:\n    {SHARDS[0]} \(275 tensors\)"):
            Checkpoint.open(folder)

    def test_shard_missing_from_the_index(self, folder: Path) -> None:
        def drop(weight_map: dict[str, str]) -> None:
            for name in [name for name, shard in weight_map.items() if shard == SHARDS[1]]:
                del weight_map[name]

        change_index(folder, drop)
        with pytest.raises(CheckpointError, match=rf"{SHARDS[1]} \(on disk, but not in the index\)"):
            Checkpoint.open(folder)

    def test_everything_wrong_is_reported_at_once(self, folder: Path) -> None:
        def spoil(weight_map: dict[str, str]) -> None:
            del weight_map["embed.weight"]
            weight_map["layers.9.ghost"] = SHARDS[0]
            weight_map["norm.weight"] = "../secret.safetensors"
            weight_map["layers.9.absent"] = "model-00003-of-00003.safetensors"

        change_index(folder, spoil)
        os.truncate(folder / SHARDS[1], 100_000)
        with pytest.raises(CheckpointError) as caught:
            Checkpoint.open(folder)
        message = str(caught.value)
        for part in (
            f"embed.weight ({SHARDS[0]})",
            f"layers.9.ghost ({SHARDS[0]})",
            "'../secret.safetensors'",
            "model-00003-of-00003.safetensors (1 tensors)",
            f"{SHARDS[1]}: truncated",
        ):
            assert part in message

    @pytest.mark.parametrize(
        "shard",
        [
            "../x.safetensors",
            "/etc/x.safetensors",
            "sub/x.safetensors",
            "..\\x.safetensors",
            "a\x00.safetensors",
            7,
            None,
        ]
        + ["x.txt", "..", "", "y" * 300 + ".safetensors"],
    )
    def test_index_pointing_outside(self, folder: Path, shard: Any) -> None:
        # the tensor exists where the index points, so only the name can be what is refused
        shutil.copy(folder / SHARDS[0], folder.parent / "x.safetensors")
        change_index(folder, lambda weight_map: weight_map.update({"embed.weight": shard}))
        with pytest.raises(CheckpointError, match="unusable shard names in the index"):
            Checkpoint.open(folder)

    @pytest.mark.parametrize("shard", ["pytorch_model.bin", "model.pt", "model.pth"])
    def test_index_of_pickles(self, folder: Path, shard: str) -> None:
        (folder / shard).write_bytes(b"\x80\x04.")
        change_index(folder, lambda weight_map: weight_map.update({"embed.weight": shard}))
        with pytest.raises(CheckpointError, match=f"'{shard}': pickle files are never opened"):
            Checkpoint.open(folder)

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "pytorch_model.bin.index.json"])
    def test_only_pickles(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"\x80\x04.")
        with pytest.raises(CheckpointError, match=f"only pickle files .{name}.*unpickling runs code"):
            Checkpoint.open(tmp_path)

    def test_no_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="no .*safetensors file"):
            Checkpoint.open(tmp_path)
        with pytest.raises(CheckpointError, match="not a folder"):
            Checkpoint.open(tmp_path / "nothing")

    def test_bad_index(self, folder: Path) -> None:
        index = folder / INDEX_NAME
        for text, message in (
            ("{", "not valid JSON"),
            ("[]", "no weight_map"),
            ('{"weight_map": {}}', "no weight_map"),
            ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "'a' occurs twice"),
        ):
            index.write_text(text)
            with pytest.raises(CheckpointError, match=message):
                Checkpoint.open(folder)
        os.truncate(index, MAX_INDEX_BYTES + 1)
        with pytest.raises(CheckpointError, match="more than 100,000,000 bytes"):
            Checkpoint.open(folder)

    def test_a_claimed_count_of_shards_is_not_believed(self, folder: Path) -> None:
        (folder / INDEX_NAME).unlink()
        (folder / SHARDS[1]).unlink()
        (folder / SHARDS[0]).rename(folder / "model-00001-of-99999.safetensors")
        with pytest.raises(CheckpointError, match=r"model-00002-of-99999[^~]*\.\.\. and \d more") as caught:
            Checkpoint.open(folder)
        assert len(str(caught.value)) < 3000


class TestValidate:
    def test_quantised_golden_fits(self, golden_v4: Path) -> None:
        validate(golden_v4 / "fp8_fp4")

    def test_plain_golden_fits(self, full_golden_v4: Path) -> None:
        validate(full_golden_v4 / "bf16")

    def test_all_differences_at_once(self, folder: Path) -> None:
        def spoil(header: Header) -> None:
            rename(header, "layers.0.attn.wq_a.weight", "layers.0.attn.surprise")
            header["layers.0.hc_attn_fn"]["shape"] = [12, 1024]
            header["layers.0.attn.wo_b.weight"]["dtype"] = "I8"

        change_header(folder / SHARDS[0], spoil)
        (folder / INDEX_NAME).unlink()
        with pytest.raises(CheckpointError) as caught:
            validate(folder)
        message = str(caught.value)
        assert "1 missing, 1 surplus, 1 wrong shape, 1 wrong dtype" in message
        assert "missing:\n    layers.0.attn.wq_a.weight\n" in message
        assert "surplus:\n    layers.0.attn.surprise\n" in message
        assert "layers.0.hc_attn_fn (got [12, 1024], expected [24, 512])" in message
        assert "layers.0.attn.wo_b.weight (got I8, expected F8_E4M3)" in message

    def test_long_lists_are_cut(self, folder: Path) -> None:
        specs, aliases = model_of(folder)
        more = [TensorSpec(f"extra.{i}", "F32", (1,)) for i in range(33)]
        with pytest.raises(CheckpointError, match="33 missing") as caught:
            Checkpoint.open(folder).validate([*specs, *more], aliases)
        assert "... and 13 more" in str(caught.value)
        assert str(caught.value).count("extra.") == 20

    def test_another_storage_format(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        del config["quantization_config"], config["expert_dtype"]
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=": 229 surplus, 168 wrong shape, 229 wrong dtype"):
            validate(folder)  # all scales, the packed experts, and both kinds of quantised weights

    @pytest.mark.parametrize(
        ("tensor", "dtype", "is_accepted"),
        [
            ("layers.0.ffn.experts.3.w2.weight", "U8", True),
            ("layers.0.attn.wq_a.scale", "U8", True),
            ("layers.0.attn.wq_a.weight", "U8", False),
            ("layers.0.attn.wq_a.weight", "F8_E5M2", False),
            ("layers.0.attn.wq_a.scale", "I8", False),
            ("layers.0.attn.wq_a.scale", "F8_E4M3", False),
            ("layers.0.attn_norm.weight", "F16", False),
            ("layers.0.attn.attn_sink", "I32", False),
            ("layers.0.ffn.gate.tid2eid", "U64", False),
        ],
    )
    def test_dtypes_of_older_writers(self, folder: Path, tensor: str, dtype: str, is_accepted: bool) -> None:
        change_header(folder / SHARDS[0], lambda header: header[tensor].update(dtype=dtype))
        if is_accepted:
            validate(folder)
            Checkpoint.open(folder).read_float32("layers.0.ffn.experts.3.w2.weight")
            Checkpoint.open(folder).read_float32("layers.0.attn.wq_a.weight", BLOCK)
        else:
            with pytest.raises(CheckpointError, match=rf"{tensor} \(got {dtype}"):
                validate(folder)

    def test_released_norms_must_be_bfloat16(self, folder: Path) -> None:
        rewrite_without_index(folder, lambda tensors: tensors.update({"norm.weight": ("F32", [128], bytes(512))}))
        with pytest.raises(CheckpointError, match=r"norm.weight \(got F32, expected BF16\)"):
            validate(folder)

    def test_released_draft_stages_must_be_there(self, folder: Path) -> None:
        drafts = [name for name in Checkpoint.open(folder).names() if name.startswith("mtp.")]

        def drop(tensors: dict[str, Any]) -> None:
            for name in drafts:
                del tensors[name]

        rewrite_without_index(folder, drop)
        assert not Checkpoint.open(folder).has_draft
        with pytest.raises(CheckpointError, match=f": {len(drafts) - 2} missing"):  # two of them are aliases
            validate(folder)

    def test_released_draft_stages_must_be_whole(self, folder: Path) -> None:
        specs, aliases = model_of(folder)
        (folder / INDEX_NAME).unlink()
        change_header(folder / SHARDS[1], lambda header: rename(header, "mtp.0.enorm.weight", "mtp.0.other"))
        with pytest.raises(CheckpointError, match=r"missing:\n    mtp.0.enorm.weight"):
            Checkpoint.open(folder).validate(specs, aliases)


class TestAliases:
    ALIAS = "mtp.0.head.weight"

    def change_byte(self, folder: Path, position: int) -> None:
        header, _ = read_raw(folder / SHARDS[1])
        content = bytearray((folder / SHARDS[1]).read_bytes())
        begin, end = header[self.ALIAS]["data_offsets"]
        start = 8 + int.from_bytes(content[:8], "little")
        content[start + (begin + position if position >= 0 else end + position)] ^= 1
        (folder / SHARDS[1]).write_bytes(content)

    @pytest.mark.parametrize("position", [0, 70_000, -1])
    def test_one_differing_byte(self, folder: Path, position: int) -> None:
        self.change_byte(folder, position)
        with pytest.raises(CheckpointError, match=r"mtp.0.head.weight \(of head.weight\)"):
            validate(folder)
        _, aliases = model_of(folder)
        status = {"mtp.0.emb.tok_emb.weight": "identical", "mtp.0.head.weight": "different"}
        assert Checkpoint.open(folder).alias_status(aliases) == status

    @pytest.mark.parametrize("position", [0, 1 << 24, (1 << 24) + 7])
    def test_large_tensors_are_compared_to_the_end(self, tmp_path: Path, position: int) -> None:
        size = (1 << 24) + 8
        path = write_tensors(tmp_path / "model.safetensors", {"a": ("U8", [size], b""), "b": ("U8", [size], b"")})
        header, _ = read_raw(path)
        header["a"]["data_offsets"], header["b"]["data_offsets"] = [0, size], [size, 2 * size]
        text = json.dumps(header).encode()
        write_raw(path, text, b"")
        os.truncate(path, 8 + len(text) + 2 * size)
        assert Checkpoint.open(tmp_path).alias_status({"b": "a"}) == {"b": "identical"}
        with path.open("r+b") as file:
            file.seek(8 + len(text) + size + position)
            file.write(b"x")
        assert Checkpoint.open(tmp_path).alias_status({"b": "a"}) == {"b": "different"}

    def test_absent_is_fine(self, folder: Path) -> None:
        rewrite_without_index(folder, lambda tensors: tensors.__delitem__(self.ALIAS))
        validate(folder)
        assert Checkpoint.open(folder).alias_status({self.ALIAS: "head.weight"}) == {self.ALIAS: "absent"}

    def test_shape_and_dtype_count(self, folder: Path) -> None:
        change_header(folder / SHARDS[1], lambda header: header[self.ALIAS].update(shape=[128, 512]))
        with pytest.raises(CheckpointError, match=rf"{self.ALIAS} \(got \[128, 512\], expected \[512, 128\]\)"):
            validate(folder)

    def test_headers_are_compared_before_aliases(self, folder: Path) -> None:
        self.change_byte(folder, 0)
        change_header(folder / SHARDS[0], lambda header: rename(header, "embed.weight", "renamed"))
        (folder / INDEX_NAME).unlink()
        with pytest.raises(CheckpointError, match="1 missing, 1 surplus") as caught:
            validate(folder)
        assert "head.weight" not in str(caught.value)


class TestReadFloat32:
    def test_rows(self, folder: Path) -> None:
        checkpoint = Checkpoint.open(folder)
        for name, rows in (
            ("layers.0.attn.wq_b.weight", (128, 300)),
            ("layers.0.ffn.experts.0.w1.weight", (5, 17)),
            ("embed.weight", (500, 512)),
            ("layers.0.hc_attn_fn", (3, 4)),
            ("layers.0.attn.wkv.weight", (0, 96)),
        ):
            whole = checkpoint.read_float32(name, BLOCK)
            part = checkpoint.read_float32(name, BLOCK, rows=rows)
            assert part.shape == (rows[1] - rows[0], whole.shape[1])
            assert np.array_equal(part, whole[slice(*rows)])

    def test_float32_is_not_copied(self, folder: Path) -> None:
        checkpoint = Checkpoint.open(folder)
        name = "layers.0.hc_attn_fn"
        assert np.shares_memory(checkpoint.read_float32(name), checkpoint.bytes(name))

    def test_bfloat16_keeps_nan_and_signs(self, tmp_path: Path) -> None:
        patterns = np.array([0x8000, 0x7FC1, 0x3F80, 0xFF80, 0x0001], dtype=np.uint16)
        write_tensors(tmp_path / "model.safetensors", {"x": ("BF16", [5], patterns.tobytes())})
        got = Checkpoint.open(tmp_path).read_float32("x")
        assert got.view(np.uint32).tolist() == [pattern << 16 for pattern in patterns.tolist()]
        expected = torch.from_numpy(patterns.view(np.int16)).view(torch.bfloat16).float()
        np.testing.assert_array_equal(got, expected.numpy())

    def test_what_cannot_be_read(self, folder: Path) -> None:
        checkpoint = Checkpoint.open(folder)
        with pytest.raises(CheckpointError, match="got dtype I64 .* with no scales"):
            checkpoint.read_float32("layers.0.ffn.gate.tid2eid")
        with pytest.raises(CheckpointError, match="FP8 without a block size"):
            checkpoint.read_float32("layers.0.attn.wq_a.weight")
        with pytest.raises(CheckpointError, match="expected a multiple of 128"):
            checkpoint.read_float32("layers.0.attn.wq_b.weight", BLOCK, rows=(64, 128))
        with pytest.raises(CheckpointError, match="weight_block_size"):
            checkpoint.read_float32("layers.0.attn.wq_b.weight", (32, 32))
        with pytest.raises(CheckpointError, match=r"no tensor 'head.wieght'.*Did you mean 'head.weight'"):
            checkpoint.array("head.wieght")

    def test_scales_missing(self, folder: Path) -> None:
        change_header(folder / SHARDS[0], lambda header: rename(header, "layers.0.attn.wq_a.scale", "x"))
        (folder / INDEX_NAME).unlink()
        with pytest.raises(CheckpointError, match="got dtype F8_E4M3 .* with no scales"):
            Checkpoint.open(folder).read_float32("layers.0.attn.wq_a.weight", BLOCK)


def test_reading_needs_no_framework() -> None:
    code = (
        "import sys; import ascend_dsv4.model.checkpoint, ascend_dsv4.model.names, ascend_dsv4.model.safetensors_file;"
        "import ascend_dsv4.model.probe;"
        "print([m for m in ('torch', 'mindspore', 'safetensors', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


@pytest.mark.parametrize(
    ("weight", "scale"),
    [
        (np.zeros((4, 16), np.int8), np.ones((4, 1), np.float32)),
        (np.zeros((4, 16), np.int8), np.ones((4,), np.uint8)),
        (np.zeros((64,), np.int8), np.ones((4, 1), np.uint8)),
    ],
)
def test_scales_that_no_decoder_reads(tmp_path: Path, weight: np.ndarray, scale: np.ndarray) -> None:
    save_file({"x.weight": weight, "x.scale": scale}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="tensor 'x.weight': got dtype I8"):
        Checkpoint.open(tmp_path).read_float32("x.weight")
