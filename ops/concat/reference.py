# SPDX-License-Identifier: Apache-2.0
"""Reference of `concat`."""

from __future__ import annotations

import torch
from torch import Tensor

from ascend_dsv4.ops.concat import SPEC
from ascend_dsv4.ops.registry import implements


@implements(SPEC, "reference")
def concat(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([x, y], dim=-1)
