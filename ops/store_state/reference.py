# SPDX-License-Identifier: Apache-2.0
"""Reference of `store_state`."""

from __future__ import annotations

import torch
from torch import Tensor

from ascend_dsv4.ops.compress_kv.reference import write_state
from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.store_state import SPEC


@implements(SPEC, "reference")
def store_state(
    state: Tensor, kv: Tensor, gate: Tensor, positions: Tensor, req_idx: Tensor, cu_query_lens: Tensor, state_slots: Tensor
) -> None:
    write_state(state, torch.stack([kv, gate], dim=1), positions, req_idx, cu_query_lens, state_slots)
