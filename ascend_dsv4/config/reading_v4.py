# SPDX-License-Identifier: Apache-2.0
"""Reading the `config.json` of V4, in the released spelling and in that of transformers >= 5, and of V4.1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from ascend_dsv4.config.checks import MISSING, Problems, check_fixed, check_keys, check_number, same
from ascend_dsv4.config.parts import (
    INT_LIMITS,
    MAX_LAYERS,
    CandidateConfig,
    DSparkConfig,
    EngramConfig,
    MlpLayerType,
)
from ascend_dsv4.config.reading import (
    FIXED_KEYS,
    HARMLESS_KEYS,
    as_float,
    pick,
    read_eos,
    read_list,
    read_quantization,
    read_yarn,
    store,
)
from ascend_dsv4.config.reading_flat import is_flat, renamed
from ascend_dsv4.config.vision_config import VisionConfig

_RATIO_OF_TRANSFORMERS_TYPE: Final = {
    "sliding_attention": 0,
    "compressed_sparse_attention": 4,
    "heavily_compressed_attention": 128,
}
_NOT_PLAIN = ("num_draft_stages", "qk_rope_head_dim", "intermediate_size", "n_group", "topk_group")
# Keys of config.json named as in the dataclass.
_PLAIN_KEYS: Final = (
    *(key for key in INT_LIMITS if key not in _NOT_PLAIN),
    "routed_scaling_factor", "swiglu_limit", "n_shared_experts", "scoring_func", "norm_topk_prob", "hc_eps", "rms_norm_eps",
)  # fmt: skip
# Defaults of the released code of each family; every other key is required.
_V4_DEFAULTS: Final[Mapping[str, Any]] = {"hc_eps": 1e-6, "rms_norm_eps": 1e-6}
_V41_DEFAULTS: Final[Mapping[str, Any]] = {"norm_topk_prob": True}
_READ_KEYS: Final = frozenset({
    "architectures", "model_type", "eos_token_id", "compress_ratios", "n_mtp_layers", "num_nextn_predict_layers",
    "qk_rope_head_dim", "partial_rotary_factor", "rope_theta", "compress_rope_theta", "rope_scaling", "rope_parameters",
    "quantization_config", "expert_dtype", "dspark_block_size", "dspark_noise_token_id", "dspark_target_layer_ids",
    "dspark_markov_rank",
})
_V4_KEYS: Final = frozenset({"layer_types", "compress_rates", "num_hash_layers", "mlp_layer_types"})
_V41_KEYS: Final = frozenset({
    "kv_source_layer_ids", "index_source_layer_ids", "candidate_source_layer_id", "candidate_topk_blocks",
    "candidate_block_size", "engram_layer_ids", "engram_num_embeddings", "engram_max_ngram_size", "engram_vocab_size",
    "engram_n_heads", "engram_head_dim", "engram_pad_token_id", "engram_compressed_vocab_size", "dspark_n_routed_experts",
    "dspark_num_experts_per_tok", "image_token_id", "text_config", "vision_config",
})
_FIXED: Final[Mapping[str, tuple[object, ...]]] = {
    **FIXED_KEYS,
    "num_key_value_heads": (1,),
    "n_group": (1, None),
    "topk_group": (1, None),
    "compress_rates": ({"compressed_sparse_attention": 4, "heavily_compressed_attention": 128}, None),
    "compress_rate_csa": (4, None),
    "compress_rate_hca": (128, None),
    "gate_temp": (1.0, 1, None),
}
# Second names that transformers reads for the same values.
_ALIAS_KEYS: Final[Mapping[str, str]] = {
    "num_local_experts": "n_routed_experts",
    "intermediate_size": "moe_intermediate_size",
}
_NESTED: Final[Mapping[str, str]] = {"text_config": "deepseek_v41_text", "vision_config": "deepseek_v41_vision"}
"""Objects inside a V4.1 file and the model_type that they carry."""


def read_v4(mapping: Mapping[str, Any], values: dict[str, Any], problems: Problems) -> None:
    """Values of a V4 configuration."""
    check_keys(problems, mapping, _READ_KEYS.union(_PLAIN_KEYS, _V4_KEYS, _FIXED, HARMLESS_KEYS, _ALIAS_KEYS))
    _read_shared({**_V4_DEFAULTS, **mapping}, values, problems)
    _read_mlp_types(mapping, values, problems)


def _read_shared(mapping: Mapping[str, Any], values: dict[str, Any], problems: Problems) -> None:
    """What V4 and V4.1 write alike."""
    check_fixed(problems, mapping, _FIXED)
    second_name = {key: alias for alias, key in _ALIAS_KEYS.items()}
    for key in _PLAIN_KEYS:
        names = [key, second_name[key]] if key in second_name else [key]
        store(values, key, pick(problems, {name: mapping.get(name) for name in names}))
    values.update(intermediate_size=0, n_group=1, topk_group=1, mla=None)
    for read in (read_eos, _read_layers, _read_drafts, _read_rope, read_quantization):
        read(mapping, values, problems)


def read_v41(mapping: Mapping[str, Any], values: dict[str, Any], problems: Problems) -> None:
    """Values of a V4.1 configuration, whose text and vision parts are objects of their own, or of the flat spelling."""
    flat = renamed(mapping, problems) if is_flat(mapping) else _flattened(mapping, problems)
    check_keys(problems, flat, _READ_KEYS.union(_PLAIN_KEYS, _V41_KEYS, _FIXED, HARMLESS_KEYS, _ALIAS_KEYS))
    _read_shared({**_V41_DEFAULTS, **flat}, values, problems)
    num_layers = values.get("num_hidden_layers")
    if type(num_layers) is int and 1 <= num_layers <= MAX_LAYERS:
        values["mlp_layer_types"] = ("moe",) * num_layers
    for key in ("kv_source_layer_ids", "index_source_layer_ids"):
        found = pick(problems, {key: read_list(flat, key, problems)})
        store(values, key, tuple(found) if isinstance(found, list) else found)
    _read_candidates(flat, values, problems)
    _read_engram(flat, values, problems)
    vision = flat.get("vision_config")
    if vision is not None:
        _read_vision(vision, values, problems)
        store(values, "image_token_id", pick(problems, {"image_token_id": flat.get("image_token_id")}))


def _flattened(mapping: Mapping[str, Any], problems: Problems) -> dict[str, Any]:
    """The file with the keys of text_config beside its own; a key in both must agree."""
    flat = {key: value for key, value in mapping.items() if key != "text_config"}
    for name, model_type in _NESTED.items():
        part = mapping.get(name)
        if part is None:
            continue
        if not isinstance(part, dict):
            problems.add(name, part, "an object", "it holds a part of the model", f"Correct {name}.")
            flat.pop(name, None)
            continue
        check_fixed(problems, part, {"model_type": (model_type,)}, f"{name}.")
    text = mapping.get("text_config")
    text = text if isinstance(text, dict) else {}
    check_keys(problems, [key for key in text if key in _NESTED], (), "text_config.")
    for key, value in text.items():
        if key not in ("model_type", *_NESTED, *HARMLESS_KEYS):
            flat[key] = pick(problems, {f"text_config.{key}": value, key: flat.get(key)}, required=False)
    return {key: None if value is MISSING else value for key, value in flat.items()}


def _read_candidates(flat: Mapping[str, Any], values: dict[str, Any], problems: Problems) -> None:
    """`candidates`; a negative source switches the second level off, and so does leaving out all three keys."""
    names = ("source_layer_id", "topk_blocks", "block_size")
    given = {name: flat.get(f"candidate_{name}") for name in names}
    source = given["source_layer_id"]
    if all(value is None for value in given.values()) or (type(source) is int and source < 0):
        return
    found = {name: pick(problems, {f"candidate_{name}": value}) for name, value in given.items()}
    if MISSING not in found.values():
        values["candidates"] = CandidateConfig(**found)


def _read_engram(flat: Mapping[str, Any], values: dict[str, Any], problems: Problems) -> None:
    """`engram`; an empty list of layers, or no key at all, stands for a model without tables."""
    given = {f.name: flat.get(f"engram_{f.name}") for f in fields(EngramConfig)}
    if given["layer_ids"] == [] or all(value is None for value in given.values()):
        return
    found = {name: pick(problems, {f"engram_{name}": value}) for name, value in given.items()}
    if MISSING not in found.values():
        for name in ("layer_ids", "num_embeddings"):
            found[name] = tuple(found[name]) if isinstance(found[name], list) else found[name]
        values["engram"] = EngramConfig(**found)


def _read_vision(vision: Mapping[str, Any], values: dict[str, Any], problems: Problems) -> None:
    names = [f.name for f in fields(VisionConfig)]
    check_keys(problems, vision, {*names, "model_type", *HARMLESS_KEYS}, "vision_config.")
    required = [name for name in names if name != "max_wh_ratio"]
    found = {name: pick(problems, {f"vision_config.{name}": vision.get(name)}) for name in required}
    if MISSING not in found.values():
        found["rope_theta"], found["max_wh_ratio"] = as_float(found["rope_theta"]), as_float(vision.get("max_wh_ratio"))
        values["vision"] = VisionConfig(**found)


def _read_layers(mapping: Mapping[str, Any], values: dict[str, Any], problems: Problems) -> None:
    """`compress_ratios` of the backbone, and `num_draft_stages`."""
    num_layers = values.get("num_hidden_layers")
    if type(num_layers) is not int or not 1 <= num_layers <= MAX_LAYERS:
        return  # reported elsewhere; no list can be judged without it
    ratios = read_list(mapping, "compress_ratios", problems)
    types = read_list(mapping, "layer_types", problems)
    tail = [] if ratios is None else ratios[num_layers:]
    # The released list counts the draft stages; `num_nextn_predict_layers` understates them for DSpark releases. It is
    # all that transformers leaves, which cuts its own list at the backbone.
    next_n = mapping.get("num_nextn_predict_layers")
    counted = (next_n or 0) if ratios is None else len(tail)
    values["num_draft_stages"] = counted if mapping.get("n_mtp_layers") is None else mapping["n_mtp_layers"]
    if next_n is not None and not same(next_n, values["num_draft_stages"]):
        check_number(problems, "num_nextn_predict_layers", next_n, INT_LIMITS["num_draft_stages"])
    if any(not same(ratio, 0) for ratio in tail):
        expected, because = f"only 0 after {num_layers} layers", "draft stages have no compressed entries"
        problems.add("compress_ratios tail", tail, expected, because, "Check num_hidden_layers and the list.")
    names = _RATIO_OF_TRANSFORMERS_TYPE
    spelled = {
        "compress_ratios": None if ratios is None else tuple(ratios[:num_layers]),
        "layer_types": None if types is None else tuple(names.get(t, t) if isinstance(t, str) else t for t in types),
    }
    store(values, "compress_ratios", pick(problems, spelled))


def _read_mlp_types(mapping: Mapping[str, Any], values: dict[str, Any], problems: Problems) -> None:
    """`mlp_layer_types` of the backbone."""
    num_layers = values.get("num_hidden_layers")
    if type(num_layers) is not int or not 1 <= num_layers <= MAX_LAYERS:
        return
    count, mlp_types = mapping.get("num_hash_layers"), read_list(mapping, "mlp_layer_types", problems)
    if count is not None and not check_number(problems, "num_hash_layers", count, (0, num_layers)):
        return
    hash_moe: MlpLayerType = "hash_moe"
    spelled = {
        "num_hash_layers": None if count is None else (hash_moe,) * count + ("moe",) * (num_layers - count),
        "mlp_layer_types": None if mlp_types is None else tuple(mlp_types),
    }
    store(values, "mlp_layer_types", pick(problems, spelled))


def _read_drafts(mapping: Mapping[str, Any], values: dict[str, Any], problems: Problems) -> None:
    """`draft_method` and `dspark`: any `dspark_*` key means DSpark, which then needs all four."""
    names = ("block_size", "noise_token_id", "target_layer_ids", "markov_rank")
    given = {name: mapping.get(f"dspark_{name}") for name in names}
    if all(value is None for value in given.values()):
        values["dspark"] = None
        if "num_draft_stages" in values:
            values["draft_method"] = None if same(values["num_draft_stages"], 0) else "mtp"
        return
    values["draft_method"] = "dspark"
    found = {name: pick(problems, {f"dspark_{name}": value}) for name, value in given.items()}
    if MISSING not in found.values():
        layers = found["target_layer_ids"]
        found["target_layer_ids"] = tuple(layers) if isinstance(layers, list) else layers
        experts: dict[str, Any] = {name: mapping.get(f"dspark_{name}") for name in ("n_routed_experts", "num_experts_per_tok")}
        values["dspark"] = DSparkConfig(**found, **experts, taps_inputs=values["hc_delayed"])


def _read_rope(mapping: Mapping[str, Any], values: dict[str, Any], problems: Problems) -> None:
    """Rotary width, both bases and the scaling, from the flat spelling, the nested one, or both if they agree."""
    nested = mapping.get("rope_parameters")
    parts: dict[str, dict[str, Any]] = {"main": {}, "compress": {}}
    if isinstance(nested, dict) and all(isinstance(nested.get(label), dict) for label in parts):
        check_keys(problems, nested, parts, "rope_parameters.")
        parts = {label: nested[label] for label in parts}
    elif nested is not None:
        because = "layers with and without compressed entries rotate differently"
        problems.add("rope_parameters", nested, "two objects, main and compress", because, "Write both.")
    for label, key in (("main", "rope_theta"), ("compress", "compress_rope_theta")):
        spelled = {key: mapping.get(key), f"rope_parameters.{label}.rope_theta": parts[label].get("rope_theta")}
        store(values, key, pick(problems, spelled))
    factors = {"partial_rotary_factor": mapping.get("partial_rotary_factor")}
    for label, part in parts.items():
        factors[f"rope_parameters.{label}.partial_rotary_factor"] = part.get("partial_rotary_factor")
    _read_rope_width(mapping, factors, values, problems)

    if parts["main"] and read_yarn(parts["main"], "rope_parameters.main", problems) is not None:
        because, do = "layers without compressed entries are never scaled", "Use a checkpoint of a supported model."
        problems.add("rope_parameters.main", parts["main"], "rope_type 'default'", because, do, unsupported=True)
    scalings = {"rope_scaling": mapping.get("rope_scaling"), "rope_parameters.compress": parts["compress"] or None}
    read = [(name, read_yarn(part, name, problems)) for name, part in scalings.items() if part is not None]
    values["rope_scaling"] = read[0][1] if read else None
    for name, yarn in read[1:]:
        if yarn != read[0][1]:
            problems.add(name, yarn, f"the same as {read[0][0]}", "both spell one value", "Remove the wrong one.")


def _read_rope_width(
    mapping: Mapping[str, Any], factors: Mapping[str, Any], values: dict[str, Any], problems: Problems
) -> None:
    """`qk_rope_head_dim`, given as such or as a fraction of `head_dim`."""
    widths = {"qk_rope_head_dim": mapping.get("qk_rope_head_dim")}
    head_dim = values.get("head_dim")
    for name, factor in factors.items():
        if factor is None or not check_number(problems, name, factor, (0.0, 1.0)):
            continue
        if type(head_dim) is int and head_dim <= INT_LIMITS["head_dim"][1]:
            width = factor * head_dim
            widths[name] = round(width) if abs(width - round(width)) < 1e-6 else width
    store(values, "qk_rope_head_dim", pick(problems, widths))
