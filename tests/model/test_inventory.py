# SPDX-License-Identifier: Apache-2.0
"""The inventory against published totals, against real files, and against counts made by hand."""

from __future__ import annotations

import dataclasses
import functools
import json
import struct
from pathlib import Path

import pytest

from ascend_dsv4.config import DSparkConfig, MlpLayerType, ModelConfig
from ascend_dsv4.model.inventory import (
    DtypeTotal,
    format_parameters,
    inventory,
    optional_aliases,
    parameter_counts,
    summarize,
)
from ascend_dsv4.model.tensor_spec import TensorSpec

MODELS = Path(__file__).parents[2] / "configs" / "models"

# Published with the checkpoints: tensors and bytes in all, then per dtype, tensors under mtp.*, logical parameters.
PUBLISHED = {
    "v4_flash": (
        (69_187, 159_609_485_896),
        {"BF16": (433, 2_830_518_528), "F32": (417, 144_672_072), "F8_E4M3": (375, 6_023_020_544),
         "F8_E8M0": (34_167, 8_858_737_664), "I8": (33_792, 141_733_920_768), "I64": (3, 18_616_320)},
        1_575, 284_332_240_471, 290_942_289_362,
    ),
    "v4_flash_0731": (
        (72_317, 166_878_536_440),
        {"BF16": (445, 2_967_134_976), "F32": (433, 150_966_520), "F8_E4M3": (390, 6_304_038_912),
         "F8_E8M0": (35_718, 9_261_408_000), "I8": (35_328, 148_176_371_712), "I64": (3, 18_616_320)},
        4_705, 284_332_240_471, 304_178_091_454,
    ),
    "v4_pro": (
        (145_116, 864_704_792_696),
        {"BF16": (619, 5_633_798_656), "F32": (590, 351_105_656), "F8_E4M3": (528, 23_169_335_296),
         "F8_E8M0": (71_952, 49_150_268_416), "I8": (71_424, 786_381_668_352), "I64": (3, 18_616_320)},
        2_343, 1_572_997_201_763, 1_598_837_347_742,
    ),
    "v4_pro_0813": (
        (149_782, 892_727_580_904),
        {"BF16": (631, 5_909_640_704), "F32": (606, 362_120_232), "F8_E4M3": (543, 23_952_621_568),
         "F8_E8M0": (74_271, 50_735_763_136), "I8": (73_728, 811_748_818_944), "I64": (3, 18_616_320)},
        7_009, 1_572_997_201_763, 1_650_495_609_866,
    ),
}


cached_inventory = functools.lru_cache(maxsize=2)(inventory)


def load(name: str) -> ModelConfig:
    return ModelConfig.from_file(MODELS / f"{name}.json")


def by_name(config: ModelConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {spec.name: (spec.dtype, spec.shape) for spec in cached_inventory(config)}


def num_bytes(config: ModelConfig) -> int:
    return sum(spec.num_bytes for spec in cached_inventory(config))


def headers(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        tensors |= {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
    return tensors


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_totals(name: str) -> None:
    totals, per_dtype, num_draft, backbone, whole = PUBLISHED[name]
    config = load(name)
    specs = cached_inventory(config)
    assert (len(specs), sum(spec.num_bytes for spec in specs)) == totals
    assert summarize(specs) == {dtype: DtypeTotal(*row) for dtype, row in per_dtype.items()}
    assert sum(spec.name.startswith("mtp.") for spec in specs) == num_draft
    assert len({spec.name for spec in specs}) == len(specs)
    counts = parameter_counts(config)
    assert (counts.backbone, counts.total) == (backbone, whole)


def check_against_files(folder: Path) -> None:
    config = ModelConfig.from_file(folder)
    stored = headers(folder)
    aliases = optional_aliases(config)
    for alias, name in aliases.items():
        assert stored.pop(alias) == stored[name]
    assert len(aliases) == 2
    assert by_name(config) == stored


def test_quantised_golden(golden_v4: Path) -> None:
    check_against_files(golden_v4 / "fp8_fp4")


def test_plain_golden(full_golden_v4: Path) -> None:
    check_against_files(full_golden_v4 / "bf16")


def test_plain_and_quantised_models_have_equal_parameters(golden_v4: Path) -> None:
    packed = ModelConfig.from_file(golden_v4 / "fp8_fp4")
    plain = dataclasses.replace(packed, weight_block_size=None, expert_dtype=None)
    assert parameter_counts(plain) == parameter_counts(packed)
    assert set(summarize(inventory(plain))) == {"BF16", "F32", "I64"}


def test_model_names() -> None:
    """The parameter counts the models are known by, from an independent sum of the active matrices."""
    for name, size, active in (("v4_flash", "284B", "13B"), ("v4_pro", "1.6T", "49B")):
        config, counts = load(name), parameter_counts(load(name))
        assert (format_parameters(counts.backbone), format_parameters(counts.active)) == (size, active)
        expert = 3 * config.hidden_size * config.moe_intermediate_size
        unused = config.num_hidden_layers * (config.n_routed_experts - config.num_experts_per_tok) * expert
        assert counts.active == counts.backbone - unused - config.vocab_size * config.hidden_size
    assert parameter_counts(load("v4_flash_0731")).active == parameter_counts(load("v4_flash")).active


@pytest.mark.parametrize(
    ("count", "text"),
    [(999, "999"), (1500, "1.5K"), (284_332_240_471, "284B"), (1_572_997_201_763, "1.6T"), (999_600_000_000, "1.0T"),
     (999_400_000_000, "999B"), (13_500_000, "14M"), (9_940_000, "9.9M")],
)
def test_format_parameters(count: int, text: str) -> None:
    assert format_parameters(count) == text


def test_tensor_spec() -> None:
    spec = TensorSpec("x", "F32", (3, 5))
    assert (spec.num_elements, spec.num_bytes) == (15, 60)
    assert TensorSpec("x", "I64", (3,)).num_bytes == 24
    assert TensorSpec("x", "BF16", ()).num_bytes == 2


def test_one_csa_layer_fewer() -> None:
    """Flash without its last layer: 40 tensors beside the experts, and 6 for each expert."""
    flash = load("v4_flash")
    ratios, mlp_types = flash.compress_ratios[:-1], flash.mlp_layer_types[:-1]
    shorter = dataclasses.replace(flash, num_hidden_layers=42, compress_ratios=ratios, mlp_layer_types=mlp_types)
    before, after = by_name(flash), by_name(shorter)
    gone = before.keys() - after.keys()
    assert after.items() <= before.items()
    assert all(name.startswith("layers.42.") for name in gone)
    # norms 2, hyper-connections 6, sink 1, five fp8 matrices with scales 10, q_norm and kv_norm 2, compressor 4,
    # indexer matrix and scale 2, its projection 1, its compressor 4, gate and bias 2, shared expert 6
    assert len(gone) == 40 + 6 * 256
    d, q, e, f = 4096, 1024, 256, 2048
    fp8 = [(q, d), (64 * 512, q), (512, d), (8 * 1024, 64 * 512 // 8), (d, 8 * 1024), (64 * 128, q)]
    fp8 += [(f, d), (f, d), (d, f)]
    bf16 = 2 * d + q + 512 + 2 * 1024 * d + 512 + 64 * d + 2 * 256 * d + 128 + e * d
    float32 = 2 * (24 * 4 * d + 24 + 3) + 64 + 4 * 1024 + 4 * 256 + e
    expected = sum(o * i + o * i // 128**2 for o, i in fp8) + 2 * bf16 + 4 * float32
    expected += e * 3 * (d * f // 2 + d * f // 32)
    assert num_bytes(flash) - num_bytes(shorter) == expected


def test_o_groups_doubled() -> None:
    """Twice the groups at equal rank: wo_a has twice the rows of half the width, wo_b twice the inputs."""
    flash = load("v4_flash")
    doubled = dataclasses.replace(flash, o_groups=16)
    before, after = by_name(flash), by_name(doubled)
    changed = {name for name in before if before[name] != after[name]}
    blocks = [f"layers.{i}" for i in range(43)] + ["mtp.0"]
    assert changed == {f"{b}.attn.{w}.{part}" for b in blocks for w in ("wo_a", "wo_b") for part in ("weight", "scale")}
    assert after["layers.5.attn.wo_a.weight"] == ("F8_E4M3", (16 * 1024, 2048))
    assert after["layers.5.attn.wo_a.scale"] == ("F8_E8M0", (128, 16))
    assert after["mtp.0.attn.wo_b.weight"] == ("F8_E4M3", (4096, 16 * 1024))
    more = num_bytes(doubled) - num_bytes(flash)
    assert more == 44 * (4096 * 8 * 1024) * (1 + 1 / 128**2)  # wo_a only changes its form


def test_scale_grids_are_rounded_up() -> None:
    config = dataclasses.replace(load("v4_flash"), q_lora_rank=1000, weight_block_size=(128, 96))
    names = by_name(config)
    assert names["layers.0.attn.wq_a.scale"] == ("F8_E8M0", (8, 43))
    assert names["layers.0.attn.wq_b.scale"] == ("F8_E8M0", (256, 11))


def test_dspark_stages() -> None:
    names = by_name(load("v4_flash_0731"))
    assert names["mtp.0.main_proj.weight"] == ("F8_E4M3", (4096, 3 * 4096))
    assert names["mtp.0.main_proj.scale"] == ("F8_E8M0", (32, 96))
    assert names["mtp.2.markov_head.markov_w2.weight"] == ("BF16", (129280, 256))
    assert names["mtp.2.confidence_head.proj.weight"] == ("BF16", (1, 4096 + 256))
    assert not any(".e_proj." in name or name.startswith(("mtp.1.hc_head", "mtp.0.norm")) for name in names)
    single = dataclasses.replace(load("v4_flash_0731"), num_draft_stages=1, dspark=DSparkConfig(5, 1, (40, 42), 8))
    names = by_name(single)
    assert names["mtp.0.main_proj.weight"] == ("F8_E4M3", (4096, 2 * 4096))
    assert names["mtp.0.markov_head.markov_w1.weight"] == ("BF16", (129280, 8))


def test_draft_stage_counts(golden_v4: Path) -> None:
    one = ModelConfig.from_file(golden_v4 / "fp8_fp4")
    two = dataclasses.replace(one, num_draft_stages=2)
    none = dataclasses.replace(one, num_draft_stages=0, draft_method=None)
    stage = {name.removeprefix("mtp.0.") for name in by_name(one) if name.startswith("mtp.0.")}
    assert {name.removeprefix("mtp.1.") for name in by_name(two) if name.startswith("mtp.1.")} == stage
    assert not any(name.startswith("mtp.") for name in by_name(none))
    assert parameter_counts(none).draft == 0 and not optional_aliases(none)
    assert optional_aliases(two)["mtp.1.head.weight"] == "head.weight"


@pytest.mark.parametrize(("layers", "experts"), [(8, 8192), (1024, 64)])
def test_the_largest_accepted_models_stay_in_bounds(layers: int, experts: int) -> None:
    """What ModelConfig promises: a bounded list, no tensor of 2**42 elements, a total below 2**60 bytes."""
    hashed: list[MlpLayerType] = ["hash_moe"] * layers
    config = dataclasses.replace(
        load("v4_flash"), vocab_size=1 << 22, hidden_size=1 << 16, num_hidden_layers=layers, num_attention_heads=1024,
        head_dim=4096, q_lora_rank=1 << 15, o_groups=1024, o_lora_rank=1 << 15, compress_ratios=(4,) * layers,
        mlp_layer_types=tuple(hashed), index_n_heads=1024, index_head_dim=4096, n_routed_experts=experts,
        num_experts_per_tok=64, moe_intermediate_size=1 << 16, hc_mult=16, num_draft_stages=0, draft_method=None,
    )
    specs = inventory(config)
    assert len(specs) < 500_000
    assert max(spec.num_elements for spec in specs) < 1 << 42
    assert sum(spec.num_bytes for spec in specs) < 1 << 60
