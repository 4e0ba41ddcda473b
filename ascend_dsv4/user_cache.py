# SPDX-License-Identifier: Apache-2.0
"""Where this package keeps what it can make again: the demo models, built kernels."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache_folder() -> Path:
    """`$XDG_CACHE_HOME/ascend-dsv4`, or `~/.cache/ascend-dsv4`. It need not exist."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    base = named if os.path.isabs(named) else os.path.expanduser("~/.cache")
    return Path(base) / "ascend-dsv4"
