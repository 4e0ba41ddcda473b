# SPDX-License-Identifier: Apache-2.0
"""Reference of `layer_norm`."""

from __future__ import annotations

import torch
from torch import Tensor

from ascend_dsv4.ops.layer_norm import SPEC
from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.rowwise import accumulate_dtype, row_mean_square, row_sum


@implements(SPEC, "reference")
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    centred = x.to(accumulate_dtype(x))
    for _ in range(2):  # far from zero the first mean is rounded too coarsely; the second one is that of the rest
        centred = centred - (row_sum(centred) / x.shape[-1]).unsqueeze(-1)
    y = centred * torch.rsqrt(row_mean_square(centred) + eps) * weight.to(centred.dtype) + bias.to(centred.dtype)
    return y.to(x.dtype).contiguous()
