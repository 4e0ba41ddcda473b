# SPDX-License-Identifier: Apache-2.0
"""Every tensor a released checkpoint of a model holds: names, dtypes and shapes, without reading a checkpoint.

Weights are [out_features, in_features]. In a quantised checkpoint each `X.weight` in F8_E4M3 or I8 has a sibling
`X.scale` in F8_E8M0; an I8 byte packs two fp4 values along the inputs. An unquantised checkpoint holds the same weights
in BF16 without scales. What the release keeps in F32 is F32 in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ascend_dsv4.config.layers import LayerSpec, compressor_roles, draft_layer, layer_specs
from ascend_dsv4.config.model_config import ModelConfig
from ascend_dsv4.config.parts import ENGRAM_BLOCK, FP4_BLOCK
from ascend_dsv4.model.inventory_v32 import aliases_v32, tensors_v32
from ascend_dsv4.model.tensor_spec import DTYPE_BYTES, TensorSpec
from ascend_dsv4.model.vision_weights import vision_tensors

VISION_PREFIXES = ("vision.", "aligner.", "image_")


@dataclass(frozen=True, slots=True)
class DtypeTotal:
    """Tensors of one dtype together."""

    num_tensors: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """Logical parameters of a model, as `parameter_counts` defines them."""

    backbone: int
    draft: int  # draft stages; they share the embedding and the head of the backbone
    embedding: int  # part of the backbone
    routed_experts: int  # part of the backbone
    active: int  # used per token by the backbone
    memory: int = 0  # n-gram tables
    vision: int = 0  # tower, aligner and delimiters

    @property
    def total(self) -> int:
        """Everything in the files."""
        return self.backbone + self.draft + self.memory + self.vision


def inventory(config: ModelConfig) -> tuple[TensorSpec, ...]:
    """Every tensor of the released layout, draft stages included, each once and in model order."""
    return tuple(_Layout(config).tensors() if config.mla is None else tensors_v32(config))


def optional_aliases(config: ModelConfig) -> Mapping[str, str]:
    """Names a checkpoint may store a second time for its draft stages -> the tensor they repeat; not in `inventory`."""
    if config.mla is not None:
        return aliases_v32(config)
    shared = {"emb.tok_emb.weight": "embed.weight", "head.weight": "head.weight"}
    return {f"mtp.{s}.{alias}": name for s in range(config.num_draft_stages) for alias, name in shared.items()}


def draft_prefixes(config: ModelConfig) -> tuple[str, ...]:
    """How the names of the tensors of draft stages begin."""
    if config.mla is None:
        return ("mtp.",)
    return tuple(f"model.layers.{config.num_hidden_layers + stage}." for stage in range(config.num_draft_stages))


def summarize(specs: Iterable[TensorSpec]) -> dict[str, DtypeTotal]:
    """Tensors and bytes per dtype, in the order of `DTYPE_BYTES`, without dtypes that do not occur."""
    counts, sizes = dict.fromkeys(DTYPE_BYTES, 0), dict.fromkeys(DTYPE_BYTES, 0)
    for spec in specs:
        counts[spec.dtype] += 1
        sizes[spec.dtype] += spec.num_bytes
    return {dtype: DtypeTotal(counts[dtype], sizes[dtype]) for dtype in DTYPE_BYTES if counts[dtype]}


def parameter_counts(config: ModelConfig) -> ParameterCounts:
    """Logical parameters: values the model computes with, however they are stored.

    A packed byte counts as its two fp4 values. Block scales belong to the storage format and the token-to-expert tables
    of hash layers are integers looked up, so neither counts, and quantised and plain checkpoints of a model agree.
    Everything else counts: norms, sinks, hyper-connections, router biases. `active` is the backbone with only
    `num_experts_per_tok` of the routed experts and without what is looked up: the embedding and n-gram tables, of which a
    token reads single rows; the output head is included. Vision counts as neither backbone nor active.
    """
    drafts = draft_prefixes(config)
    backbone = draft = embedding = routed = memory = vision = 0
    for spec in inventory(config):
        if spec.dtype in ("F8_E8M0", "I64") or spec.name.endswith("scale_inv"):
            continue
        count = spec.num_elements * (2 if spec.dtype == "I8" else 1)
        if drafts and spec.name.startswith(drafts):
            draft += count
        elif spec.name.startswith(VISION_PREFIXES):
            vision += count
        elif spec.name.endswith(".engram.embed.weight"):
            memory += count
        else:
            backbone += count
            if spec.name in ("embed.weight", "model.embed_tokens.weight"):
                embedding = count
            elif ".experts." in spec.name:
                routed += count
    used = routed // config.n_routed_experts * config.num_experts_per_tok
    return ParameterCounts(backbone, draft, embedding, routed, backbone - embedding - routed + used, memory, vision)


def format_parameters(count: int) -> str:
    """A count as model names give it, rounded to the nearest: 284B, 1.6T; below a thousand the number itself."""
    for unit, suffix in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if 2000 * count >= 1999 * unit:  # 999.5 of a unit already rounds to one of the next
            return f"{count / unit:.1f}{suffix}" if count < 10 * unit else f"{count / unit:.0f}{suffix}"
    return str(count)


class _Layout:
    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    def tensors(self) -> Iterator[TensorSpec]:
        c = self.config
        yield TensorSpec("embed.weight", "BF16", (c.vocab_size, c.hidden_size))
        for i, spec in enumerate(layer_specs(c)):
            yield from self.layer(f"layers.{i}.", spec)
            if spec.engram is not None:
                yield from self.engram(f"layers.{i}.engram.", spec.engram)
        yield from self.output("")
        yield TensorSpec("head.weight", "BF16", (c.vocab_size, c.hidden_size))
        stages = _Layout(c.draft_stage)
        for stage in range(c.num_draft_stages):
            yield from stages.draft_stage(stage)
        if c.vision is not None:
            yield from vision_tensors(c.vision, c.hidden_size)

    def engram(self, prefix: str, table: int) -> Iterator[TensorSpec]:
        c = self.config
        assert c.engram is not None
        rows, dim = c.engram.num_embeddings[table], c.engram.head_dim
        quantised = c.weight_block_size is not None
        yield TensorSpec(f"{prefix}embed.weight", "F8_E4M3" if quantised else "BF16", (rows, dim))
        if quantised:
            yield TensorSpec(f"{prefix}embed.scale", "F8_E8M0", (rows, -(-dim // ENGRAM_BLOCK)))
        yield from self.linear(f"{prefix}wkv", (c.hc_mult + 1) * c.hidden_size, c.engram.num_columns * dim)
        for part in ("q_weight", "k_weight"):
            yield TensorSpec(prefix + part, "BF16", (c.hc_mult, c.hidden_size))

    def linear(self, prefix: str, out_features: int, in_features: int) -> Iterator[TensorSpec]:
        """A matrix that releases quantise to fp8 blocks."""
        block = self.config.weight_block_size
        yield TensorSpec(f"{prefix}.weight", "BF16" if block is None else "F8_E4M3", (out_features, in_features))
        if block is not None:
            yield TensorSpec(f"{prefix}.scale", "F8_E8M0", (-(-out_features // block[0]), -(-in_features // block[1])))

    def expert_linear(self, prefix: str, out_features: int, in_features: int) -> Iterator[TensorSpec]:
        """A matrix of a routed expert, which releases pack to fp4."""
        if self.config.expert_dtype is None:
            yield TensorSpec(f"{prefix}.weight", "BF16", (out_features, in_features))
        else:
            yield TensorSpec(f"{prefix}.weight", "I8", (out_features, in_features // 2))
            yield TensorSpec(f"{prefix}.scale", "F8_E8M0", (out_features, in_features // FP4_BLOCK))

    def hyper_connection(self, prefix: str, coefficients: int, scales: int) -> Iterator[TensorSpec]:
        yield TensorSpec(f"{prefix}_fn", "F32", (coefficients, self.config.hc_mult * self.config.hidden_size))
        yield TensorSpec(f"{prefix}_base", "F32", (coefficients,))
        yield TensorSpec(f"{prefix}_scale", "F32", (scales,))

    def output(self, prefix: str) -> Iterator[TensorSpec]:
        """What turns residual streams into the input of the head."""
        if not self.config.hc_delayed:
            yield from self.hyper_connection(f"{prefix}hc_head", self.config.hc_mult, 1)
        yield TensorSpec(f"{prefix}norm.weight", "BF16", (self.config.hidden_size,))

    def layer(self, prefix: str, spec: LayerSpec) -> Iterator[TensorSpec]:
        c = self.config
        mixed = (2 + c.hc_mult) * c.hc_mult  # pre, post and the square that mixes streams
        for part in ("attn", "ffn"):
            yield TensorSpec(f"{prefix}{part}_norm.weight", "BF16", (c.hidden_size,))
            yield from self.hyper_connection(f"{prefix}hc_{part}", mixed, 3)
        yield from self.attention(f"{prefix}attn.", spec)
        yield from self.moe(f"{prefix}ffn.", spec.mlp_type == "hash_moe")

    def attention(self, prefix: str, spec: LayerSpec) -> Iterator[TensorSpec]:
        c = self.config
        heads_dim = c.num_attention_heads * c.head_dim
        yield TensorSpec(f"{prefix}attn_sink", "F32", (c.num_attention_heads,))
        yield from self.linear(f"{prefix}wq_a", c.q_lora_rank, c.hidden_size)
        yield TensorSpec(f"{prefix}q_norm.weight", "BF16", (c.q_lora_rank,))
        yield from self.linear(f"{prefix}wq_b", heads_dim, c.q_lora_rank)
        yield from self.linear(f"{prefix}wkv", c.head_dim, c.hidden_size)
        yield TensorSpec(f"{prefix}kv_norm.weight", "BF16", (c.head_dim,))
        yield from self.linear(f"{prefix}wo_a", c.o_groups * c.o_lora_rank, heads_dim // c.o_groups)
        yield from self.linear(f"{prefix}wo_b", c.hidden_size, c.o_groups * c.o_lora_rank)
        if spec.layer_type in ("csa", "hca", "full"):
            yield from self.compressor(f"{prefix}compressor.", spec.ratio, c.head_dim)
        if spec.layer_type in ("csa", "full", "reindex"):
            yield from self.linear(f"{prefix}indexer.wq_b", c.index_n_heads * c.index_head_dim, c.q_lora_rank)
            yield TensorSpec(f"{prefix}indexer.weights_proj.weight", "BF16", (c.index_n_heads, c.hidden_size))
        if spec.layer_type == "csa":
            yield from self.compressor(f"{prefix}indexer.compressor.", spec.ratio, c.index_head_dim)
        if spec.layer_type == "full":
            yield TensorSpec(f"{prefix}indexer.wk.weight", "BF16", (c.index_head_dim, c.head_dim))
            yield TensorSpec(f"{prefix}indexer.k_norm.weight", "BF16", (c.index_head_dim,))

    def compressor(self, prefix: str, ratio: int, entry_dim: int) -> Iterator[TensorSpec]:
        width = entry_dim * compressor_roles(ratio)
        if not self.config.kv_source_layer_ids:
            yield TensorSpec(f"{prefix}ape", "F32", (ratio, width))
        for part in ("wkv", "wgate") if ratio > 1 else ("wkv",):
            yield TensorSpec(f"{prefix}{part}.weight", "BF16", (width, self.config.hidden_size))
        yield TensorSpec(f"{prefix}norm.weight", "BF16", (entry_dim,))

    def moe(self, prefix: str, is_hash: bool) -> Iterator[TensorSpec]:
        c = self.config
        size, shared_size = c.moe_intermediate_size, c.n_shared_experts * c.moe_intermediate_size
        yield TensorSpec(f"{prefix}gate.weight", "BF16", (c.n_routed_experts, c.hidden_size))
        if is_hash:
            yield TensorSpec(f"{prefix}gate.tid2eid", "I64", (c.vocab_size, c.num_experts_per_tok))
        else:
            yield TensorSpec(f"{prefix}gate.bias", "F32", (c.n_routed_experts,))
            if c.vision is not None:
                yield TensorSpec(f"{prefix}gate.bias_vl", "F32", (c.n_routed_experts,))
        for expert in range(c.n_routed_experts):
            yield from self.expert_linear(f"{prefix}experts.{expert}.w1", size, c.hidden_size)
            yield from self.expert_linear(f"{prefix}experts.{expert}.w2", c.hidden_size, size)
            yield from self.expert_linear(f"{prefix}experts.{expert}.w3", size, c.hidden_size)
        yield from self.linear(f"{prefix}shared_experts.w1", shared_size, c.hidden_size)
        yield from self.linear(f"{prefix}shared_experts.w2", c.hidden_size, shared_size)
        yield from self.linear(f"{prefix}shared_experts.w3", shared_size, c.hidden_size)

    def draft_stage(self, stage: int) -> Iterator[TensorSpec]:
        """An MTP stage stands alone; DSpark stages share one input projection (first) and one set of heads (last)."""
        c, prefix = self.config, f"mtp.{stage}."
        yield from self.layer(prefix, draft_layer(c))
        if c.dspark is None:
            yield from self.linear(f"{prefix}e_proj", c.hidden_size, c.hidden_size)
            yield from self.linear(f"{prefix}h_proj", c.hidden_size, c.hidden_size)
            yield TensorSpec(f"{prefix}enorm.weight", "BF16", (c.hidden_size,))
            yield TensorSpec(f"{prefix}hnorm.weight", "BF16", (c.hidden_size,))
            yield from self.output(prefix)
            return
        rank = c.dspark.markov_rank
        if stage == 0:
            taps = len(c.dspark.target_layer_ids)
            yield from self.linear(f"{prefix}main_proj", c.hidden_size, taps * c.hidden_size)
            yield TensorSpec(f"{prefix}main_norm.weight", "BF16", (c.hidden_size,))
        if stage == c.num_draft_stages - 1:
            yield from self.output(prefix)
            # V4.1 names the two factors by what they are.
            factors = ("embed", "head") if c.hc_delayed else ("markov_w1", "markov_w2")
            for factor in factors:
                yield TensorSpec(f"{prefix}markov_head.{factor}.weight", "BF16", (c.vocab_size, rank))
            yield TensorSpec(f"{prefix}confidence_head.proj.weight", "BF16", (1, c.hidden_size + rank))
