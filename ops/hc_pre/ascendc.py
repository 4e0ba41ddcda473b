# SPDX-License-Identifier: Apache-2.0
"""`hc_pre` as the Ascend C kernel `cann_kernels/hc_pre`, run by the twin."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ascend_dsv4.errors import UnsupportedError
from ascend_dsv4.ops.hc_pre import SPEC
from ascend_dsv4.ops.registry import implements
from ascend_dsv4.twin.kernel_library import current_settings, kernel_library

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MAX_STREAMS = 4


class Params(ctypes.Structure):
    """HcPreParams of `cann_kernels/hc_pre/hc_pre.h`."""

    _fields_ = [
        *((name, ctypes.c_uint32) for name in ("num_tokens", "hidden_size", "hc_mult", "dtype", "has_mix", "sinkhorn_iters")),
        *((name, ctypes.c_float) for name in ("hc_eps", "norm_eps")),
        *((name, ctypes.c_uint32) for name in ("num_cores", "reserved")),
    ]


@implements(SPEC, "ascendc-twin", dtypes=("float32", "bfloat16", "float16"))
def hc_pre(
    streams: Tensor,
    fn: Tensor,
    base: Tensor,
    scale: Tensor,
    mix: Tensor | None,
    *,
    sinkhorn_iters: int,
    hc_eps: float,
    norm_eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, post, comb, pre. Raises UnsupportedError for what the kernel does not have, KernelError for a broken rule."""
    num_tokens, n, hidden_size = streams.shape
    if streams.dtype not in DTYPES:
        raise UnsupportedError(
            f"hc_pre: streams is {streams.dtype}; expected one of {list(DTYPES)}, because the kernel was compiled for these; "
            "convert it, or choose another implementation"
        )
    if not 1 <= n <= MAX_STREAMS:
        raise UnsupportedError(
            f"hc_pre: streams has {n} streams; expected 1 to {MAX_STREAMS}, because the kernel holds the coefficients of so "
            "many; choose another implementation"
        )
    inputs = [None if tensor is None else tensor.contiguous() for tensor in (streams, fn, base, scale, mix)]
    x = torch.empty(num_tokens, hidden_size, dtype=streams.dtype)
    post, comb, pre = (torch.empty(num_tokens, *shape) for shape in ((n,), (n, n), (n,)))
    if num_tokens:
        params = Params(
            num_tokens, hidden_size, n, DTYPES[streams.dtype], mix is not None, sinkhorn_iters, hc_eps, norm_eps,
            current_settings().vector_cores, 0,
        )  # fmt: skip
        addresses = [None if tensor is None else tensor.data_ptr() for tensor in inputs]
        kernel_library().launch("hc_pre", params, addresses, [out.data_ptr() for out in (x, post, comb, pre)])
    return x, post, comb, pre
