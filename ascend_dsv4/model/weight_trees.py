# SPDX-License-Identifier: Apache-2.0
"""The trees of parameters of a model, by its family."""

from __future__ import annotations

from ascend_dsv4.config.model_config import ModelConfig
from ascend_dsv4.model.weights import Builder, DSparkWeights, ModelWeights, MtpWeights, PlainMtpWeights, WeightFormat
from ascend_dsv4.model.weights_v32 import BuilderV32


def _builder(config: ModelConfig, weight_format: WeightFormat) -> Builder:
    return (Builder if config.mla is None else BuilderV32)(config, weight_format)


def model_weights(config: ModelConfig, weight_format: WeightFormat) -> ModelWeights:
    """The tree of parameters of the backbone."""
    return _builder(config, weight_format).model()


def dspark_weights(config: ModelConfig, weight_format: WeightFormat) -> DSparkWeights:
    """The tree of parameters of the block drafter."""
    return _builder(config.draft_stage, weight_format).dspark()


def mtp_weights(config: ModelConfig, weight_format: WeightFormat) -> MtpWeights | PlainMtpWeights:
    """The tree of parameters of the MTP stage."""
    return _builder(config.draft_stage, weight_format).mtp()
