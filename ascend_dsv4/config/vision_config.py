# SPDX-License-Identifier: Apache-2.0
"""The vision tower of a model: `vision_config` of `config.json`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """Sizes of the tower and limits of its images, under the names of `config.json`."""

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    patch_size: int
    """Pixels along each side of a patch."""
    rope_theta: float
    downsample_ratio: int
    """Patches along each side of the square that becomes one token."""
    max_image_tokens: int
    """Positions one image may take in the prompt, delimiters included."""
    min_pixels: int
    """Smaller images are enlarged to about this many pixels."""
    max_wh_ratio: float | None
    """Widest ratio of width to height an image is planned with; None for any."""
