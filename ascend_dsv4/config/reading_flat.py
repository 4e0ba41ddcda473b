# SPDX-License-Identifier: Apache-2.0
"""The flat `inference/config.json` of V4.1, whose keys are those of the reference code, under the names of `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ascend_dsv4.config.checks import MISSING, Problems, check_fixed
from ascend_dsv4.config.parts import PART_LIMITS
from ascend_dsv4.config.reading import pick

_TEXT: Final[Mapping[str, str]] = {
    "dim": "hidden_size",
    "moe_inter_dim": "moe_intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "rope_head_dim": "qk_rope_head_dim",
    "norm_eps": "rms_norm_eps",
    "window_size": "sliding_window",
    "kv_source_layers": "kv_source_layer_ids",
    "index_source_layers": "index_source_layer_ids",
    "candidate_source_layer": "candidate_source_layer_id",
    "n_activated_experts": "num_experts_per_tok",
    "score_func": "scoring_func",
    "route_scale": "routed_scaling_factor",
    "engram_pad_id": "engram_pad_token_id",
    "dspark_n_activated_experts": "dspark_num_experts_per_tok",
}
_ROPE: Final[Mapping[str, str]] = {
    "rope_factor": "factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "original_seq_len": "original_max_position_embeddings",
}
_VISION: Final[Mapping[str, str]] = {
    **{f"vision_{name}": name for name in PART_LIMITS["vision"]},
    "vision_max_wh_ratio": "max_wh_ratio",
    "vision_n_layers": "num_hidden_layers",
    "vision_dim": "hidden_size",
    "vision_n_heads": "num_attention_heads",
    "vision_inter_dim": "intermediate_size",
    "vision_max_n_token": "max_image_tokens",
}
# The reference code has these as constants, and its file has no keys for them.
_TOKEN_IDS: Final[Mapping[str, int]] = {"bos_token_id": 0, "eos_token_id": 1}
_IMAGE_TOKEN_ID: Final = 129_264
_QUANTIZATION: Final[Mapping[str, Any]] = {"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [32, 32]}


def is_flat(mapping: Mapping[str, Any]) -> bool:
    """Whether the keys are those of the reference code."""
    return "dim" in mapping and "n_layers" in mapping


def renamed(mapping: Mapping[str, Any], problems: Problems) -> dict[str, Any]:
    """A flat file under the names of `config.json`; a value given under both names must agree.

    What the reference code fixes is filled in if it is not there: token ids, the quantisation of the release, and as many
    positions as YaRN stretches the original ones to.
    """
    known = {*_TEXT, *_ROPE, *_VISION, "dtype", "scale_fmt", "expert_dtype"}
    result = {key: value for key, value in mapping.items() if key not in known}
    for alias, key in _TEXT.items():
        _put(result, key, pick(problems, {alias: mapping.get(alias), key: mapping.get(key)}, required=False))
    if any(mapping.get(alias) is not None for alias in _ROPE) and mapping.get("rope_scaling") is None:
        result["rope_scaling"] = {"rope_type": "yarn"} | {name: mapping.get(alias) for alias, name in _ROPE.items()}
    vision = {name: mapping[alias] for alias, name in _VISION.items() if alias in mapping}
    if vision and mapping.get("vision_config") is None:
        result["vision_config"] = vision
        result.setdefault("image_token_id", _IMAGE_TOKEN_ID)
    for key, token in _TOKEN_IDS.items():
        result.setdefault(key, token)
    factor, original = mapping.get("rope_factor"), mapping.get("original_seq_len")
    if isinstance(factor, (int, float)) and isinstance(original, int) and 0 < factor * original < 1 << 53:
        result.setdefault("max_position_embeddings", int(factor * original))
    _read_formats(mapping, result, problems)
    return result


def _read_formats(mapping: Mapping[str, Any], result: dict[str, Any], problems: Problems) -> None:
    """`quantization_config` out of `dtype`, `scale_fmt` and `expert_dtype`."""
    if mapping.get("quantization_config") is not None:
        return
    check_fixed(problems, mapping, {"dtype": ("fp8", "bf16", None), "scale_fmt": ("ue8m0", None)})
    if mapping.get("dtype") != "bf16":
        result["quantization_config"] = {**_QUANTIZATION, "expert_dtype": mapping.get("expert_dtype", "fp4")}


def _put(result: dict[str, Any], key: str, value: object) -> None:
    if value is not MISSING:
        result[key] = value
