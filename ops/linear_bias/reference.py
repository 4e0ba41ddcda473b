# SPDX-License-Identifier: Apache-2.0
"""Reference of `linear_bias`."""

from __future__ import annotations

import torch
from torch import Tensor

from ascend_dsv4.ops.linear_bias import SPEC
from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.rowwise import accumulate_dtype, matmul


@implements(SPEC, "reference")
def linear_bias(x: Tensor, weight: Tensor, bias: Tensor, *, out_dtype: str) -> Tensor:
    dtype = accumulate_dtype(x)
    return (matmul(x.to(dtype), weight.to(dtype)) + bias.to(dtype)).to(getattr(torch, out_dtype))
