# SPDX-License-Identifier: Apache-2.0
"""Reference of `hc_collapse`."""

from __future__ import annotations

from torch import Tensor

from ascend_dsv4.ops.hc_collapse import SPEC
from ascend_dsv4.ops.hc_pre.reference import collapse_streams
from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.rowwise import accumulate_dtype


@implements(SPEC, "reference")
def hc_collapse(streams: Tensor, mix: Tensor) -> Tensor:
    return collapse_streams(streams, mix.to(accumulate_dtype(streams)))
