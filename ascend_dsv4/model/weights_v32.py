# SPDX-License-Identifier: Apache-2.0
"""Where the parameters of V3.2 come from in its released checkpoints, which name everything differently."""

from __future__ import annotations

import math

from ascend_dsv4.config.layers import LayerSpec, draft_layer
from ascend_dsv4.model.weights import (
    Builder,
    HeadRows,
    HeadWeights,
    IndexerWeights,
    LayerWeights,
    Matrix,
    MlaWeights,
    MlpWeights,
    MoeWeights,
    Param,
    PlainMtpWeights,
)
from ascend_dsv4.ops.spec import TensorType


class BuilderV32(Builder):
    """Parameters under the names of V3.2; scales are float32 and multiply."""

    EMBEDDING = "model.embed_tokens.weight"
    LAYER = "model.layers.{}"
    SCALE = ("weight_scale_inv", "float32")

    def expert_matrix(self, prefix: str, parts: tuple[str, ...], out_features: int, in_features: int) -> Matrix:
        """All experts' matrices of one kind, `parts` one below the other within an expert, in FP8 where stored so."""
        count, block = self.config.n_routed_experts, self.config.weight_block_size
        owners = [f"{prefix}.{expert}.{part}" for expert in range(count) for part in parts]
        weights, rows = tuple(f"{owner}.weight" for owner in owners), len(parts) * out_features
        if block is None or not self.released:
            return Matrix(Param(TensorType((count, rows, in_features), self.dense), weights, block or (1, 1)), None, (1, 1))
        # Gate and up stand one below the other: their rows must begin on a block border of their own.
        block_rows = math.gcd(block[0], self.config.moe_intermediate_size)
        scale_rows = -(-out_features // block_rows)
        scales = TensorType((count, len(parts) * scale_rows, -(-in_features // block[1])), "float32")
        names = tuple(f"{owner}.weight_scale_inv" for owner in owners)
        return Matrix(
            Param(TensorType((count, rows, in_features), "float8_e4m3fn"), weights, block),
            Param(scales, names, block, scale_rows=(block[0] // block_rows, scale_rows)),
            (block_rows, block[1]),
        )

    def head_matrix(self, name: str, part: HeadRows, in_features: int) -> Matrix:
        """Some rows of each head of `name`; decoded, since scale blocks do not follow heads."""
        num_heads, count = self.config.num_attention_heads, part.stop - part.start
        rows, columns = (in_features, count) if part.transposed else (count, in_features)
        quantised = self.config.weight_block_size is not None and self.released
        dtype = "float32" if quantised else self.dense
        block = self.config.weight_block_size or (1, 1)
        return Matrix(Param(TensorType((num_heads * rows, columns), dtype), (name,), block, heads=part), None, (1, 1))

    def mla(self, prefix: str) -> MlaWeights:
        c = self.config
        assert c.mla is not None
        rank, nope, values = c.mla.kv_lora_rank, c.qk_nope_head_dim, c.mla.v_head_dim
        kv_b = f"{prefix}.kv_b_proj.weight"
        return MlaWeights(
            wq_a=self.matrix(f"{prefix}.q_a_proj", c.q_lora_rank, c.hidden_size),
            q_norm=self.vector(f"{prefix}.q_a_layernorm.weight", c.q_lora_rank),
            wq_b=self.matrix(f"{prefix}.q_b_proj", c.num_attention_heads * c.head_dim, c.q_lora_rank),
            wkv_a=self.matrix(f"{prefix}.kv_a_proj_with_mqa", rank + c.qk_rope_head_dim, c.hidden_size),
            kv_norm=self.vector(f"{prefix}.kv_a_layernorm.weight", rank),
            wk=self.head_matrix(kv_b, HeadRows(nope + values, 0, nope, transposed=True), rank),
            wv=self.head_matrix(kv_b, HeadRows(nope + values, nope, nope + values, transposed=False), rank),
            wo=self.matrix(f"{prefix}.o_proj", c.hidden_size, c.num_attention_heads * values),
            indexer=self.token_indexer(f"{prefix}.indexer") if c.index_topk else None,
        )

    def token_indexer(self, prefix: str) -> IndexerWeights:
        c = self.config
        return IndexerWeights(
            wq_b=self.matrix(f"{prefix}.wq_b", c.index_n_heads * c.index_head_dim, c.q_lora_rank),
            weights_proj=self.plain(f"{prefix}.weights_proj", c.index_n_heads, c.hidden_size),
            wk=self.matrix(f"{prefix}.wk", c.index_head_dim, c.hidden_size),
            k_norm=self.vector(f"{prefix}.k_norm.weight", c.index_head_dim),
            k_bias=self.vector(f"{prefix}.k_norm.bias", c.index_head_dim),
        )

    def mlp(self, prefix: str, size: int) -> MlpWeights:
        hidden = self.config.hidden_size
        return MlpWeights(
            self.matrix(f"{prefix}.gate_proj", size, hidden),
            self.matrix(f"{prefix}.down_proj", hidden, size),
            self.matrix(f"{prefix}.up_proj", size, hidden),
        )

    def experts_v32(self, prefix: str) -> MoeWeights:
        c = self.config
        return MoeWeights(
            gate=self.plain(f"{prefix}.gate", c.n_routed_experts, c.hidden_size),
            bias=self.float32(f"{prefix}.gate.e_score_correction_bias", c.n_routed_experts),
            bias_vl=None,
            tid2eid=None,
            w13=self.expert_matrix(f"{prefix}.experts", ("gate_proj", "up_proj"), c.moe_intermediate_size, c.hidden_size),
            w2=self.expert_matrix(f"{prefix}.experts", ("down_proj",), c.hidden_size, c.moe_intermediate_size),
            shared=self.mlp(f"{prefix}.shared_experts", c.n_shared_experts * c.moe_intermediate_size),
        )

    def layer(self, prefix: str, spec: LayerSpec) -> LayerWeights:
        c, dense = self.config, spec.mlp_type == "dense"
        return LayerWeights(
            attn_norm=self.vector(f"{prefix}.input_layernorm.weight", c.hidden_size),
            attn_hc=None,
            attn=self.mla(f"{prefix}.self_attn"),
            ffn_norm=self.vector(f"{prefix}.post_attention_layernorm.weight", c.hidden_size),
            ffn_hc=None,
            moe=None if dense else self.experts_v32(f"{prefix}.mlp"),
            mlp=self.mlp(f"{prefix}.mlp", c.intermediate_size) if dense else None,
            engram=None,
        )

    def head(self, prefix: str) -> HeadWeights:
        return HeadWeights(
            None, self.vector("model.norm.weight", self.config.hidden_size), self.embedding("lm_head.weight")
        )

    def mtp(self) -> PlainMtpWeights:
        size, prefix = self.config.hidden_size, self.LAYER.format(self.config.num_hidden_layers)
        return PlainMtpWeights(
            embed=self.embedding(self.EMBEDDING),
            backbone_norm=self.vector("model.norm.weight", size),
            enorm=self.vector(f"{prefix}.enorm.weight", size),
            hnorm=self.vector(f"{prefix}.hnorm.weight", size),
            eh_proj=self.matrix(f"{prefix}.eh_proj", size, 2 * size),
            layer=self.layer(prefix, draft_layer(self.config)),
            head=HeadWeights(None, self.vector(f"{prefix}.shared_head.norm.weight", size), self.embedding("lm_head.weight")),
        )
