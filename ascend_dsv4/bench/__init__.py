# SPDX-License-Identifier: Apache-2.0
"""Measuring servers from outside: load, latency, throughput. Knows the OpenAI wire format and nothing of the engine."""

from __future__ import annotations

from importlib.util import find_spec

from ascend_dsv4.errors import UnsupportedError


def require(module: str, purpose: str) -> None:
    """Raise UnsupportedError unless an optional package is installed."""
    if find_spec(module) is None:
        raise UnsupportedError(
            f"{purpose}: the package {module} is not installed; expected the packages of the extra `bench`, which the rest "
            "does without. Run pip install 'ascend-dsv4[bench]'."
        )
