# SPDX-License-Identifier: Apache-2.0
"""A stored tensor as an inventory lists it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

DTYPE_BYTES: Final[Mapping[str, int]] = {"BF16": 2, "F32": 4, "F8_E4M3": 1, "F8_E8M0": 1, "I8": 1, "I64": 8}
"""The dtypes of releases, under their safetensors names."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One stored tensor; `dtype` is a safetensors name out of `DTYPE_BYTES`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    also: tuple[str, ...] = ()
    """Other dtypes that hold the same values and are accepted."""

    @property
    def num_elements(self) -> int:
        """Stored elements; a byte of packed fp4 is one."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_elements * DTYPE_BYTES[self.dtype]
