# SPDX-License-Identifier: Apache-2.0
"""The static choices that make a layer type. Layers with equal choices share one graph."""

from __future__ import annotations

from dataclasses import dataclass

from ascend_dsv4.config.model_config import ModelConfig


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer type."""

    layer_type: str
    """sliding: window only; csa: window and indexed entries; hca: window and all entries."""
    ratio: int
    """Tokens folded into one compressed entry; 0 for none."""
    mlp_type: str
    """hash_moe: experts by token id; moe: experts by score."""

    def __str__(self) -> str:
        return f"{self.layer_type}/{self.mlp_type}"


DRAFT_LAYER = LayerSpec("sliding", 0, "moe")
"""Every draft stage of V4, whatever the backbone looks like."""


def layer_specs(config: ModelConfig) -> tuple[LayerSpec, ...]:
    """The backbone's layers in order."""
    kinds = zip(config.layer_types, config.compress_ratios, config.mlp_layer_types, strict=True)
    return tuple(LayerSpec(*kind) for kind in kinds)


def compressor_roles(ratio: int) -> int:
    """Series of channels a compressor projects: two where windows overlap (ratio 4), one where they do not."""
    return 2 if ratio == 4 else 1
