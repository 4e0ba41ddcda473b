# SPDX-License-Identifier: Apache-2.0
"""Reference of `place_rows`."""

from __future__ import annotations

from torch import Tensor

from ascend_dsv4.ops.place_rows import SPEC
from ascend_dsv4.ops.registry import implements


@implements(SPEC, "reference")
def place_rows(streams: Tensor, rows: Tensor, at: Tensor) -> Tensor:
    y = streams.clone().contiguous()
    kept = at >= 0
    y[at[kept].long()] = rows[kept].to(y.dtype).unsqueeze(1)
    return y
