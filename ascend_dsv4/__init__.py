# SPDX-License-Identifier: Apache-2.0
"""An Ascend-first inference stack for the DeepSeek V4 family."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if "GOMP_SPINCOUNT" not in os.environ and "OMP_WAIT_POLICY" not in os.environ:
    # OpenMP threads that spin without bound between the many small products of a decode step cost tenfold on a busy
    # machine; threads that sleep at once cost on an idle one. Read when torch loads, so it is set here.
    os.environ["GOMP_SPINCOUNT"] = "10000"

if TYPE_CHECKING:
    from ascend_dsv4.config import EngineConfig
    from ascend_dsv4.engine.sampling_params import SamplingParams
    from ascend_dsv4.llm import LLM, RequestOutput

__version__ = "0.1.0"
__all__ = ["LLM", "EngineConfig", "RequestOutput", "SamplingParams"]


def __getattr__(name: str) -> Any:
    """Public names load on first use, so that `import ascend_dsv4` loads no framework."""
    import importlib

    homes = {"LLM": "llm", "RequestOutput": "llm", "SamplingParams": "engine.sampling_params", "EngineConfig": "config"}
    if name not in homes:
        raise AttributeError(f"module 'ascend_dsv4' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ascend_dsv4.{homes[name]}"), name)
