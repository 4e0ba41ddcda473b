# SPDX-License-Identifier: Apache-2.0
"""The demo's configuration and weights, as files in the released layout. numpy only.

Random numbers come from SHAKE-256 of the tensor's name and enter as sums of bytes, and everything after that is exact or
rounded by IEEE rules, so the files are the same on every machine and with every version of numpy.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.config import ModelConfig
from ascend_dsv4.config.parts import ENGRAM_BLOCK
from ascend_dsv4.demo.vocabulary import EXTRA_TOKENS, tokenizer_config, tokenizer_json, unreadable_ids
from ascend_dsv4.model.checkpoint import INDEX_NAME
from ascend_dsv4.model.inventory import inventory
from ascend_dsv4.model.loader import to_bfloat16_bits
from ascend_dsv4.model.tensor_spec import DTYPE_BYTES, TensorSpec
from ascend_dsv4.quant import fp4, fp8_blockwise
from ascend_dsv4.quant.tables import E8M0_BIAS

SCALE_INV: Final = ".weight_scale_inv"
SHARD_BYTES: Final = 4 << 20
LOGIT_SPREAD: Final = 3.0  # standard deviation of logits: some tokens are likely, none is certain

# V4-Flash in small; the other families are in `families.py`: the same kinds of layers and number formats, one draft stage.
CONFIG: Final[Mapping[str, Any]] = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "vocab_size": 1024,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "qk_rope_head_dim": 64,
    "q_lora_rank": 128,
    "o_groups": 2,
    "o_lora_rank": 128,
    "sliding_window": 128,
    "compress_ratios": [0, 4, 128, 4, 0],
    "index_n_heads": 8,
    "index_head_dim": 128,
    "index_topk": 32,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "num_hash_layers": 2,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "swiglu_limit": 10.0,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-06,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 16,
        "beta_fast": 32,
        "beta_slow": 1,
        "original_max_position_embeddings": 1024,
    },
    "max_position_embeddings": 16384,
    "num_nextn_predict_layers": 1,
    "expert_dtype": "fp4",
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "attention_bias": False,
    "torch_dtype": "bfloat16",
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "scale_fmt": "ue8m0",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    },
}


def write_checkpoint(folder: Path, raw_config: Mapping[str, Any] = CONFIG) -> None:
    """Write all files of a quantised model with random weights into `folder`, which must exist.

    raw_config  contents of config.json in the released spelling
    raises      ConfigError if the configuration is not one of a supported model; OSError if a file cannot be written
    """
    config = ModelConfig.from_dict(raw_config, source="the demo's configuration")
    _write_json(folder / "config.json", raw_config)
    _write_json(folder / "generation_config.json", _generation_config(config))
    _write_json(folder / "tokenizer_config.json", tokenizer_config(config.max_position_embeddings))
    tokenizer = tokenizer_json(config.vocab_size, EXTRA_TOKENS if config.hc_delayed else ())
    _write_json(folder / "tokenizer.json", tokenizer)
    data = dict(_tensors(config))
    head = "head.weight" if config.mla is None else "lm_head.weight"
    data[head] = _head(config, unreadable_ids(tokenizer))
    shards = _shards(inventory(config))
    weight_map: dict[str, str] = {}
    for number, specs in enumerate(shards, 1):
        shard = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / shard, specs, data)
        weight_map |= {spec.name: shard for spec in specs}
    total = sum(spec.num_bytes for specs in shards for spec in specs)
    _write_json(folder / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})


def _generation_config(config: ModelConfig) -> dict[str, Any]:
    return {
        "_from_model_config": True,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id[0],
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 1.0,
    }


def _tensors(config: ModelConfig) -> Iterator[tuple[str, NDArray[Any]]]:
    """Name and stored bits of every tensor, each scale after its weight."""
    for spec in inventory(config):
        if spec.dtype == "F8_E8M0" or spec.name.endswith(SCALE_INV):
            continue  # made with its weight
        if spec.dtype == "I64":
            yield spec.name, _expert_table(spec, config.n_routed_experts)
            continue
        values = _values(spec, config)
        if spec.dtype == "F32":
            yield spec.name, values
        elif spec.dtype == "BF16":
            yield spec.name, to_bfloat16_bits(values)
        else:
            yield from _encoded(spec, values, config)


def _encoded(spec: TensorSpec, values: NDArray[np.float32], config: ModelConfig) -> Iterator[tuple[str, NDArray[Any]]]:
    """Codes of a quantised tensor and their scales."""
    assert config.weight_block_size is not None
    name = spec.name.removesuffix(".weight")
    if spec.dtype == "I8":
        codes, scales = fp4.encode_numpy(values)
    else:
        is_table = name.endswith(".engram.embed")  # whose rows have scales of their own
        codes, scales = fp8_blockwise.encode_numpy(values, (1, ENGRAM_BLOCK) if is_table else config.weight_block_size)
    yield spec.name, codes
    if config.mla is None:
        yield f"{name}.scale", scales
    else:
        yield name + SCALE_INV, np.ldexp(np.float32(1), scales.astype(np.int32) - E8M0_BIAS).astype(np.float32)


def _values(spec: TensorSpec, config: ModelConfig) -> NDArray[np.float32]:
    """float32 values that keep activations around 1."""
    shape = (*spec.shape[:-1], spec.shape[-1] * 2) if spec.dtype == "I8" else spec.shape
    normal = _normal(spec.name, shape)
    kind = spec.name.rpartition(".")[2] if not spec.name.endswith(".weight") else spec.name.split(".")[-2]
    if kind.rstrip("12").endswith("norm") or kind in ("q_weight", "k_weight"):
        return 1 + np.float32(0.1) * normal
    if kind.endswith("_scale"):
        return np.full(shape, 0.5, np.float32)
    if kind in ("embed", "embed_tokens", "attn_sink") or kind.startswith("image_"):
        return normal
    if kind in ("bias", "bias_vl", "e_score_correction_bias"):
        return np.float32(0.1) * normal
    if kind == "ape" or kind.endswith("_base"):
        return np.float32(0.5) * normal
    return normal * np.float32(1 / math.sqrt(shape[-1]))


def _head(config: ModelConfig, quiet_ids: list[int]) -> NDArray[np.uint16]:
    """Output head whose logits differ; what cannot be read is unlikely, or it would fill the text."""
    values = _normal("head.weight", (config.vocab_size, config.hidden_size))
    values *= np.float32(LOGIT_SPREAD / math.sqrt(config.hidden_size))
    values[quiet_ids] *= np.float32(0.1)
    return to_bfloat16_bits(values)


def _normal(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Nearly normal numbers, mean 0 and variance 1: sums of four random bytes."""
    count = math.prod(shape)
    stream = np.frombuffer(hashlib.shake_256(name.encode()).digest(4 * count), np.uint8)
    sums = stream.reshape(count, 4).sum(axis=1, dtype=np.int32) - 510
    deviation = math.sqrt(4 * (256**2 - 1) / 12)
    values: NDArray[np.float32] = sums.astype(np.float32) * np.float32(1 / deviation)
    return values.reshape(shape)


def _expert_table(spec: TensorSpec, num_experts: int) -> NDArray[np.int64]:
    """Distinct experts for every token id."""
    num_ids, per_token = spec.shape
    stream = np.frombuffer(hashlib.shake_256(spec.name.encode()).digest(4 * num_ids * num_experts), "<u4")
    order: NDArray[np.int64] = np.argsort(stream.reshape(num_ids, num_experts), axis=1, kind="stable").astype(np.int64)
    return np.ascontiguousarray(order[:, :per_token])


def _shards(specs: tuple[TensorSpec, ...]) -> list[list[TensorSpec]]:
    """Tensors in model order, cut into files of about SHARD_BYTES."""
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if size + spec.num_bytes > SHARD_BYTES and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.num_bytes
    return shards


def _write_shard(path: Path, specs: list[TensorSpec], data: Mapping[str, NDArray[Any]]) -> None:
    """One safetensors file. Wide dtypes come first, so that every tensor is aligned."""
    ordered = sorted(specs, key=lambda spec: (-DTYPE_BYTES[spec.dtype], spec.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in ordered:
        end = offset + spec.num_bytes
        header[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for spec in ordered:
            array = np.ascontiguousarray(data[spec.name])
            assert array.nbytes == spec.num_bytes, spec
            file.write(array.astype(array.dtype.newbyteorder("<")).tobytes())


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
