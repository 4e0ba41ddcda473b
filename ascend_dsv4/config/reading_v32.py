# SPDX-License-Identifier: Apache-2.0
"""Reading the `config.json` of V3.2, and of V3, which is the same without an indexer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from ascend_dsv4.config.checks import MISSING, Problems, check_fixed, check_keys, check_number
from ascend_dsv4.config.parts import INT_LIMITS, MAX_LAYERS, PART_LIMITS, MlaConfig, YarnScaling
from ascend_dsv4.config.reading import (
    FIXED_KEYS,
    HARMLESS_KEYS,
    as_float,
    pick,
    read_eos,
    read_quantization,
    read_yarn,
    store,
)

_PLAIN_KEYS: Final = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "qk_rope_head_dim", "q_lora_rank",
    "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "intermediate_size", "n_group", "topk_group",
    "max_position_embeddings", "bos_token_id", "n_shared_experts", "scoring_func", "norm_topk_prob",
    "routed_scaling_factor", "rms_norm_eps", "rope_theta",
)  # fmt: skip
_INDEX_KEYS: Final = ("index_n_heads", "index_head_dim", "index_topk")
_MLA_KEYS: Final = ("kv_lora_rank", "v_head_dim", "qk_nope_head_dim")
_OTHER_KEYS: Final = frozenset({
    "architectures", "model_type", "eos_token_id", "first_k_dense_replace", "num_nextn_predict_layers", "rope_scaling",
    "quantization_config", "expert_dtype", "num_key_value_heads",
})
_FIXED: Final[Mapping[str, tuple[object, ...]]] = {
    **FIXED_KEYS,
    "moe_layer_freq": (1,),
    # The indexer rotates halves; the attention rotates adjacent channels. Early files of derived models say otherwise.
    "indexer_rope_interleave": (False, None),
}
_ABSENT: Final[Mapping[str, Any]] = {
    "o_groups": 0, "o_lora_rank": 0, "sliding_window": 0, "hc_mult": 0, "hc_sinkhorn_iters": 0, "hc_eps": 0.0,
    "swiglu_limit": math.inf, "dspark": None,
}  # fmt: skip
"""What this family does not have."""


def read_v32(mapping: Mapping[str, Any], values: dict[str, Any], problems: Problems) -> None:
    """Values of a V3.2 or V3 configuration."""
    check_keys(problems, mapping, {*_PLAIN_KEYS, *_INDEX_KEYS, *_MLA_KEYS, *_OTHER_KEYS, *_FIXED, *HARMLESS_KEYS})
    check_fixed(problems, mapping, _FIXED)
    values.update(_ABSENT)
    for key in _PLAIN_KEYS:
        store(values, key, pick(problems, {key: mapping.get(key)}))
    has_indexer = values["model_type"] == "deepseek_v32" or any(mapping.get(key) is not None for key in _INDEX_KEYS)
    for key in _INDEX_KEYS:
        store(values, key, pick(problems, {key: mapping.get(key)}) if has_indexer else 0)
    heads = mapping.get("num_key_value_heads")
    if heads is not None:  # every head has its own keys, made from the one latent row
        pick(problems, {"num_attention_heads": values.get("num_attention_heads"), "num_key_value_heads": heads})
    _read_layers(mapping, values, problems)
    _read_attention(mapping, values, problems)
    read_eos(mapping, values, problems)
    read_quantization(mapping, values, problems, expert_format="fp8")


def _read_layers(mapping: Mapping[str, Any], values: dict[str, Any], problems: Problems) -> None:
    num_layers = values.get("num_hidden_layers")
    if type(num_layers) is not int or not 1 <= num_layers <= MAX_LAYERS:
        return
    # Every token has a row of its own that is kept: one entry per token.
    values["compress_ratios"] = (1,) * num_layers
    dense = pick(problems, {"first_k_dense_replace": mapping.get("first_k_dense_replace")})
    if dense is not MISSING and check_number(problems, "first_k_dense_replace", dense, (0, num_layers)):
        values["mlp_layer_types"] = ("dense",) * dense + ("moe",) * (num_layers - dense)
    stages = mapping.get("num_nextn_predict_layers")
    values["num_draft_stages"] = 0 if stages is None else stages
    values["draft_method"] = None if values["num_draft_stages"] == 0 else "mtp"


def _read_attention(mapping: Mapping[str, Any], values: dict[str, Any], problems: Problems) -> None:
    """`mla`, `head_dim` and the rotary values."""
    found = {key: pick(problems, {key: mapping.get(key)}) for key in _MLA_KEYS}
    scaling, factor = mapping.get("rope_scaling"), 1.0
    values["rope_scaling"] = None if scaling is None else read_yarn(scaling, "rope_scaling", problems, mscale=True)
    if isinstance(scaling, dict) and values["rope_scaling"] is not None:
        factor = _softmax_factor(scaling, values["rope_scaling"], problems)
    store(values, "compress_rope_theta", values.get("rope_theta", MISSING))
    if MISSING in found.values():
        return
    values["mla"] = MlaConfig(found["kv_lora_rank"], found["v_head_dim"], factor)
    nope, rope = found["qk_nope_head_dim"], values.get("qk_rope_head_dim")
    if check_number(problems, "qk_nope_head_dim", nope, (0, INT_LIMITS["head_dim"][1])) and type(rope) is int:
        values["head_dim"] = nope + rope


def _softmax_factor(scaling: Mapping[str, Any], yarn: YarnScaling, problems: Problems) -> float:
    """Square of 0.1 · mscale_all_dim · ln(factor) + 1."""
    found: dict[str, Any] = {}
    for key in ("mscale", "mscale_all_dim"):
        found[key] = as_float(pick(problems, {f"rope_scaling.{key}": scaling.get(key)}))
    low, high = PART_LIMITS["rope_scaling"]["factor"]
    if MISSING in found.values() or type(yarn.factor) is not float or not low <= yarn.factor <= high:
        return 1.0
    if not all(check_number(problems, f"rope_scaling.{key}", value, (0.0, 10.0)) for key, value in found.items()):
        return 1.0
    if found["mscale"] != found["mscale_all_dim"]:
        problems.add("rope_scaling.mscale", found["mscale"], f"the same as mscale_all_dim, {found['mscale_all_dim']}",
                     "cos and sin are scaled by their quotient, which is 1 in every release",
                     "Use a checkpoint of a supported model.", unsupported=True)  # fmt: skip
    return float((0.1 * found["mscale_all_dim"] * math.log(yarn.factor) + 1) ** 2)
