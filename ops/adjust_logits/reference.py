# SPDX-License-Identifier: Apache-2.0
"""Reference of `adjust_logits`."""

from __future__ import annotations

import torch
from torch import Tensor

from ascend_dsv4.ops.adjust_logits import SPEC, check_mask
from ascend_dsv4.ops.registry import implements


@implements(SPEC, "reference")
def adjust_logits(logits: Tensor, rows: Tensor, ids: Tensor, repetition: Tensor, bias: Tensor, allowed: Tensor) -> Tensor:
    check_mask(logits.shape, allowed.shape)
    y = logits.clone()
    kept = rows >= 0
    at = rows[kept].long(), ids[kept].long()
    chosen, penalty = y[at], repetition[kept]
    y[at] = torch.where(chosen > 0, chosen / penalty, chosen * penalty) + bias[kept]
    bits = allowed.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32, device=allowed.device) & 1
    bits = bits.flatten(1)[:, : logits.shape[1]]  # [num_rows, vocab_size]
    return torch.where(bits == 1, y, y - torch.inf)
