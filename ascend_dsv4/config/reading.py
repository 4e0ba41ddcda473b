# SPDX-License-Identifier: Apache-2.0
"""Pieces of reading a `config.json` that all model families share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ascend_dsv4.config.checks import MISSING, Problems, check_fixed, check_keys, same, show
from ascend_dsv4.config.parts import MAX_LIST, PART_LIMITS, YarnScaling

FIXED_KEYS: Final[Mapping[str, tuple[object, ...]]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "hidden_act": ("silu",),
    "tie_word_embeddings": (False,),
    "topk_method": ("noaux_tc",),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
}
"""Keys with the one value that this model definition stands for."""
HARMLESS_KEYS: Final = frozenset({
    "_name_or_path", "_attn_implementation", "_commit_hash", "attn_implementation", "attention_dropout",
    "aux_loss_alpha", "auto_map", "chunk_size_feed_forward", "dtype", "ep_size", "finetuning_task", "id2label",
    "initializer_range", "label2id", "output_attentions", "output_hidden_states", "output_router_logits",
    "pad_token_id", "prefix", "pretraining_tp", "problem_type", "return_dict", "router_aux_loss_coef",
    "router_jitter_noise", "seq_aux", "task_specific_params", "tokenizer_class", "torch_dtype", "torchscript",
    "transformers_version", "use_cache",
})
"""Training, bookkeeping and loading hints, without effect on what the model computes."""
_QUANTIZATION_FIXED: Final[Mapping[str, tuple[object, ...]]] = {
    "quant_method": ("fp8",),
    "fmt": ("e4m3",),
    "activation_scheme": ("dynamic",),
    "dequantize": (False,),
    "modules_to_convert": (None,),
}
_ROPE_FIXED: Final[Mapping[str, tuple[object, ...]]] = {
    "attention_factor": (1.0, None),  # cos and sin are never scaled
    "truncate": (True, None),
}
_MSCALE: Final = ("mscale", "mscale_all_dim")


def as_float(value: object) -> object:
    """An integer of ordinary size as a float; anything else as it is, for the range check to report."""
    return float(value) if type(value) is int and abs(value) < 1 << 64 else value


def store(values: dict[str, Any], key: str, value: object) -> None:
    if value is not MISSING:
        values[key] = value


def pick(problems: Problems, spellings: Mapping[str, object], *, required: bool = True) -> Any:
    """The value given under one or more names (null counts as absent), or `MISSING`; different values are a problem."""
    given = [(name, value) for name, value in spellings.items() if value is not None]
    if not given:
        if required:
            where = " or ".join(spellings)
            problems.add(where, MISSING, "a value", "it is never guessed", "Take it from the released config.json.")
        return MISSING
    name, first = given[0]
    for other, value in given[1:]:
        if not same(value, first):
            expected = f"the same as {name}, which says {show(first)}"
            problems.add(other, value, expected, "both spell one value", "Remove the wrong one.")
    return first


def read_eos(mapping: Mapping[str, Any], values: dict[str, Any], problems: Problems) -> None:
    eos = pick(problems, {"eos_token_id": mapping.get("eos_token_id")})
    if eos is not MISSING:
        values["eos_token_id"] = tuple(eos) if isinstance(eos, list) else (eos,)


def read_list(mapping: Mapping[str, Any], key: str, problems: Problems) -> list[Any] | None:
    value = mapping.get(key)
    if value is None or (isinstance(value, list) and len(value) <= MAX_LIST):
        return value
    expected = f"a list of at most {MAX_LIST} entries"
    problems.add(key, value, expected, "every layer has its own type", f"Correct {key}.")
    return None


def read_yarn(part: object, where: str, problems: Problems, *, mscale: bool = False) -> YarnScaling | None:
    """One set of rotary parameters; None stands for plain frequencies. `mscale`: whether it may scale the softmax."""
    if not isinstance(part, dict):
        problems.add(where, part, "an object", "it holds the rotary parameters", f"Correct or remove {where}.")
        return None
    limits = PART_LIMITS["rope_scaling"]
    known = ["type", "rope_type", "rope_theta", "partial_rotary_factor", *limits, *_ROPE_FIXED, *_MSCALE]
    check_keys(problems, part, known, f"{where}.")
    fixed: dict[str, tuple[object, ...]] = {} if mscale else dict.fromkeys(_MSCALE, (0, None))
    check_fixed(problems, part, {**_ROPE_FIXED, **fixed}, f"{where}.")
    kind = pick(problems, {f"{where}.rope_type": part.get("rope_type"), f"{where}.type": part.get("type")})
    check_fixed(problems, {"rope_type": kind}, {"rope_type": ("yarn", "default", MISSING)}, f"{where}.")
    if kind != "yarn":
        return None
    found = {name: pick(problems, {f"{where}.{name}": part.get(name)}) for name in limits}
    if MISSING in found.values():
        return None
    for name in ("factor", "beta_fast", "beta_slow"):
        found[name] = as_float(found[name])
    return YarnScaling(**found)


def read_quantization(
    mapping: Mapping[str, Any], values: dict[str, Any], problems: Problems, expert_format: str = "fp4"
) -> None:
    """`weight_block_size` and `expert_dtype`, which is `expert_format` where a quantised checkpoint does not name it."""
    quantization, expert_dtype = mapping.get("quantization_config"), mapping.get("expert_dtype")
    if quantization is None:
        # Converters to plain weights drop quantization_config but leave the released expert_dtype behind.
        values.update(weight_block_size=None, expert_dtype=None if expert_dtype == expert_format else expert_dtype)
        return
    if not isinstance(quantization, dict):
        do = "Correct it or remove it."
        problems.add("quantization_config", quantization, "an object", "it describes the stored weights", do)
        return
    where = "quantization_config."
    powers_of_two = expert_format == "fp4"  # otherwise scales are float32, of any value
    fixed = {**_QUANTIZATION_FIXED, "scale_fmt": ("ue8m0",) if powers_of_two else ("ue8m0", "float", None)}
    known = {*fixed, "weight_block_size", "expert_dtype", "modules_to_not_convert"}
    check_keys(problems, quantization, known, where)
    check_fixed(problems, quantization, fixed, where)
    for key in ("quant_method", *(["scale_fmt"] if powers_of_two else [])):
        pick(problems, {where + key: quantization.get(key)})
    block = pick(problems, {f"{where}weight_block_size": quantization.get("weight_block_size")})
    store(values, "weight_block_size", tuple(block) if isinstance(block, list) else block)
    spelled = {"expert_dtype": expert_dtype, f"{where}expert_dtype": quantization.get("expert_dtype")}
    expert_dtype = pick(problems, spelled, required=False)
    values["expert_dtype"] = expert_format if expert_dtype is MISSING else expert_dtype
