# SPDX-License-Identifier: Apache-2.0
"""Goldens of V4.1, and small tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from ascend_dsv4.engram.hashing import EngramHash


@pytest.fixture
def golden_engram(golden_v41_parts: Path) -> dict[str, NDArray[Any]]:
    return load_file(golden_v41_parts / "engram.safetensors")


@pytest.fixture
def golden_hash(golden_engram: dict[str, NDArray[Any]]) -> EngramHash:
    """Built from the sizes in the golden config.json."""
    pad = int(golden_engram["token_map"][2])
    return EngramHash.make(
        layer_ids=(1, 4), max_ngram_size=4, num_heads=2, vocab_size=200, num_compressed=439, pad=pad
    )


@pytest.fixture
def rows() -> NDArray[np.uint8]:
    """1,000 rows of 33 bytes, all different."""
    return np.random.default_rng(0).integers(0, 256, (1000, 33)).astype(np.uint8)
