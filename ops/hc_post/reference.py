# SPDX-License-Identifier: Apache-2.0
"""Reference of `hc_post`."""

from __future__ import annotations

import torch
from torch import Tensor

from ascend_dsv4.ops.hc_post import SPEC
from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.rowwise import accumulate_dtype


@implements(SPEC, "reference")
def hc_post(x: Tensor, streams: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    dtype = accumulate_dtype(streams)
    wide, out, weights = streams.to(dtype), x.to(dtype), comb.to(dtype)
    added = []
    for j in range(streams.shape[1]):
        mixed = weights[:, 0, j, None] * wide[:, 0]
        for i in range(1, streams.shape[1]):
            mixed = mixed + weights[:, i, j, None] * wide[:, i]
        added.append(post[:, j, None].to(dtype) * out + mixed)
    return torch.stack(added, dim=1).to(streams.dtype)
