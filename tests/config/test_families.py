# SPDX-License-Identifier: Apache-2.0
"""ModelConfig of V4.1 and V3.2: released files, goldens, the flat spelling, and refusal of everything else."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from ascend_dsv4.config import CandidateConfig, DSparkConfig, EngramConfig, ModelConfig, VisionConfig, YarnScaling
from ascend_dsv4.config.layers import layer_specs
from ascend_dsv4.errors import ConfigError, UnsupportedError
from tests.config.test_model_config import differing, put, read, refused, released


def v41() -> dict[str, Any]:
    return released("v41_flash")


def v32() -> dict[str, Any]:
    return released("v32")


def flat() -> dict[str, Any]:
    """V4.1-Flash under the names of the reference code."""
    text, vision = v41()["text_config"], v41()["vision_config"]
    same = (
        "vocab_size", "head_dim", "q_lora_rank", "o_lora_rank", "o_groups", "swiglu_limit", "rope_theta",
        "compress_rope_theta", "compress_ratios", "index_n_heads", "index_head_dim", "index_topk", "candidate_topk_blocks",
        "candidate_block_size", "n_routed_experts", "n_shared_experts", "hc_mult", "hc_sinkhorn_iters", "hc_eps",
        "engram_layer_ids", "engram_num_embeddings", "engram_max_ngram_size", "engram_vocab_size", "engram_n_heads",
        "engram_head_dim", "engram_compressed_vocab_size", "dspark_block_size", "dspark_noise_token_id",
        "dspark_target_layer_ids", "dspark_markov_rank", "dspark_n_routed_experts",
    )  # fmt: skip
    return {key: text[key] for key in same} | {
        "dim": text["hidden_size"], "moe_inter_dim": text["moe_intermediate_size"], "n_layers": text["num_hidden_layers"],
        "n_heads": text["num_attention_heads"], "rope_head_dim": text["qk_rope_head_dim"], "norm_eps": text["rms_norm_eps"],
        "rope_factor": 16, "beta_fast": 32, "beta_slow": 1, "original_seq_len": 65536, "window_size": text["sliding_window"],
        "kv_source_layers": text["kv_source_layer_ids"], "index_source_layers": text["index_source_layer_ids"],
        "candidate_source_layer": 20, "n_activated_experts": 6, "score_func": "sqrtsoftplus", "route_scale": 1.5,
        "gate_temp": 1.0, "engram_pad_id": 2, "n_mtp_layers": 3, "dspark_n_activated_experts": 3,
        "vision_n_layers": 32, "vision_dim": 1024, "vision_n_heads": 16, "vision_inter_dim": 2816, "vision_patch_size": 14,
        "vision_rope_theta": 10000, "vision_downsample_ratio": 3, "vision_max_n_token": 1024, "vision_max_wh_ratio": None,
        "vision_min_pixels": vision["min_pixels"], "dtype": "fp8", "scale_fmt": "ue8m0", "expert_dtype": "fp4",
    }  # fmt: skip


def test_v41_values() -> None:
    config = read(v41())
    assert config.layer_types == (
        *("sliding",) * 2, *(("full", *("reuse",) * 5) * 3), "full", *("reuse",) * 3, *(("reindex", *("reuse",) * 3) * 4)
    )
    assert config.compress_ratios == (0, 0, *(2,) * 18, *(1,) * 20)
    assert set(config.mlp_layer_types) == {"moe"}
    assert config.rope_scaling == YarnScaling(16.0, 32.0, 1.0, 65536)
    assert (config.rms_norm_eps, config.routing_eps, config.hc_delayed, config.q_head_norm) == (1e-20, 1e-20, True, False)
    assert (config.weight_block_size, config.expert_dtype) == ((32, 32), "fp4")
    assert config.candidates == CandidateConfig(20, 2048, 8)
    assert config.engram == EngramConfig((1, 14), (384006168, 384016682), 4, 16_000_000, 8, 256, 2, 99092)
    assert config.engram.num_columns == 24
    assert config.dspark == DSparkConfig(5, 128799, (37, 38, 39), 256, 128, 3, taps_inputs=True)
    assert (config.draft_stage.n_routed_experts, config.draft_stage.num_experts_per_tok) == (128, 3)
    assert (config.num_draft_stages, config.image_token_id, config.num_hidden_layers) == (3, 129264, 40)
    assert config.vision == VisionConfig(32, 1024, 16, 2816, 14, 10000.0, 3, 1024, 295936, None)
    assert isinstance(config.vision.rope_theta, float)


def test_v41_layer_map() -> None:
    """The table of layers: source of the long entries, candidates, tables, taps."""
    specs = layer_specs(read(v41()))
    expected = {**dict.fromkeys(range(3, 8), 2), **dict.fromkeys(range(9, 14), 8), **dict.fromkeys(range(15, 20), 14)}
    expected |= dict.fromkeys(range(21, 40), 20)
    assert {i: spec.kv_source for i, spec in enumerate(specs) if spec.kv_source is not None} == expected
    assert {i: spec.candidates for i, spec in enumerate(specs) if spec.candidates} == {
        20: "publish", 24: "use", 28: "use", 32: "use", 36: "use"
    }  # fmt: skip
    assert {i: spec.engram for i, spec in enumerate(specs) if spec.engram is not None} == {1: 0, 14: 1}
    assert {i: spec.tap for i, spec in enumerate(specs) if spec.tap is not None} == {37: 0, 38: 1, 39: 2}
    assert [i for i, spec in enumerate(specs) if spec.reads_embedding] == [0]


def test_v32_values() -> None:
    config = read(v32())
    assert config.layer_types == ("mla_dense",) * 3 + ("mla_moe",) * 58
    assert (config.head_dim, config.qk_nope_head_dim, config.qk_rope_head_dim) == (192, 128, 64)
    assert config.mla is not None
    assert (config.mla.kv_lora_rank, config.mla.v_head_dim) == (512, 128)
    # Published with the model: m = 1.36889, m² = 1.87385, softmax scale 0.135234.
    assert config.mla.softmax_factor == pytest.approx(1.87385, abs=5e-6)
    assert config.mla.softmax_factor / math.sqrt(config.head_dim) == pytest.approx(0.135234, abs=5e-7)
    assert (config.n_group, config.topk_group, config.num_experts_per_tok) == (8, 4, 8)
    assert (config.scoring_func, config.swiglu_limit, config.routing_eps) == ("sigmoid", math.inf, 1e-20)
    assert (config.draft_method, config.num_draft_stages, config.expert_dtype) == ("mtp", 1, "fp8")
    assert (config.sliding_window, config.hc_mult, config.hc_delayed) == (0, 0, False)
    assert set(config.compress_ratios) == {1}


def test_v3_is_v32_without_an_indexer() -> None:
    changed = {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3"}
    plain = v32() | changed
    for key in ("index_n_heads", "index_head_dim", "index_topk"):
        del plain[key]
    without, config = read(plain), read(v32())
    names = {"architecture", "model_type", "index_n_heads", "index_head_dim", "index_topk"}
    assert differing(without, config) == names
    assert (without.index_n_heads, without.index_head_dim, without.index_topk) == (0, 0, 0)
    assert read(v32() | changed).index_topk == 2048  # where the file has the keys, they count
    assert "index_head_dim is missing" in refused(plain | {"index_topk": 2048})
    assert "index_topk is missing" in refused(put(v32(), "index_topk", ...))


@pytest.mark.parametrize("folder", ["bf16", "fp8_fp4"])
def test_v41_goldens(folder: str, full_golden_v41: Path) -> None:
    config = ModelConfig.from_file(full_golden_v41 / folder)
    assert config.is_quantized == (folder == "fp8_fp4")
    assert config.layer_types == ("sliding",) * 2 + ("full", "reuse") * 2 + ("reindex", "reuse")


def test_v32_goldens(golden_v32: Path) -> None:
    config = ModelConfig.from_file(golden_v32 / "fp8")
    assert config.is_quantized
    assert config.layer_types == ("mla_dense", "mla_moe", "mla_moe", "mla_moe")


def test_the_flat_spelling() -> None:
    assert read(flat()) == read(v41())
    named = {"architectures": ["DeepseekV41ForCausalLM"], "model_type": "deepseek_v41"}
    assert read(flat() | named) == read(v41())
    for key in ("dtype", "scale_fmt", "expert_dtype", "gate_temp", "vision_max_wh_ratio"):
        assert read(put(flat(), key, ...)) == read(v41()), key
    without_vision = {key: value for key, value in flat().items() if not key.startswith("vision_")}
    assert differing(read(without_vision), read(v41())) == {"vision", "image_token_id"}
    assert differing(read(flat() | {"dtype": "bf16"}), read(v41())) == {"weight_block_size", "expert_dtype"}
    assert read(flat() | {"eos_token_id": 7, "max_position_embeddings": 4096}).eos_token_id == (7,)
    assert read(flat() | {"max_position_embeddings": 4096}).max_position_embeddings == 4096
    assert read(flat() | {"quantization_config": v41()["quantization_config"]}) == read(v41())


@pytest.mark.parametrize("key", sorted(flat().keys() - {
    "dtype", "scale_fmt", "expert_dtype", "gate_temp", "vision_max_wh_ratio", "n_mtp_layers", "dspark_n_routed_experts",
    "dspark_n_activated_experts", "dim", "n_layers",
}))  # fmt: skip
def test_flat_keys_are_never_guessed(key: str) -> None:
    """Every key is read: without it something is missing, or the file is none of this kind."""
    if key == "kv_source_layers":
        assert "architectures" in refused(put(flat(), key, ...), UnsupportedError)
    else:
        assert "is missing" in refused(put(flat(), key, ...))


def test_flat_conflicts() -> None:
    for key, value in (("hidden_size", 4096), ("num_hidden_layers", 41), ("sliding_window", 64), ("rms_norm_eps", 1e-6)):
        assert "both spell one value" in refused(flat() | {key: value})
    assert "n_head " in refused(flat() | {"n_head ": 1})
    assert "dtype='int4'" in refused(flat() | {"dtype": "int4"}, UnsupportedError)
    assert "scale_fmt" in refused(flat() | {"scale_fmt": "float"}, UnsupportedError)


def test_v41_missing_keys_are_never_guessed() -> None:
    text = v41()["text_config"]
    optional = {
        "model_type", "num_key_value_heads", "hidden_act", "attention_bias", "attention_dropout", "tie_word_embeddings",
        "topk_method", "norm_topk_prob", "rope_scaling", "num_nextn_predict_layers", "dspark_n_routed_experts",
        "dspark_num_experts_per_tok",
    }  # fmt: skip
    for key in text.keys() - optional:
        assert "is missing" in refused(put(v41(), f"text_config.{key}", ...)), key
    vision = v41()["vision_config"]
    for key in vision.keys() - {"model_type", "max_wh_ratio"}:
        assert f"vision_config.{key} is missing" in refused(put(v41(), f"vision_config.{key}", ...))
    for key in ("bos_token_id", "eos_token_id", "image_token_id"):
        assert f"{key} is missing" in refused(put(v41(), key, ...))
    text_only = read(put(v41(), "vision_config", ...))
    assert (text_only.vision, text_only.image_token_id) == (None, None)


def test_v41_parts_switched_off() -> None:
    config = v41()
    assert read(put(config, "text_config.candidate_source_layer_id", -1)).candidates is None
    assert read(put(config, "text_config.engram_layer_ids", [])).engram is None
    plain = config
    for key in [key for key in config["text_config"] if key.startswith(("candidate_", "engram_"))]:
        plain = put(plain, f"text_config.{key}", ...)
    assert differing(read(plain), read(config)) == {"candidates", "engram"}
    stages = put(config, "text_config.dspark_n_routed_experts", None)
    assert read(stages).draft_stage.n_routed_experts == 384
    windows = config
    for key, value in (("compress_ratios", [0] * 43), ("kv_source_layer_ids", []), ("index_source_layer_ids", []),
                       ("candidate_source_layer_id", -1)):  # fmt: skip
        windows = put(windows, f"text_config.{key}", value)
    assert set(read(windows).layer_types) == {"sliding"}


RATIOS = [0, 0, *[2] * 18, *[1] * 20, 0, 0, 0]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        # Sources: one line for each rule.
        ("text_config.compress_ratios", [0, 0, 4, *RATIOS[3:]], "in V4.1"),
        ("text_config.kv_source_layer_ids", [2, 14, 8, 20], "kv_source_layer_ids=(2, 14, 8, 20): expected distinct"),
        ("text_config.kv_source_layer_ids", [2, 2, 8, 14, 20], "expected distinct layers"),
        ("text_config.index_source_layer_ids", [2, 14, 8, 20], "index_source_layer_ids=(2, 14, 8, 20): expected distinct"),
        ("text_config.kv_source_layer_ids", [8, 14, 20], "a source with the same ratio at or before"),
        ("text_config.kv_source_layer_ids", [2, 8, 14, 24], "a source with the same ratio at or before"),
        ("text_config.kv_source_layer_ids", [], "a source with the same ratio at or before"),
        ("text_config.kv_source_layer_ids", [1, 2, 8, 14, 20], "(1, 2, 8, 14, 20): expected layers with a ratio"),
        ("text_config.kv_source_layer_ids", [2, 8, 14, 20, 40], "(2, 8, 14, 20, 40): expected layers with a ratio"),
        ("text_config.kv_source_layer_ids", [2, 8, 14, 20, 22], "also index sources"),
        ("text_config.index_source_layer_ids", [1, 2, 8, 14, 20], "with a ratio and a kv source at or before"),
        ("text_config.index_source_layer_ids", [2, 8, 14, 20, 40], "with a ratio and a kv source at or before"),
        ("text_config.candidate_source_layer_id", 21, "a source layer that is an index source"),
        ("text_config.candidate_topk_blocks", 63, "at least index_topk entries"),
        # Types and ranges.
        ("text_config.kv_source_layer_ids", "2", "a list"), ("text_config.kv_source_layer_ids", [2, "8"], "[1]='8'"),
        ("text_config.index_source_layer_ids", [2, -8], "index_source_layer_ids[1]=-8"),
        ("text_config.candidate_source_layer_id", "20", "candidate_source_layer_id='20'"),
        ("text_config.candidate_source_layer_id", True, "candidate_source_layer_id=True"),
        ("text_config.candidate_source_layer_id", None, "candidate_source_layer_id is missing"),
        ("text_config.candidate_block_size", 0, "candidate_block_size=0"),
        ("text_config.engram_layer_ids", None, "engram_layer_ids is missing"),
        ("text_config.engram_layer_ids", [1, 40], "layers below num_hidden_layers"),
        ("text_config.engram_layer_ids", [1, 1], "distinct layers"), ("text_config.engram_layer_ids", [1], "distinct layers"),
        ("text_config.engram_layer_ids", 1, "engram_layer_ids=1"),
        ("text_config.engram_num_embeddings", [1, 0], "engram_num_embeddings[1]=0"),
        ("text_config.engram_max_ngram_size", 1, "engram_max_ngram_size=1"),
        ("text_config.engram_head_dim", 256.0, "an integer"),
        ("text_config.engram_head_dim", 48, "a head_dim that is a multiple of 32"),
        ("text_config.engram_pad_token_id", 129280, "a pad token below vocab_size"),
        ("text_config.engram_compressed_vocab_size", 129281, "no larger than vocab_size"),
        ("text_config.dspark_target_layer_ids", [38, 39, 40], "target layers below"),
        ("text_config.dspark_num_experts_per_tok", 129, "dspark_num_experts_per_tok=129"),
        ("text_config.dspark_num_experts_per_tok", 0, "dspark_num_experts_per_tok=0"),
        ("text_config.dspark_n_routed_experts", 2, "experts per token in draft stages"),
        ("text_config.rms_norm_eps", 0, "rms_norm_eps"),
        ("image_token_id", 129280, "image_token_id=129280"), ("image_token_id", "x", "image_token_id='x'"),
        ("vision_config.patch_size", 0, "vision_config.patch_size=0"),
        ("vision_config.num_attention_heads", 512, "heads of a multiple of 4 channels"),
        ("vision_config.max_wh_ratio", 0.5, "vision_config.max_wh_ratio=0.5"),
        ("vision_config.max_wh_ratio", "8", "vision_config.max_wh_ratio='8'"),
        ("vision_config.rope_theta", "x", "vision_config.rope_theta"),
        ("vision_config.patch", 14, "vision_config.patch (did you mean vision_config.patch_size?)"),
        ("vision_config", [], "vision_config=[]"), ("text_config", 5, "text_config=5"),
        ("text_config.text_config", {}, "text_config.text_config"),
        ("text_config.vision_config", {}, "text_config.vision_config"),
        ("text_config.layer_types", [], "layer_types"), ("text_config.num_hash_layers", 0, "num_hash_layers"),
        ("hidden_size", 4096, "both spell one value"), ("num_hidden_layers", 39, "text_config.num_hidden_layers"),
    ],
)
def test_v41_bad_values(path: str, value: object, words: str) -> None:
    assert words in refused(put(v41(), path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("text_config.model_type", "deepseek_v4_text"), ("vision_config.model_type", "clip"),
        ("text_config.gate_temp", 2.0), ("text_config.scoring_func", "sigmoid"), ("text_config.n_group", 8),
        ("quantization_config.expert_dtype", "fp8"), ("quantization_config.scale_fmt", "float"),
        ("text_config.rope_scaling.mscale", 1.0), ("text_config.num_key_value_heads", 2),
    ],
)
def test_v41_different_maths_is_unsupported(path: str, value: object) -> None:
    assert path.rpartition(".")[2] in refused(put(v41(), path, value), UnsupportedError)


def test_tables_need_streams() -> None:
    engram = read(v41()).engram
    with pytest.raises(ConfigError, match="only with residual streams"):
        dataclasses.replace(read(v32()), engram=dataclasses.replace(engram, layer_ids=(1, 2)))  # type: ignore[type-var]
    with pytest.raises(ConfigError, match="together with image_token_id"):
        dataclasses.replace(read(v41()), image_token_id=None)
    for name in ("kv_source_layer_ids", "index_source_layer_ids"):
        with pytest.raises(ConfigError, match=f"{name}=.*no layers but in V4.1"):
            dataclasses.replace(read(released("v4_flash")), **{name: (2,)})


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("first_k_dense_replace", 62, "from 0 to 61"), ("first_k_dense_replace", ..., "first_k_dense_replace is missing"),
        ("first_k_dense_replace", True, "first_k_dense_replace=True"),
        ("intermediate_size", 0, "at least 1 with dense layers"), ("n_group", 7, "multiple of n_group"),
        ("topk_group", 9, "at most n_group"), ("n_group", 256, "at least 2 experts per group"),
        ("topk_group", 0, "topk_group=0"), ("num_key_value_heads", 64, "both spell one value"),
        ("kv_lora_rank", 0, "mla.kv_lora_rank"), ("v_head_dim", ..., "v_head_dim is missing"),
        ("qk_nope_head_dim", -1, "qk_nope_head_dim=-1"), ("kv_lora_rank", 512.5, "an integer"),
        ("rope_scaling.mscale", ..., "rope_scaling.mscale is missing"),
        ("rope_scaling.mscale_all_dim", "1", "rope_scaling.mscale_all_dim='1'"),
        ("rope_scaling.factor", "40", "rope_scaling.factor"),
        ("index_topk", 0, "with mla all index sizes 0"), ("index_head_dim", 32, "at most index_head_dim"),
        ("num_nextn_predict_layers", -1, "num_draft_stages"), ("num_nextn_predict_layers", 99, "num_draft_stages"),
        ("sliding_window", 128, "sliding_window"), ("hc_mult", 4, "hc_mult"), ("compress_ratios", [0], "compress_ratios"),
        ("quantization_config.weight_block_size", ..., "weight_block_size is missing"),
        ("n_routed_experts", 8192, "experts in all layers together"),
    ],
)
def test_v32_bad_values(path: str, value: object, words: str) -> None:
    assert words in refused(put(v32(), path, value))


def test_what_only_one_kind_of_attention_has() -> None:
    """Window, streams and grouped projection go without latent attention, and only without; so do dense layers with it."""
    v4, mla = read(released("v4_flash")), read(v32())
    for name in ("o_groups", "o_lora_rank", "sliding_window", "hc_mult", "hc_sinkhorn_iters"):
        for config, value in ((v4, 0), (mla, 8)):
            with pytest.raises(ConfigError, match=f"{name}={value}: expected at least 1, or 0 with mla"):
                dataclasses.replace(config, **{name: value})
    with pytest.raises(ConfigError, match="hc_eps=0.0: expected at least 1e-30"):
        dataclasses.replace(v4, hc_eps=0.0)
    for name in ("index_n_heads", "index_head_dim", "index_topk"):
        with pytest.raises(ConfigError, match=f"{name}=0: expected at least 1"):
            dataclasses.replace(v4, **{name: 0})
    for name, value in (("index_n_heads", 0), ("index_head_dim", 0)):
        with pytest.raises(ConfigError, match=f"{name}=0: expected at least 1"):
            dataclasses.replace(mla, **{name: value})
    with pytest.raises(ConfigError, match="'dense' layers with mla only"):
        dataclasses.replace(v4, mlp_layer_types=("dense",) * 43)
    with pytest.raises(ConfigError, match="'hash_moe' layers without"):
        dataclasses.replace(mla, mlp_layer_types=("hash_moe",) * 61)


def test_v32_experts_come_from_few_groups() -> None:
    """Four groups of four experts, one of which is kept, hold no five."""
    small = v32() | {"n_routed_experts": 16, "n_group": 4, "topk_group": 1}
    assert read(small | {"num_experts_per_tok": 4}).num_experts_per_tok == 4
    assert "at most the experts of topk_group groups" in refused(small | {"num_experts_per_tok": 5})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("rope_scaling.mscale", 0.5), ("indexer_rope_interleave", True), ("moe_layer_freq", 2), ("scoring_func", "softmax"),
        ("norm_topk_prob", False), ("topk_method", "greedy"), ("attention_bias", True), ("expert_dtype", "fp4"),
        ("rope_scaling.type", "linear"), ("rope_scaling.attention_factor", 1.2),
    ],
)
def test_v32_different_maths_is_unsupported(path: str, value: object) -> None:
    assert path.rpartition(".")[2].replace("type", "") in refused(put(v32(), path, value), UnsupportedError)


def test_v32_variants() -> None:
    assert read(v32() | {"num_nextn_predict_layers": 0}).draft_method is None
    assert read(put(v32(), "quantization_config", ...)).expert_dtype is None
    assert read(put(v32(), "quantization_config.scale_fmt", "float")) == read(v32())
    assert read(put(v32(), "quantization_config.scale_fmt", ...)) == read(v32())
    plain = read(put(v32(), "rope_scaling", None))
    assert plain.rope_scaling is None and plain.mla is not None and plain.mla.softmax_factor == 1.0
    unscaled = put(put(v32(), "rope_scaling.mscale", 0), "rope_scaling.mscale_all_dim", 0)
    assert (mla := read(unscaled).mla) is not None and mla.softmax_factor == 1.0
    assert read(v32() | {"first_k_dense_replace": 0}).layer_types == ("mla_moe",) * 61
