# SPDX-License-Identifier: Apache-2.0
"""What a comparison ran on: for receipts."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

import numpy as np
import torch

from ascend_dsv4 import __version__


def environment() -> Mapping[str, str]:
    """Versions, processor and threads."""
    return {
        "ascend-dsv4": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(torch.get_num_threads()),
    }


def use_threads(count: int) -> None:
    """Let torch use so many threads."""
    torch.set_num_threads(count)
