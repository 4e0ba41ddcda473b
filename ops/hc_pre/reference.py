# SPDX-License-Identifier: Apache-2.0
"""Reference of `hc_pre`, with the two steps that `hc_head` and `hc_collapse` share."""

from __future__ import annotations

import torch
from torch import Tensor

from ascend_dsv4.ops.hc_pre import SPEC
from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.rowwise import accumulate_dtype, matmul, row_mean_square, sigmoid


def project_streams(streams: Tensor, fn: Tensor, norm_eps: float) -> Tensor:
    """u [num_tokens, num_coefficients]: flattened streams projected, then scaled by their inverse RMS."""
    z = streams.flatten(1).to(accumulate_dtype(streams))  # stream 0's channels first
    return matmul(z, fn.to(z.dtype)) * torch.rsqrt(row_mean_square(z) + norm_eps)


def collapse_streams(streams: Tensor, weights: Tensor) -> Tensor:
    """Σ_n weights[n] · streams[n], added in stream order."""
    wide = streams.to(weights.dtype)
    total = weights[:, 0, None] * wide[:, 0]
    for n in range(1, streams.shape[1]):
        total = total + weights[:, n, None] * wide[:, n]
    return total.to(streams.dtype)


def sinkhorn(comb: Tensor, iterations: int, eps: float) -> Tensor:
    """Alternate column and row normalisation of [num_tokens, n, n]; the row softmax before it counts as the first row step."""
    comb = comb / (_sum(comb, 1) + eps)
    for _ in range(iterations - 1):
        comb = comb / (_sum(comb, 2) + eps)
        comb = comb / (_sum(comb, 1) + eps)
    return comb


def _sum(comb: Tensor, axis: int) -> Tensor:
    parts = comb.unbind(axis)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total.unsqueeze(axis)


@implements(SPEC, "reference")
def hc_pre(
    streams: Tensor,
    fn: Tensor,
    base: Tensor,
    scale: Tensor,
    mix: Tensor | None,
    *,
    sinkhorn_iters: int,
    hc_eps: float,
    norm_eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_tokens, n, _ = streams.shape
    u = project_streams(streams, fn, norm_eps)
    pre = sigmoid(u[:, :n] * scale[0] + base[:n]) + hc_eps
    post = 2 * sigmoid(u[:, n : 2 * n] * scale[1] + base[n : 2 * n])
    logits = (u[:, 2 * n :] * scale[2] + base[2 * n :]).reshape(num_tokens, n, n)
    comb = sinkhorn(torch.softmax(logits, -1) + hc_eps, sinkhorn_iters, hc_eps)
    x = collapse_streams(streams, pre if mix is None else mix.to(pre.dtype))
    return x, post.float(), comb.float(), pre.float()
