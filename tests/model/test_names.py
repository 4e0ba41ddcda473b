# SPDX-License-Identifier: Apache-2.0
"""The name table against transformers itself: its module tree, the files it writes, and its quantised module tree."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from ascend_dsv4.config import ModelConfig
from ascend_dsv4.errors import CheckpointError
from ascend_dsv4.model.checkpoint import Checkpoint
from ascend_dsv4.model.inventory import inventory, optional_aliases
from ascend_dsv4.model.names import detect_layout, released_name, released_view, scale_name_candidates
from ascend_dsv4.model.safetensors_file import NUMPY_DTYPES, TensorEntry

STORED_DTYPES = {
    "torch.bfloat16": "BF16",
    "torch.float32": "F32",
    "torch.int64": "I64",
    "torch.int8": "I8",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e8m0fnu": "F8_E8M0",
}


@pytest.fixture(scope="module")
def transformers() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a third-party library's own deprecations
        module = pytest.importorskip("transformers")
        module.utils.logging.disable_progress_bar()
    return module


@pytest.fixture(scope="module")
def loaded(transformers: Any) -> dict[str, Any]:
    """Module-wide cache: loading the model takes seconds."""
    return {}


@pytest.fixture
def model(transformers: Any, loaded: dict[str, Any], full_golden_v4: Path) -> Any:
    """The golden model, loaded from its released names by transformers' own conversion."""
    if "model" not in loaded:
        auto = transformers.AutoModelForCausalLM
        loaded["model"] = auto.from_pretrained(full_golden_v4 / "bf16", dtype="auto")
    return loaded["model"]


def assert_same_tensors(renamed: Checkpoint, released: Checkpoint) -> None:
    """Every tensor but the draft stages, bit for bit after widening."""
    expected = [name for name in released.names() if not name.startswith("mtp.")]
    assert list(renamed.names()) == expected
    for name in expected:
        assert renamed.entry(name).shape == released.entry(name).shape, name
        if released.entry(name).dtype == "I64":
            assert np.array_equal(renamed.array(name), released.array(name)), name
        else:
            left, right = renamed.read_float32(name), released.read_float32(name)
            assert np.array_equal(left.view(np.uint32), right.view(np.uint32)), name


class TestAgainstTransformers:
    def test_module_tree(self, model: Any, full_golden_v4: Path, tmp_path: Path) -> None:
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, tmp_path / "model.safetensors")
        shutil.copy(full_golden_v4 / "bf16" / "config.json", tmp_path)
        renamed, released = Checkpoint.open(tmp_path), Checkpoint.open(full_golden_v4 / "bf16")
        assert (renamed.layout, renamed.has_draft) == ("transformers", False)
        assert_same_tensors(renamed, released)
        config = ModelConfig.from_file(tmp_path)
        assert config.num_draft_stages == 1
        renamed.validate(inventory(config), optional_aliases(config))

    def test_save_pretrained(self, model: Any, full_golden_v4: Path, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path)
        renamed = Checkpoint.open(tmp_path)
        assert (renamed.layout, renamed.has_draft) == ("transformers", False)
        assert_same_tensors(renamed, Checkpoint.open(full_golden_v4 / "bf16"))
        for folder in (tmp_path, full_golden_v4 / "bf16"):  # with the configuration it wrote, and with the released one
            config = ModelConfig.from_file(folder)
            renamed.validate(inventory(config), optional_aliases(config))

    def test_quantised_module_tree(self, transformers: Any, golden_v4: Path) -> None:
        """Names, dtypes and shapes of the FP8/FP4 modules, built without data, equal the released inventory."""
        torch = pytest.importorskip("torch")
        from transformers.integrations.finegrained_fp8 import replace_with_fp8_linear
        from transformers.quantizers.auto import AutoHfQuantizer

        config = transformers.AutoConfig.from_pretrained(golden_v4 / "fp8_fp4")
        quantizer = AutoHfQuantizer.from_config(config.quantization_config, pre_quantized=True)
        with torch.device("meta"):
            tree = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        tree = replace_with_fp8_linear(
            tree,
            modules_to_not_convert=quantizer.get_modules_to_not_convert(tree, None, tree._keep_in_fp32_modules),
            quantization_config=quantizer.quantization_config,
            pre_quantized=True,
        )
        stored = {
            name: TensorEntry(STORED_DTYPES[str(tensor.dtype)], tuple(tensor.shape), 0, tensor.nbytes)
            for name, tensor in tree.state_dict().items()
        }
        view = released_view(stored, detect_layout(stored))
        specs = {spec.name: spec for spec in inventory(ModelConfig.from_file(golden_v4 / "fp8_fp4"))}
        specs = {name: spec for name, spec in specs.items() if not name.startswith("mtp.")}
        assert view.keys() == specs.keys()
        assert {name: entry.shape for name, entry in view.items()} == {name: spec.shape for name, spec in specs.items()}
        for name, spec in specs.items():
            if spec.dtype not in ("F32", "BF16"):  # the tree is in one dtype until a file is loaded into it
                assert view[name].dtype == spec.dtype, name


class TestWithoutDrafts:
    @pytest.fixture
    def renamed(self, golden_v4: Path, tmp_path: Path) -> Path:
        """The golden checkpoint as one safetensors file in the module tree's spelling of a few names."""
        source = Checkpoint.open(golden_v4 / "fp8_fp4")
        prefix = "model."
        spelled = {"embed.weight": "model.embed_tokens.weight", "head.weight": "lm_head.weight"}
        spelled |= {f"hc_head_{part}": f"model.hc_head.hc_{part}" for part in ("fn", "base", "scale")}
        header, data, position = {}, [], 0
        for name in source.names():
            if name.startswith("mtp."):
                continue
            entry = source.entry(name)
            span = [position, position := position + entry.num_bytes]
            header[spelled.get(name, prefix + name)] = {
                "dtype": entry.dtype,
                "shape": entry.shape,
                "data_offsets": span,
            }
            data.append(source.bytes(name).tobytes())
        text = json.dumps(header).encode()
        (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data))
        shutil.copy(golden_v4 / "fp8_fp4" / "config.json", tmp_path)
        return tmp_path

    def test_accepted_as_a_whole(self, renamed: Path) -> None:
        checkpoint, config = Checkpoint.open(renamed), ModelConfig.from_file(renamed)
        assert not checkpoint.has_draft
        checkpoint.validate(inventory(config), optional_aliases(config))

    def test_other_tensors_are_still_needed(self, renamed: Path) -> None:
        path = renamed / "model.safetensors"
        path.write_bytes(path.read_bytes().replace(b"model.layers.3.attn.wq_a.scale", b"model.layers.3.attn.wq_a.spale"))
        checkpoint, config = Checkpoint.open(renamed), ModelConfig.from_file(renamed)
        with pytest.raises(CheckpointError, match="released spelling.*1 missing, 1 surplus") as caught:
            checkpoint.validate(inventory(config), optional_aliases(config))
        assert "layers.3.attn.wq_a.scale" in str(caught.value)
        assert "mtp." not in str(caught.value)


class TestNames:
    @pytest.mark.parametrize(
        ("stored", "released"),
        [
            ("model.embed_tokens.weight", "embed.weight"),
            ("lm_head.weight", "head.weight"),
            ("model.norm.weight", "norm.weight"),
            ("model.hc_head.hc_scale", "hc_head_scale"),
            ("model.layers.12.attn_hc.scale", "layers.12.hc_attn_scale"),
            ("model.layers.0.ffn_hc.fn", "layers.0.hc_ffn_fn"),
            ("model.layers.0.self_attn.sinks", "layers.0.attn.attn_sink"),
            ("model.layers.0.self_attn.q_a_proj.weight", "layers.0.attn.wq_a.weight"),
            ("model.layers.0.self_attn.q_a_proj.weight_scale_inv", "layers.0.attn.wq_a.scale"),
            ("model.layers.0.attn.wq_a.scale", "layers.0.attn.wq_a.scale"),
            (
                "model.layers.2.self_attn.compressor.indexer.kv_norm.weight",
                "layers.2.attn.indexer.compressor.norm.weight",
            ),
            ("model.layers.2.self_attn.compressor.kv_norm.weight", "layers.2.attn.compressor.norm.weight"),
            ("model.layers.2.self_attn.kv_norm.weight", "layers.2.attn.kv_norm.weight"),
            ("model.layers.2.attn.norm.weight", "layers.2.attn.kv_norm.weight"),
            ("model.layers.2.ffn.experts.11.w2.weight", "layers.2.ffn.experts.11.w2.weight"),
            ("model.layers.4.mlp.gate.e_score_correction_bias", "layers.4.ffn.gate.bias"),
            ("mtp.0.norm.weight", "mtp.0.norm.weight"),
            ("model.layers.0.self_attn.q_a_proj.bias", "model.layers.0.self_attn.q_a_proj.bias"),
            ("model.layers.x.attn.wq_a.weight", "model.layers.x.attn.wq_a.weight"),
        ],
    )
    def test_published_table(self, stored: str, released: str) -> None:
        assert released_name(stored) == released

    def test_released_and_other_families_stay(self, golden_v4: Path) -> None:
        entries = {name: TensorEntry("U8", (1,), 0, 1) for name in ("model.layers.0.input_layernorm.weight", "lm_head.weight")}
        assert detect_layout(entries) == "released"
        assert released_view(entries, "released") == entries
        assert detect_layout(Checkpoint.open(golden_v4 / "fp8_fp4").names()) == "released"

    def test_scale_names(self) -> None:
        assert scale_name_candidates("a.b.weight") == ("a.b.scale", "a.b.weight_scale_inv")
        assert scale_name_candidates("layers.0.hc_attn_fn") == ()
        assert scale_name_candidates("weight") == ()

    def test_two_spellings_of_one_tensor(self) -> None:
        entries = {name: TensorEntry("U8", (1,), 0, 1) for name in ("model.norm.weight", "norm.weight")}
        with pytest.raises(CheckpointError, match="'norm.weight' is stored a second time"):
            released_view(entries, "transformers")


class TestStackedExperts:
    @pytest.mark.parametrize(("suffix", "leaf", "columns"), [("", "weight", 6), ("_scale_inv", "scale", 2)])
    def test_parts_are_places_in_the_stack(self, suffix: str, leaf: str, columns: int) -> None:
        data = np.arange(3 * 8 * columns, dtype=np.float32).reshape(3, 8, columns)
        down = np.arange(3 * 5 * columns, dtype=np.float32).reshape(3, 5, columns) + 1000
        content = np.frombuffer(b"\0" * 40 + data.tobytes() + down.tobytes(), dtype=np.uint8)
        stored = {
            f"model.layers.7.mlp.experts.gate_up_proj{suffix}": TensorEntry("F32", data.shape, 40, data.nbytes),
            f"model.layers.7.mlp.experts.down_proj{suffix}": TensorEntry("F32", down.shape, 40 + data.nbytes, down.nbytes),
        }
        view = released_view(stored, "transformers")
        assert len(view) == 9
        for expert in range(3):
            expected = {"w1": data[expert, :4], "w3": data[expert, 4:], "w2": down[expert]}
            for part, values in expected.items():
                entry = view[f"layers.7.ffn.experts.{expert}.{part}.{leaf}"]
                assert entry.shape == values.shape
                place = content[entry.offset : entry.offset + entry.num_bytes].view(NUMPY_DTYPES[entry.dtype])
                assert np.array_equal(place.reshape(entry.shape), values)

    def test_read_without_a_copy(self, tmp_path: Path) -> None:
        stack = np.arange(2 * 6 * 4, dtype=np.float32)
        header = json.dumps(
            {
                "model.layers.0.mlp.experts.gate_up_proj": {
                    "dtype": "F32",
                    "shape": [2, 6, 4],
                    "data_offsets": [0, 192],
                },
                "model.layers.0.attn_hc.fn": {"dtype": "F32", "shape": [0], "data_offsets": [192, 192]},
            }
        ).encode()
        header += b" " * (-len(header) % 8)
        (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + stack.tobytes())
        checkpoint = Checkpoint.open(tmp_path)
        name = "layers.0.ffn.experts.1.w3.weight"
        assert checkpoint.array(name).tolist() == stack.reshape(2, 6, 4)[1, 3:].tolist()
        assert np.shares_memory(checkpoint.array(name), checkpoint.bytes(name))
        assert checkpoint.total_bytes == stack.nbytes

    @pytest.mark.parametrize("shape", [(8, 6), (3, 7, 2), (0, 8, 2)])
    def test_other_shapes_are_refused(self, shape: tuple[int, ...]) -> None:
        entries = {"model.layers.7.mlp.experts.gate_up_proj": TensorEntry("U8", shape, 0, int(np.prod(shape)))}
        with pytest.raises(CheckpointError, match=r"expected \[experts, rows, columns\]"):
            released_view(entries, "transformers")
