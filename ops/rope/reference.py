# SPDX-License-Identifier: Apache-2.0
"""Reference of `rope`."""

from __future__ import annotations

import torch
from torch import Tensor

from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.rope import SPEC
from ascend_dsv4.ops.rowwise import accumulate_dtype


@implements(SPEC, "reference")
def rope(x: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool) -> Tensor:
    rope_dim = 2 * cos.shape[-1]
    pairs = x[..., x.shape[-1] - rope_dim :].to(accumulate_dtype(x)).unflatten(-1, (-1, 2))
    a, b = pairs[..., 0], pairs[..., 1]
    heads = (cos.shape[0], *(1,) * (x.dim() - 2), cos.shape[1])
    cos, sin = cos.reshape(heads).to(pairs.dtype), sin.reshape(heads).to(pairs.dtype)
    if inverse:
        sin = -sin
    rotated = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
    return torch.cat([x[..., : x.shape[-1] - rope_dim], rotated.to(x.dtype)], dim=-1)
