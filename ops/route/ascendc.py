# SPDX-License-Identifier: Apache-2.0
"""`route` as the Ascend C kernel `cann_kernels/route`, run by the twin."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ascend_dsv4.errors import UnsupportedError
from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.route import SPEC
from ascend_dsv4.twin.kernel_library import current_settings, kernel_library

SCORINGS = {"sqrtsoftplus": 0, "sigmoid": 1}
MAX_EXPERTS, MAX_TOPK, MAX_GROUPS = 512, 32, 64
FIELDS = (
    "num_tokens", "num_experts", "vocab_size", "topk", "scoring", "is_hashed", "has_bias", "has_images", "normalize",
    "num_groups", "topk_group", "num_cores",
)  # fmt: skip


class Params(ctypes.Structure):
    """RouteParams of `cann_kernels/route/route.h`."""

    _fields_ = [*((name, ctypes.c_uint32) for name in FIELDS), ("scaling", ctypes.c_float), ("norm_eps", ctypes.c_float)]


@implements(SPEC, "ascendc-twin", dtypes=("float32",))
def route(
    logits: Tensor,
    bias: Tensor | None,
    tid2eid: Tensor | None,
    input_ids: Tensor,
    bias_vl: Tensor | None,
    is_image: Tensor | None,
    *,
    topk: int,
    scoring: str,
    norm_topk_prob: bool,
    scaling: float,
    norm_eps: float,
    n_group: int,
    topk_group: int,
) -> tuple[Tensor, Tensor]:
    """A NaN ranks below every number. Raises ValueError for arguments that do not fit together, UnsupportedError for what the
    kernel does not have, KernelError for a broken rule.
    """
    num_tokens, num_experts = logits.shape
    _check(num_experts, topk, scoring, n_group, topk_group, tid2eid is not None)
    if tid2eid is None and ((bias_vl is None) != (is_image is None) or (is_image is not None and bias is None)):
        raise ValueError("route: bias_vl and is_image belong together, and beside a bias; got one or two of the three")
    ids, weights = torch.empty(num_tokens, topk, dtype=torch.int32), torch.empty(num_tokens, topk)
    if ids.numel() == 0:
        return ids, weights
    inputs = [None if t is None else t.contiguous() for t in (logits, bias, tid2eid, input_ids, bias_vl, is_image)]
    params = Params(
        num_tokens, num_experts, 0 if tid2eid is None else tid2eid.shape[0], topk, SCORINGS[scoring], tid2eid is not None,
        bias is not None, is_image is not None, norm_topk_prob, n_group, topk_group, current_settings().vector_cores,
        scaling, norm_eps,
    )  # fmt: skip
    addresses = [None if tensor is None else tensor.data_ptr() for tensor in inputs]
    kernel_library().launch("route", params, addresses, [ids.data_ptr(), weights.data_ptr()])
    return ids, weights


def _check(num_experts: int, topk: int, scoring: str, n_group: int, topk_group: int, is_hashed: bool) -> None:
    if scoring not in SCORINGS:
        raise ValueError(f"route: scoring={scoring!r}, expected sqrtsoftplus or sigmoid")
    if num_experts > MAX_EXPERTS or topk > MAX_TOPK or n_group > MAX_GROUPS:
        raise UnsupportedError(
            f"route: got {num_experts} experts, topk {topk} and {n_group} groups; expected at most {MAX_EXPERTS}, {MAX_TOPK} "
            f"and {MAX_GROUPS}, because the kernel sorts a token's experts in the unified buffer; choose another implementation"
        )
    if is_hashed:
        return
    size, rest = divmod(num_experts, n_group)
    in_groups = n_group == 1 or (not rest and size >= 2 and 1 <= topk_group <= n_group and topk <= topk_group * size)
    if topk > num_experts or not in_groups:
        raise ValueError(
            f"route: topk={topk} of {num_experts} experts in n_group={n_group}, topk_group={topk_group}: expected equal groups "
            "of at least 2, and topk experts in the groups that are kept"
        )
