# SPDX-License-Identifier: Apache-2.0
"""Rotary frequencies of a layer: plain for window-only layers, YaRN for layers with compressed entries."""

from __future__ import annotations

import math

import numpy as np

from ascend_dsv4.config.model_config import ModelConfig
from ascend_dsv4.config.parts import YarnScaling


def inv_freq(config: ModelConfig, ratio: int) -> np.ndarray:
    """Frequencies [qk_rope_head_dim / 2] float32 of a layer with this ratio; 0 for one without kept entries.

    Each step is rounded to float32 as in the released code: at a million tokens one unit in the last place of a
    frequency is a visible angle.
    """
    dim = config.qk_rope_head_dim
    theta = config.compress_rope_theta if ratio else config.rope_theta
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    powers = np.float64(theta) ** exponents.astype(np.float64)
    freqs: np.ndarray = np.float32(1) / powers.astype(np.float32)
    if ratio and config.rope_scaling is not None:
        freqs = _yarn(freqs, dim, theta, config.rope_scaling)
    return freqs


def _yarn(freqs: np.ndarray, dim: int, theta: float, scaling: YarnScaling) -> np.ndarray:
    """Stretch low frequencies by `factor`, keep high ones, blend between. Applied at all positions, no magnitude factor."""
    low = max(math.floor(_turning_dim(scaling.beta_fast, dim, theta, scaling)), 0)
    high: float = min(math.ceil(_turning_dim(scaling.beta_slow, dim, theta, scaling)), dim - 1)
    if low == high:
        high += 0.001  # the released code avoids the division by zero in this way
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    keep = np.float32(1) - ramp
    stretched: np.ndarray = freqs / np.float32(scaling.factor) * (np.float32(1) - keep) + freqs * keep
    return stretched.astype(np.float32)


def _turning_dim(rotations: float, dim: int, theta: float, scaling: YarnScaling) -> float:
    """The frequency index that turns this many times over the original context length."""
    length = scaling.original_max_position_embeddings
    return dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(theta))
