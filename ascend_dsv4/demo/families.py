# SPDX-License-Identifier: Apache-2.0
"""The demo's configurations of V4.1 and V3.2: each release in small, with every kind of layer that it has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from ascend_dsv4.demo.vocabulary import EXTRA_TOKENS, tokenizer_json
from ascend_dsv4.engram.hashing import EngramHash, compressed_token_map

_VOCAB_SIZE: Final = 1024
_SHARED: Final[Mapping[str, Any]] = {
    "vocab_size": _VOCAB_SIZE,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "qk_rope_head_dim": 64,
    "q_lora_rank": 128,
    "index_n_heads": 8,
    "index_head_dim": 128,
    "index_topk": 32,
    "n_shared_experts": 1,
    "moe_intermediate_size": 128,
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "rope_theta": 10000,
    "max_position_embeddings": 16384,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
}
_YARN: Final[Mapping[str, Any]] = {"factor": 16, "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 1024}
_QUANTIZATION: Final[Mapping[str, Any]] = {"quant_method": "fp8", "activation_scheme": "dynamic", "scale_fmt": "ue8m0"}

_V41: Final[Mapping[str, Any]] = {
    **_SHARED,
    "model_type": "deepseek_v41_text",
    "num_hidden_layers": 8,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "o_lora_rank": 128,
    "o_groups": 2,
    "swiglu_limit": 10.0,
    "rms_norm_eps": 1e-20,
    "rope_scaling": {"rope_type": "yarn", **_YARN},
    "compress_rope_theta": 160000,
    "sliding_window": 128,
    "compress_ratios": [0, 0, 2, 2, 1, 1, 1, 1, 0, 0, 0],
    "kv_source_layer_ids": [2, 4],
    "index_source_layer_ids": [2, 4, 6],
    "candidate_source_layer_id": 4,
    "candidate_topk_blocks": 16,
    "candidate_block_size": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "scoring_func": "sqrtsoftplus",
    "routed_scaling_factor": 1.5,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-06,
    "engram_layer_ids": [1, 4],
    "engram_max_ngram_size": 4,
    "engram_vocab_size": 1000,
    "engram_n_heads": 2,
    "engram_head_dim": 64,
    "engram_pad_token_id": 2,
    "num_nextn_predict_layers": 3,
    "dspark_block_size": 5,
    "dspark_noise_token_id": _VOCAB_SIZE - 2,
    "dspark_target_layer_ids": [5, 6, 7],
    "dspark_markov_rank": 32,
    "dspark_n_routed_experts": 4,
    "dspark_num_experts_per_tok": 2,
}
_VISION: Final[Mapping[str, Any]] = {
    "model_type": "deepseek_v41_vision",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "patch_size": 14,
    "rope_theta": 10000,
    "downsample_ratio": 3,
    "max_image_tokens": 64,
    "min_pixels": 7056,
    "max_wh_ratio": None,
}

V32: Final[Mapping[str, Any]] = {
    **_SHARED,
    "architectures": ["DeepseekV32ForCausalLM"],
    "model_type": "deepseek_v32",
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
    "intermediate_size": 512,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "scoring_func": "sigmoid",
    "routed_scaling_factor": 2.5,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"type": "yarn", **_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    "num_nextn_predict_layers": 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
    "quantization_config": {**_QUANTIZATION, "weight_block_size": [128, 128]},
}


def v41() -> dict[str, Any]:
    """V4.1 in small; the sizes of its n-gram tables follow from the tokenizer and the search for primes."""
    token_map = compressed_token_map(json.dumps(tokenizer_json(_VOCAB_SIZE, EXTRA_TOKENS)).encode(), _VOCAB_SIZE)
    num_compressed = int(token_map.max()) + 1
    hashing = EngramHash.make(
        layer_ids=_V41["engram_layer_ids"],
        max_ngram_size=_V41["engram_max_ngram_size"],
        num_heads=_V41["engram_n_heads"],
        vocab_size=_V41["engram_vocab_size"],
        num_compressed=num_compressed,
        pad=int(token_map[_V41["engram_pad_token_id"]]),
        seed=0,
    )
    sizes = {"engram_num_embeddings": list(hashing.num_rows), "engram_compressed_vocab_size": num_compressed}
    return {
        "architectures": ["DeepseekV41ForCausalLM"],
        "model_type": "deepseek_v41",
        "dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "image_token_id": _VOCAB_SIZE - 1,
        "quantization_config": {**_QUANTIZATION, "weight_block_size": [32, 32], "expert_dtype": "fp4"},
        "text_config": {**_V41, **sizes},
        "vision_config": dict(_VISION),
    }
