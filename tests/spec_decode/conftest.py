# SPDX-License-Identifier: Apache-2.0
"""The model configuration that engines without a model use."""

from __future__ import annotations

from pathlib import Path

import pytest

from ascend_dsv4.config import ModelConfig


@pytest.fixture(scope="session")
def config(golden_v4: Path) -> ModelConfig:
    return ModelConfig.from_file(golden_v4 / "fp8_fp4")
