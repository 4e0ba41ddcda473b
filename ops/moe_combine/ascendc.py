# SPDX-License-Identifier: Apache-2.0
"""`moe_combine` as the Ascend C kernel `cann_kernels/moe_combine`, run by the twin."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ascend_dsv4.errors import UnsupportedError
from ascend_dsv4.ops.moe_combine import SPEC
from ascend_dsv4.ops.registry import implements
from ascend_dsv4.twin.kernel_library import current_settings, kernel_library

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MAX_TOPK = 64


class Params(ctypes.Structure):
    """MoeCombineParams of `cann_kernels/moe_combine/moe_combine.h`."""

    _fields_ = [(name, ctypes.c_uint32) for name in ("num_tokens", "hidden_size", "topk", "num_rows", "dtype", "num_cores")]


@implements(SPEC, "ascendc-twin", dtypes=("float32", "bfloat16", "float16"))
def moe_combine(rows: Tensor, row_of: Tensor) -> Tensor:
    """Raises UnsupportedError for what the kernel does not have, KernelError for a broken rule."""
    if rows.dtype not in DTYPES or row_of.shape[1] > MAX_TOPK:
        raise UnsupportedError(
            f"moe_combine: got rows of {rows.dtype} and {row_of.shape[1]} choices; expected one of {list(DTYPES)} and at most "
            f"{MAX_TOPK} choices, because the kernel adds in float32 and stages the choices of whole tokens; choose another "
            "implementation"
        )
    num_tokens, topk = row_of.shape
    y = rows.new_zeros(num_tokens, rows.shape[1])
    if y.numel() == 0 or topk == 0:
        return y
    inputs = [rows.contiguous(), row_of.contiguous()]
    params = Params(num_tokens, rows.shape[1], topk, rows.shape[0], DTYPES[rows.dtype], current_settings().vector_cores)
    kernel_library().launch("moe_combine", params, [tensor.data_ptr() for tensor in inputs], [y.data_ptr()])
    return y
