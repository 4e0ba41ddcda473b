# SPDX-License-Identifier: Apache-2.0
"""The shape and the constants of a model, read from the `config.json` of a checkpoint.

Each family has its reader: `reading_v4.py` for V4 and V4.1, `reading_v32.py` for V3.2 and V3. V4 has two spellings: the
released one (`compress_ratios`, `num_hash_layers`, `rope_scaling`) and the one transformers >= 5 writes (`layer_types`,
`mlp_layer_types`, nested `rope_parameters`). V4.1 has a nested one and the flat one of its reference code
(`reading_flat.py`). All become the same `ModelConfig`. Nothing is guessed: missing, unknown and impossible values are
reported, all of them in one error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING as DATACLASS_MISSING
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from ascend_dsv4.config.checks import Problems, check_fixed, check_number, parse_json, read_text, same, show
from ascend_dsv4.config.parts import (
    ENGRAM_BLOCK,
    FAMILIES,
    FLOAT_LIMITS,
    FP4_BLOCK,
    INT_LIMITS,
    MAX_LAYERS,
    MAX_LIST,
    MAX_VOCAB,
    PART_LIMITS,
    CacheGrids,
    CandidateConfig,
    DraftMethod,
    DSparkConfig,
    EngramConfig,
    ExpertDtype,
    LayerType,
    MlaConfig,
    MlpLayerType,
    YarnScaling,
)
from ascend_dsv4.config.reading import as_float
from ascend_dsv4.config.reading_flat import is_flat
from ascend_dsv4.config.reading_v4 import read_v4, read_v41
from ascend_dsv4.config.reading_v32 import read_v32
from ascend_dsv4.config.source_rules import MAX_RATIO, SOURCE_RULES
from ascend_dsv4.config.vision_config import VisionConfig
from ascend_dsv4.errors import ConfigError, UnsupportedError

# architectures entry -> model_type
SUPPORTED_ARCHITECTURES: Final[Mapping[str, str]] = {family.architecture: name for name, family in FAMILIES.items()}
_READERS: Final[Mapping[str, Callable[[Mapping[str, Any], dict[str, Any], Problems], None]]] = {
    "deepseek_v4": read_v4, "deepseek_v41": read_v41, "deepseek_v32": read_v32, "deepseek_v3": read_v32,
}  # fmt: skip

# Routed experts of all layers and draft stages together; the largest release, Pro-0813, has 24,576. A quantised expert
# is six tensors, so this keeps a list of all tensors to a size that is built in a few seconds.
MAX_TOTAL_EXPERTS: Final = 65_536

_MAX_FILE_BYTES: Final = 1 << 20  # released files have less than 4 KB
# Every release agrees on these, and the oracles define nothing else.
_FIXED_VALUES: Final[Mapping[str, tuple[object, ...]]] = {
    "n_shared_experts": (1,),
    "scoring_func": ("sqrtsoftplus",),
    "norm_topk_prob": (True,),
    "expert_dtype": ("fp4", None),
}
_FIXED_WITH_MLA: Final = {**_FIXED_VALUES, "scoring_func": ("sigmoid",), "expert_dtype": ("fp8", None)}
_PREFIXES: Final[Mapping[str, str]] = {
    "dspark": "dspark_", "engram": "engram_", "candidates": "candidate_", "vision": "vision_config.",
}  # fmt: skip
"""How the keys of a part begin in config.json, where not with its name and a dot."""
_PARTS: Final[Mapping[str, type]] = {
    "rope_scaling": YarnScaling, "dspark": DSparkConfig, "candidates": CandidateConfig, "engram": EngramConfig,
    "mla": MlaConfig, "vision": VisionConfig,
}  # fmt: skip


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
    head_dim: int  # of queries and keys; the last qk_rope_head_dim channels are rotated
    qk_rope_head_dim: int
    q_lora_rank: int
    o_groups: int  # 0 with mla, which projects all heads together
    o_lora_rank: int  # per group
    sliding_window: int  # including the token itself; 0 with mla, which keeps a row of every token
    compress_ratios: tuple[int, ...]  # one per backbone layer: tokens per kept entry
    mlp_layer_types: tuple[MlpLayerType, ...]  # one per backbone layer
    index_n_heads: int
    index_head_dim: int
    index_topk: int  # 0: no indexer, every entry is read
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    intermediate_size: int  # of dense layers; 0 where there are none
    n_group: int  # experts are chosen inside the best topk_group of n_group groups
    topk_group: int
    scoring_func: str
    norm_topk_prob: bool
    routed_scaling_factor: float
    routing_eps: float
    swiglu_limit: float  # infinite: no clamp
    hc_mult: int  # residual streams; 0: one plain residual
    hc_sinkhorn_iters: int
    hc_eps: float
    hc_delayed: bool
    q_head_norm: bool
    rms_norm_eps: float
    rope_theta: float  # layers without kept entries; never scaled
    compress_rope_theta: float  # layers with kept entries
    rope_scaling: YarnScaling | None  # layers with kept entries
    cache_grids: CacheGrids
    max_position_embeddings: int
    bos_token_id: int
    eos_token_id: tuple[int, ...]
    num_draft_stages: int
    draft_method: DraftMethod | None
    dspark: DSparkConfig | None
    weight_block_size: tuple[int, int] | None  # rows and columns per fp8 scale; None: an unquantised checkpoint
    expert_dtype: ExpertDtype | None  # None: an unquantised checkpoint
    mla: MlaConfig | None = None
    kv_source_layer_ids: tuple[int, ...] = ()  # layers whose entries the following ones read; (): each layer its own
    index_source_layer_ids: tuple[int, ...] = ()  # layers whose selection the following ones use
    candidates: CandidateConfig | None = None
    engram: EngramConfig | None = None
    vision: VisionConfig | None = None
    image_token_id: int | None = None

    def __post_init__(self) -> None:
        problems = Problems("ModelConfig")
        _check_values({field.name: getattr(self, field.name) for field in fields(self)}, problems)
        problems.raise_if_any()

    @property
    def layer_types(self) -> tuple[LayerType, ...]:
        """Attention type of every backbone layer."""
        return tuple(self._layer_type(layer) for layer in range(self.num_hidden_layers))

    def _layer_type(self, layer: int) -> LayerType:
        if self.mla is not None:
            return "mla_dense" if self.mlp_layer_types[layer] == "dense" else "mla_moe"
        ratio = self.compress_ratios[layer]
        if not self.kv_source_layer_ids:
            return "csa" if ratio == 4 else "hca" if ratio else "sliding"
        if not ratio:
            return "sliding"
        sources = (self.kv_source_layer_ids, self.index_source_layer_ids)
        return "full" if layer in sources[0] else "reindex" if layer in sources[1] else "reuse"

    @property
    def draft_stage(self) -> ModelConfig:
        """The configuration with the experts of the draft stages."""
        if self.dspark is None:
            return self
        return replace(
            self,
            n_routed_experts=self.dspark.n_routed_experts or self.n_routed_experts,
            num_experts_per_tok=self.dspark.num_experts_per_tok or self.num_experts_per_tok,
        )

    @property
    def qk_nope_head_dim(self) -> int:
        """Channels of a head that are not rotated; they come first."""
        return self.head_dim - self.qk_rope_head_dim

    @property
    def is_quantized(self) -> bool:
        """Whether the checkpoint holds fp8 linear weights and fp4 or fp8 experts."""
        return self.weight_block_size is not None

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any], *, source: str) -> ModelConfig:
        """Read a parsed `config.json` in either spelling; `source` names it in errors.

        Raises `UnsupportedError` for another architecture or for values that mean different maths, else `ConfigError`.
        """
        if not isinstance(mapping, Mapping):
            raise ConfigError(f"{source}: got {show(mapping)}; expected a JSON object, as in a model's config.json.")
        values = {field.name: field.default for field in fields(cls) if field.default is not DATACLASS_MISSING}
        values |= _read_architecture(mapping, source)
        problems = Problems(source)
        _READERS[values["model_type"]](mapping, values, problems)
        for key in FLOAT_LIMITS.keys() & values.keys():
            values[key] = as_float(values[key])
        _check_values(values, problems)
        problems.raise_if_any()
        return cls(**values)

    @classmethod
    def from_file(cls, path: str | Path) -> ModelConfig:
        """Read a `config.json`, or the one in a checkpoint folder. Raises as `from_dict` does."""
        path = Path(path)
        file = path / "config.json" if path.is_dir() else path
        return cls.from_dict(parse_json(read_text(file, _MAX_FILE_BYTES), str(file)), source=str(file))


def _read_architecture(mapping: Mapping[str, Any], source: str) -> dict[str, Any]:
    """`architecture` and `model_type` from either key, and what they imply. Raises at once: families read keys differently."""
    architectures, model_type = mapping.get("architectures"), mapping.get("model_type")
    if architectures is None and model_type is None and is_flat(mapping) and "kv_source_layers" in mapping:
        model_type = "deepseek_v41"  # the flat spelling names no architecture
    for architecture, supported_type in SUPPORTED_ARCHITECTURES.items():
        listed = isinstance(architectures, list) and architecture in architectures
        if listed and model_type in (None, supported_type) or architectures is None and model_type == supported_type:
            family = FAMILIES[supported_type]
            implied = {name: getattr(family, name) for name in ("cache_grids", "hc_delayed", "q_head_norm", "routing_eps")}
            return {"architecture": architecture, "model_type": supported_type, **implied}
    supported = ", ".join(f"{name} (model_type {kind})" for name, kind in SUPPORTED_ARCHITECTURES.items())
    raise UnsupportedError(
        f"{source}: architectures={show(architectures)}, model_type={show(model_type)}: expected one of: {supported} "
        "(other families compute something else). Use the config.json of a supported model."
    )


# Requirements between values: the names (the first is the one reported), the test, what is expected and why.
_RULES: Final[tuple[tuple[str, Callable[..., bool], str, str], ...]] = (
    ("num_attention_heads o_groups", lambda heads, groups: groups == 0 or heads % groups == 0,
     "a multiple of o_groups", "the output projection works on equal groups of heads"),
    ("qk_rope_head_dim", lambda rope: rope % 2 == 0,
     "an even number", "channels are rotated in pairs"),
    ("qk_rope_head_dim head_dim", lambda rope, dim: rope <= dim,
     "at most head_dim", "it is a part of each head"),
    *((f"{name} mla", lambda size, mla: (size == 0) == (mla is not None),
       "at least 1, or 0 with mla", "only attention over a window and compressed entries has it")
      for name in ("o_groups", "o_lora_rank", "sliding_window", "hc_mult", "hc_sinkhorn_iters")),
    ("hc_eps mla", lambda eps, mla: eps >= 1e-30 or mla is not None,
     "at least 1e-30", "the sums it is added to may vanish"),
    *((f"{name} mla index_topk", lambda size, mla, topk: (size > 0) if mla is None else (size > 0) == (topk > 0),
       "at least 1, or with mla all index sizes 0", "an indexer has heads and chooses entries")
      for name in ("index_n_heads", "index_head_dim", "index_topk")),
    ("qk_rope_head_dim index_head_dim index_topk", lambda rope, dim, topk: rope <= dim or topk == 0,
     "at most index_head_dim", "it is a part of each indexer head"),
    ("index_head_dim cache_grids", lambda dim, grids: dim & (dim - 1) == 0 or "hadamard" not in grids.index,
     "a power of two", "the indexer applies a Hadamard matrix"),
    ("n_routed_experts n_group", lambda experts, groups: experts % groups == 0,
     "a multiple of n_group", "groups of experts are equal"),
    ("topk_group n_group", lambda kept, groups: kept <= groups,
     "at most n_group", "groups are kept out of those there are"),
    ("num_experts_per_tok n_routed_experts n_group topk_group",
     lambda used, held, groups, kept: held % groups or used <= held // groups * kept,
     "at most the experts of topk_group groups", "a token goes to distinct experts"),
    ("n_routed_experts n_group", lambda experts, groups: groups == 1 or experts // groups >= 2,
     "at least 2 experts per group", "a group is judged by its two best"),
    ("mlp_layer_types mla", lambda types, mla: {*types} <= {"moe", "hash_moe" if mla is None else "dense"},
     "'dense' layers with mla only, 'hash_moe' layers without", "no release has others"),
    ("intermediate_size mlp_layer_types mla", lambda size, types, mla: size > 0 or "dense" not in types or mla is None,
     "at least 1 with dense layers", "it is their width"),
    ("num_experts_per_tok n_routed_experts", lambda used, held: used <= held,
     "at most n_routed_experts", "a token goes to distinct experts"),
    ("hidden_size expert_dtype", lambda dim, dtype: dtype != "fp4" or dim % FP4_BLOCK == 0,
     f"a multiple of {FP4_BLOCK}", f"fp4 weights have one scale per {FP4_BLOCK} inputs"),
    ("moe_intermediate_size expert_dtype", lambda dim, dtype: dtype != "fp4" or dim % FP4_BLOCK == 0,
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
     "target layers below num_hidden_layers", "the drafter reads the streams of backbone layers"),
    ("dspark", lambda dspark: dspark is None or len({*dspark.target_layer_ids}) == len(dspark.target_layer_ids),
     "distinct target layers", "each is read once"),
    ("dspark vocab_size", lambda dspark, vocab: dspark is None or dspark.noise_token_id < vocab,
     "a noise token below vocab_size", "it is a row of the embedding"),
    ("dspark n_routed_experts num_experts_per_tok", lambda dspark, held, used: dspark is None
     or (dspark.num_experts_per_tok or used) <= (dspark.n_routed_experts or held),
     "at most n_routed_experts experts per token in draft stages", "a token goes to distinct experts"),
    ("image_token_id vocab_size", lambda token, vocab: token is None or token < vocab,
     "a token id below vocab_size", "it is a row of the embedding"),
    ("vision image_token_id", lambda vision, token: (vision is None) == (token is None),
     "together with image_token_id, or neither", "the token marks where an image stands"),
    ("vision", lambda vision: vision is None or vision.hidden_size % (4 * vision.num_attention_heads) == 0,
     "heads of a multiple of 4 channels", "each head is rotated by row and by column, in pairs"),
    ("engram num_hidden_layers", lambda engram, layers: engram is None or max(engram.layer_ids) < layers,
     "layers below num_hidden_layers", "each table belongs to a layer"),
    ("engram", lambda engram: engram is None or len(engram.layer_ids) == len({*engram.layer_ids}) == len(engram.num_embeddings),
     "distinct layers, and one number of rows for each", "each table belongs to a layer"),
    ("engram vocab_size", lambda engram, vocab: engram is None or engram.pad_token_id < vocab,
     "a pad token below vocab_size", "it is mapped like every other token"),
    ("engram vocab_size", lambda engram, vocab: engram is None or engram.compressed_vocab_size <= vocab,
     "a compressed vocabulary no larger than vocab_size", "tokens are merged, never split"),
    ("engram weight_block_size", lambda engram, block: engram is None or block is None or engram.head_dim % ENGRAM_BLOCK == 0,
     f"a head_dim that is a multiple of {ENGRAM_BLOCK}", f"quantised rows have one scale per {ENGRAM_BLOCK} channels"),
    ("engram hc_mult", lambda engram, streams: engram is None or streams > 0,
     "only with residual streams", "rows are gated per stream"),
    *SOURCE_RULES,
)
# Tuples: the shortest and the longest, the test of an entry, what entries are and why.
_TUPLES: Final[Mapping[str, tuple[int, int, Callable[[Any], bool], str, str]]] = {
    "compress_ratios": (1, MAX_LIST, lambda ratio: type(ratio) is int and 0 <= ratio <= MAX_RATIO,
                        f"a number of tokens from 0 to {MAX_RATIO}", "each layer folds so many tokens into an entry"),
    "mlp_layer_types": (1, MAX_LIST, lambda kind: kind in ("hash_moe", "moe", "dense"),
                        "'hash_moe', 'moe' or 'dense'", "experts are chosen by token id or by score, or there are none"),
    "eos_token_id": (1, 64, lambda token: type(token) is int and 0 <= token < MAX_VOCAB,
                     "a token id", "generation ends there"),
    "weight_block_size": (2, 2, lambda size: type(size) is int and 1 <= size <= 4096,
                          "an integer from 1 to 4096", "they are the rows and columns that share a scale"),
    **{name: (0, MAX_LIST, lambda layer: type(layer) is int and 0 <= layer < MAX_LAYERS,
              "a layer number", "these layers are the sources of others")
       for name in ("kv_source_layer_ids", "index_source_layer_ids")},
    "dspark.target_layer_ids": (1, 16, lambda layer: type(layer) is int and 0 <= layer < MAX_LAYERS,
                                "a layer number", "the drafter reads the streams at these layers"),
    "engram.layer_ids": (1, 64, lambda layer: type(layer) is int and 0 <= layer < MAX_LAYERS,
                         "a layer number", "these layers have a table"),
    "engram.num_embeddings": (1, 64, lambda rows: type(rows) is int and 1 <= rows <= 1 << 40,
                              "a number of rows", "they are the sizes of the tables"),
}


def _check_values(values: Mapping[str, Any], problems: Problems) -> None:
    """The type and range of each value that is there, then how the sound ones fit together."""
    fixed = _FIXED_VALUES if values.get("mla") is None else _FIXED_WITH_MLA
    check_fixed(problems, values, fixed)
    sound = {name: value for name, value in values.items() if _is_sound(name, value, problems)}
    for names, test, expected, because in _RULES:
        keys = names.split()
        if all(key in sound for key in keys) and not test(*(sound[key] for key in keys)):
            problems.add(keys[0], sound[keys[0]], expected, because, f"Correct {' or '.join(keys)}.")


def _is_sound(name: str, value: Any, problems: Problems) -> bool:
    if name in INT_LIMITS or name in FLOAT_LIMITS:
        return check_number(problems, name, value, INT_LIMITS.get(name) or FLOAT_LIMITS[name])
    if name in _FIXED_VALUES:
        return any(same(value, choice) for choice in (*_FIXED_VALUES[name], *_FIXED_WITH_MLA[name]))
    if name in _TUPLES and not (name == "weight_block_size" and value is None):
        return _is_tuple(name, value, problems)
    if name in _PARTS and value is not None:
        return _is_part(name, value, problems)
    if name == "image_token_id" and value is not None:
        return check_number(problems, name, value, (0, MAX_VOCAB - 1))
    return True


def _is_part(name: str, value: object, problems: Problems) -> bool:
    kind, prefix = _PARTS[name], _PREFIXES.get(name, f"{name}.")
    if not isinstance(value, kind):
        problems.add(name, value, f"a {kind.__name__} or None", "its values belong together", f"Correct {name}.")
        return False
    limits = PART_LIMITS[name]
    fits = [check_number(problems, prefix + key, getattr(value, key), limits[key]) for key in limits]
    for key in ("n_routed_experts", "num_experts_per_tok") if isinstance(value, DSparkConfig) else ():
        if getattr(value, key) is not None:
            fits.append(check_number(problems, prefix + key, getattr(value, key), INT_LIMITS[key]))
    tuples = [key for key in _TUPLES if key.startswith(f"{name}.")]
    fits += [_is_tuple(key, getattr(value, key.partition(".")[2]), problems) for key in tuples]
    if isinstance(value, VisionConfig) and value.max_wh_ratio is not None:
        fits.append(check_number(problems, f"{prefix}max_wh_ratio", value.max_wh_ratio, (1.0, 1e6)))
    return all(fits)  # after all of them were reported


def _is_tuple(name: str, value: Any, problems: Problems) -> bool:
    """Whether `value` is a tuple as `_TUPLES` says; only the first bad entry is reported."""
    min_len, max_len, test, expected, because = _TUPLES[name]
    where, _, key = name.partition(".")
    name = _PREFIXES.get(where, f"{where}.") + key if key else name
    if not isinstance(value, tuple) or not min_len <= len(value) <= max_len:
        expected = f"a list of {min_len} to {max_len} entries, each {expected}"
        problems.add(name, value, expected, because, f"Correct {name}.")
        return False
    bad = next((idx for idx, item in enumerate(value) if not test(item)), None)
    if bad is not None:
        problems.add(f"{name}[{bad}]", value[bad], expected, because, f"Correct {name}.")
    return bad is None
