# SPDX-License-Identifier: Apache-2.0
"""Reference of `rope`."""

from __future__ import annotations

import torch
from torch import Tensor

from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.rope import SPEC
from ascend_dsv4.ops.rowwise import accumulate_dtype

MEMBER_AXIS = {"adjacent": -1, "halves": -2}
"""Layout → axis of the two members of a pair when the rotated channels are split in two axes."""


@implements(SPEC, "reference")
def rope(x: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool, start: int, layout: str) -> Tensor:
    half = cos.shape[-1]
    end = start + 2 * half
    if layout not in MEMBER_AXIS:
        raise ValueError(f"rope: layout={layout!r}, expected adjacent or halves")
    if not 0 <= start <= end <= x.shape[-1]:
        raise ValueError(f"rope: start={start} with {half} pairs, expected them within the {x.shape[-1]} channels of x")
    member = MEMBER_AXIS[layout]
    channels = x[..., start:end].to(accumulate_dtype(x))
    a, b = channels.unflatten(-1, (half, 2) if layout == "adjacent" else (2, half)).unbind(member)
    heads = (cos.shape[0], *(1,) * (x.dim() - 2), half)
    cos, sin = cos.reshape(heads).to(channels.dtype), sin.reshape(heads).to(channels.dtype)
    if inverse:
        sin = -sin
    rotated = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=member).flatten(-2)
    return torch.cat([x[..., :start], rotated.to(x.dtype), x[..., end:]], dim=-1)
