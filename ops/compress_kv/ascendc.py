# SPDX-License-Identifier: Apache-2.0
"""`compress_kv` as the Ascend C kernel `cann_kernels/compress_kv`, run by the twin.

With a `rounding` the kernel delivers the rotated rows, in `entry_dtype`, to one row a token; the grid of the cache is then
applied here, by the functions that the reference uses. Without, everything happens in the kernel.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from ascend_dsv4.errors import UnsupportedError
from ascend_dsv4.ops.compress_kv import SPEC
from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.store_kv.reference import round_rows, write_rows
from ascend_dsv4.twin.kernel_library import current_settings, kernel_library

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MAX_HEAD_DIM = 1024
MAX_HALF = 128


class Params(ctypes.Structure):
    """CompressKvParams of `cann_kernels/compress_kv/compress_kv.h`."""

    _fields_ = [
        *(
            (name, ctypes.c_uint32)
            for name in (
                "num_tokens", "num_requests", "head_dim", "overlap", "ratio", "half", "state_rows", "num_state_slots",
                "out_dtype", "entry_dtype",
            )
        ),
        ("out_rows", ctypes.c_uint64),
        ("dense", ctypes.c_uint32),
        ("eps", ctypes.c_float),
        ("num_cores", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    ]  # fmt: skip


@implements(SPEC, "ascendc-twin", dtypes=("float32", "bfloat16"))
def compress_kv(
    cache: Tensor,
    state: Tensor,
    kv: Tensor,
    gate: Tensor,
    ape: Tensor,
    norm: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    req_idx: Tensor,
    cu_query_lens: Tensor,
    state_slots: Tensor,
    slots: Tensor,
    *,
    ratio: int,
    eps: float,
    rounding: str,
    entry_dtype: str,
) -> None:
    """Writes cache and state. Raises UnsupportedError for what the kernel does not have, KernelError for a broken rule."""
    num_tokens, head_dim, half = kv.shape[0], cache.shape[-1], cos.shape[1]
    entry = getattr(torch, entry_dtype)
    _check(cache.dtype, entry, head_dim, half)
    if not num_tokens:
        return
    dense = torch.zeros(num_tokens, head_dim, dtype=entry) if rounding != "none" else None
    inputs = [
        tensor.contiguous()
        for tensor in (kv, gate, ape, norm.float(), cos, sin, positions, req_idx, cu_query_lens, state_slots, slots)
    ]
    out = cache if dense is None else dense

    def launch(output: Tensor, kept: Tensor) -> None:
        params = Params(
            num_tokens, state_slots.shape[0], head_dim, kv.shape[1] > head_dim, ratio, half, state.shape[1], state.shape[0],
            DTYPES[output.dtype], DTYPES[entry], output.numel() // head_dim, dense is not None, eps,
            current_settings().vector_cores, 0,
        )  # fmt: skip
        addresses = [tensor.data_ptr() for tensor in inputs]
        kernel_library().launch("compress_kv", params, addresses, [output.data_ptr(), kept.data_ptr()])

    _in_place(lambda output: _in_place(lambda kept: launch(output, kept), state), out)
    if dense is not None:
        write_rows(cache, round_rows(dense, rounding, 2 * half), slots)


def _in_place(call: Callable[[Tensor], None], tensor: Tensor) -> None:
    """Call with the tensor, or with a contiguous copy that is copied back."""
    if tensor.is_contiguous():
        call(tensor)
        return
    copy = tensor.contiguous()
    call(copy)
    tensor.copy_(copy)


def _check(cache: torch.dtype, entry: torch.dtype, head_dim: int, half: int) -> None:
    if cache not in DTYPES or entry not in DTYPES:
        raise UnsupportedError(
            f"compress_kv: cache is {cache} and entry_dtype {entry}; expected two of {list(DTYPES)}, because the kernel "
            "was compiled for these; convert the cache, or choose another implementation"
        )
    if head_dim > MAX_HEAD_DIM or half > MAX_HALF:
        raise UnsupportedError(
            f"compress_kv: head_dim is {head_dim} with {half} rotated pairs; expected at most {MAX_HEAD_DIM} and {MAX_HALF}, "
            "because the kernel's buffers hold so many; choose another implementation"
        )
