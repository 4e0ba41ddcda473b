# SPDX-License-Identifier: Apache-2.0
"""The multi-token-prediction stage: one more layer that drafts the token after the next.

In V4's preview releases it reads the backbone's streams as they leave the last layer; in V3.2, which has one plain residual,
what the backbone's last norm makes of it. Its own output goes the same way into a further draft step.
"""

from __future__ import annotations

from typing import Any

from ascend_dsv4.config.layers import draft_layer
from ascend_dsv4.model.attention import linear
from ascend_dsv4.model.decoder import Tensors, decoder_layer, head
from ascend_dsv4.model.weights import MtpWeights, PlainMtpWeights, Tensor


def mtp_stage(
    ops: Any, cfg: Any, w: MtpWeights, streams: Tensor, carry: Tensors, batch: Tensors, caches: Tensors
) -> tuple[Tensor, Tensors]:
    """Logits for token t + 2 from the backbone's streams at t and, in batch["input_ids"], token t + 1.

    streams [num_tokens, hc_mult, hidden_size] after the last layer, before the head; positions are those of the streams.
    Returns logits of batch["logits_rows"], and the stage's own streams as carry, input of a further draft step.
    """
    token = ops.embed(batch["input_ids"], w.embed, hc_mult=1, out_dtype=cfg.dtype)  # [num_tokens, 1, hidden_size]
    token = linear(ops, cfg, ops.rms_norm(token, w.enorm, eps=cfg.rms_norm_eps), w.e_proj)
    streams = token + linear(ops, cfg, ops.rms_norm(streams, w.hnorm, eps=cfg.rms_norm_eps), w.h_proj)
    streams, carry = decoder_layer(ops, cfg, w.layer, streams, carry, batch, caches, spec=draft_layer(cfg))
    logits, _ = head(ops, cfg, w.head, streams, carry, batch, caches)
    return logits, {"streams": streams}


def plain_mtp_input(
    ops: Any, cfg: Any, w: PlainMtpWeights, streams: Tensor, carry: Tensors, batch: Tensors, caches: Tensors
) -> tuple[Tensor, Tensors]:
    """The backbone's residual [num_tokens, hidden_size] as the stage reads it."""
    return ops.rms_norm(streams, w.backbone_norm, eps=cfg.rms_norm_eps), {}


def plain_mtp_stage(
    ops: Any, cfg: Any, w: PlainMtpWeights, streams: Tensor, carry: Tensors, batch: Tensors, caches: Tensors
) -> tuple[Tensor, Tensors]:
    """As `mtp_stage`; streams [num_tokens, hidden_size] come normalised and are handed on normalised."""
    token = ops.embed(batch["input_ids"], w.embed, hc_mult=1, out_dtype=cfg.dtype).reshape(-1, cfg.hidden_size)
    token = ops.rms_norm(token, w.enorm, eps=cfg.rms_norm_eps)
    both = ops.concat(token, ops.rms_norm(streams, w.hnorm, eps=cfg.rms_norm_eps))
    streams, _ = decoder_layer(ops, cfg, w.layer, linear(ops, cfg, both, w.eh_proj), {}, batch, caches, spec=draft_layer(cfg))
    streams = ops.rms_norm(streams, w.head.norm, eps=cfg.rms_norm_eps)
    return ops.logits(streams, w.head.head, batch["logits_rows"]), {"streams": streams}
