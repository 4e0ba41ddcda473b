# SPDX-License-Identifier: Apache-2.0
"""Reference of `engram_gate`."""

from __future__ import annotations

import torch
from torch import Tensor

from ascend_dsv4.ops.engram_gate import SPEC
from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.rowwise import accumulate_dtype, row_mean_square, row_sum, sigmoid
from ascend_dsv4.ops.spec import ShapeError

SMALLEST_DOT = 1e-6
"""Below it the root would be too steep to train; part of the model."""


@implements(SPEC, "reference")
def engram_gate(
    streams: Tensor, kv: Tensor, q_weight: Tensor, k_weight: Tensor, is_image: Tensor | None, *, eps: float, sign_of_zero: bool
) -> Tensor:
    num_tokens, hc_mult, hidden_size = streams.shape
    if kv.shape[1] != (hc_mult + 1) * hidden_size:
        raise ShapeError(
            f"engram_gate: kv has width {kv.shape[1]}, expected {(hc_mult + 1) * hidden_size}: a key of {hidden_size} for each "
            f"of {hc_mult} streams, then the value"
        )
    dtype = accumulate_dtype(streams)
    h, keys_and_value = streams.to(dtype), kv.to(dtype).view(num_tokens, hc_mult + 1, hidden_size)
    keys, value = keys_and_value[:, :hc_mult], keys_and_value[:, hc_mult:]
    weight = q_weight.to(dtype) * k_weight.to(dtype)
    dot = row_sum(h * weight * keys).unsqueeze(-1)  # [num_tokens, hc_mult, 1]
    inverse_rms = torch.rsqrt(row_mean_square(h) + eps) * torch.rsqrt(row_mean_square(keys) + eps)
    dot = dot * inverse_rms * hidden_size**-0.5
    root = dot.abs().clamp(min=SMALLEST_DOT).sqrt()
    gate = sigmoid(torch.copysign(root, dot) if sign_of_zero else torch.sign(dot) * root)
    y = (h + gate * value).to(streams.dtype)
    if is_image is not None:
        y = torch.where((is_image != 0)[:, None, None], streams, y)
    return y.contiguous()
