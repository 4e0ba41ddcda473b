# SPDX-License-Identifier: Apache-2.0
"""DeepSeek V4, V4.1 and V3.2 as plain functions, each f(ops, cfg, w, streams, carry, batch, caches) → (streams, carry).

    streams = embed(input_ids), repeated hc_mult times          [num_tokens, hc_mult, hidden_size]
    per layer:  x, post, comb = hc_pre(streams)
                streams = hc_post(attention(norm(x)), streams, post, comb)
                the same around the mixture of experts
    logits = head(norm(collapsed streams))                      [num_rows, vocab_size]

Under delayed hyper-connections (V4.1) a sub-layer reads the streams by the mix that the one before it computed. Without
hyper-connections (V3.2) the streams are one plain residual, [num_tokens, hidden_size].

`cfg` is a `ForwardConfig`; `batch` is described in runner/batch.py; writes to caches are rebound in `caches`. `carry` holds
what later layers of the step read; a function returns what it adds to it:

    mix             [num_tokens, hc_mult] float32, how the next sub-layer reads the streams
    entries         [num_tokens, index_topk] int32, the selection of the last index source
    candidates      [num_tokens, candidate blocks] int32, blocks that later selections stay inside
    tap<n>          [num_tokens, hidden_size], the n-th input of the drafter
"""

from __future__ import annotations

from typing import Any

from ascend_dsv4.config.layers import LayerSpec
from ascend_dsv4.config.model_config import ModelConfig
from ascend_dsv4.model.attention import attention, linear
from ascend_dsv4.model.mla import mla
from ascend_dsv4.model.moe import feed_forward
from ascend_dsv4.model.weights import (
    AttentionWeights,
    EngramWeights,
    HeadWeights,
    HyperConnection,
    LayerWeights,
    MlaWeights,
    Tensor,
)

Tensors = dict[str, Tensor]


class ForwardConfig:
    """A model configuration with the choices of a run: compute dtype, storage rounding, format of n-gram rows. Read by model
    functions only."""

    def __init__(self, config: ModelConfig, dtype: str, cache_rounding: str, engram_format: Any = "fp8") -> None:
        released = cache_rounding == "released"
        self.model = config
        self.dtype = dtype
        self.window_rounding = config.cache_grids.window if released else "none"
        self.entry_rounding = config.cache_grids.entries if released else "none"
        self.index_rounding = config.cache_grids.index if released else "none"
        self.engram_format = engram_format

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "model":  # asked for before __init__ has run, by copy and pickle
            raise AttributeError(name)
        return getattr(self.model, name)


def step_tables(
    ops: Any, cfg: Any, w: Tensors, streams: None, carry: Tensors, batch: Tensors, caches: Tensors
) -> tuple[None, Tensors]:
    """cos and sin of this step's tokens for every rotary table, once for all layers."""
    tables: Tensors = {}

    def add(name: str, inv_freq: Tensor, offset: int) -> None:
        tables[f"{name}_cos"], tables[f"{name}_sin"] = ops.step_metadata(batch["positions"], inv_freq, offset=offset)

    if "plain" in w:
        add("plain", w["plain"], 0)
    if "yarn" in w:
        add("yarn", w["yarn"], 0)
        for ratio in sorted({ratio for ratio in cfg.compress_ratios if ratio > 1}):
            # An entry is rotated at the first position of the window that its closing token ends.
            add(f"cmp{ratio}", w["yarn"], 1 - ratio)
    return None, tables


def embed(
    ops: Any, cfg: Any, w: Tensor, streams: None, carry: Tensors, batch: Tensors, caches: Tensors
) -> tuple[Tensor, Tensors]:
    """The streams before the first layer."""
    rows = ops.embed(batch["input_ids"], w, hc_mult=cfg.hc_mult or 1, out_dtype=cfg.dtype)
    if cfg.vision is not None:
        rows = ops.place_rows(rows, batch["image_rows"], batch["image_at"])
    return rows if cfg.hc_mult else rows.reshape(-1, cfg.hidden_size), {}


def decoder_layer(
    ops: Any,
    cfg: Any,
    w: LayerWeights,
    streams: Tensor,
    carry: Tensors,
    batch: Tensors,
    caches: Tensors,
    *,
    spec: LayerSpec,
) -> tuple[Tensor, Tensors]:
    """One block: attention, then experts, each around a residual connection."""
    if not cfg.hc_mult:
        return plain_layer(ops, cfg, w, streams, batch, caches, spec), {}
    assert w.attn_hc is not None and w.ffn_hc is not None and isinstance(w.attn, AttentionWeights)
    added: Tensors = {}
    if w.engram is not None:
        streams = read_memory(ops, cfg, spec, w.engram, streams, batch)
    if spec.tap is not None and cfg.dspark.taps_inputs:
        added[f"tap{spec.tap}"] = mean_stream(cfg, streams)
    mix = carry["mix"] if cfg.hc_delayed and not spec.reads_embedding else None

    x, post, comb, mix = hyper_connection(ops, cfg, w.attn_hc, streams, mix, spec.reads_embedding)
    x = ops.rms_norm(x, w.attn_norm, eps=cfg.rms_norm_eps)
    y, selected = attention(ops, cfg, spec, w.attn, x, carry, batch, caches)
    streams = ops.hc_post(y, streams, post, comb)

    x, post, comb, mix = hyper_connection(ops, cfg, w.ffn_hc, streams, mix)
    x = ops.rms_norm(x, w.ffn_norm, eps=cfg.rms_norm_eps)
    streams = ops.hc_post(feed_forward(ops, cfg, w, x, batch), streams, post, comb)
    if spec.tap is not None and not cfg.dspark.taps_inputs:
        added[f"tap{spec.tap}"] = mean_stream(cfg, streams)
    return streams, {**added, **selected, **({"mix": mix} if cfg.hc_delayed else {})}


def plain_layer(
    ops: Any, cfg: Any, w: LayerWeights, x: Tensor, batch: Tensors, caches: Tensors, spec: LayerSpec
) -> Tensor:
    """A block around one residual stream x [num_tokens, hidden_size]."""
    assert isinstance(w.attn, MlaWeights)
    x = x + mla(ops, cfg, spec, w.attn, ops.rms_norm(x, w.attn_norm, eps=cfg.rms_norm_eps), batch, caches)
    return x + feed_forward(ops, cfg, w, ops.rms_norm(x, w.ffn_norm, eps=cfg.rms_norm_eps), batch)


def hyper_connection(
    ops: Any, cfg: Any, w: HyperConnection, streams: Tensor, mix: Tensor | None, reads_embedding: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Input of a sub-layer, how its output returns to the streams, and the mix that the next sub-layer reads by.

    `mix` is the one that was handed on, or None for the site's own.
    """
    x, post, comb, own = ops.hc_pre(
        streams, *w, mix, sinkhorn_iters=cfg.hc_sinkhorn_iters, hc_eps=cfg.hc_eps, norm_eps=cfg.rms_norm_eps
    )
    # Where nothing was handed on yet, the first stream is read: the embedding, and the n-gram rows of the first layer.
    return streams[:, 0] if reads_embedding else x, post, comb, own if cfg.hc_delayed else None


def read_memory(ops: Any, cfg: Any, spec: LayerSpec, w: EngramWeights, streams: Tensor, batch: Tensors) -> Tensor:
    """Add the n-gram rows of each token to its streams, as far as the gate of each stream opens."""
    rows = ops.engram_rows(
        batch[f"engram{spec.engram}"], format=cfg.engram_format, head_dim=cfg.engram.head_dim, out_dtype=cfg.dtype
    )
    return ops.engram_gate(
        streams, linear(ops, cfg, rows, w.wkv), w.q_weight, w.k_weight, batch.get("is_image"),
        eps=cfg.rms_norm_eps, sign_of_zero=True,
    )  # fmt: skip


def mean_stream(cfg: Any, streams: Tensor) -> Tensor:
    """[num_tokens, hc_mult, hidden_size] → [num_tokens, hidden_size]."""
    total = streams[:, 0]
    for n in range(1, cfg.hc_mult):
        total = total + streams[:, n]
    return total * (1.0 / cfg.hc_mult)


def head(
    ops: Any, cfg: Any, w: HeadWeights, streams: Tensor, carry: Tensors, batch: Tensors, caches: Tensors
) -> tuple[Tensor, Tensors]:
    """Float32 logits of the rows in batch["logits_rows"]: [num_rows, vocab_size]."""
    y = collapse(ops, cfg, w, streams, carry)
    return ops.logits(ops.rms_norm(y, w.norm, eps=cfg.rms_norm_eps), w.head, batch["logits_rows"]), {}


def collapse(ops: Any, cfg: Any, w: HeadWeights, streams: Tensor, carry: Tensors) -> Tensor:
    """The streams as one, [num_tokens, hidden_size]."""
    if not cfg.hc_mult:
        return streams
    if cfg.hc_delayed:
        return ops.hc_collapse(streams, carry["mix"])
    assert w.hc is not None
    return ops.hc_head(streams, *w.hc, hc_eps=cfg.hc_eps, norm_eps=cfg.rms_norm_eps)
