# SPDX-License-Identifier: Apache-2.0
"""Reference of `rms_norm`."""

from __future__ import annotations

import torch
from torch import Tensor

from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.rms_norm import SPEC
from ascend_dsv4.ops.rowwise import accumulate_dtype, row_mean_square


@implements(SPEC, "reference")
def rms_norm(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
    wide = x.to(accumulate_dtype(x))
    y = wide * torch.rsqrt(row_mean_square(wide) + eps)
    if weight is not None:
        y = y * weight.to(wide.dtype)
    return y.to(x.dtype).contiguous()
