# SPDX-License-Identifier: Apache-2.0
"""Reference of `linear`, and the decoding of weights that other references share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ascend_dsv4.ops.linear import SPEC
from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.rowwise import accumulate_dtype, matmul
from ascend_dsv4.quant import fp4, fp8_blockwise


def decode_weight(weight: Tensor, scale: Tensor | None, block: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The real values of a plain, FP8 or FP4 weight.

    Exact where scales are powers of two. A product with any other scale is rounded to float32 whatever `dtype` is: a weight
    is the same numbers in every compute dtype.
    """
    if scale is not None and scale.dtype == torch.float64:
        scale = scale.float()
    if weight.dtype == torch.float8_e4m3fn:
        assert scale is not None, "FP8 weight without its scale"
        return fp8_blockwise.decode(weight, scale, (block[0], block[1])).to(dtype)
    if weight.dtype == torch.int8:
        assert scale is not None, "FP4 weight without its scale"
        return fp4.decode(weight, scale).to(dtype)
    return weight.to(dtype)


@implements(SPEC, "reference")
def linear(x: Tensor, weight: Tensor, scale: Tensor | None, *, block: Sequence[int], out_dtype: str) -> Tensor:
    dtype = accumulate_dtype(x)
    return matmul(x.to(dtype), decode_weight(weight, scale, block, dtype)).to(getattr(torch, out_dtype))
