# SPDX-License-Identifier: Apache-2.0
"""Reference of `expert_mlp`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ascend_dsv4.ops.expert_mlp import SPEC
from ascend_dsv4.ops.linear.reference import decode_weight
from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.rowwise import accumulate_dtype, matmul
from ascend_dsv4.ops.swiglu.reference import swiglu


@implements(SPEC, "reference")
def expert_mlp(
    rows: Tensor,
    row_weights: Tensor,
    counts: Tensor,
    w13: Tensor,
    w13_scale: Tensor | None,
    w2: Tensor,
    w2_scale: Tensor | None,
    *,
    block: Sequence[int],
    limit: float,
) -> Tensor:
    dtype = accumulate_dtype(rows)
    y = torch.empty_like(rows)
    start = 0
    for expert, count in enumerate(counts.tolist()):
        if count == 0:
            continue
        mine = slice(start, start + count)
        start += count
        scale13 = None if w13_scale is None else w13_scale[expert]
        scale2 = None if w2_scale is None else w2_scale[expert]
        gate, up = matmul(rows[mine].to(dtype), decode_weight(w13[expert], scale13, block, dtype)).chunk(2, dim=-1)
        hidden = row_weights[mine, None].to(dtype) * swiglu(gate, up, limit=limit)
        # The model rounds the hidden activation to its compute dtype before the down projection.
        hidden = hidden.to(rows.dtype).to(dtype)
        y[mine] = matmul(hidden, decode_weight(w2[expert], scale2, block, dtype)).to(rows.dtype)
    return y
