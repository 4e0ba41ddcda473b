# SPDX-License-Identifier: Apache-2.0
"""Reference of `hc_head`."""

from __future__ import annotations

from torch import Tensor

from ascend_dsv4.ops.hc_head import SPEC
from ascend_dsv4.ops.hc_pre.reference import collapse_streams, project_streams
from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.rowwise import sigmoid


@implements(SPEC, "reference")
def hc_head(streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, *, hc_eps: float, norm_eps: float) -> Tensor:
    u = project_streams(streams, fn, norm_eps)
    return collapse_streams(streams, sigmoid(u * scale + base) + hc_eps)
