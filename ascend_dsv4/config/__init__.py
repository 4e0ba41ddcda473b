# SPDX-License-Identifier: Apache-2.0
"""What a model is (`ModelConfig`) and how it is run (`EngineConfig`)."""

from __future__ import annotations

from ascend_dsv4.config.engine_config import EngineConfig
from ascend_dsv4.config.model_config import (
    SUPPORTED_ARCHITECTURES,
    DraftMethod,
    DSparkConfig,
    LayerType,
    MlpLayerType,
    ModelConfig,
    YarnScaling,
)

__all__ = [
    "SUPPORTED_ARCHITECTURES",
    "DSparkConfig",
    "DraftMethod",
    "EngineConfig",
    "LayerType",
    "MlpLayerType",
    "ModelConfig",
    "YarnScaling",
]
