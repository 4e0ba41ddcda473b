# SPDX-License-Identifier: Apache-2.0
"""What a model is (`ModelConfig`), how it is run (`EngineConfig`) and how it is served (`ServerConfig`)."""

from __future__ import annotations

from ascend_dsv4.config.engine_config import EngineConfig
from ascend_dsv4.config.model_config import SUPPORTED_ARCHITECTURES, ModelConfig
from ascend_dsv4.config.parts import (
    CandidateConfig,
    DraftMethod,
    DSparkConfig,
    EngramConfig,
    LayerType,
    MlaConfig,
    MlpLayerType,
    YarnScaling,
)
from ascend_dsv4.config.server_config import SERVE_DEFAULTS, ApiKeys, ServerConfig, serve_configs
from ascend_dsv4.config.vision_config import VisionConfig

__all__ = [
    "SERVE_DEFAULTS",
    "SUPPORTED_ARCHITECTURES",
    "ApiKeys",
    "CandidateConfig",
    "DSparkConfig",
    "DraftMethod",
    "EngineConfig",
    "EngramConfig",
    "LayerType",
    "MlaConfig",
    "MlpLayerType",
    "ModelConfig",
    "ServerConfig",
    "VisionConfig",
    "YarnScaling",
    "serve_configs",
]
