# SPDX-License-Identifier: Apache-2.0
"""Right numbers, wrong manners: bits that change from call to call, arguments overwritten, outputs not as promised."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from ascend_dsv4.ops.linear.reference import decode_weight, linear
from ascend_dsv4.ops.moe_combine.reference import moe_combine
from ascend_dsv4.ops.moe_dispatch.reference import moe_dispatch
from ascend_dsv4.ops.place_rows.reference import place_rows
from ascend_dsv4.ops.rms_norm.reference import rms_norm
from ascend_dsv4.ops.swiglu.reference import swiglu

_calls = itertools.count()


def sum_order_changes(x: Tensor, weight: Tensor, scale: Tensor | None, *, out_dtype: str, **attrs: Any) -> Tensor:
    """Halves of the sum are added in the order in which they get ready: last bits differ from call to call."""
    wide = decode_weight(weight, scale, attrs["block"], torch.float32)
    cut = wide.shape[1] // (2 + next(_calls) % 2)
    whole = linear(x, weight, scale, out_dtype="float32", **attrs)
    if not 0 < cut < wide.shape[1] or x.dtype == torch.float64:
        return whole.to(getattr(torch, out_dtype))
    parts = (x[..., :cut].float() @ wide[:, :cut].t()) + (x[..., cut:].float() @ wide[:, cut:].t())
    return parts.to(getattr(torch, out_dtype))


def input_normed_in_place(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
    """The result is right, and stands in the memory of the input as well."""
    y = rms_norm(x, weight, eps=eps)
    x.copy_(y)
    return y


def result_left_in_float32(gate: Tensor, up: Tensor, *, limit: float) -> Tensor:
    """The result is not rounded to the dtype of its input."""
    return swiglu(gate.float(), up.float(), limit=limit)


def inverse_root_returned(x: Tensor, weight: Tensor | None, *, eps: float) -> tuple[Tensor, Tensor]:
    """A second output comes back beside the promised one."""
    return rms_norm(x, weight, eps=eps), torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)


def streams_not_copied(streams: Tensor, rows: Tensor, at: Tensor) -> Tensor:
    """Without rows to place the streams themselves come back, and whoever writes the result writes them."""
    return place_rows(streams, rows, at) if bool((at >= 0).any()) else streams


class _Workspace:
    """Counts that are cleared when the workspace is made, not when it is used again."""

    def __init__(self) -> None:
        self._counts: dict[int, Tensor] = {}

    def dispatch(self, x: Tensor, ids: Tensor, weights: Tensor, *, num_experts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows, row_weights, counts, row_of = moe_dispatch(x, ids, weights, num_experts=num_experts)
        total = self._counts.get(num_experts, torch.zeros_like(counts)) + counts
        self._counts[num_experts] = total
        return rows, row_weights, total, row_of


_workspace = _Workspace()


def counts_not_cleared(x: Tensor, ids: Tensor, weights: Tensor, *, num_experts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Counts of earlier calls are still in the workspace."""
    return _workspace.dispatch(x, ids, weights, num_experts=num_experts)


def sum_kept_from_the_call_before(rows: Tensor, row_of: Tensor) -> Tensor:
    """Rows without a choice keep what the buffer held: here, ones."""
    y = moe_combine(rows, row_of)
    y[(row_of < 0).all(1)] = 1
    return y


MUTANTS = {
    "linear/sum-order-changes": sum_order_changes,
    "rms_norm/input-overwritten": input_normed_in_place,
    "rms_norm/second-output": inverse_root_returned,
    "place_rows/streams-not-copied": streams_not_copied,
    "swiglu/result-in-float32": result_left_in_float32,
    "moe_dispatch/counts-not-cleared": counts_not_cleared,
    "moe_combine/buffer-not-cleared": sum_kept_from_the_call_before,
}
