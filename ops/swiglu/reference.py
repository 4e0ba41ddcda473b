# SPDX-License-Identifier: Apache-2.0
"""Reference of `swiglu`."""

from __future__ import annotations

from torch import Tensor

from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.rowwise import accumulate_dtype, silu
from ascend_dsv4.ops.swiglu import SPEC


@implements(SPEC, "reference")
def swiglu(gate: Tensor, up: Tensor, *, limit: float) -> Tensor:
    dtype = accumulate_dtype(gate)
    g = gate.to(dtype).clamp(max=limit)
    return (silu(g) * up.to(dtype).clamp(-limit, limit)).to(gate.dtype).contiguous()
