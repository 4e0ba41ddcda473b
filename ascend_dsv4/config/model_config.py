# SPDX-License-Identifier: Apache-2.0
"""The shape and the constants of a model, read from the `config.json` of a checkpoint.

Two spellings of that file are in use: the released one (`compress_ratios`, `num_hash_layers`, `rope_scaling`) and the
one transformers >= 5 writes (`layer_types`, `mlp_layer_types`, nested `rope_parameters`). Both become the same
`ModelConfig`. Nothing is guessed: missing, unknown and impossible values are reported, all of them in one error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal

from ascend_dsv4.config.checks import (
    MISSING,
    Problems,
    check_fixed,
    check_keys,
    check_number,
    parse_json,
    read_text,
    same,
    show,
)
from ascend_dsv4.errors import ConfigError, UnsupportedError

LayerType = Literal["sliding", "csa", "hca"]
MlpLayerType = Literal["hash_moe", "moe"]
DraftMethod = Literal["mtp", "dspark"]

# architectures entry -> model_type
SUPPORTED_ARCHITECTURES: Final[Mapping[str, str]] = {"DeepseekV4ForCausalLM": "deepseek_v4"}

FP4_BLOCK: Final = 32  # inputs per scale of a packed expert weight

# Routed experts of all layers and draft stages together; the largest release, Pro-0813, has 24,576. A quantised expert
# is six tensors, so this keeps a list of all tensors to a size that is built in a few seconds.
MAX_TOTAL_EXPERTS: Final = 65_536

_LAYER_TYPE_OF_RATIO: Final[Mapping[int, LayerType]] = {0: "sliding", 4: "csa", 128: "hca"}
_RATIO_OF_TRANSFORMERS_TYPE: Final = {
    "sliding_attention": 0,
    "compressed_sparse_attention": 4,
    "heavily_compressed_attention": 128,
}
_MAX_FILE_BYTES: Final = 1 << 20  # released files have less than 2 KB
_MAX_LAYERS: Final = 1024
_MAX_DRAFT_STAGES: Final = 16
_MAX_LIST: Final = _MAX_LAYERS + _MAX_DRAFT_STAGES
_MAX_VOCAB: Final = 1 << 22

# Inclusive limits. With all upper ones reached at once every tensor still has fewer than 2**42 elements and a
# checkpoint fewer than 2**60 bytes.
_INT_LIMITS: Final[Mapping[str, tuple[int, int]]] = {
    "vocab_size": (1, _MAX_VOCAB),
    "hidden_size": (1, 1 << 16),
    "num_hidden_layers": (1, _MAX_LAYERS),
    "num_attention_heads": (1, 1024),
    "head_dim": (2, 4096),
    "qk_rope_head_dim": (2, 4096),
    "q_lora_rank": (1, 1 << 15),
    "o_groups": (1, 1024),
    "o_lora_rank": (1, 1 << 15),
    "sliding_window": (1, 1 << 16),
    "index_n_heads": (1, 1024),
    "index_head_dim": (2, 4096),
    "index_topk": (1, 1 << 16),
    "n_routed_experts": (1, 8192),
    "num_experts_per_tok": (1, 64),
    "moe_intermediate_size": (1, 1 << 16),
    "hc_mult": (1, 16),
    "hc_sinkhorn_iters": (1, 1000),
    "max_position_embeddings": (1, 1 << 24),  # float32 holds every position up to here exactly
    "bos_token_id": (0, _MAX_VOCAB - 1),
    "num_draft_stages": (0, _MAX_DRAFT_STAGES),
}
_FLOAT_LIMITS: Final[Mapping[str, tuple[float, float]]] = {
    "routed_scaling_factor": (1e-6, 1e6),
    "swiglu_limit": (1e-6, 1e6),
    "hc_eps": (1e-30, 0.1),
    "rms_norm_eps": (1e-30, 0.1),
    "rope_theta": (2.0, 1e12),
    "compress_rope_theta": (2.0, 1e12),
}
_YARN_LIMITS: Final[Mapping[str, tuple[float, float]]] = {
    "factor": (1.0, 65_536.0),
    "beta_fast": (1e-3, 1e6),
    "beta_slow": (1e-3, 1e6),
    "original_max_position_embeddings": (1, 1 << 24),
}
_DSPARK_LIMITS: Final[Mapping[str, tuple[int, int]]] = {
    "block_size": (1, 64),
    "noise_token_id": (0, _MAX_VOCAB - 1),
    "markov_rank": (1, 1 << 15),
}
# Every release agrees on these, and the oracles define nothing else.
_FIXED_VALUES: Final[Mapping[str, tuple[object, ...]]] = {
    "n_shared_experts": (1,),
    "scoring_func": ("sqrtsoftplus",),
    "norm_topk_prob": (True,),
    "expert_dtype": ("fp4", None),
}

# Keys of config.json. First those named as in the dataclass, with the default of the released code (None: required).
_PLAIN_KEYS: Final[Mapping[str, float | None]] = {
    **{key: None for key in _INT_LIMITS if key not in ("num_draft_stages", "qk_rope_head_dim")},
    **dict.fromkeys(("routed_scaling_factor", "swiglu_limit", "n_shared_experts", "scoring_func", "norm_topk_prob")),
    "hc_eps": 1e-6,
    "rms_norm_eps": 1e-6,
}
_READ_KEYS: Final = frozenset({
    "architectures", "model_type", "eos_token_id", "compress_ratios", "layer_types", "compress_rates",
    "num_hash_layers", "mlp_layer_types", "n_mtp_layers", "num_nextn_predict_layers", "qk_rope_head_dim",
    "partial_rotary_factor", "rope_theta", "compress_rope_theta", "rope_scaling", "rope_parameters",
    "quantization_config", "expert_dtype", "dspark_block_size", "dspark_noise_token_id", "dspark_target_layer_ids",
    "dspark_markov_rank",
})
# Keys with the one value that this model definition stands for.
_FIXED_KEYS: Final[Mapping[str, tuple[object, ...]]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "hidden_act": ("silu",),
    "tie_word_embeddings": (False,),
    "num_key_value_heads": (1,),
    "topk_method": ("noaux_tc",),
    "n_group": (1, None),
    "topk_group": (1, None),
    "compress_rates": ({"compressed_sparse_attention": 4, "heavily_compressed_attention": 128}, None),
    "compress_rate_csa": (4, None),
    "compress_rate_hca": (128, None),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
}
_QUANTIZATION_FIXED: Final[Mapping[str, tuple[object, ...]]] = {
    "quant_method": ("fp8",),
    "fmt": ("e4m3",),
    "scale_fmt": ("ue8m0",),
    "activation_scheme": ("dynamic",),
    "dequantize": (False,),
    "modules_to_convert": (None,),
}
_ROPE_FIXED: Final[Mapping[str, tuple[object, ...]]] = {
    "attention_factor": (1.0, None),  # cos and sin are never scaled
    "mscale": (0, None),
    "mscale_all_dim": (0, None),
    "truncate": (True, None),
}
# Second names that transformers reads for the same values.
_ALIAS_KEYS: Final[Mapping[str, str]] = {
    "num_local_experts": "n_routed_experts",
    "intermediate_size": "moe_intermediate_size",
}
# Training, bookkeeping and loading hints, without effect on what the model computes.
_HARMLESS_KEYS: Final = frozenset({
    "_name_or_path", "_attn_implementation", "_commit_hash", "attn_implementation", "attention_dropout",
    "aux_loss_alpha", "auto_map", "chunk_size_feed_forward", "dtype", "ep_size", "finetuning_task", "id2label",
    "initializer_range", "label2id", "output_attentions", "output_hidden_states", "output_router_logits",
    "pad_token_id", "prefix", "pretraining_tp", "problem_type", "return_dict", "router_aux_loss_coef",
    "router_jitter_noise", "seq_aux", "task_specific_params", "tokenizer_class", "torch_dtype", "torchscript",
    "transformers_version", "use_cache",
})
_KNOWN_KEYS: Final = _READ_KEYS.union(_PLAIN_KEYS, _FIXED_KEYS, _HARMLESS_KEYS, _ALIAS_KEYS)


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN frequencies of the layers with compressed entries; cos and sin themselves are never scaled."""

    factor: float
    beta_fast: float
    beta_slow: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True)
class DSparkConfig:
    """The block drafter: tokens drafted per block, its mask token, tapped layers (0-based), rank of the Markov head."""

    block_size: int
    noise_token_id: int
    target_layer_ids: tuple[int, ...]
    markov_rank: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One model under the public configuration names. Checked whenever one is made, also by `dataclasses.replace`.

    Sizes are counted in channels or tokens. Raises `ConfigError` or `UnsupportedError` listing every bad value.
    """

    architecture: str
    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int  # the last qk_rope_head_dim channels are rotated
    qk_rope_head_dim: int
    q_lora_rank: int
    o_groups: int
    o_lora_rank: int  # per group
    sliding_window: int  # including the token itself
    compress_ratios: tuple[int, ...]  # one per backbone layer: tokens per compressed entry, 0, 4 or 128
    mlp_layer_types: tuple[MlpLayerType, ...]  # one per backbone layer
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    scoring_func: str
    norm_topk_prob: bool
    routed_scaling_factor: float
    swiglu_limit: float
    hc_mult: int
    hc_sinkhorn_iters: int
    hc_eps: float
    rms_norm_eps: float
    rope_theta: float  # layers without compressed entries; never scaled
    compress_rope_theta: float  # layers with compressed entries
    rope_scaling: YarnScaling | None  # layers with compressed entries
    max_position_embeddings: int
    bos_token_id: int
    eos_token_id: tuple[int, ...]
    num_draft_stages: int
    draft_method: DraftMethod | None
    dspark: DSparkConfig | None
    weight_block_size: tuple[int, int] | None  # rows and columns per fp8 scale; None: an unquantised checkpoint
    expert_dtype: Literal["fp4"] | None  # None: an unquantised checkpoint

    def __post_init__(self) -> None:
        problems = Problems("ModelConfig")
        _check_values({field.name: getattr(self, field.name) for field in fields(self)}, problems)
        problems.raise_if_any()

    @property
    def layer_types(self) -> tuple[LayerType, ...]:
        """Attention type of every backbone layer; draft stages are all `sliding`."""
        return tuple(_LAYER_TYPE_OF_RATIO[ratio] for ratio in self.compress_ratios)

    @property
    def qk_nope_head_dim(self) -> int:
        """Channels of a head that are not rotated; they come first."""
        return self.head_dim - self.qk_rope_head_dim

    @property
    def is_quantized(self) -> bool:
        """Whether the checkpoint holds fp8 linear weights and fp4 experts."""
        return self.weight_block_size is not None

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any], *, source: str) -> ModelConfig:
        """Read a parsed `config.json` in either spelling; `source` names it in errors.

        Raises `UnsupportedError` for another architecture or for values that mean different maths, else `ConfigError`.
        """
        if not isinstance(mapping, Mapping):
            raise ConfigError(f"{source}: got {show(mapping)}; expected a JSON object, as in a model's config.json.")
        values = _read_architecture(mapping, source)
        problems = Problems(source)
        check_keys(problems, mapping, _KNOWN_KEYS)
        check_fixed(problems, mapping, _FIXED_KEYS)
        second_name = {key: alias for alias, key in _ALIAS_KEYS.items()}
        for key, default in _PLAIN_KEYS.items():
            names = [key, second_name[key]] if key in second_name else [key]
            _store(values, key, _pick(problems, {name: mapping.get(name, default) for name in names}))
        for read in (_read_eos, _read_layers, _read_drafts, _read_rope, _read_quantization):
            read(mapping, values, problems)
        for key in _FLOAT_LIMITS.keys() & values.keys():
            values[key] = _as_float(values[key])
        _check_values(values, problems)
        problems.raise_if_any()
        return cls(**values)

    @classmethod
    def from_file(cls, path: str | Path) -> ModelConfig:
        """Read a `config.json`, or the one in a checkpoint folder. Raises as `from_dict` does."""
        path = Path(path)
        file = path / "config.json" if path.is_dir() else path
        return cls.from_dict(parse_json(read_text(file, _MAX_FILE_BYTES), str(file)), source=str(file))


def _as_float(value: object) -> object:
    """An integer of ordinary size as a float; anything else as it is, for the range check to report."""
    return float(value) if type(value) is int and abs(value) < 1 << 64 else value


def _store(values: dict[str, Any], key: str, value: object) -> None:
    if value is not MISSING:
        values[key] = value


def _pick(problems: Problems, spellings: Mapping[str, object], *, required: bool = True) -> Any:
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


def _read_architecture(mapping: Mapping[str, Any], source: str) -> dict[str, Any]:
    """`architecture` and `model_type` from either key. Raises at once: other families give the keys other meanings."""
    architectures, model_type = mapping.get("architectures"), mapping.get("model_type")
    for architecture, supported_type in SUPPORTED_ARCHITECTURES.items():
        listed = isinstance(architectures, list) and architecture in architectures
        if listed and model_type in (None, supported_type) or architectures is None and model_type == supported_type:
            return {"architecture": architecture, "model_type": supported_type}
    supported = ", ".join(f"{name} (model_type {kind})" for name, kind in SUPPORTED_ARCHITECTURES.items())
    raise UnsupportedError(
        f"{source}: architectures={show(architectures)}, model_type={show(model_type)}: expected one of: {supported} "
        "(other families compute something else). Use the config.json of a supported model."
    )


def _read_eos(mapping: Mapping[str, Any], values: dict[str, Any], problems: Problems) -> None:
    eos = _pick(problems, {"eos_token_id": mapping.get("eos_token_id")})
    if eos is not MISSING:
        values["eos_token_id"] = tuple(eos) if isinstance(eos, list) else (eos,)


def _read_list(mapping: Mapping[str, Any], key: str, problems: Problems) -> list[Any] | None:
    value = mapping.get(key)
    if value is None or (isinstance(value, list) and len(value) <= _MAX_LIST):
        return value
    expected = f"a list of at most {_MAX_LIST} entries"
    problems.add(key, value, expected, "every layer has its own type", f"Correct {key}.")
    return None


def _read_layers(mapping: Mapping[str, Any], values: dict[str, Any], problems: Problems) -> None:
    """`compress_ratios` and `mlp_layer_types` of the backbone, and `num_draft_stages`."""
    num_layers = values.get("num_hidden_layers")
    if type(num_layers) is not int or not 1 <= num_layers <= _MAX_LAYERS:
        return  # reported elsewhere; no list can be judged without it
    ratios = _read_list(mapping, "compress_ratios", problems)
    types = _read_list(mapping, "layer_types", problems)
    tail = [] if ratios is None else ratios[num_layers:]
    # The released list counts the draft stages; `num_nextn_predict_layers` understates them for DSpark releases. It is
    # all that transformers leaves, which cuts its own list at the backbone.
    next_n = mapping.get("num_nextn_predict_layers")
    counted = (next_n or 0) if ratios is None else len(tail)
    values["num_draft_stages"] = counted if mapping.get("n_mtp_layers") is None else mapping["n_mtp_layers"]
    if next_n is not None and not same(next_n, values["num_draft_stages"]):
        check_number(problems, "num_nextn_predict_layers", next_n, _INT_LIMITS["num_draft_stages"])
    if any(not same(ratio, 0) for ratio in tail):
        expected, because = f"only 0 after {num_layers} layers", "draft stages have no compressed entries"
        problems.add("compress_ratios tail", tail, expected, because, "Check num_hidden_layers and the list.")
    names = _RATIO_OF_TRANSFORMERS_TYPE
    spelled = {
        "compress_ratios": None if ratios is None else tuple(ratios[:num_layers]),
        "layer_types": None if types is None else tuple(names.get(t, t) if isinstance(t, str) else t for t in types),
    }
    _store(values, "compress_ratios", _pick(problems, spelled))

    count, mlp_types = mapping.get("num_hash_layers"), _read_list(mapping, "mlp_layer_types", problems)
    if count is not None and not check_number(problems, "num_hash_layers", count, (0, num_layers)):
        return
    spelled = {
        "num_hash_layers": None if count is None else ("hash_moe",) * count + ("moe",) * (num_layers - count),
        "mlp_layer_types": None if mlp_types is None else tuple(mlp_types),
    }
    _store(values, "mlp_layer_types", _pick(problems, spelled))


def _read_drafts(mapping: Mapping[str, Any], values: dict[str, Any], problems: Problems) -> None:
    """`draft_method` and `dspark`: any `dspark_*` key means DSpark, which then needs all four."""
    given = {field.name: mapping.get(f"dspark_{field.name}") for field in fields(DSparkConfig)}
    if all(value is None for value in given.values()):
        values["dspark"] = None
        if "num_draft_stages" in values:
            values["draft_method"] = None if same(values["num_draft_stages"], 0) else "mtp"
        return
    values["draft_method"] = "dspark"
    found = {name: _pick(problems, {f"dspark_{name}": value}) for name, value in given.items()}
    if MISSING not in found.values():
        layers = found["target_layer_ids"]
        found["target_layer_ids"] = tuple(layers) if isinstance(layers, list) else layers
        values["dspark"] = DSparkConfig(**found)


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
        _store(values, key, _pick(problems, spelled))
    factors = {"partial_rotary_factor": mapping.get("partial_rotary_factor")}
    for label, part in parts.items():
        factors[f"rope_parameters.{label}.partial_rotary_factor"] = part.get("partial_rotary_factor")
    _read_rope_width(mapping, factors, values, problems)

    if parts["main"] and _read_yarn(parts["main"], "rope_parameters.main", problems) is not None:
        because, do = "layers without compressed entries are never scaled", "Use a checkpoint of a supported model."
        problems.add("rope_parameters.main", parts["main"], "rope_type 'default'", because, do, unsupported=True)
    scalings = {"rope_scaling": mapping.get("rope_scaling"), "rope_parameters.compress": parts["compress"] or None}
    read = [(name, _read_yarn(part, name, problems)) for name, part in scalings.items() if part is not None]
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
        if type(head_dim) is int and head_dim <= _INT_LIMITS["head_dim"][1]:
            width = factor * head_dim
            widths[name] = round(width) if abs(width - round(width)) < 1e-6 else width
    _store(values, "qk_rope_head_dim", _pick(problems, widths))


def _read_yarn(part: object, where: str, problems: Problems) -> YarnScaling | None:
    """One set of rotary parameters; None stands for plain frequencies."""
    if not isinstance(part, dict):
        problems.add(where, part, "an object", "it holds the rotary parameters", f"Correct or remove {where}.")
        return None
    known = ["type", "rope_type", "rope_theta", "partial_rotary_factor", *_YARN_LIMITS, *_ROPE_FIXED]
    check_keys(problems, part, known, f"{where}.")
    check_fixed(problems, part, _ROPE_FIXED, f"{where}.")
    kind = _pick(problems, {f"{where}.rope_type": part.get("rope_type"), f"{where}.type": part.get("type")})
    check_fixed(problems, {"rope_type": kind}, {"rope_type": ("yarn", "default", MISSING)}, f"{where}.")
    if kind != "yarn":
        return None
    found = {name: _pick(problems, {f"{where}.{name}": part.get(name)}) for name in _YARN_LIMITS}
    if MISSING in found.values():
        return None
    for name in ("factor", "beta_fast", "beta_slow"):
        found[name] = _as_float(found[name])
    return YarnScaling(**found)


def _read_quantization(mapping: Mapping[str, Any], values: dict[str, Any], problems: Problems) -> None:
    """`weight_block_size` and `expert_dtype`; a quantised checkpoint that does not name the latter has fp4 experts."""
    quantization, expert_dtype = mapping.get("quantization_config"), mapping.get("expert_dtype")
    if quantization is None:
        # Converters to plain weights drop quantization_config but leave the released expert_dtype behind.
        values.update(weight_block_size=None, expert_dtype=None if expert_dtype == "fp4" else expert_dtype)
        return
    if not isinstance(quantization, dict):
        do = "Correct it or remove it."
        problems.add("quantization_config", quantization, "an object", "it describes the stored weights", do)
        return
    where = "quantization_config."
    known = {*_QUANTIZATION_FIXED, "weight_block_size", "expert_dtype", "modules_to_not_convert"}
    check_keys(problems, quantization, known, where)
    check_fixed(problems, quantization, _QUANTIZATION_FIXED, where)
    for key in ("quant_method", "scale_fmt"):
        _pick(problems, {where + key: quantization.get(key)})
    block = _pick(problems, {f"{where}weight_block_size": quantization.get("weight_block_size")})
    _store(values, "weight_block_size", tuple(block) if isinstance(block, list) else block)
    spelled = {"expert_dtype": expert_dtype, f"{where}expert_dtype": quantization.get("expert_dtype")}
    expert_dtype = _pick(problems, spelled, required=False)
    values["expert_dtype"] = "fp4" if expert_dtype is MISSING else expert_dtype


# Requirements between values: the names (the first is the one reported), the test, what is expected and why.
_RULES: Final[tuple[tuple[str, Callable[..., bool], str, str], ...]] = (
    ("num_attention_heads o_groups", lambda heads, groups: heads % groups == 0,
     "a multiple of o_groups", "the output projection works on equal groups of heads"),
    ("qk_rope_head_dim", lambda rope: rope % 2 == 0,
     "an even number", "channels are rotated in pairs"),
    ("qk_rope_head_dim head_dim", lambda rope, dim: rope <= dim,
     "at most head_dim", "it is a part of each head"),
    ("qk_rope_head_dim index_head_dim", lambda rope, dim: rope <= dim,
     "at most index_head_dim", "it is a part of each indexer head"),
    ("index_head_dim", lambda dim: dim & (dim - 1) == 0,
     "a power of two", "the indexer applies a Hadamard matrix"),
    ("num_experts_per_tok n_routed_experts", lambda used, held: used <= held,
     "at most n_routed_experts", "a token goes to distinct experts"),
    ("hidden_size expert_dtype", lambda dim, dtype: dtype is None or dim % FP4_BLOCK == 0,
     f"a multiple of {FP4_BLOCK}", f"fp4 weights have one scale per {FP4_BLOCK} inputs"),
    ("moe_intermediate_size expert_dtype", lambda dim, dtype: dtype is None or dim % FP4_BLOCK == 0,
     f"a multiple of {FP4_BLOCK}", f"fp4 weights have one scale per {FP4_BLOCK} inputs"),
    ("weight_block_size expert_dtype", lambda block, dtype: (block is None) == (dtype is None),
     "both or neither", "linears and experts of a checkpoint are quantised together"),
    ("rope_scaling", lambda yarn: yarn is None or yarn.beta_fast > yarn.beta_slow,
     "beta_fast above beta_slow", "the ramp between them would run backwards"),
    ("compress_ratios num_hidden_layers", lambda ratios, layers: len(ratios) == layers,
     "one entry per backbone layer", "every layer has its own type"),
    ("mlp_layer_types num_hidden_layers", lambda types, layers: len(types) == layers,
     "one entry per backbone layer", "every layer has its own type"),
    ("bos_token_id vocab_size", lambda bos, vocab: bos < vocab,
     "a token id below vocab_size", "it is a row of the embedding"),
    ("eos_token_id vocab_size", lambda eos, vocab: max(eos) < vocab,
     "token ids below vocab_size", "each is a row of the head"),
    ("n_routed_experts num_hidden_layers num_draft_stages",
     lambda experts, layers, stages: experts * (layers + stages) <= MAX_TOTAL_EXPERTS,
     f"at most {MAX_TOTAL_EXPERTS} experts in all layers together", "every expert is several tensors"),
    ("draft_method", lambda method: method in (None, "mtp", "dspark"),
     "'mtp', 'dspark' or None", "there are two drafters"),
    ("draft_method num_draft_stages", lambda method, stages: (method is None) == (stages == 0),
     "a drafter together with draft stages, or neither", "a drafter consists of its stages"),
    ("dspark draft_method", lambda dspark, method: (dspark is not None) == (method == "dspark"),
     "the DSpark values exactly with draft_method 'dspark'", "no other drafter has them"),
    ("dspark num_hidden_layers", lambda dspark, layers: dspark is None or max(dspark.target_layer_ids) < layers,
     "target layers below num_hidden_layers", "the drafter reads outputs of backbone layers"),
    ("dspark", lambda dspark: dspark is None or len({*dspark.target_layer_ids}) == len(dspark.target_layer_ids),
     "distinct target layers", "each output is read once"),
    ("dspark vocab_size", lambda dspark, vocab: dspark is None or dspark.noise_token_id < vocab,
     "a noise token below vocab_size", "it is a row of the embedding"),
)
# Tuples: the longest one, the test of an entry, what entries are and why.
_TUPLES: Final[Mapping[str, tuple[int, Callable[[Any], bool], str, str]]] = {
    "compress_ratios": (_MAX_LIST, lambda ratio: type(ratio) is int and ratio in _LAYER_TYPE_OF_RATIO,
                        "0, 4 or 128", "the layer types are sliding, csa and hca"),
    "mlp_layer_types": (_MAX_LIST, lambda kind: kind in ("hash_moe", "moe"),
                        "'hash_moe' or 'moe'", "experts are chosen by token id or by score"),
    "eos_token_id": (64, lambda token: type(token) is int and 0 <= token < _MAX_VOCAB,
                     "a token id", "generation ends there"),
    "weight_block_size": (2, lambda size: type(size) is int and 1 <= size <= 4096,
                          "an integer from 1 to 4096", "they are the rows and columns that share a scale"),
    "dspark_target_layer_ids": (16, lambda layer: type(layer) is int and 0 <= layer < _MAX_LAYERS,
                                "a layer number", "the drafter reads the outputs of these layers"),
}


def _check_values(values: Mapping[str, Any], problems: Problems) -> None:
    """The type and range of each value that is there, then how the sound ones fit together."""
    check_fixed(problems, values, _FIXED_VALUES)
    sound = {name: value for name, value in values.items() if _is_sound(name, value, problems)}
    for names, test, expected, because in _RULES:
        keys = names.split()
        if all(key in sound for key in keys) and not test(*(sound[key] for key in keys)):
            problems.add(keys[0], sound[keys[0]], expected, because, f"Correct {' or '.join(keys)}.")


def _is_sound(name: str, value: Any, problems: Problems) -> bool:
    if name in _INT_LIMITS or name in _FLOAT_LIMITS:
        return check_number(problems, name, value, _INT_LIMITS.get(name) or _FLOAT_LIMITS[name])
    if name in _FIXED_VALUES:
        return any(same(value, choice) for choice in _FIXED_VALUES[name])
    if name in _TUPLES and not (name == "weight_block_size" and value is None):
        return _is_tuple(name, value, problems)
    if name == "rope_scaling" and value is not None:
        return _are_in_limits("rope_scaling.", value, YarnScaling, _YARN_LIMITS, problems)
    if name == "dspark" and value is not None:
        fits = _are_in_limits("dspark_", value, DSparkConfig, _DSPARK_LIMITS, problems)
        return fits and _is_tuple("dspark_target_layer_ids", value.target_layer_ids, problems)
    return True


def _is_tuple(name: str, value: Any, problems: Problems) -> bool:
    """Whether `value` is a tuple as `_TUPLES` says; only the first bad entry is reported."""
    max_len, test, expected, because = _TUPLES[name]
    min_len = 2 if name == "weight_block_size" else 1
    if not isinstance(value, tuple) or not min_len <= len(value) <= max_len:
        expected = f"a list of {min_len} to {max_len} entries, each {expected}"
        problems.add(name, value, expected, because, f"Correct {name}.")
        return False
    bad = next((idx for idx, item in enumerate(value) if not test(item)), None)
    if bad is not None:
        problems.add(f"{name}[{bad}]", value[bad], expected, because, f"Correct {name}.")
    return bad is None


def _are_in_limits(
    prefix: str, value: object, kind: type, limits: Mapping[str, tuple[float, float]], problems: Problems
) -> bool:
    if not isinstance(value, kind):
        where = prefix[:-1]
        problems.add(where, value, f"a {kind.__name__} or None", "its values belong together", f"Correct {where}.")
        return False
    fits = [check_number(problems, prefix + name, getattr(value, name), limits[name]) for name in limits]
    return all(fits)  # after all of them were reported
