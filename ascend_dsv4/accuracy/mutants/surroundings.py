# SPDX-License-Identifier: Apache-2.0
"""Wrong embeddings, n-gram rows, norms, images, logits and draws."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ascend_dsv4.ops.adjust_logits.reference import adjust_logits
from ascend_dsv4.ops.concat.reference import concat
from ascend_dsv4.ops.embed.reference import embed
from ascend_dsv4.ops.engram_gate.reference import engram_gate
from ascend_dsv4.ops.layer_norm.reference import layer_norm
from ascend_dsv4.ops.logits.reference import logits as vocabulary_logits
from ascend_dsv4.ops.merge_patches.reference import merge_patches
from ascend_dsv4.ops.place_rows.reference import place_rows
from ascend_dsv4.ops.rms_norm.reference import rms_norm
from ascend_dsv4.ops.sample.reference import sample
from ascend_dsv4.ops.vision_block.reference import vision_block

Draw = tuple[Tensor, Tensor]


def first_stream_alone(input_ids: Tensor, weight: Tensor, **attrs: Any) -> Tensor:
    """The embedding starts the first stream, the others start at zero."""
    y = embed(input_ids, weight, **attrs)
    y[:, 1:] = 0
    return y


def embedding_scaled(input_ids: Tensor, weight: Tensor, **attrs: Any) -> Tensor:
    """The embedding is multiplied by the root of its width."""
    return embed(input_ids, weight, **attrs) * weight.shape[1] ** 0.5


def images_not_gated(*tensors: Any, **attrs: Any) -> Tensor:
    """Tokens of images take part."""
    return engram_gate(*tensors[:-1], None, **attrs)


def zero_without_sign(*tensors: Any, sign_of_zero: bool, **attrs: Any) -> Tensor:
    """The sign of a zero is the other variant's."""
    return engram_gate(*tensors, sign_of_zero=not sign_of_zero, **attrs)


def keys_of_stream_0(streams: Tensor, kv: Tensor, *rest: Any, **attrs: Any) -> Tensor:
    """All streams take the key of the first one."""
    hc_mult, hidden = streams.shape[1:]
    parts = kv.reshape(len(kv), hc_mult + 1, hidden)
    shared = torch.cat([parts[:, :1].expand(-1, hc_mult, -1), parts[:, hc_mult:]], dim=1).flatten(1)
    return engram_gate(streams, shared, *rest, **attrs)


def value_added_whole(streams: Tensor, kv: Tensor, *rest: Any, **attrs: Any) -> Tensor:
    """The gate multiplies half: the value is added again at half its size."""
    y = engram_gate(streams, kv, *rest, **attrs)
    return (y.float() + kv[:, None, -streams.shape[2] :].float() / 2).to(y.dtype)


def weight_plus_one(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
    """The weight counts from 1, as other models store it."""
    return rms_norm(x, None if weight is None else weight + 1, eps=eps)


def mean_removed(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
    """The mean is subtracted first."""
    wide = x.float()
    return rms_norm((wide - wide.mean(-1, keepdim=True)).to(x.dtype), weight, eps=eps)


def norm_eps_missing(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
    """Nothing is added to the mean square."""
    return rms_norm(x, weight, eps=0.0)


def bias_missing(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    """The bias is not added."""
    return layer_norm(x, weight, torch.zeros_like(bias), eps=eps)


def mean_kept(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    """The mean is not subtracted."""
    return (rms_norm(x, weight, eps=eps).float() + bias.float()).to(x.dtype)


def tanh_gelu(x: Tensor) -> Tensor:
    """The approximation by tanh."""
    return torch.nn.functional.gelu(x.float(), approximate="tanh").to(x.dtype)


def parts_exchanged(x: Tensor, y: Tensor) -> Tensor:
    """The second tensor stands first."""
    return concat(y, x)


def cells_before_channels(x: Tensor, patch_ids: Tensor) -> Tensor:
    """Patches of a block stand one after the other instead of channel by channel."""
    merged = merge_patches(x, patch_ids)
    return merged.reshape(len(merged), x.shape[1], -1).transpose(1, 2).flatten(1)


def image_in_stream_0(streams: Tensor, rows: Tensor, at: Tensor) -> Tensor:
    """A row reaches the first stream of its token only."""
    y = streams.clone()
    y[:, :1] = place_rows(streams[:, :1], rows, at)
    return y


def rotation_missing(*tensors: Any, **attrs: Any) -> Tensor:
    """Patches do not know where they are."""
    *rest, cos, sin = tensors
    return vision_block(*rest, torch.ones_like(cos), torch.zeros_like(sin), **attrs)


def one_norm_for_both(*tensors: Any, num_heads: int, **attrs: Any) -> Tensor:
    """The second norm takes the weight of the first."""
    x, norm1, wqkv, bqkv, wo, bo, _, *rest = tensors
    return vision_block(x, norm1, wqkv, bqkv, wo, bo, norm1, *rest, num_heads=num_heads, **attrs)


def first_rows(x: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    """Scores are of the first rows, not of the chosen ones."""
    return vocabulary_logits(x, weight, torch.arange(len(rows), dtype=rows.dtype).clamp(max=max(0, len(x) - 1)))


def head_in_bfloat16(x: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    """Scores are rounded to bfloat16 on their way to float32."""
    return vocabulary_logits(x, weight, rows).bfloat16().float()


def penalty_helps_negative_logits(
    logits: Tensor, rows: Tensor, ids: Tensor, repetition: Tensor, bias: Tensor, allowed: Tensor
) -> Tensor:
    """Every logit is divided by the penalty, which raises a negative one."""
    kept, inverse = rows >= 0, repetition.clone()
    is_negative = logits[rows[kept].long(), ids[kept].long()] <= 0
    inverse[kept] = torch.where(is_negative, 1 / repetition[kept], repetition[kept])
    return adjust_logits(logits, rows, ids, inverse, bias, allowed)


def mask_big_endian(logits: Tensor, rows: Tensor, ids: Tensor, repetition: Tensor, bias: Tensor, allowed: Tensor) -> Tensor:
    """Bit 31 of a word stands for its first token."""
    bits = allowed.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32) & 1
    reversed_words = (bits.flip(-1).long() << torch.arange(32)).sum(-1)
    words = torch.where(reversed_words >= 2**31, reversed_words - 2**32, reversed_words).int()
    return adjust_logits(logits, rows, ids, repetition, bias, words)


def mask_by_product(logits: Tensor, rows: Tensor, ids: Tensor, repetition: Tensor, bias: Tensor, allowed: Tensor) -> Tensor:
    """Minus infinity is multiplied by 0 where a token is allowed, which is NaN."""
    y = adjust_logits(logits, rows, ids, repetition, bias, torch.full_like(allowed, -1))
    bits = (allowed.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32) & 1).flatten(1)[:, : logits.shape[1]]
    return y + (1 - bits) * -torch.inf


def temperature_ignored(logits: Tensor, temperature: Tensor, *rest: Any) -> Draw:
    """Every row is drawn at temperature 1."""
    return sample(logits, torch.where(temperature > 0, 1.0, temperature), *rest)


def greedy_is_sampled(logits: Tensor, temperature: Tensor, *rest: Any) -> Draw:
    """Temperature 0 counts as 1."""
    return sample(logits, torch.where(temperature > 0, temperature, 1.0), *rest)


def min_p_ignored(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniform: Tensor) -> Draw:
    """Unlikely tokens are kept."""
    return sample(logits, temperature, top_k, top_p, torch.zeros_like(min_p), uniform)


def logprobs_after_temperature(logits: Tensor, temperature: Tensor, *rest: Any) -> Draw:
    """Logprobs are those of the tempered distribution."""
    ids, logprobs = sample(logits, temperature, *rest)
    tempered = torch.log_softmax(logits / torch.where(temperature > 0, temperature, 1.0)[:, None], -1)
    mine = tempered.gather(1, ids.clamp(min=0).long()[:, None]).squeeze(1)
    return ids, torch.where(ids >= 0, mine, logprobs)


MUTANTS = {
    "embed/first-stream-alone": first_stream_alone,
    "embed/scaled": embedding_scaled,
    "engram_gate/images-take-part": images_not_gated,
    "engram_gate/other-sign-of-zero": zero_without_sign,
    "engram_gate/keys-of-stream-0": keys_of_stream_0,
    "engram_gate/value-added-twice": value_added_whole,
    "rms_norm/weight-plus-one": weight_plus_one,
    "rms_norm/mean-removed": mean_removed,
    "rms_norm/eps-missing": norm_eps_missing,
    "layer_norm/bias-missing": bias_missing,
    "layer_norm/mean-kept": mean_kept,
    "gelu/by-tanh": tanh_gelu,
    "concat/parts-exchanged": parts_exchanged,
    "merge_patches/cells-before-channels": cells_before_channels,
    "place_rows/first-stream-alone": image_in_stream_0,
    "vision_block/rotation-missing": rotation_missing,
    "vision_block/one-norm-for-both": one_norm_for_both,
    "logits/first-rows": first_rows,
    "logits/through-bfloat16": head_in_bfloat16,
    "adjust_logits/penalty-helps-negative": penalty_helps_negative_logits,
    "adjust_logits/mask-big-endian": mask_big_endian,
    "adjust_logits/mask-by-product": mask_by_product,
    "sample/temperature-ignored": temperature_ignored,
    "sample/greedy-is-sampled": greedy_is_sampled,
    "sample/min-p-ignored": min_p_ignored,
    "sample/logprobs-after-temperature": logprobs_after_temperature,
}
