# SPDX-License-Identifier: Apache-2.0
"""Reference of `step_metadata`."""

from __future__ import annotations

import torch
from torch import Tensor

from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.step_metadata import SPEC


@implements(SPEC, "reference")
def step_metadata(positions: Tensor, inv_freq: Tensor, *, offset: int) -> tuple[Tensor, Tensor]:
    angles = (positions + offset).float().unsqueeze(-1) * inv_freq
    turns = torch.polar(torch.ones_like(angles), angles)
    return turns.real.contiguous(), turns.imag.contiguous()
