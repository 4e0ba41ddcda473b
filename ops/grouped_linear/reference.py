# SPDX-License-Identifier: Apache-2.0
"""Reference of `grouped_linear`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ascend_dsv4.ops.grouped_linear import SPEC
from ascend_dsv4.ops.linear.reference import decode_weight
from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.rowwise import accumulate_dtype, matmul


@implements(SPEC, "reference")
def grouped_linear(x: Tensor, weight: Tensor, scale: Tensor | None, *, block: Sequence[int]) -> Tensor:
    dtype = accumulate_dtype(x)
    num_groups = x.shape[1]
    # Scale blocks run over all rows together, so the weight is decoded before it is split.
    groups = decode_weight(weight, scale, block, dtype).reshape(num_groups, -1, x.shape[2])
    wide = x.to(dtype)
    return torch.stack([matmul(wide[:, g], groups[g]) for g in range(num_groups)], dim=1).to(x.dtype)
