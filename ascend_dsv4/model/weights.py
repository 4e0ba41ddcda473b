# SPDX-License-Identifier: Apache-2.0
"""The model's weights as frozen dataclasses, and where each comes from in a checkpoint.

`model_weights` of weight_trees.py is a tree of `Param`: types for tracing, tensor names for loading. The loader turns it
into a tree of tensors of the same form. Names are the released ones; `names.py` maps other spellings to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from ascend_dsv4.config.layers import LayerSpec, compressor_roles, draft_layer, draft_stages, layer_specs
from ascend_dsv4.config.model_config import ModelConfig
from ascend_dsv4.errors import UnsupportedError
from ascend_dsv4.model.rotary import inv_freq
from ascend_dsv4.ops.spec import Dim, TensorType

Tensor = Any
WeightFormat = Literal["released", "fp32", "bf16", "w8a8", "w4a8"]
DENSE_DTYPE: dict[str, str] = {"released": "bfloat16", "fp32": "float32", "bf16": "bfloat16"}
"""Weight format → dtype of everything that is not kept as FP8 or FP4 codes, or stored in float32."""
FP4_GROUP = 32
"""Inputs under one scale of an FP4 expert weight."""


@dataclass(frozen=True, slots=True)
class HeadRows:
    """Rows start … stop of every head's `rows` rows of a matrix, transposed within a head or not."""

    rows: int
    start: int
    stop: int
    transposed: bool


@dataclass(frozen=True, slots=True)
class Param:
    """A resident tensor: the named checkpoint tensors joined along their first axis and viewed as `type`."""

    type: TensorType
    names: tuple[str, ...]
    block: tuple[int, int]
    """FP8 scale block, for formats that dequantise while loading."""
    id_limit: int = 0
    """For a table of ids: they must be below this."""
    heads: HeadRows | None = None
    """For a part of each head's rows."""
    scale_rows: tuple[int, int] | None = None
    """For scales whose blocks are made smaller, so that parts joined one below the other keep blocks of their own: how often
    each stored row is repeated, and the rows of a part afterwards."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A resident tensor computed from the configuration."""

    type: TensorType
    array: np.ndarray


class Matrix(NamedTuple):
    """Arguments of `ops.linear` and its like."""

    weight: Tensor
    scale: Tensor | None
    block: tuple[int, int]


class HyperConnection(NamedTuple):
    """fn, base, scale of `ops.hc_pre` and `ops.hc_head`."""

    fn: Tensor
    base: Tensor
    scale: Tensor


@dataclass(frozen=True, slots=True)
class CompressorWeights:
    wkv: Matrix
    wgate: Matrix | None
    """None where a group is one token."""
    ape: Tensor | None
    norm: Tensor


@dataclass(frozen=True, slots=True)
class IndexerWeights:
    wq_b: Matrix
    weights_proj: Matrix
    compressor: CompressorWeights | None = None
    """csa: the indexer's own."""
    wk: Matrix | None = None
    """Keys out of entries (full) or tokens (mla); None where an earlier layer's keys are read."""
    k_norm: Tensor | None = None
    k_bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    wq_a: Matrix
    q_norm: Tensor
    wq_b: Matrix
    wkv: Matrix
    kv_norm: Tensor
    wo_a: Matrix
    wo_b: Matrix
    sink: Tensor
    compressor: CompressorWeights | None
    indexer: IndexerWeights | None


@dataclass(frozen=True, slots=True)
class MlaWeights:
    wq_a: Matrix
    q_norm: Tensor
    wq_b: Matrix
    wkv_a: Matrix
    """Latent row and rotated key, [kv_lora_rank + qk_rope_head_dim, hidden_size]."""
    kv_norm: Tensor
    wk: Matrix
    """Per head, query to latent space: [num_heads · kv_lora_rank, qk_nope_head_dim]."""
    wv: Matrix
    """Per head, latent row to value: [num_heads · v_head_dim, kv_lora_rank]."""
    wo: Matrix
    indexer: IndexerWeights | None


@dataclass(frozen=True, slots=True)
class MlpWeights:
    """down(silu(gate) · up): w1 is the gate, w3 up, w2 down."""

    w1: Matrix
    w2: Matrix
    w3: Matrix


@dataclass(frozen=True, slots=True)
class MoeWeights:
    gate: Matrix
    bias: Tensor | None
    bias_vl: Tensor | None
    """Bias for tokens of images."""
    tid2eid: Tensor | None
    w13: Matrix
    """[n_routed_experts, 2 · moe_intermediate_size, hidden_size], gate rows first."""
    w2: Matrix
    shared: MlpWeights


@dataclass(frozen=True, slots=True)
class EngramWeights:
    """What reads the rows of an n-gram table; the table itself is in the store."""

    wkv: Matrix
    """[(hc_mult + 1) · hidden_size, columns · head_dim]: a key per stream, then the value."""
    q_weight: Tensor
    k_weight: Tensor


@dataclass(frozen=True, slots=True)
class LayerWeights:
    attn_norm: Tensor
    attn_hc: HyperConnection | None
    attn: AttentionWeights | MlaWeights
    ffn_norm: Tensor
    ffn_hc: HyperConnection | None
    moe: MoeWeights | None
    mlp: MlpWeights | None
    engram: EngramWeights | None


@dataclass(frozen=True, slots=True)
class HeadWeights:
    hc: HyperConnection | None
    norm: Tensor
    head: Tensor


@dataclass(frozen=True, slots=True)
class MtpWeights:
    """The MTP stage; embedding and head are the backbone's."""

    embed: Tensor
    enorm: Tensor
    hnorm: Tensor
    e_proj: Matrix
    h_proj: Matrix
    layer: LayerWeights
    head: HeadWeights


@dataclass(frozen=True, slots=True)
class PlainMtpWeights:
    """The MTP stage around one residual stream; embedding and head are the backbone's."""

    embed: Tensor
    backbone_norm: Tensor
    """The backbone's last norm, behind which the stage reads."""
    enorm: Tensor
    hnorm: Tensor
    eh_proj: Matrix
    """[hidden_size, 2 · hidden_size]: the token's half first."""
    layer: LayerWeights
    head: HeadWeights


@dataclass(frozen=True, slots=True)
class DSparkWeights:
    """The block drafter; embedding and head are the backbone's."""

    embed: Tensor
    main_proj: Matrix
    main_norm: Tensor
    stages: tuple[LayerWeights, ...]
    head: HeadWeights
    markov_embed: Tensor
    """[vocab_size, markov_rank], what the token before says about the next one; `markov_head` turns it into logits."""
    markov_head: Matrix
    confidence: Matrix
    """[1, hidden_size + markov_rank]"""


@dataclass(frozen=True, slots=True)
class ModelWeights:
    embed: Tensor
    layers: tuple[LayerWeights, ...]
    head: HeadWeights
    rotary: dict[str, Tensor]
    """Frequencies by rotary table: "plain" if any layer has a window, "yarn" if any keeps entries."""


class Builder:
    """Parameters by released name in one weight format."""

    EMBEDDING = "embed.weight"
    LAYER = "layers.{}"
    SCALE = ("scale", "uint8")
    """Last part of the name of a matrix's scales, and their dtype."""

    def __init__(self, config: ModelConfig, weight_format: WeightFormat) -> None:
        if weight_format not in DENSE_DTYPE:
            raise UnsupportedError(f"weights={weight_format!r}: this version runs {', '.join(DENSE_DTYPE)}; choose one")
        self.config = config
        self.released = weight_format == "released"
        self.dense = DENSE_DTYPE[weight_format]

    def vector(self, name: str, *shape: Dim) -> Param:
        """A tensor stored in BF16."""
        return Param(TensorType(shape, self.dense), (name,), (1, 1))

    def float32(self, name: str, *shape: Dim) -> Param:
        return Param(TensorType(shape, "float32"), (name,), (1, 1))

    def plain(self, prefix: str, out_features: int, in_features: int) -> Matrix:
        """A matrix that no release quantises."""
        return Matrix(self.vector(f"{prefix}.weight", out_features, in_features), None, (1, 1))

    def matrix(self, prefix: str, out_features: int, in_features: int) -> Matrix:
        """A matrix stored in FP8 by quantised releases, a scale per block."""
        block = self.config.weight_block_size
        if block is None or not self.released:
            param = Param(TensorType((out_features, in_features), self.dense), (f"{prefix}.weight",), block or (1, 1))
            return Matrix(param, None, (1, 1))
        scales = (-(-out_features // block[0]), -(-in_features // block[1]))
        return Matrix(
            Param(TensorType((out_features, in_features), "float8_e4m3fn"), (f"{prefix}.weight",), block),
            Param(TensorType(scales, self.SCALE[1]), (f"{prefix}.{self.SCALE[0]}",), block),
            block,
        )

    def experts(self, prefix: str, parts: tuple[str, ...], out_features: int, in_features: int) -> Matrix:
        """All experts' matrices of one kind, `parts` one below the other within an expert."""
        count = self.config.n_routed_experts
        owners = [f"{prefix}.{expert}.{part}" for expert in range(count) for part in parts]
        weights = tuple(f"{owner}.weight" for owner in owners)
        rows = len(parts) * out_features
        if self.config.expert_dtype is None or not self.released:
            return Matrix(Param(TensorType((count, rows, in_features), self.dense), weights, (1, 1)), None, (1, 1))
        return Matrix(
            Param(TensorType((count, rows, in_features // 2), "int8"), weights, (1, FP4_GROUP)),
            Param(
                TensorType((count, rows, in_features // FP4_GROUP), "uint8"),
                tuple(f"{owner}.scale" for owner in owners),
                (1, FP4_GROUP),
            ),
            (1, FP4_GROUP),
        )

    def hyper(self, prefix: str, coefficients: int, scales: int) -> HyperConnection:
        flat = self.config.hc_mult * self.config.hidden_size
        return HyperConnection(
            self.float32(f"{prefix}_fn", coefficients, flat),
            self.float32(f"{prefix}_base", coefficients),
            self.float32(f"{prefix}_scale", scales),
        )

    def compressor(self, prefix: str, ratio: int, entry_dim: int) -> CompressorWeights:
        width = entry_dim * compressor_roles(ratio)
        has_ape = not self.config.kv_source_layer_ids
        return CompressorWeights(
            self.plain(f"{prefix}.wkv", width, self.config.hidden_size),
            self.plain(f"{prefix}.wgate", width, self.config.hidden_size) if ratio > 1 else None,
            self.float32(f"{prefix}.ape", ratio, width) if has_ape else None,
            self.vector(f"{prefix}.norm.weight", entry_dim),
        )

    def indexer(self, prefix: str, spec: LayerSpec) -> IndexerWeights | None:
        c = self.config
        if spec.layer_type not in ("csa", "full", "reindex"):
            return None
        full = spec.layer_type == "full"
        return IndexerWeights(
            self.matrix(f"{prefix}.wq_b", c.index_n_heads * c.index_head_dim, c.q_lora_rank),
            self.plain(f"{prefix}.weights_proj", c.index_n_heads, c.hidden_size),
            self.compressor(f"{prefix}.compressor", spec.ratio, c.index_head_dim) if spec.layer_type == "csa" else None,
            self.plain(f"{prefix}.wk", c.index_head_dim, c.head_dim) if full else None,
            self.vector(f"{prefix}.k_norm.weight", c.index_head_dim) if full else None,
        )

    def attention(self, prefix: str, spec: LayerSpec) -> AttentionWeights | MlaWeights:
        c = self.config
        compresses = spec.layer_type in ("csa", "hca", "full")
        group_width = c.num_attention_heads * c.head_dim // c.o_groups
        return AttentionWeights(
            wq_a=self.matrix(f"{prefix}.wq_a", c.q_lora_rank, c.hidden_size),
            q_norm=self.vector(f"{prefix}.q_norm.weight", c.q_lora_rank),
            wq_b=self.matrix(f"{prefix}.wq_b", c.num_attention_heads * c.head_dim, c.q_lora_rank),
            wkv=self.matrix(f"{prefix}.wkv", c.head_dim, c.hidden_size),
            kv_norm=self.vector(f"{prefix}.kv_norm.weight", c.head_dim),
            wo_a=self.matrix(f"{prefix}.wo_a", c.o_groups * c.o_lora_rank, group_width),
            wo_b=self.matrix(f"{prefix}.wo_b", c.hidden_size, c.o_groups * c.o_lora_rank),
            sink=self.float32(f"{prefix}.attn_sink", c.num_attention_heads),
            compressor=self.compressor(f"{prefix}.compressor", spec.ratio, c.head_dim) if compresses else None,
            indexer=self.indexer(f"{prefix}.indexer", spec),
        )

    def moe(self, prefix: str, spec: LayerSpec, sees_images: bool) -> MoeWeights:
        c = self.config
        hashed = spec.mlp_type == "hash_moe"
        table = TensorType((c.vocab_size, c.num_experts_per_tok), "int32")
        shared_size = c.n_shared_experts * c.moe_intermediate_size
        return MoeWeights(
            gate=self.plain(f"{prefix}.gate", c.n_routed_experts, c.hidden_size),
            bias=None if hashed else self.float32(f"{prefix}.gate.bias", c.n_routed_experts),
            bias_vl=self.float32(f"{prefix}.gate.bias_vl", c.n_routed_experts) if sees_images else None,
            tid2eid=Param(table, (f"{prefix}.gate.tid2eid",), (1, 1), c.n_routed_experts) if hashed else None,
            w13=self.experts(f"{prefix}.experts", ("w1", "w3"), c.moe_intermediate_size, c.hidden_size),
            w2=self.experts(f"{prefix}.experts", ("w2",), c.hidden_size, c.moe_intermediate_size),
            shared=MlpWeights(
                self.matrix(f"{prefix}.shared_experts.w1", shared_size, c.hidden_size),
                self.matrix(f"{prefix}.shared_experts.w2", c.hidden_size, shared_size),
                self.matrix(f"{prefix}.shared_experts.w3", shared_size, c.hidden_size),
            ),
        )

    def engram(self, prefix: str) -> EngramWeights:
        c = self.config
        assert c.engram is not None
        width = c.engram.num_columns * c.engram.head_dim
        return EngramWeights(
            self.matrix(f"{prefix}.wkv", (c.hc_mult + 1) * c.hidden_size, width),
            self.vector(f"{prefix}.q_weight", c.hc_mult, c.hidden_size),
            self.vector(f"{prefix}.k_weight", c.hc_mult, c.hidden_size),
        )

    def layer(self, prefix: str, spec: LayerSpec) -> LayerWeights:
        c = self.config
        coefficients = (2 + c.hc_mult) * c.hc_mult
        return LayerWeights(
            attn_norm=self.vector(f"{prefix}.attn_norm.weight", c.hidden_size),
            attn_hc=self.hyper(f"{prefix}.hc_attn", coefficients, 3),
            attn=self.attention(f"{prefix}.attn", spec),
            ffn_norm=self.vector(f"{prefix}.ffn_norm.weight", c.hidden_size),
            ffn_hc=self.hyper(f"{prefix}.hc_ffn", coefficients, 3),
            moe=self.moe(f"{prefix}.ffn", spec, c.vision is not None and not prefix.startswith("mtp.")),
            mlp=None,
            engram=self.engram(f"{prefix}.engram") if spec.engram is not None else None,
        )

    def embedding(self, name: str) -> Param:
        return self.vector(name, self.config.vocab_size, self.config.hidden_size)

    def head(self, prefix: str) -> HeadWeights:
        return HeadWeights(
            None if self.config.hc_delayed else self.hyper(f"{prefix}hc_head", self.config.hc_mult, 1),
            self.vector(f"{prefix}norm.weight", self.config.hidden_size),
            self.embedding("head.weight"),
        )

    def mtp(self) -> MtpWeights | PlainMtpWeights:
        size = self.config.hidden_size
        return MtpWeights(
            embed=self.embedding("embed.weight"),
            enorm=self.vector("mtp.0.enorm.weight", size),
            hnorm=self.vector("mtp.0.hnorm.weight", size),
            e_proj=self.matrix("mtp.0.e_proj", size, size),
            h_proj=self.matrix("mtp.0.h_proj", size, size),
            layer=self.layer("mtp.0", draft_layer(self.config)),
            head=self.head("mtp.0."),
        )

    def dspark(self) -> DSparkWeights:
        c = self.config
        assert c.dspark is not None
        size, rank, last = c.hidden_size, c.dspark.markov_rank, c.num_draft_stages - 1
        embed, head = ("embed", "head") if c.hc_delayed else ("markov_w1", "markov_w2")
        return DSparkWeights(
            embed=self.embedding("embed.weight"),
            main_proj=self.matrix("mtp.0.main_proj", size, len(c.dspark.target_layer_ids) * size),
            main_norm=self.vector("mtp.0.main_norm.weight", size),
            stages=tuple(self.layer(f"mtp.{i}", spec) for i, spec in enumerate(draft_stages(c))),
            head=self.head(f"mtp.{last}."),
            markov_embed=self.vector(f"mtp.{last}.markov_head.{embed}.weight", c.vocab_size, rank),
            markov_head=self.plain(f"mtp.{last}.markov_head.{head}", c.vocab_size, rank),
            confidence=self.plain(f"mtp.{last}.confidence_head.proj", 1, size + rank),
        )

    def model(self) -> ModelWeights:
        config = self.config
        return ModelWeights(
            embed=self.embedding(self.EMBEDDING),
            layers=tuple(self.layer(self.LAYER.format(i), spec) for i, spec in enumerate(layer_specs(config))),
            head=self.head(""),
            rotary=rotary_tables(config),
        )


def rotary_tables(config: ModelConfig) -> dict[str, Constant]:
    """Frequencies by rotary table."""
    kept = [ratio for ratio in config.compress_ratios if ratio]
    tables = {"plain": inv_freq(config, 0)} if config.sliding_window else {}
    tables |= {"yarn": inv_freq(config, max(kept))} if kept else {}
    return {name: Constant(TensorType(table.shape, "float32"), table) for name, table in tables.items()}


def is_parameter(item: Any) -> bool:
    """Whether an item of the tree is a leaf."""
    return isinstance(item, Param | Constant)
