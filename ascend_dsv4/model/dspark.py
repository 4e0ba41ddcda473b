# SPDX-License-Identifier: Apache-2.0
"""The block drafter: a few layers that guess several tokens at once from what the backbone thought of the tokens before.

    context   main_x = norm(main_proj · taps); its keys are written per stage, once for every final position
    block     [last token, noise, noise, …] through all stages; every row sees the context window and the whole block
    markov    logits of row j = head(row j) + head_m(embed_m(token j)), one row after the other

Functions have the form of decoder.py. `cfg` is a `ForwardConfig` of the draft stages (see `draft_forward`), whose window
reaches from the last row of the block over all of the context.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ascend_dsv4.config.layers import draft_stages
from ascend_dsv4.config.model_config import ModelConfig
from ascend_dsv4.model.attention import linear
from ascend_dsv4.model.decoder import ForwardConfig, Tensors, collapse, decoder_layer
from ascend_dsv4.model.weights import AttentionWeights, DSparkWeights, Tensor


def draft_forward(config: ModelConfig, dtype: str, cache_rounding: str) -> ForwardConfig:
    """What the functions below read: the stages' experts, and a window that holds context and block."""
    assert config.dspark is not None
    window = config.sliding_window + config.dspark.block_size
    return ForwardConfig(replace(config.draft_stage, sliding_window=window), dtype, cache_rounding)


def dspark_context(
    ops: Any, cfg: Any, w: DSparkWeights, streams: None, carry: Tensors, batch: Tensors, caches: Tensors
) -> tuple[None, Tensors]:
    """Write the context keys of final positions into draft_kv<stage>; carry holds their taps."""
    taps = carry["tap0"]
    for n in range(1, len(cfg.dspark.target_layer_ids)):
        taps = ops.concat(taps, carry[f"tap{n}"])
    x = ops.rms_norm(linear(ops, cfg, taps, w.main_proj), w.main_norm, eps=cfg.rms_norm_eps)
    for i, stage in enumerate(w.stages):
        assert isinstance(stage.attn, AttentionWeights)
        kv = ops.rms_norm(linear(ops, cfg, x, stage.attn.wkv), stage.attn.kv_norm, eps=cfg.rms_norm_eps)
        start = cfg.head_dim - cfg.qk_rope_head_dim
        kv = ops.rope(kv, batch["plain_cos"], batch["plain_sin"], inverse=False, start=start, layout="adjacent")
        caches[f"draft_kv{i}"] = ops.store_kv(
            caches[f"draft_kv{i}"], kv, batch["window_slots"], rounding=cfg.window_rounding, rope_dim=cfg.qk_rope_head_dim
        )
    return None, {}


def dspark_block(
    ops: Any, cfg: Any, w: DSparkWeights, streams: None, carry: Tensors, batch: Tensors, caches: Tensors
) -> tuple[Tensor, Tensors]:
    """Rows of the block behind the last stage [num_tokens, hidden_size], and their logits before the Markov correction.

    batch["block_ends"] [num_tokens] int32 is the position of the last row of each row's block: all of them see as far as it.
    The keys of the block are left in the caches and overwritten by those of true tokens.
    """
    streams = ops.embed(batch["input_ids"], w.embed, hc_mult=cfg.hc_mult, out_dtype=cfg.dtype)
    sees = {**batch, "positions": batch["block_ends"]}
    added: Tensors = {}
    for i, (spec, stage) in enumerate(zip(draft_stages(cfg), w.stages, strict=True)):
        own = {"win_kv": caches[f"draft_kv{i}"]}
        streams, added = decoder_layer(ops, cfg, stage, streams, added, sees, own, spec=spec)
        caches[f"draft_kv{i}"] = own["win_kv"]
    rows = collapse(ops, cfg, w.head, streams, added)
    logits = ops.logits(ops.rms_norm(rows, w.head.norm, eps=cfg.rms_norm_eps), w.head.head, batch["logits_rows"])
    return rows, {"logits": logits}


def dspark_markov(
    ops: Any, cfg: Any, w: DSparkWeights, streams: Tensor, carry: Tensors, batch: Tensors, caches: Tensors
) -> tuple[Tensor, Tensors]:
    """Logits [num_tokens, vocab_size] float32 of rows of the block, now that the tokens before them are known.

    streams  rows behind the last stage; carry["logits"] their logits; batch["input_ids"] the tokens before them
    confidence [num_tokens, 1] float32 is the logit of the chance that the row's draft is accepted if those before it are.
    """
    before = ops.embed(batch["input_ids"], w.markov_embed, hc_mult=1, out_dtype=cfg.dtype).reshape(-1, cfg.dspark.markov_rank)
    logits = carry["logits"] + ops.linear(before, *w.markov_head, out_dtype="float32")
    return logits, {"confidence": ops.linear(ops.concat(streams, before), *w.confidence, out_dtype="float32")}
