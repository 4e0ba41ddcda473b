# SPDX-License-Identifier: Apache-2.0
"""Every tensor of a released V3.2 or V3 checkpoint. FP8 matrices have float32 scales that multiply."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ascend_dsv4.config.model_config import ModelConfig
from ascend_dsv4.model.tensor_spec import TensorSpec


def tensors_v32(config: ModelConfig) -> Iterator[TensorSpec]:
    """The tensors in model order; draft stages are layers behind the last one."""
    layout = _Layout(config)
    size = (config.vocab_size, config.hidden_size)
    yield TensorSpec("model.embed_tokens.weight", "BF16", size)
    for i, mlp_type in enumerate(config.mlp_layer_types):
        yield from layout.layer(f"model.layers.{i}.", mlp_type == "dense")
    yield TensorSpec("model.norm.weight", "BF16", (config.hidden_size,))
    yield TensorSpec("lm_head.weight", "BF16", size)
    for stage in range(config.num_draft_stages):
        yield from layout.draft_stage(f"model.layers.{config.num_hidden_layers + stage}.")


def aliases_v32(config: ModelConfig) -> Mapping[str, str]:
    """Names under which draft stages repeat the embedding and the head → the tensor they repeat."""
    shared = {"embed_tokens.weight": "model.embed_tokens.weight", "shared_head.head.weight": "lm_head.weight"}
    return {
        f"model.layers.{config.num_hidden_layers + stage}.{alias}": name
        for stage in range(config.num_draft_stages)
        for alias, name in shared.items()
    }


class _Layout:
    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    def linear(self, prefix: str, out_features: int, in_features: int) -> Iterator[TensorSpec]:
        """A matrix that releases quantise to fp8 blocks."""
        block = self.config.weight_block_size
        yield TensorSpec(f"{prefix}.weight", "BF16" if block is None else "F8_E4M3", (out_features, in_features))
        if block is not None:
            scales = (-(-out_features // block[0]), -(-in_features // block[1]))
            yield TensorSpec(f"{prefix}.weight_scale_inv", "F32", scales)

    def layer(self, prefix: str, is_dense: bool) -> Iterator[TensorSpec]:
        c = self.config
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield TensorSpec(f"{prefix}{name}.weight", "BF16", (c.hidden_size,))
        yield from self.attention(f"{prefix}self_attn.")
        if is_dense:
            yield from self.mlp(f"{prefix}mlp.", c.intermediate_size)
            return
        yield TensorSpec(f"{prefix}mlp.gate.weight", "BF16", (c.n_routed_experts, c.hidden_size))
        yield TensorSpec(f"{prefix}mlp.gate.e_score_correction_bias", "F32", (c.n_routed_experts,))
        for expert in range(c.n_routed_experts):
            yield from self.mlp(f"{prefix}mlp.experts.{expert}.", c.moe_intermediate_size)
        yield from self.mlp(f"{prefix}mlp.shared_experts.", c.n_shared_experts * c.moe_intermediate_size)

    def attention(self, prefix: str) -> Iterator[TensorSpec]:
        c = self.config
        assert c.mla is not None
        rank, heads = c.mla.kv_lora_rank, c.num_attention_heads
        yield from self.linear(f"{prefix}q_a_proj", c.q_lora_rank, c.hidden_size)
        yield TensorSpec(f"{prefix}q_a_layernorm.weight", "BF16", (c.q_lora_rank,))
        yield from self.linear(f"{prefix}q_b_proj", heads * c.head_dim, c.q_lora_rank)
        yield from self.linear(f"{prefix}kv_a_proj_with_mqa", rank + c.qk_rope_head_dim, c.hidden_size)
        yield TensorSpec(f"{prefix}kv_a_layernorm.weight", "BF16", (rank,))
        yield from self.linear(f"{prefix}kv_b_proj", heads * (c.qk_nope_head_dim + c.mla.v_head_dim), rank)
        yield from self.linear(f"{prefix}o_proj", c.hidden_size, heads * c.mla.v_head_dim)
        if c.index_topk:
            yield from self.linear(f"{prefix}indexer.wq_b", c.index_n_heads * c.index_head_dim, c.q_lora_rank)
            yield from self.linear(f"{prefix}indexer.wk", c.index_head_dim, c.hidden_size)
            for part in ("weight", "bias"):  # the dtype of this norm was not seen in a released file
                yield TensorSpec(f"{prefix}indexer.k_norm.{part}", "BF16", (c.index_head_dim,), also=("F32",))
            yield TensorSpec(f"{prefix}indexer.weights_proj.weight", "BF16", (c.index_n_heads, c.hidden_size))

    def mlp(self, prefix: str, size: int) -> Iterator[TensorSpec]:
        yield from self.linear(f"{prefix}gate_proj", size, self.config.hidden_size)
        yield from self.linear(f"{prefix}up_proj", size, self.config.hidden_size)
        yield from self.linear(f"{prefix}down_proj", self.config.hidden_size, size)

    def draft_stage(self, prefix: str) -> Iterator[TensorSpec]:
        size = self.config.hidden_size
        yield from self.layer(prefix, is_dense=False)
        for name in ("enorm", "hnorm", "shared_head.norm"):
            yield TensorSpec(f"{prefix}{name}.weight", "BF16", (size,))
        yield from self.linear(f"{prefix}eh_proj", size, 2 * size)
