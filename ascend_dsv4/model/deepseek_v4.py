# SPDX-License-Identifier: Apache-2.0
"""DeepSeek V4 as plain functions. Each has the form f(ops, cfg, w, streams, carry, batch, caches) → (streams, carry).

    streams = embed(input_ids), repeated hc_mult times          [num_tokens, hc_mult, hidden_size]
    per layer:  x, post, comb = hc_pre(streams)
                streams = hc_post(attention(norm(x)), streams, post, comb)
                the same around the mixture of experts
    logits = head(norm(hc_head(streams)))                       [num_rows, vocab_size]

`cfg` is a `ForwardConfig`. `batch` is described in runner/batch.py; writes to caches are rebound in `caches`.
"""

from __future__ import annotations

from typing import Any

from ascend_dsv4.config.layers import LayerSpec
from ascend_dsv4.config.model_config import ModelConfig
from ascend_dsv4.model.attention import attention
from ascend_dsv4.model.moe import moe
from ascend_dsv4.model.weights import HeadWeights, HyperConnection, LayerWeights, Tensor

Carry = tuple[Tensor, ...]
Tensors = dict[str, Tensor]


class ForwardConfig:
    """A model configuration with the choices of a run: compute dtype and storage rounding. Read by model functions only."""

    def __init__(self, config: ModelConfig, dtype: str, cache_rounding: str) -> None:
        self.model = config
        self.dtype = dtype
        self.kv_rounding = "fp8" if cache_rounding == "released" else "none"
        self.index_rounding = "hadamard_fp4" if cache_rounding == "released" else "none"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "model":  # asked for before __init__ has run, by copy and pickle
            raise AttributeError(name)
        return getattr(self.model, name)


def step_table_names(config: ModelConfig) -> tuple[str, ...]:
    """Names of the tables that `step_tables` returns, in order."""
    ratios = sorted({ratio for ratio in config.compress_ratios if ratio})
    tables = ["plain", *(["yarn"] if ratios else []), *(f"cmp{ratio}" for ratio in ratios)]
    return tuple(f"{table}_{part}" for table in tables for part in ("cos", "sin"))


def step_tables(
    ops: Any, cfg: Any, w: Tensors, streams: None, carry: Carry, batch: Tensors, caches: Tensors
) -> tuple[None, Carry]:
    """cos and sin of this step's tokens for every rotary table, once for all layers."""
    tables = [*ops.step_metadata(batch["positions"], w["plain"], offset=0)]
    if "yarn" in w:
        tables += ops.step_metadata(batch["positions"], w["yarn"], offset=0)
        for ratio in sorted({ratio for ratio in cfg.compress_ratios if ratio}):
            # An entry is rotated at the first position of the window that its closing token ends.
            tables += ops.step_metadata(batch["positions"], w["yarn"], offset=1 - ratio)
    return None, tuple(tables)


def embed(ops: Any, cfg: Any, w: Tensor, streams: None, carry: Carry, batch: Tensors, caches: Tensors) -> tuple[Tensor, Carry]:
    """The streams before the first layer."""
    return ops.embed(batch["input_ids"], w, hc_mult=cfg.hc_mult, out_dtype=cfg.dtype), carry


def decoder_layer(
    ops: Any,
    cfg: Any,
    w: LayerWeights,
    streams: Tensor,
    carry: Carry,
    batch: Tensors,
    caches: Tensors,
    *,
    spec: LayerSpec,
) -> tuple[Tensor, Carry]:
    """One block: attention, then mixture of experts, each inside a hyper-connection."""
    x, post, comb = hyper_connection(ops, cfg, w.attn_hc, streams)
    x = ops.rms_norm(x, w.attn_norm, eps=cfg.rms_norm_eps)
    streams = ops.hc_post(attention(ops, cfg, spec, w.attn, x, batch, caches), streams, post, comb)

    x, post, comb = hyper_connection(ops, cfg, w.ffn_hc, streams)
    x = ops.rms_norm(x, w.ffn_norm, eps=cfg.rms_norm_eps)
    return ops.hc_post(moe(ops, cfg, w.moe, x, batch), streams, post, comb), carry


def hyper_connection(ops: Any, cfg: Any, w: HyperConnection, streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Input of a sub-layer, and how its output returns to the streams."""
    x, post, comb, _ = ops.hc_pre(
        streams, *w, sinkhorn_iters=cfg.hc_sinkhorn_iters, hc_eps=cfg.hc_eps, norm_eps=cfg.rms_norm_eps
    )
    return x, post, comb


def head(
    ops: Any, cfg: Any, w: HeadWeights, streams: Tensor, carry: Carry, batch: Tensors, caches: Tensors
) -> tuple[Tensor, Carry]:
    """Float32 logits of the rows in batch["logits_rows"]: [num_rows, vocab_size]."""
    y = ops.hc_head(streams, *w.hc, hc_eps=cfg.hc_eps, norm_eps=cfg.rms_norm_eps)
    return ops.logits(ops.rms_norm(y, w.norm, eps=cfg.rms_norm_eps), w.head, batch["logits_rows"]), carry
