# SPDX-License-Identifier: Apache-2.0
"""Reference of `logits`."""

from __future__ import annotations

from torch import Tensor

from ascend_dsv4.ops.logits import SPEC
from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.rowwise import accumulate_dtype, matmul


@implements(SPEC, "reference")
def logits(x: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    dtype = accumulate_dtype(x)
    return matmul(x[rows.long()].to(dtype), weight.to(dtype)).float()
