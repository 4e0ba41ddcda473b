# SPDX-License-Identifier: Apache-2.0
"""`moe_dispatch` as the Ascend C kernel `cann_kernels/moe_dispatch`, run by the twin."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ascend_dsv4.errors import UnsupportedError
from ascend_dsv4.ops.moe_dispatch import SPEC
from ascend_dsv4.ops.registry import implements
from ascend_dsv4.twin.kernel_library import current_settings, kernel_library

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MAX_EXPERTS, MAX_TOPK, MAX_QUANTIZED_WIDTH, MAX_SEGMENTS = 1024, 64, 8192, 4096
FIELDS = (
    "num_tokens", "hidden_size", "topk", "num_experts", "first_expert", "end_expert", "num_ranks", "dtype", "quantize",
    "has_smooth", "num_cores", "reserved",
)  # fmt: skip


class Params(ctypes.Structure):
    """MoeDispatchParams of `cann_kernels/moe_dispatch/moe_dispatch.h`."""

    _fields_ = [(name, ctypes.c_uint32) for name in FIELDS]


class RegroupParams(ctypes.Structure):
    """MoeRegroupParams of `cann_kernels/moe_dispatch/moe_regroup.h`."""

    _fields_ = [
        (name, ctypes.c_uint32)
        for name in ("num_rows", "row_bytes", "num_ranks", "experts_per_rank", "num_cores", "reserved")
    ]


class Dispatched(NamedTuple):
    """The outputs of `moe_dispatch`, and what `dispatch_rows` was asked for beyond them."""

    rows: Tensor
    """[num_tokens · topk, hidden_size] in the dtype of x, or int8."""
    row_weights: Tensor
    counts: Tensor
    row_of: Tensor
    rank_counts: Tensor
    """[num_ranks] int32, rows of the experts of each rank: how many rows to send it."""
    scales: Tensor | None
    """[num_tokens · topk] float32: a row is rows · scales. None for rows that are not quantised."""


@implements(SPEC, "ascendc-twin", dtypes=("float32", "bfloat16", "float16"))
def moe_dispatch(x: Tensor, ids: Tensor, weights: Tensor, *, num_experts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids that are no expert send nothing. Raises UnsupportedError for what the kernel does not have, KernelError for a broken
    rule.
    """
    done = dispatch_rows(x, ids, weights, num_experts=num_experts)
    return done.rows, done.row_weights, done.counts, done.row_of


def dispatch_rows(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    *,
    num_experts: int,
    expert_range: tuple[int, int] | None = None,
    num_ranks: int = 1,
    quantize: bool = False,
    smooth: Tensor | None = None,
) -> Dispatched:
    """`moe_dispatch` with what expert parallelism and int8 experts want of it.

    expert_range: first expert and the one behind the last that rows are sent to, of all of them; counts of the others are 0.
    num_ranks: holders of equal runs of experts. Rows stand by expert, so they stand by rank too.
    quantize: rows in int8, rint(v · 127 / amax) with amax the largest magnitude of v, and v = x or, given smooth [num_experts,
    hidden_size] float32, x · smooth[expert]. A row of zeros has scale 0; inf and NaN show in the scale.
    Raises UnsupportedError for what the kernel does not have, ValueError for arguments that do not fit together, KernelError
    for a broken rule.
    """
    first, end = expert_range or (0, num_experts)
    _check(x, ids, num_experts, quantize)
    _check_parts(num_experts, first, end, num_ranks, quantize, smooth)
    (num_tokens, topk), hidden_size, num_rows = ids.shape, x.shape[1], ids.numel()
    done = Dispatched(
        torch.empty(num_rows, hidden_size, dtype=torch.int8 if quantize else x.dtype),
        weights.new_empty(num_rows),
        torch.zeros(num_experts, dtype=torch.int32),
        torch.empty(ids.shape, dtype=torch.int32),
        torch.zeros(num_ranks, dtype=torch.int32),
        torch.empty(num_rows) if quantize else None,
    )
    if done.rows.numel() == 0:
        return done
    inputs = [None if tensor is None else tensor.contiguous() for tensor in (x, ids, weights, smooth)]
    params = Params(
        num_tokens, hidden_size, topk, num_experts, first, end, num_ranks, DTYPES[x.dtype], quantize, smooth is not None,
        current_settings().vector_cores, 0,
    )  # fmt: skip
    kernel_library().launch("moe_dispatch", params, _addresses(inputs), _addresses(done))
    return done


class Regrouped(NamedTuple):
    """Received rows by local expert, in order of the sending rank. Rows past Σ counts hold nothing."""

    rows: Tensor
    row_weights: Tensor
    counts: Tensor
    """[experts_per_rank] int32, rows of each expert."""
    row_of: Tensor
    """[num_rows] int32, where each received row stands: answers go back as answers[row_of]."""


def regroup_rows(rows: Tensor, row_weights: Tensor, counts: Tensor) -> Regrouped:
    """What an all-to-all of dispatched rows brings, brought together by expert.

    rows [num_rows, hidden_size] of any dtype, row_weights [num_rows] float32, both by sending rank and local expert; counts
    [num_ranks, experts_per_rank] int32, their rows. Raises UnsupportedError for what the kernel does not have, ValueError for
    counts of more rows than there are, KernelError for a broken rule.
    """
    num_rows, (num_ranks, num_experts) = rows.shape[0], counts.shape
    if not 1 <= counts.numel() <= MAX_SEGMENTS:
        raise UnsupportedError(
            f"regroup_rows: got {num_ranks} ranks of {num_experts} experts; expected 1 to {MAX_SEGMENTS} in all, because the "
            "counts stay in the unified buffer; choose another implementation"
        )
    if int(counts.min()) < 0 or int(counts.sum()) > num_rows:
        raise ValueError(
            f"regroup_rows: got counts of {int(counts.sum())} rows, the least being {int(counts.min())}; expected none below 0 "
            f"and at most {num_rows} in all, because so many rows were received; pass the counts that were exchanged"
        )
    done = Regrouped(
        torch.empty(rows.shape, dtype=rows.dtype), torch.empty(num_rows), torch.zeros(num_experts, dtype=torch.int32),
        torch.empty(num_rows, dtype=torch.int32),
    )  # fmt: skip
    if rows.numel() == 0:
        return done
    inputs = [tensor.contiguous() for tensor in (rows, row_weights, counts)]
    row_bytes = rows.shape[1] * rows.element_size()
    params = RegroupParams(num_rows, row_bytes, num_ranks, num_experts, current_settings().vector_cores, 0)
    kernel_library().launch("moe_regroup", params, _addresses(inputs), _addresses(done))
    return done


def _addresses(tensors: Iterable[Tensor | None]) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _check_parts(num_experts: int, first: int, end: int, num_ranks: int, quantize: bool, smooth: Tensor | None) -> None:
    if not 0 <= first <= end <= num_experts or num_ranks < 1 or num_experts % num_ranks:
        raise ValueError(
            f"dispatch_rows: got experts {first} to {end} of {num_experts}, and {num_ranks} ranks; expected a range among the "
            "experts and a divisor of their number, because every rank holds equally many; correct the arguments"
        )
    if smooth is not None and not quantize:
        raise ValueError(
            "dispatch_rows: got smooth factors without quantize; expected both or neither, because the factors serve the "
            "rounding to int8; ask for quantize, or leave them out"
        )


def _check(x: Tensor, ids: Tensor, num_experts: int, quantize: bool) -> None:
    if x.dtype not in DTYPES or num_experts > MAX_EXPERTS or ids.shape[1] > MAX_TOPK:
        raise UnsupportedError(
            f"moe_dispatch: got x of {x.dtype}, {num_experts} experts and {ids.shape[1]} choices; expected one of "
            f"{list(DTYPES)}, at most {MAX_EXPERTS} experts and {MAX_TOPK} choices, because the kernel keeps its counters "
            "and a chunk of choices in the unified buffer; choose another implementation"
        )
    if quantize and x.shape[1] > MAX_QUANTIZED_WIDTH:
        raise UnsupportedError(
            f"moe_dispatch: got rows of {x.shape[1]} columns to quantise; expected at most {MAX_QUANTIZED_WIDTH}, because a "
            "whole row stays in the unified buffer; send the rows as they are"
        )
