# SPDX-License-Identifier: Apache-2.0
"""`sparse_attention` as the Ascend C kernel `cann_kernels/sparse_attention`, run by the twin."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ascend_dsv4.errors import UnsupportedError
from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.sparse_attention import SPEC
from ascend_dsv4.twin.kernel_library import current_settings, kernel_library

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MAX_HEADS, MAX_HEAD_DIM = 128, 512


class Params(ctypes.Structure):
    """SparseAttentionParams of `cann_kernels/sparse_attention/sparse_attention.h`."""

    _fields_ = [
        *((name, ctypes.c_uint32) for name in ("num_tokens", "num_heads", "head_dim", "dtype")),
        *((name, ctypes.c_uint32) for name in ("window_block_rows", "window_columns", "window", "has_compressed")),
        *((name, ctypes.c_uint32) for name in ("block_rows", "max_blocks", "ratio", "has_entries", "topk")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_uint32) for name in ("num_cores", "cache_dtype")),
        *((name, ctypes.c_uint64) for name in ("num_window_blocks", "num_blocks", "num_requests")),
    ]


@implements(SPEC, "ascendc-twin", dtypes=("float32", "bfloat16", "float16"))
def sparse_attention(
    q: Tensor,
    win_kv: Tensor,
    cmp_kv: Tensor | None,
    entries: Tensor | None,
    sink: Tensor,
    positions: Tensor,
    req_idx: Tensor,
    window_table: Tensor,
    block_table: Tensor | None,
    *,
    window: int,
    ratio: int,
    scale: float,
) -> Tensor:
    """Queries and caches of two dtypes meet in float32: bfloat16 caches are widened by the kernel, queries before.

    Raises UnsupportedError for what the kernel does not have, KernelError for a broken rule.
    """
    num_tokens, num_heads, head_dim = q.shape
    if cmp_kv is None or block_table is None:
        cmp_kv = entries = block_table = None
    caches = [cache.dtype for cache in (win_kv, cmp_kv) if cache is not None]
    if not {q.dtype, *caches} <= DTYPES.keys() or num_heads > MAX_HEADS or head_dim > MAX_HEAD_DIM:
        raise UnsupportedError(
            f"sparse_attention: got q of {q.dtype} with {num_heads} heads of {head_dim}, caches of {caches}; expected dtypes "
            f"of {list(DTYPES)}, at most {MAX_HEADS} heads of at most {MAX_HEAD_DIM}, because the queries of a token stay in "
            "L1; choose another implementation"
        )
    if q.numel() == 0:
        return torch.zeros_like(q)
    if set(caches) - {q.dtype}:
        if q.dtype != torch.float32:
            return sparse_attention(q.float(), win_kv, cmp_kv, entries, sink, positions, req_idx, window_table, block_table,
                                    window=window, ratio=ratio, scale=scale).to(q.dtype)  # fmt: skip
        if set(caches) != {torch.bfloat16}:
            win_kv, cmp_kv = win_kv.float(), cmp_kv if cmp_kv is None else cmp_kv.float()
    num_blocks, block_rows = (0, 0) if cmp_kv is None else cmp_kv.shape[:2]
    params = Params(
        num_tokens, num_heads, head_dim, DTYPES[q.dtype],
        win_kv.shape[1], window_table.shape[1], window, cmp_kv is not None,
        block_rows, 0 if block_table is None else block_table.shape[1], ratio, entries is not None,
        0 if entries is None else entries.shape[1], scale, max(1, current_settings().vector_cores // 2), DTYPES[win_kv.dtype],
        win_kv.shape[0], num_blocks, window_table.shape[0],
    )  # fmt: skip
    given = (q, win_kv, cmp_kv, entries, sink, positions, req_idx, window_table, block_table)
    inputs = [None if tensor is None else tensor.contiguous() for tensor in given]
    o = torch.empty(q.shape, dtype=q.dtype)
    addresses = [None if tensor is None else tensor.data_ptr() for tensor in inputs]
    kernel_library().launch("sparse_attention", params, addresses, [o.data_ptr()])
    return o
