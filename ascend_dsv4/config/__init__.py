# SPDX-License-Identifier: Apache-2.0
"""What a model is (`ModelConfig`), how it is run (`EngineConfig`) and how it is served (`ServerConfig`)."""

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
from ascend_dsv4.config.server_config import SERVE_DEFAULTS, ApiKeys, ServerConfig, serve_configs

__all__ = [
    "SERVE_DEFAULTS",
    "SUPPORTED_ARCHITECTURES",
    "ApiKeys",
    "DSparkConfig",
    "DraftMethod",
    "EngineConfig",
    "LayerType",
    "MlpLayerType",
    "ModelConfig",
    "ServerConfig",
    "YarnScaling",
    "serve_configs",
]
