# SPDX-License-Identifier: Apache-2.0
"""`index_topk` as the Ascend C kernel `cann_kernels/index_topk`, run by the twin.

The kernel takes queries that are rounded already: here by the function that the reference uses, on a device by a small
operator before it. Weights are widened to float32, which is exact.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ascend_dsv4.errors import UnsupportedError
from ascend_dsv4.ops.index_topk import SPEC
from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.store_kv.reference import round_rows
from ascend_dsv4.twin.kernel_library import current_settings, kernel_library

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
INT8 = 3


class Params(ctypes.Structure):
    """IndexTopkParams of `cann_kernels/index_topk/index_topk.h`."""

    _fields_ = [
        (name, ctypes.c_uint32)
        for name in (
            "num_tokens", "num_heads", "head_dim", "block_rows", "num_requests", "max_blocks", "num_key_blocks",
            "has_candidates", "num_given", "ratio", "topk", "candidate_block", "num_candidates", "dtype", "num_cores",
            "reserved",
        )
    ]  # fmt: skip


@implements(SPEC, "ascendc-twin", dtypes=("float32", "bfloat16"))
def index_topk(
    q: Tensor,
    weights: Tensor,
    idx_kv: Tensor,
    positions: Tensor,
    req_idx: Tensor,
    block_table: Tensor,
    candidates: Tensor | None,
    *,
    ratio: int,
    topk: int,
    rounding: str,
    candidate_block: int,
    num_candidates: int,
) -> tuple[Tensor, Tensor]:
    """Entries and blocks. Raises UnsupportedError for dtypes that the kernel does not have, KernelError for sizes that it does
    not take, or for a broken rule."""
    if q.dtype != idx_kv.dtype or q.dtype not in DTYPES:
        raise UnsupportedError(
            f"index_topk: q is {q.dtype} and idx_kv {idx_kv.dtype}; expected one of {list(DTYPES)} for both, because the cube "
            "core multiplies numbers of one type; convert one of them, or choose another implementation"
        )
    return _launch(
        DTYPES[q.dtype], round_rows(q, rounding, 0), weights, idx_kv, (positions, req_idx, block_table), candidates, None,
        ratio=ratio, topk=topk, candidate_block=candidate_block, num_candidates=num_candidates,
    )  # fmt: skip


def index_topk_int8(
    q: Tensor,
    q_scale: Tensor,
    weights: Tensor,
    idx_kv: Tensor,
    idx_scale: Tensor,
    positions: Tensor,
    req_idx: Tensor,
    block_table: Tensor,
    candidates: Tensor | None,
    *,
    ratio: int,
    topk: int,
    candidate_block: int,
    num_candidates: int,
) -> tuple[Tensor, Tensor]:
    """The same over int8 queries and keys. q_scale [num_tokens, num_heads] and idx_scale [num_blocks, block_rows] ≥ 0 are
    float32: score = idx_scale · Σ_h weights[h] · q_scale[h] · relu(q[h] · key)."""
    if q.dtype != torch.int8 or idx_kv.dtype != torch.int8:
        raise UnsupportedError(
            f"index_topk_int8: q is {q.dtype} and idx_kv {idx_kv.dtype}; expected int8 for both, because their products are "
            "summed as integers; quantise them, or call index_topk"
        )
    return _launch(
        INT8, q, weights, idx_kv, (positions, req_idx, block_table), candidates, (q_scale, idx_scale),
        ratio=ratio, topk=topk, candidate_block=candidate_block, num_candidates=num_candidates,
    )  # fmt: skip


def _launch(
    dtype: int,
    q: Tensor,
    weights: Tensor,
    idx_kv: Tensor,
    places: tuple[Tensor, Tensor, Tensor],
    candidates: Tensor | None,
    scales: tuple[Tensor, Tensor] | None,
    *,
    ratio: int,
    topk: int,
    candidate_block: int,
    num_candidates: int,
) -> tuple[Tensor, Tensor]:
    (num_tokens, num_heads, head_dim), (num_blocks, block_rows, _) = q.shape, idx_kv.shape
    table = places[2]
    entries = torch.empty((num_tokens, topk), dtype=torch.int32)
    blocks = torch.empty((num_tokens, num_candidates), dtype=torch.int32)
    if num_tokens == 0:
        return entries, blocks
    params = Params(
        num_tokens, num_heads, head_dim, block_rows, table.shape[0], table.shape[1], num_blocks,
        candidates is not None, 0 if candidates is None else candidates.shape[1], ratio, topk, candidate_block, num_candidates,
        dtype, max(1, current_settings().vector_cores // 2), 0,
    )  # fmt: skip
    given = [q, weights.float(), idx_kv, *places, candidates, *((None, None) if scales is None else scales)]
    inputs = [None if tensor is None else tensor.contiguous() for tensor in given]
    kernel_library().launch(
        "index_topk", params, [None if tensor is None else tensor.data_ptr() for tensor in inputs],
        [entries.data_ptr(), blocks.data_ptr()],
    )  # fmt: skip
    return entries, blocks
