# SPDX-License-Identifier: Apache-2.0
"""Reference of `vision_block`."""

from __future__ import annotations

import torch
from torch import Tensor

from ascend_dsv4.ops.linear_bias.reference import linear_bias
from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.rms_norm.reference import rms_norm
from ascend_dsv4.ops.rowwise import accumulate_dtype, matmul, row_sum, sigmoid
from ascend_dsv4.ops.vision_block import SPEC

QUERY_ROWS = 256
"""Queries whose scores are in memory at a time: an image may have ten thousand patches."""


@implements(SPEC, "reference")
def vision_block(
    x: Tensor,
    norm1: Tensor,
    wqkv: Tensor,
    bqkv: Tensor,
    wo: Tensor,
    bo: Tensor,
    norm2: Tensor,
    w1: Tensor,
    w2: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    num_heads: int,
    eps: float,
) -> Tensor:
    wide, dtype = accumulate_dtype(x), x.dtype
    out_dtype = str(dtype).removeprefix("torch.")

    qkv = linear_bias(rms_norm(x, norm1, eps=eps), wqkv, bqkv, out_dtype=out_dtype)
    o = _attention(qkv, cos, sin, num_heads)
    x = x + linear_bias(o, wo, bo, out_dtype=out_dtype)

    hidden = matmul(rms_norm(x, norm2, eps=eps).to(wide), w1.to(wide)).to(dtype)
    gate, up = hidden.to(wide).chunk(2, dim=-1)
    silu = (gate * sigmoid(gate)).to(dtype).to(wide)
    return x + matmul((silu * up).to(dtype).to(wide), w2.to(wide)).to(dtype)


def _attention(qkv: Tensor, cos: Tensor, sin: Tensor, num_heads: int) -> Tensor:
    """Bidirectional attention; qkv [num_patches, 3 · dim] → [num_patches, dim]."""
    wide, dtype = accumulate_dtype(qkv), qkv.dtype
    # [num_heads, num_patches, head_dim] each
    q, k, v = (part.unflatten(-1, (num_heads, -1)).transpose(0, 1) for part in qkv.chunk(3, dim=-1))
    q, k = (_turned(part.to(wide), cos.to(wide), sin.to(wide)).to(dtype).to(wide) for part in (q, k))
    v = v.to(wide)
    scale = q.shape[-1] ** -0.5
    out = torch.empty_like(v)
    for head in range(num_heads):
        keys, columns = k[head].contiguous(), v[head].t().contiguous()
        for start in range(0, q.shape[1], QUERY_ROWS):
            rows = slice(start, start + QUERY_ROWS)
            scores = matmul(q[head, rows], keys) * scale
            powers = torch.exp(scores - scores.amax(-1, keepdim=True))
            out[head, rows] = matmul(powers, columns) / row_sum(powers).unsqueeze(-1)
    return out.transpose(0, 1).flatten(1).to(dtype)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [num_heads, num_patches, head_dim], its halves turned by the angles of each patch."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
