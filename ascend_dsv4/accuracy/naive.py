# SPDX-License-Identifier: Apache-2.0
"""The naive baseline: an operator composed of torch calls in the compute dtype. What opbase-double measures by."""

from __future__ import annotations

from typing import Any

from ascend_dsv4.ops.registry import get_implementation
from ascend_dsv4.ops.rowwise import narrow_accumulation
from ascend_dsv4.ops.spec import Implementation

NAIVE = "naive"


def naive(op: str) -> Implementation:
    """The reference without its wide accumulation. In float32 it is the reference."""
    reference = get_implementation(op, "reference")

    def narrow(*tensors: Any, **attrs: Any) -> Any:
        with narrow_accumulation():
            return reference(*tensors, **attrs)

    return narrow
