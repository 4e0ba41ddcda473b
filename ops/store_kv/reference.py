# SPDX-License-Identifier: Apache-2.0
"""Reference of `store_kv`, and the storage rounding that `compress_kv` and `index_topk` share."""

from __future__ import annotations

import torch
from torch import Tensor

from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.store_kv import ROUNDINGS, SPEC
from ascend_dsv4.quant import fp4, fp8_blockwise

KV_GROUP = 64
"""Channels under one scale of V4's FP8 KV grid."""
WHOLE_ROW_KV_GROUP = 32
"""Channels under one scale of V4.1's, which covers the rotary channels too."""


def round_rows(rows: Tensor, rounding: str, rope_dim: int) -> Tensor:
    """Rows [..., width] on the grid that `rounding` names, in the dtype of `rows`."""
    if rounding == "none":
        return rows
    if rounding == "hadamard_fp4":
        return fp4.round_to_grid(fp4.hadamard(rows))
    if rounding == "fp8":
        split = rows.shape[-1] - rope_dim
        return torch.cat([fp8_blockwise.round_to_grid(rows[..., :split], KV_GROUP), rows[..., split:]], dim=-1)
    if rounding == "fp8_b32":
        return fp8_blockwise.round_to_grid(rows, WHOLE_ROW_KV_GROUP)
    if rounding == "fp4_b32":
        return fp4.round_to_grid(rows)
    if rounding == "fp4_b16_e4m3":
        return fp4.round_to_e4m3_scaled_grid(rows)
    raise ValueError(f"store_kv: rounding={rounding!r}, expected one of {', '.join(ROUNDINGS)}")


def write_rows(cache: Tensor, rows: Tensor, slots: Tensor) -> None:
    """cache.row[slots] = rows, leaving out slot -1."""
    kept = slots >= 0
    at = slots[kept].long()
    cache[at // cache.shape[1], at % cache.shape[1]] = rows[kept].to(cache.dtype)  # a view stays a view: no reshape


@implements(SPEC, "reference")
def store_kv(cache: Tensor, rows: Tensor, slots: Tensor, *, rounding: str, rope_dim: int) -> None:
    write_rows(cache, round_rows(rows, rounding, rope_dim), slots)
