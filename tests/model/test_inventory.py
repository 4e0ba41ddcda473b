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
from ascend_dsv4.model.checkpoint import Checkpoint
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

# V4.1-Flash: the published totals, the sum of the published per-group bytes, and the model's published sizes.
V41_TOTALS = (96_085, 510_286_023_000)
V41_STORED_VALUES = 763_205_315_794
V41_ENGRAM = 768_022_850 * 256
# Published per group: tensors, and bytes in GiB with two decimals.
V41_GROUPS = {
    "routed experts": (94_464, 275.67), "engram": (12, 189.13), "attention": (603, 4.80),
    "embedding, head, final norm": (3, 2.47), "shared experts": (240, 1.32), "vision": (266, 0.90),
    "router, its norm, hyper-connections": (400, 0.29), "draft without experts": (97, 0.66),
}  # fmt: skip


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


def v41_group(name: str) -> str:
    """The published audit's group of a tensor of V4.1-Flash; draft experts count as experts, an attention norm as attention."""
    if ".ffn.experts." in name:
        return "routed experts"
    if name.startswith("mtp."):
        return "draft without experts"
    if ".engram." in name:
        return "engram"
    if name.startswith(("vision.", "aligner.", "image_")):
        return "vision"
    if ".shared_experts." in name:
        return "shared experts"
    if name in ("embed.weight", "head.weight", "norm.weight"):
        return "embedding, head, final norm"
    return "attention" if ".attn" in name else "router, its norm, hyper-connections"


def test_v41_published_totals() -> None:
    specs = cached_inventory(load("v41_flash"))
    assert (len(specs), sum(spec.num_bytes for spec in specs)) == V41_TOTALS
    assert len({spec.name for spec in specs}) == len(specs)
    groups: dict[str, list[TensorSpec]] = {}
    for spec in specs:
        groups.setdefault(v41_group(spec.name), []).append(spec)
    found = {name: (len(part), sum(spec.num_bytes for spec in part) / 2**30) for name, part in groups.items()}
    assert found.keys() == V41_GROUPS.keys()
    for name, (count, gib) in V41_GROUPS.items():
        assert found[name] == (count, pytest.approx(gib, abs=0.005)), name


def test_v41_per_dtype() -> None:
    """Counted by hand from the list of tensors per layer."""
    totals = summarize(cached_inventory(load("v41_flash")))
    experts = 40 * 384 * 3 + 3 * 128 * 3
    quantised = 43 * 8 + 8 + 1 + 2 * 2  # five of attention, three shared; index sources; main_proj; tables and their wkv
    assert {dtype: total.num_tensors for dtype, total in totals.items()} == {
        "BF16": 43 * 5 + (3 * 6 + 5 + 4) + 2 * 2 + 3 + (1 + 1 + 3) + 266,
        "F32": 43 * 9,
        "F8_E4M3": quantised,
        "F8_E8M0": quantised + experts,
        "I8": experts,
    }
    assert totals["I8"].num_bytes == experts * 5120 * 2304 // 2
    assert totals["F32"].num_bytes == 4 * (43 * (2 * (24 * 20480 + 24 + 3) + 64) + 2 * (40 * 384 + 3 * 128))
    assert sum(total.num_bytes for total in totals.values()) == V41_TOTALS[1]


def test_v41_parameters() -> None:
    """The published 763,205,315,794 stored values are logical ones: two to a packed byte, block scales not counted."""
    specs = cached_inventory(load("v41_flash"))
    counts = parameter_counts(load("v41_flash"))
    values = sum(spec.num_elements * (2 if spec.dtype == "I8" else 1) for spec in specs if spec.dtype != "F8_E8M0")
    assert counts.total == values == V41_STORED_VALUES
    assert counts.memory == V41_ENGRAM == 196_613_849_600
    assert (format_parameters(counts.backbone), format_parameters(counts.active)) == ("552B", "16B")
    assert counts.draft == pytest.approx(14.2e9, abs=0.05e9)
    assert counts.vision == pytest.approx(0.49e9, abs=0.005e9)
    assert counts.backbone == V41_STORED_VALUES - V41_ENGRAM - counts.draft - counts.vision
    unused = 40 * (384 - 6) * 3 * 5120 * 2304
    assert counts.active == counts.backbone - unused - 129280 * 5120


V41_LAYER = {
    "attn.wq_a.weight": ("F8_E4M3", (1280, 5120)), "attn.wq_a.scale": ("F8_E8M0", (40, 160)),
    "attn.q_norm.weight": ("BF16", (1280,)), "attn.wq_b.weight": ("F8_E4M3", (32768, 1280)),
    "attn.wq_b.scale": ("F8_E8M0", (1024, 40)), "attn.wkv.weight": ("F8_E4M3", (512, 5120)),
    "attn.wkv.scale": ("F8_E8M0", (16, 160)), "attn.kv_norm.weight": ("BF16", (512,)),
    "attn.wo_a.weight": ("F8_E4M3", (8192, 4096)), "attn.wo_a.scale": ("F8_E8M0", (256, 128)),
    "attn.wo_b.weight": ("F8_E4M3", (5120, 8192)), "attn.wo_b.scale": ("F8_E8M0", (160, 256)),
    "attn.attn_sink": ("F32", (64,)), "attn_norm.weight": ("BF16", (5120,)), "ffn_norm.weight": ("BF16", (5120,)),
    "hc_attn_fn": ("F32", (24, 20480)), "hc_ffn_fn": ("F32", (24, 20480)), "hc_attn_base": ("F32", (24,)),
    "hc_ffn_base": ("F32", (24,)), "hc_attn_scale": ("F32", (3,)), "hc_ffn_scale": ("F32", (3,)),
    "ffn.gate.weight": ("BF16", (384, 5120)), "ffn.gate.bias": ("F32", (384,)), "ffn.gate.bias_vl": ("F32", (384,)),
    "ffn.shared_experts.w1.weight": ("F8_E4M3", (2304, 5120)), "ffn.shared_experts.w1.scale": ("F8_E8M0", (72, 160)),
    "ffn.shared_experts.w3.weight": ("F8_E4M3", (2304, 5120)), "ffn.shared_experts.w3.scale": ("F8_E8M0", (72, 160)),
    "ffn.shared_experts.w2.weight": ("F8_E4M3", (5120, 2304)), "ffn.shared_experts.w2.scale": ("F8_E8M0", (160, 72)),
}  # fmt: skip
V41_EXPERT = {
    "w1.weight": ("I8", (2304, 2560)), "w1.scale": ("F8_E8M0", (2304, 160)), "w3.weight": ("I8", (2304, 2560)),
    "w3.scale": ("F8_E8M0", (2304, 160)), "w2.weight": ("I8", (5120, 1152)), "w2.scale": ("F8_E8M0", (5120, 72)),
}  # fmt: skip
V41_REINDEX = {
    "attn.indexer.weights_proj.weight": ("BF16", (32, 5120)), "attn.indexer.wq_b.weight": ("F8_E4M3", (4096, 1280)),
    "attn.indexer.wq_b.scale": ("F8_E8M0", (128, 40)),
}  # fmt: skip
V41_FULL = V41_REINDEX | {
    "attn.compressor.wkv.weight": ("BF16", (512, 5120)), "attn.compressor.norm.weight": ("BF16", (512,)),
    "attn.indexer.wk.weight": ("BF16", (128, 512)), "attn.indexer.k_norm.weight": ("BF16", (128,)),
}  # fmt: skip
V41_PAIRS = V41_FULL | {"attn.compressor.wgate.weight": ("BF16", (512, 5120))}


def v41_engram(rows: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        "engram.embed.weight": ("F8_E4M3", (rows, 256)), "engram.embed.scale": ("F8_E8M0", (rows, 8)),
        "engram.wkv.weight": ("F8_E4M3", (25600, 6144)), "engram.wkv.scale": ("F8_E8M0", (800, 192)),
        "engram.q_weight": ("BF16", (4, 5120)), "engram.k_weight": ("BF16", (4, 5120)),
    }  # fmt: skip


def test_v41_layers() -> None:
    """Every tensor of every layer, as the headers of the released shards say."""
    names = by_name(load("v41_flash"))
    extras = dict.fromkeys((2, 8, 14), V41_PAIRS) | {20: V41_FULL} | dict.fromkeys((24, 28, 32, 36), V41_REINDEX)
    tables = {1: v41_engram(384_006_168), 14: v41_engram(384_016_682)}
    for layer in range(40):
        prefix = f"layers.{layer}."
        expected = V41_LAYER | extras.get(layer, {}) | tables.get(layer, {})
        expected |= {f"ffn.experts.{e}.{name}": kind for e in range(384) for name, kind in V41_EXPERT.items()}
        assert {name.removeprefix(prefix): kind for name, kind in names.items() if name.startswith(prefix)} == expected
    for stage in range(3):
        prefix = f"mtp.{stage}."
        expected = V41_LAYER | {
            "ffn.gate.weight": ("BF16", (128, 5120)), "ffn.gate.bias": ("F32", (128,)), "ffn.gate.bias_vl": ("F32", (128,))
        }  # fmt: skip
        expected |= {f"ffn.experts.{e}.{name}": kind for e in range(128) for name, kind in V41_EXPERT.items()}
        if stage == 0:
            expected |= {"main_proj.weight": ("F8_E4M3", (5120, 15360)), "main_proj.scale": ("F8_E8M0", (160, 480)),
                         "main_norm.weight": ("BF16", (5120,))}  # fmt: skip
        if stage == 2:
            expected |= {"norm.weight": ("BF16", (5120,)), "markov_head.embed.weight": ("BF16", (129280, 256)),
                         "markov_head.head.weight": ("BF16", (129280, 256)),
                         "confidence_head.proj.weight": ("BF16", (1, 5376))}  # fmt: skip
        assert {name.removeprefix(prefix): kind for name, kind in names.items() if name.startswith(prefix)} == expected
    rest = {name: kind for name, kind in names.items() if not name.startswith(("layers.", "mtp.", "vision.", "aligner."))}
    assert rest == {"embed.weight": ("BF16", (129280, 5120)), "head.weight": ("BF16", (129280, 5120)),
                    "norm.weight": ("BF16", (5120,)), "image_start": ("BF16", (5120,)), "image_end": ("BF16", (5120,)),
                    "image_newline": ("BF16", (5120,))}  # fmt: skip


V32_ATTENTION = {
    "self_attn.q_a_proj": (1536, 7168), "self_attn.q_b_proj": (24576, 1536), "self_attn.kv_a_proj_with_mqa": (576, 7168),
    "self_attn.kv_b_proj": (32768, 512), "self_attn.o_proj": (7168, 16384), "self_attn.indexer.wq_b": (8192, 1536),
    "self_attn.indexer.wk": (128, 7168),
}  # fmt: skip
V32_NORMS = {
    "input_layernorm.weight": (7168,), "post_attention_layernorm.weight": (7168,), "self_attn.q_a_layernorm.weight": (1536,),
    "self_attn.kv_a_layernorm.weight": (512,), "self_attn.indexer.k_norm.weight": (128,),
    "self_attn.indexer.k_norm.bias": (128,), "self_attn.indexer.weights_proj.weight": (64, 7168),
}  # fmt: skip


def v32_layer(size: int, experts: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """A layer by hand: `experts` of width `size` and a shared one, or without experts a dense one of width `size`."""
    mlps = [f"mlp.experts.{e}." for e in range(experts)] + ["mlp.shared_experts."] if experts else ["mlp."]
    matrices = V32_ATTENTION | {
        f"{mlp}{name}": (7168, size) if name == "down_proj" else (size, 7168)
        for mlp in mlps
        for name in ("gate_proj", "up_proj", "down_proj")
    }
    found: dict[str, tuple[str, tuple[int, ...]]] = {name: ("BF16", shape) for name, shape in V32_NORMS.items()}
    for name, (rows, columns) in matrices.items():
        found[f"{name}.weight"] = ("F8_E4M3", (rows, columns))
        found[f"{name}.weight_scale_inv"] = ("F32", (-(-rows // 128), -(-columns // 128)))
    if experts:
        found |= {"mlp.gate.weight": ("BF16", (256, 7168)), "mlp.gate.e_score_correction_bias": ("F32", (256,))}
    return found


def test_v32_layers() -> None:
    """Names and shapes of the hub's layout."""
    config = load("v32")
    names = by_name(config)
    dense, moe = v32_layer(18432, 0), v32_layer(2048, 256)
    for layer in range(62):
        prefix = f"model.layers.{layer}."
        expected = dense if layer < 3 else moe
        if layer == 61:
            expected = moe | {f"{name}.weight": ("BF16", (7168,)) for name in ("enorm", "hnorm", "shared_head.norm")}
            expected |= {"eh_proj.weight": ("F8_E4M3", (7168, 14336)), "eh_proj.weight_scale_inv": ("F32", (56, 112))}
        assert {name.removeprefix(prefix): kind for name, kind in names.items() if name.startswith(prefix)} == expected
    assert {name for name in names if not name.startswith("model.layers.")} == {
        "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
    }  # fmt: skip
    assert optional_aliases(config) == {
        "model.layers.61.embed_tokens.weight": "model.embed_tokens.weight",
        "model.layers.61.shared_head.head.weight": "lm_head.weight",
    }


def test_v32_parameters() -> None:
    """No totals are published for V3.2; without its indexers it is V3, which is known as 671B with 37B active.

    The sum is made from matrices alone, without the inventory.
    """
    counts = parameter_counts(load("v32"))
    d, expert = 7168, 3 * 7168 * 2048
    indexer = 8192 * 1536 + 128 * d + 2 * 128 + 64 * d
    attention = 1536 * d + 24576 * 1536 + 576 * d + 32768 * 512 + d * 16384 + 1536 + 512
    common = attention + indexer + 2 * d
    moe = common + 257 * expert + 256 * d + 256
    assert counts.backbone == 3 * (common + 3 * d * 18432) + 58 * moe + 2 * 129280 * d + d
    assert counts.draft == moe + 3 * d + 2 * d * d
    assert counts.active == counts.backbone - 58 * 248 * expert - 129280 * d
    assert counts.total == counts.backbone + counts.draft
    assert format_parameters(counts.backbone - 61 * indexer) == "671B"
    assert format_parameters(counts.active - 61 * indexer) == "37B"
    # Stored once more with the draft stage, the embedding and the head make the 685B under which the files are listed.
    assert format_parameters(counts.total + 2 * 129280 * d) == "685B"


@pytest.mark.parametrize("folder", ["bf16", "fp8_fp4"])
def test_v41_goldens(folder: str, full_golden_v41: Path) -> None:
    config = ModelConfig.from_file(full_golden_v41 / folder)
    assert by_name(config) == headers(full_golden_v41 / folder)
    checkpoint = Checkpoint.open(full_golden_v41 / folder)
    checkpoint.validate(inventory(config), optional_aliases(config))
    assert checkpoint.has_draft


@pytest.mark.parametrize("folder", ["bf16", "fp8"])
def test_v32_goldens(folder: str, full_golden_v32: Path) -> None:
    config = ModelConfig.from_file(full_golden_v32 / folder)
    stored = headers(full_golden_v32 / folder)
    for alias, name in optional_aliases(config).items():
        assert stored.pop(alias) == stored[name]
    for spec in inventory(config):
        dtype, shape = stored.pop(spec.name)
        assert dtype in (spec.dtype, *spec.also) and shape == spec.shape, spec.name
    assert not stored
    checkpoint = Checkpoint.open(full_golden_v32 / folder)
    checkpoint.validate(inventory(config), optional_aliases(config))
    assert checkpoint.has_draft
