# SPDX-License-Identifier: Apache-2.0
"""Reference of `gelu`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ascend_dsv4.ops.gelu import SPEC
from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.rowwise import accumulate_dtype


@implements(SPEC, "reference")
def gelu(x: Tensor) -> Tensor:
    wide = x.to(accumulate_dtype(x)).contiguous()
    return (wide * (1 + torch.erf(wide * math.sqrt(0.5))) / 2).to(x.dtype)
