# SPDX-License-Identifier: Apache-2.0
"""Backends by name. A backend's framework is imported only when it is chosen."""

from __future__ import annotations

from ascend_dsv4.backend.base import Backend
from ascend_dsv4.config.engine_config import EngineConfig
from ascend_dsv4.errors import UnsupportedError


def make_backend(engine: EngineConfig) -> Backend:
    """The backend these options ask for. Raises UnsupportedError for what this version cannot run."""
    if engine.backend == "cpu":
        from ascend_dsv4.backend.cpu import CpuBackend

        return CpuBackend(engine.ops)
    if engine.backend == "null":
        from ascend_dsv4.backend.null import NullBackend

        return NullBackend()
    raise UnsupportedError(
        f"backend={engine.backend!r}: this version runs cpu and null, the others have no code yet. Use backend='cpu'."
    )
