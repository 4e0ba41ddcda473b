# SPDX-License-Identifier: Apache-2.0
"""Reference of `embed`."""

from __future__ import annotations

import torch
from torch import Tensor

from ascend_dsv4.ops.embed import SPEC
from ascend_dsv4.ops.registry import implements


@implements(SPEC, "reference")
def embed(input_ids: Tensor, weight: Tensor, *, hc_mult: int, out_dtype: str) -> Tensor:
    rows = weight[input_ids.long()].to(getattr(torch, out_dtype))  # [num_tokens, hidden_size]
    return rows.unsqueeze(1).repeat(1, hc_mult, 1)
