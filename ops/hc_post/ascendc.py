# SPDX-License-Identifier: Apache-2.0
"""`hc_post` as the Ascend C kernel `cann_kernels/hc_post`, run by the twin."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ascend_dsv4.errors import UnsupportedError
from ascend_dsv4.ops.hc_post import SPEC
from ascend_dsv4.ops.registry import implements
from ascend_dsv4.twin.kernel_library import current_settings, kernel_library

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class Params(ctypes.Structure):
    """HcPostParams of `cann_kernels/hc_post/hc_post.h`."""

    _fields_ = [(name, ctypes.c_uint32) for name in ("num_tokens", "hidden_size", "hc_mult", "dtype", "num_cores", "reserved")]


@implements(SPEC, "ascendc-twin", dtypes=("float32", "bfloat16", "float16"))
def hc_post(x: Tensor, streams: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """`streams.shape`. Raises UnsupportedError for dtypes that the kernel does not have, KernelError for a broken rule."""
    if x.dtype != streams.dtype or x.dtype not in DTYPES:
        raise UnsupportedError(
            f"hc_post: x is {x.dtype} and streams {streams.dtype}; the kernel takes one of {list(DTYPES)} for both"
        )
    inputs = [tensor.contiguous() for tensor in (x, streams, post, comb)]
    y = torch.empty(streams.shape, dtype=streams.dtype)
    params = Params(x.shape[0], x.shape[1], streams.shape[1], DTYPES[x.dtype], current_settings().vector_cores, 0)
    kernel_library().launch("hc_post", params, [tensor.data_ptr() for tensor in inputs], [y.data_ptr()])
    return y
