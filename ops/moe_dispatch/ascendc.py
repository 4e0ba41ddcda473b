# SPDX-License-Identifier: Apache-2.0
"""`moe_dispatch` as the Ascend C kernel `cann_kernels/moe_dispatch`, run by the twin."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ascend_dsv4.errors import UnsupportedError
from ascend_dsv4.ops.moe_dispatch import SPEC
from ascend_dsv4.ops.registry import implements
from ascend_dsv4.twin.kernel_library import current_settings, kernel_library

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MAX_EXPERTS, MAX_TOPK = 1024, 64
FIELDS = (
    "num_tokens", "hidden_size", "topk", "num_experts", "first_expert", "end_expert", "num_ranks", "dtype", "quantize",
    "has_smooth", "num_cores", "reserved",
)  # fmt: skip


class Params(ctypes.Structure):
    """MoeDispatchParams of `cann_kernels/moe_dispatch/moe_dispatch.h`."""

    _fields_ = [(name, ctypes.c_uint32) for name in FIELDS]


@implements(SPEC, "ascendc-twin", dtypes=("float32", "bfloat16", "float16"))
def moe_dispatch(x: Tensor, ids: Tensor, weights: Tensor, *, num_experts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check(x, ids, num_experts)
    num_tokens, topk = ids.shape
    num_rows = ids.numel()
    rows, row_weights = x.new_empty(num_rows, x.shape[1]), weights.new_empty(num_rows)
    counts, row_of = torch.zeros(num_experts, dtype=torch.int32), torch.empty_like(ids, memory_format=torch.contiguous_format)
    if num_rows == 0:
        return rows, row_weights, counts, row_of
    inputs = [tensor.contiguous() for tensor in (x, ids, weights)]
    outputs = [tensor.data_ptr() for tensor in (rows, row_weights, counts, row_of)]
    params = Params(
        num_tokens, x.shape[1], topk, num_experts, 0, num_experts, 0, DTYPES[x.dtype], 0, 0, current_settings().vector_cores, 0
    )
    kernel_library().launch("moe_dispatch", params, [*(t.data_ptr() for t in inputs), None], [*outputs, None, None])
    return rows, row_weights, counts, row_of


def _check(x: Tensor, ids: Tensor, num_experts: int) -> None:
    if x.dtype not in DTYPES or num_experts > MAX_EXPERTS or ids.shape[1] > MAX_TOPK:
        raise UnsupportedError(
            f"moe_dispatch: got x of {x.dtype}, {num_experts} experts and {ids.shape[1]} choices; expected one of "
            f"{list(DTYPES)}, at most {MAX_EXPERTS} experts and {MAX_TOPK} choices, because the kernel keeps its counters "
            "and a chunk of choices in the unified buffer; choose another implementation"
        )
