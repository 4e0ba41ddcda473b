# SPDX-License-Identifier: Apache-2.0
"""ModelConfig: released files, both spellings, and refusal of everything else."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ascend_dsv4.config import DSparkConfig, ModelConfig, YarnScaling
from ascend_dsv4.config.checks import parse_json
from ascend_dsv4.errors import ConfigError, UnsupportedError

MODELS = Path(__file__).parents[2] / "configs" / "models"
RELEASES = ("v4_flash", "v4_flash_0731", "v4_pro", "v4_pro_0813")


def released(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((MODELS / f"{name}.json").read_text(encoding="utf-8"))
    return config


def tiny() -> dict[str, Any]:
    """A quantised three-layer model with every layer type, in the released spelling."""
    config = released("v4_flash")
    config |= {
        "vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 32,
        "qk_rope_head_dim": 16, "q_lora_rank": 32, "o_groups": 2, "o_lora_rank": 16, "sliding_window": 8,
        "compress_ratios": [0, 4, 128, 0], "index_n_heads": 2, "index_head_dim": 32, "index_topk": 4,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_hash_layers": 1,
        "max_position_embeddings": 512,
    }
    return config


def tiny_transformers() -> dict[str, Any]:
    """The same model as transformers >= 5 spells it."""
    config = tiny()
    scaling = config.pop("rope_scaling")
    for key in ("compress_ratios", "num_hash_layers", "expert_dtype", "torch_dtype"):
        del config[key]
    config["layer_types"] = ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"]
    config["compress_rates"] = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128}
    config["mlp_layer_types"] = ["hash_moe", "moe", "moe"]
    config["partial_rotary_factor"] = 0.5
    config["rope_parameters"] = {
        "main": {"rope_type": "default", "rope_theta": 10000, "partial_rotary_factor": 0.5},
        "compress": {**scaling, "rope_type": "yarn", "rope_theta": 160000, "partial_rotary_factor": 0.5,
                     "attention_factor": 1.0},
    }
    config["quantization_config"]["expert_dtype"] = "fp4"
    return config


def put(config: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy with the value at a dotted path changed, or removed if it is `...`."""
    result = copy.deepcopy(config)
    *parents, last = path.split(".")
    part = result
    for name in parents:
        part = part[name]
    if value is ...:
        del part[last]
    else:
        part[last] = value
    return result


def read(config: object) -> ModelConfig:
    return ModelConfig.from_dict(config, source="here")  # type: ignore[arg-type]


def refused(config: object, error: type[Exception] = ConfigError) -> str:
    with pytest.raises(error) as caught:
        read(config)
    assert type(caught.value) is error
    assert str(caught.value).startswith("here: ")
    return str(caught.value)


def differing(a: ModelConfig, b: ModelConfig) -> set[str]:
    return {field.name for field in dataclasses.fields(a) if getattr(a, field.name) != getattr(b, field.name)}


@pytest.mark.parametrize(
    ("name", "counts", "first_layers", "stages", "dspark"),
    [
        ("v4_flash", (2, 21, 20), ("sliding", "sliding", "csa", "hca"), 1, None),
        ("v4_flash_0731", (2, 21, 20), ("sliding", "sliding", "csa", "hca"), 3, (5, 128799, (40, 41, 42), 256)),
        ("v4_pro", (0, 30, 31), ("hca", "hca", "csa", "hca"), 1, None),
        ("v4_pro_0813", (0, 30, 31), ("hca", "hca", "csa", "hca"), 3, (5, 128799, (58, 59, 60), 512)),
    ],
)
def test_released_schedules(
    name: str, counts: tuple[int, int, int], first_layers: tuple[str, ...], stages: int, dspark: tuple[Any, ...] | None
) -> None:
    config = ModelConfig.from_file(MODELS / f"{name}.json")
    found = Counter(config.layer_types)
    assert (found["sliding"], found["csa"], found["hca"]) == counts
    assert config.layer_types[:4] == first_layers
    csa = {i for i, kind in enumerate(config.layer_types) if kind == "csa"}
    assert csa == set(range(2, config.num_hidden_layers, 2))
    assert config.mlp_layer_types == ("hash_moe",) * 3 + ("moe",) * (config.num_hidden_layers - 3)
    assert config.num_draft_stages == stages
    assert config.draft_method == ("dspark" if dspark else "mtp")
    assert config.dspark == (DSparkConfig(*dspark) if dspark else None)


def test_released_values() -> None:
    flash, pro = (ModelConfig.from_file(MODELS / f"{name}.json") for name in ("v4_flash", "v4_pro"))
    assert flash.rope_scaling == YarnScaling(16.0, 32.0, 1.0, 65536)
    assert (flash.rope_theta, flash.compress_rope_theta) == (10000.0, 160000.0)
    assert isinstance(flash.rope_theta, float)  # the file has an integer
    assert (flash.weight_block_size, flash.expert_dtype, flash.is_quantized) == ((128, 128), "fp4", True)
    assert (flash.bos_token_id, flash.eos_token_id) == (0, (1,))
    assert (flash.hc_eps, flash.rms_norm_eps, flash.swiglu_limit) == (1e-6, 1e-6, 10.0)
    assert flash.qk_nope_head_dim == 448
    assert differing(flash, pro) == {
        "hidden_size", "num_hidden_layers", "num_attention_heads", "q_lora_rank", "o_groups", "compress_ratios",
        "mlp_layer_types", "index_topk", "n_routed_experts", "moe_intermediate_size", "routed_scaling_factor",
    }
    for preview, release in (("v4_flash", "v4_flash_0731"), ("v4_pro", "v4_pro_0813")):
        pair = [ModelConfig.from_file(MODELS / f"{name}.json") for name in (preview, release)]
        assert differing(*pair) == {"num_draft_stages", "draft_method", "dspark"}


def test_quantised_golden(golden_v4: Path) -> None:
    packed = ModelConfig.from_file(golden_v4 / "fp8_fp4" / "config.json")
    assert (packed.is_quantized, packed.weight_block_size, packed.expert_dtype) == (True, (128, 128), "fp4")
    assert packed.compress_ratios == (0, 4, 128, 4, 128, 4)
    assert packed.rope_scaling == YarnScaling(4.0, 32.0, 1.0, 256)


def test_plain_golden(full_golden_v4: Path) -> None:
    plain, packed = (ModelConfig.from_file(full_golden_v4 / folder) for folder in ("bf16", "fp8_fp4"))
    assert not plain.is_quantized
    assert differing(plain, packed) == {"weight_block_size", "expert_dtype"}


def test_both_spellings_are_equal() -> None:
    assert read(tiny()) == read(tiny_transformers())


@pytest.mark.parametrize("name", RELEASES)
def test_transformers_round_trip(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "DeepseekV4Config"):
        pytest.skip("this transformers has no DeepseekV4Config")
    ours = released(name)
    transformers.DeepseekV4Config.from_dict(ours).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert "compress_ratios" not in saved and "rope_scaling" not in saved  # it is the other spelling
    lost = {"num_draft_stages"} if "dspark_block_size" in ours else set()
    assert differing(read(ours), ModelConfig.from_file(tmp_path)) == lost
    assert read(saved | {"n_mtp_layers": len(ours["compress_ratios"]) - ours["num_hidden_layers"]}) == read(ours)


def test_transformers_round_trip_of_goldens(golden_v4: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "DeepseekV4Config"):
        pytest.skip("this transformers has no DeepseekV4Config")
    transformers.AutoConfig.from_pretrained(golden_v4 / "fp8_fp4").save_pretrained(tmp_path)
    assert ModelConfig.from_file(tmp_path) == ModelConfig.from_file(golden_v4 / "fp8_fp4")
    plain = put(tiny(), "quantization_config", ...)
    transformers.DeepseekV4Config.from_dict(plain).save_pretrained(tmp_path)
    assert ModelConfig.from_file(tmp_path) == read(plain)


def test_saved_quantization_object(tmp_path: Path) -> None:
    """Saving a loaded model rewrites quantization_config: without `fmt`, with defaults of its class."""
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "DeepseekV4Config"):
        pytest.skip("this transformers has no DeepseekV4Config")
    config = transformers.DeepseekV4Config.from_dict(tiny())
    config.quantization_config = transformers.FineGrainedFP8Config(**config.quantization_config)
    config.save_pretrained(tmp_path)
    assert ModelConfig.from_file(tmp_path) == read(tiny())


def test_draft_stage_rules() -> None:
    assert read(tiny() | {"num_nextn_predict_layers": 0}).num_draft_stages == 1  # the ratio list counts
    assert read(tiny() | {"compress_ratios": [0, 4, 128, 0, 0]}).num_draft_stages == 2
    assert read(tiny() | {"n_mtp_layers": 3}).num_draft_stages == 3
    none = read(tiny() | {"compress_ratios": [0, 4, 128]})
    assert (none.num_draft_stages, none.draft_method) == (0, None)
    assert read(tiny_transformers() | {"num_nextn_predict_layers": 2}).num_draft_stages == 2
    assert read(put(tiny_transformers(), "num_nextn_predict_layers", ...)).num_draft_stages == 0
    assert "compress_ratios tail" in refused(tiny() | {"compress_ratios": [0, 4, 128, 4]})


def test_dspark_keys() -> None:
    keys = {
        "dspark_block_size": 5, "dspark_noise_token_id": 63, "dspark_target_layer_ids": [1, 2], "dspark_markov_rank": 8
    }
    config = read(tiny() | keys)
    assert (config.draft_method, config.dspark) == ("dspark", DSparkConfig(5, 63, (1, 2), 8))
    assert read(tiny_transformers() | keys) == config
    for key in keys:
        assert f"{key} is missing" in refused(put(tiny() | keys, key, ...))
    for key, value in (
        ("dspark_block_size", 0), ("dspark_block_size", True), ("dspark_noise_token_id", 64),
        ("dspark_markov_rank", 1 << 20),
        ("dspark_target_layer_ids", [1, 3]), ("dspark_target_layer_ids", [1, 1]), ("dspark_target_layer_ids", []),
        ("dspark_target_layer_ids", 1), ("dspark_target_layer_ids", [-1]), ("dspark_target_layer_ids", ["1"]),
    ):
        assert "dspark" in refused(tiny() | keys | {key: value})
    assert "draft_method" in refused(tiny() | keys | {"compress_ratios": [0, 4, 128]})


def test_defaults() -> None:
    config = tiny()
    for key in ("expert_dtype", "hc_eps", "rms_norm_eps", "tie_word_embeddings", "topk_method", "num_key_value_heads"):
        config = put(config, key, ...)
    assert read(config) == read(tiny())
    plain = read(put(tiny(), "quantization_config", ...))  # as converters to plain weights leave it
    assert (plain.weight_block_size, plain.expert_dtype) == (None, None)
    assert read(put(tiny(), "rope_scaling", None)).rope_scaling is None
    assert read(tiny() | {"eos_token_id": [1, 5]}).eos_token_id == (1, 5)
    assert read(put(tiny(), "architectures", ...)) == read(put(tiny(), "model_type", ...)) == read(tiny())
    named = put(put(tiny(), "n_routed_experts", ...), "moe_intermediate_size", ...)
    assert read(named | {"num_local_experts": 4, "intermediate_size": 32}) == read(tiny())


def test_missing_keys_are_never_guessed() -> None:
    default = {"architectures", "model_type", "expert_dtype", "hc_eps", "rms_norm_eps", "rope_scaling"}
    default |= {"quantization_config", "num_nextn_predict_layers"}
    fixed = {"num_key_value_heads", "topk_method", "tie_word_embeddings", "hidden_act", "attention_bias"}
    harmless = {"attention_dropout", "initializer_range", "use_cache", "torch_dtype", "transformers_version"}
    for key in tiny().keys() - default - fixed - harmless:
        assert "is missing" in refused(put(tiny(), key, ...)), key
    assert "compress_ratios or layer_types is missing" in refused(put(tiny(), "compress_ratios", ...))
    assert "num_hash_layers or mlp_layer_types is missing" in refused(put(tiny(), "num_hash_layers", None))
    for key in ("factor", "beta_fast", "beta_slow", "original_max_position_embeddings", "type"):
        assert f"{key} is missing" in refused(put(tiny(), f"rope_scaling.{key}", ...))
    for key in ("quant_method", "scale_fmt", "weight_block_size"):
        assert f"quantization_config.{key} is missing" in refused(put(tiny(), f"quantization_config.{key}", ...))


@pytest.mark.parametrize("value", ["DeepseekV3ForCausalLM", ["LlamaForCausalLM"], [], 5, [["DeepseekV4ForCausalLM"]]])
def test_other_architectures(value: object) -> None:
    message = refused(tiny() | {"architectures": value}, UnsupportedError)
    assert "DeepseekV4ForCausalLM" in message and "deepseek_v4" in message
    assert "deepseek_v41" in refused(tiny() | {"model_type": "deepseek_v41"}, UnsupportedError)
    refused({}, UnsupportedError)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("attention_bias", True), ("hidden_act", "gelu"), ("tie_word_embeddings", True), ("num_key_value_heads", 2),
        ("n_group", 8), ("topk_group", 4), ("topk_method", "greedy"), ("scoring_func", "sigmoid"),
        ("norm_topk_prob", False),
        ("n_shared_experts", 2), ("expert_dtype", "fp8"), ("quantization_config.quant_method", "gptq"),
        ("quantization_config.scale_fmt", "float"), ("quantization_config.fmt", "e5m2"),
        ("quantization_config.activation_scheme", "static"), ("rope_scaling.type", "linear"),
        ("attention_bias", 0), ("norm_topk_prob", 1), ("n_shared_experts", True),
        ("rope_scaling.attention_factor", 1.277), ("rope_scaling.mscale", 1.0), ("compress_rate_csa", 8),
    ],
)
def test_different_maths_is_unsupported(path: str, value: object) -> None:
    message = refused(put(tiny(), path, value), UnsupportedError)
    assert path.rpartition(".")[2].replace("type", "") in message and repr(value) in message


def test_different_maths_in_the_other_spelling() -> None:
    config = tiny_transformers()
    yarn = config["rope_parameters"]["compress"]
    assert "compress_rates" in refused(put(config, "compress_rates.compressed_sparse_attention", 8), UnsupportedError)
    main = yarn | {"rope_theta": 10000}
    assert "never scaled" in refused(put(config, "rope_parameters.main", main), UnsupportedError)
    refused(put(config, "rope_parameters.compress.attention_factor", 1.2), UnsupportedError)
    refused(put(config, "quantization_config.expert_dtype", "fp8"), UnsupportedError)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("hidden_size", 0, "from 1"), ("hidden_size", -64, "from 1"), ("hidden_size", 64.0, "an integer"),
        ("hidden_size", True, "an integer"), ("hidden_size", "64", "an integer"),
        ("hidden_size", 10**100, "an integer"),
        ("hidden_size", 80, "multiple of 32"), ("moe_intermediate_size", 48, "multiple of 32"),
        ("rms_norm_eps", True, "a number"), ("rms_norm_eps", float("nan"), "a number"), ("hc_eps", float("inf"),
        "a number"),
        ("swiglu_limit", 0.0, "a number"), ("swiglu_limit", None, "missing"),
        ("o_groups", 3, "multiple of o_groups"), ("qk_rope_head_dim", 15, "even"),
        ("qk_rope_head_dim", 34, "at most head_dim"), ("index_head_dim", 8, "at most index_head_dim"),
        ("index_head_dim", 48, "power of two"), ("num_experts_per_tok", 5, "at most n_routed_experts"),
        ("bos_token_id", 64, "below vocab_size"), ("eos_token_id", 64, "below vocab_size"),
        ("eos_token_id", [], "eos_token_id"),
        ("eos_token_id", [1, None], r"eos_token_id[1]"), ("eos_token_id", True, "eos_token_id"),
        ("compress_ratios", [0, 4], "one entry per"), ("compress_ratios", [0, 4, 2, 0], "compress_ratios=(0, 4, 2)"),
        ("compress_ratios", [0, 4, True, 0], "compress_ratios[2]=True"), ("compress_ratios", "0,4,128", "a list"),
        ("compress_ratios", [], "compress_ratios"),
        ("num_hash_layers", 4, "from 0 to 3"), ("num_hash_layers", 1.0, "an integer"),
        ("num_nextn_predict_layers", -1, "num_nextn"), ("n_mtp_layers", 99, "num_draft_stages"),
        ("rope_scaling", "yarn", "an object"), ("rope_scaling.factor", 0.5, "rope_scaling.factor"),
        ("rope_scaling.beta_fast", 1, "beta_fast above"),
        ("rope_scaling.original_max_position_embeddings", 2.5, "an integer"),
        ("quantization_config", "fp8", "an object"),
        ("quantization_config.weight_block_size", [128], "weight_block_size"),
        ("quantization_config.weight_block_size", [128, 0], "weight_block_size[1]=0"),
        ("quantization_config.weight_block_size", 128, "weight_block_size=128"),
        ("max_position_embeddings", 1 << 25, "max_position_embeddings"),
        ("n_routed_experts", 1 << 15, "n_routed_experts"),
        ("partial_rotary_factor", 0.25, "both spell one value"), ("num_local_experts", 5, "both spell one value"),
        ("layer_types", ["sliding_attention"] * 3, "both spell one value"),
        ("mlp_layer_types", ["moe"] * 3, "both spell one value"),
        ("rope_parameters", {"main": {}}, "main and compress"),
    ],
)
def test_bad_values(path: str, value: object, words: str) -> None:
    assert words in refused(put(tiny(), path, value))


def test_absurd_values_are_shown_shortened() -> None:
    for path, value, words in (
        ("hidden_size", 10**5000, "an integer of 16610 bits"),
        ("rope_theta", 10**400, "rope_theta=an integer of 1329 bits"),
        ("compress_ratios", [0] * 100_000, "a list of at most"), ("scoring_func", "x" * 100_000, "scoring_func='xxx"),
        ("rope_scaling", {str(i): [i] * 100 for i in range(1000)}, "and 968 more"),
        ("quantization_config", [[[[[[[[0] * 1000]]]]]]] * 1000, "quantization_config=[[["),
    ):
        config = put(tiny(), path, value)
        with pytest.raises((ConfigError, UnsupportedError)) as caught:
            read(config)
        assert words in str(caught.value) and len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("layer_types", ["sliding_attention", "full", "sliding_attention"], "compress_ratios[1]='full'"),
        ("layer_types", ["sliding_attention"] * 2, "one entry per"),
        ("layer_types", [[], {}, None], "compress_ratios[0]"),
        ("mlp_layer_types", ["hash_moe", "dense", "moe"], "mlp_layer_types=('hash_moe', 'dense', 'moe')"),
        ("mlp_layer_types", ["moe"] * 4, "one entry per"),
        ("rope_parameters.main.rope_theta", 5000, "both spell one value"),
        ("rope_parameters.compress.factor", "16", "rope_scaling.factor"),
        ("rope_parameters.compress.partial_rotary_factor", 0.75, "both spell one value"),
        ("rope_parameters.main.partial_rotary_factor", 2, "from 0.0 to 1.0"),
        ("rope_parameters.extra", {}, "rope_parameters.extra"),
        ("rope_scaling", {"type": "default"}, "the same as rope_scaling"),
    ],
)
def test_bad_values_in_the_other_spelling(path: str, value: object, words: str) -> None:
    assert words in refused(put(tiny_transformers(), path, value))


def test_width_from_fraction_alone() -> None:
    config = put(tiny_transformers(), "qk_rope_head_dim", ...)
    assert read(config).qk_rope_head_dim == 16
    for part in ("main", "compress"):
        config = put(config, f"rope_parameters.{part}.partial_rotary_factor", ...)
    assert "qk_rope_head_dim=3.2" in refused(put(config, "partial_rotary_factor", 0.1))


def test_unknown_keys_are_listed_together() -> None:
    message = refused(tiny() | {"num_experts_per_token": 2, "n_layers": 3, "zzz": 1})
    assert "num_experts_per_token (did you mean num_experts_per_tok?)" in message
    assert "n_layers" in message and "zzz" in message
    assert "rope_scaling.facto (did you mean rope_scaling.factor?)" in refused(put(tiny(), "rope_scaling.facto", 1))
    assert "quantization_config.bits" in refused(put(tiny(), "quantization_config.bits", 4))
    many = refused(tiny() | {f"key{i}" * 1000: i for i in range(5000)})
    assert "and 4968 more" in many and len(many) < 10_000


def test_all_problems_at_once() -> None:
    config = tiny() | {"hidden_size": -1, "typo": 0, "attention_bias": True, "compress_ratios": None}
    message = refused(put(config, "rope_scaling.factor", 0))
    assert "5 problems" in message
    for words in ("hidden_size=-1", "typo", "attention_bias=True", "compress_ratios or", "rope_scaling.factor=0"):
        assert words in message


def test_kind_of_error() -> None:
    """Unsupported only if nothing is plainly wrong, whatever comes first."""
    refused(tiny() | {"attention_bias": True, "norm_topk_prob": False}, UnsupportedError)
    refused(tiny() | {"typo": 0, "norm_topk_prob": False}, ConfigError)
    refused(tiny() | {"attention_bias": True, "bos_token_id": 64}, ConfigError)


def test_not_an_object() -> None:
    values: tuple[object, ...] = ([], "x", None, 5)
    for value in values:
        assert "JSON object" in refused(value)


def test_checks_hold_for_replace() -> None:
    config = read(tiny())
    assert dataclasses.replace(config, hidden_size=128).hidden_size == 128
    assert hash(config) == hash(read(tiny()))
    for changes in (
        {"num_hidden_layers": 2}, {"expert_dtype": None}, {"draft_method": "medusa"}, {"draft_method": "dspark"},
        {"num_draft_stages": 0}, {"rope_scaling": 16}, {"dspark": {"block_size": 5}}, {"compress_ratios": [0, 4, 128]},
    ):
        with pytest.raises(ConfigError, match=next(iter(changes))):
            dataclasses.replace(config, **changes)


def test_all_experts_together_are_limited() -> None:
    """Each number may be legal while their product is not."""
    wide = tiny() | {"n_routed_experts": 8192, "compress_ratios": [0, 4, 128]}
    assert read(wide).n_routed_experts == 8192
    layers = {"num_hidden_layers": 9, "compress_ratios": [0] * 9}
    assert "65536 experts" in refused(wide | layers)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": NaN}', "NaN"), ('{"a": -Infinity}', "Infinity"), ('{"a": 1, "a": 2}', "'a' occurs twice"),
        ('{"x": {"a": 1, "b": 2, "a": 1}}', "occurs twice"), ("[" * 100_000, "deeper"), ("[" * 20 + "]" * 20, "deeper"),
        ('{"a":' * 17 + "1" + "}" * 17, "deeper"), ("{", "expected plain JSON"), ("", "expected plain JSON"),
        ('{"a": ' + "9" * 5000 + "}", "expected plain JSON"), ("\ufeff{}", "expected plain JSON"),
        ("[]", "JSON object"),
        (" " * (1 << 20) + "{}", "more than 1048576 bytes"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_json_files(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        ModelConfig.from_file(tmp_path)
    assert str(caught.value).startswith(str(file)) and len(str(caught.value)) < 1000


def test_nesting_within_the_limit() -> None:
    assert parse_json("[" * 16 + "]" * 16, "here") == eval("[" * 16 + "]" * 16)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        ModelConfig.from_file(tmp_path)
    (tmp_path / "config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ConfigError, match="byte 7 is not UTF-8"):
        ModelConfig.from_file(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="no such file"):
        ModelConfig.from_file(tmp_path / "pipe")
