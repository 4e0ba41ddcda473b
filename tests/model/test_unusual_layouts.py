# SPDX-License-Identifier: Apache-2.0
"""Configurations that no golden has: sources, tables and taps in unusual places, models without some of the parts.

A tiny checkpoint of each is written with random weights. However a prompt is cut its logits are the same bits, and so they
are in every weight format that holds the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ascend_dsv4 import LLM
from ascend_dsv4.config import EngineConfig, ModelConfig
from ascend_dsv4.demo.checkpoint import write_checkpoint
from ascend_dsv4.demo.families import V32, v41
from ascend_dsv4.llm import model_graphs

TINY = {"hidden_size": 160, "q_lora_rank": 80, "head_dim": 72, "qk_rope_head_dim": 32, "index_head_dim": 64, "o_lora_rank": 40,
        "moe_intermediate_size": 64, "sliding_window": 16, "index_topk": 16, "hc_mult": 3}  # fmt: skip
"""Sizes that are no multiples of the blocks of weights."""
V41: Mapping[str, dict[str, Any]] = {
    "first_layer_does_everything": {
        "compress_ratios": [2, 2, 1, 1], "kv_source_layer_ids": [0, 2], "index_source_layer_ids": [0, 1, 2, 3],
        "candidate_source_layer_id": 2, "engram_layer_ids": [0, 3], "dspark_target_layer_ids": [0, 3],
    },
    "sources_after_sources": {
        "compress_ratios": [2, 0, 2, 1, 2, 2], "kv_source_layer_ids": [0, 3, 4], "index_source_layer_ids": [0, 2, 3, 4, 5],
        "candidate_source_layer_id": 0, "engram_layer_ids": [4], "dspark_target_layer_ids": [5],
    },
    "candidates_of_a_reindexing_layer": {
        "compress_ratios": [0, 1, 1, 1, 2], "kv_source_layer_ids": [1, 4], "index_source_layer_ids": [1, 2, 3, 4],
        "candidate_source_layer_id": 2, "engram_layer_ids": [4], "dspark_target_layer_ids": [1],
    },
    "single_tokens_only": {
        "compress_ratios": [1, 1, 1], "kv_source_layer_ids": [0], "index_source_layer_ids": [0, 2],
        "candidate_source_layer_id": -1, "engram_layer_ids": [], "without": ("dspark", "vision"),
    },
    "pairs_only": {
        "compress_ratios": [2, 2, 2], "kv_source_layer_ids": [0], "index_source_layer_ids": [0, 2],
        "candidate_source_layer_id": 0, "engram_layer_ids": [], "without": ("dspark",),
    },
    "windows_only": {
        "compress_ratios": [0, 0], "kv_source_layer_ids": [], "index_source_layer_ids": [],
        "candidate_source_layer_id": -1, "engram_layer_ids": [1], "without": ("dspark", "vision"),
    },
}  # fmt: skip
V3: Mapping[str, dict[str, Any]] = {
    "v3": {"without": ("index_", "rope_scaling"), "first_k_dense_replace": 1},
    "v32_ragged": {"hidden_size": 200, "intermediate_size": 180, "moe_intermediate_size": 72, "q_lora_rank": 136,
                   "kv_lora_rank": 136, "qk_nope_head_dim": 40, "v_head_dim": 24, "first_k_dense_replace": 0},
}  # fmt: skip


def raw_v41(name: str) -> dict[str, Any]:
    raw, change = v41(), dict(V41[name])
    without = change.pop("without", ())
    text = raw["text_config"] | TINY | change
    num_layers = text["num_hidden_layers"] = len(text["compress_ratios"])
    text["engram_num_embeddings"] = text["engram_num_embeddings"][: len(text["engram_layer_ids"])]
    text["candidate_topk_blocks"], text["candidate_block_size"] = 4, 4
    if "dspark" in without:
        text = {key: value for key, value in text.items() if not key.startswith("dspark_")} | {"num_nextn_predict_layers": 0}
    else:
        text["compress_ratios"] = text["compress_ratios"][:num_layers] + [0] * text["num_nextn_predict_layers"]
    if "vision" in without:
        raw.pop("vision_config")
    return raw | {"text_config": text}


def raw_v3(name: str) -> dict[str, Any]:
    change = dict(V3[name])
    without = change.pop("without", ())
    raw = {key: value for key, value in V32.items() if not (without and key.startswith(without))} | change
    if without:
        raw |= {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3"}
    return raw


@pytest.mark.parametrize("name", [*V41, *V3])
def test_same_bits(name: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, raw_v41(name) if name in V41 else raw_v3(name))
    prompt = np.random.default_rng(0).integers(3, 900, 70).tolist()

    def logits(chunk_size: int | None = None, **options: Any) -> np.ndarray:
        return LLM(tmp_path, max_model_len=256, progress=False, **options).logits(prompt, chunk_size=chunk_size)

    whole = logits()
    assert np.isfinite(whole).all() and whole.std() > 0.1
    assert np.array_equal(logits(7, batch_bucket=5), whole)
    assert np.array_equal(logits(1, weights="fp32"), whole)
    if name in V41:  # rows on the grids of V4.1 are bfloat16 numbers, and so are its weights
        assert np.array_equal(logits(33, weights="bf16", kv_cache="bf16"), whole)


def test_weights_of_the_heads_of_v32_are_float32() -> None:
    """Whatever the compute dtype is."""
    config = ModelConfig.from_dict(V32, source="V32")
    graphs = model_graphs(config, EngineConfig(dtype="bfloat16", max_model_len=256))
    found = [node.args[1].type.dtype for graph in graphs.layers.values() for node in graph.nodes if node.op == "index_topk"]
    assert found and set(found) == {"float32"}
