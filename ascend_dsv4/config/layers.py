# SPDX-License-Identifier: Apache-2.0
"""The static choices that make a layer type. Layers with equal choices share one graph."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from ascend_dsv4.config.model_config import ModelConfig
from ascend_dsv4.config.parts import LayerType, MlpLayerType
from ascend_dsv4.config.source_rules import source_of


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer type."""

    layer_type: LayerType
    """sliding: window only; csa: window and indexed entries; hca: window and all entries; full: window and indexed entries,
    which later layers read too; reindex: indexes entries of an earlier layer; reuse: takes entries and selection of earlier
    layers; mla_dense, mla_moe: latent attention over indexed tokens."""
    ratio: int
    """Tokens folded into one kept entry; 0 for none."""
    mlp_type: MlpLayerType
    """hash_moe: experts by token id; moe: experts by score; dense: no experts."""
    reads_embedding: bool = False
    """The first layer under delayed hyper-connections: no mix of an earlier sub-layer exists, and the first stream is read."""
    engram: int | None = None
    """Number of the layer's n-gram table."""
    candidates: Literal["publish", "use"] | None = None
    """Whether the selection names candidate blocks for later layers, or is made inside them."""
    tap: int | None = None
    """Which input of the drafter the layer's incoming streams are."""
    kv_source: int | None = field(default=None, compare=False)
    """The earlier layer whose entries and index keys are read; None for the layer's own."""

    def __str__(self) -> str:
        extras = [f"engram{self.engram}"] if self.engram is not None else []
        extras += [f"candidates:{self.candidates}"] if self.candidates else []
        extras += [f"tap{self.tap}"] if self.tap is not None else []
        extras += ["first"] if self.reads_embedding else []
        ratio = f":{self.ratio}" if self.layer_type in ("full", "reindex", "reuse") else ""
        return "/".join([self.layer_type + ratio, self.mlp_type, *extras])


def layer_specs(config: ModelConfig) -> tuple[LayerSpec, ...]:
    """The backbone's layers in order."""
    return tuple(_layer_spec(config, layer) for layer in range(config.num_hidden_layers))


def _layer_spec(config: ModelConfig, layer: int) -> LayerSpec:
    kind, engram, dspark = config.layer_types[layer], config.engram, config.dspark
    candidates: Literal["publish", "use"] | None = None
    if config.candidates is not None and kind in ("full", "reindex"):
        source = config.candidates.source_layer_id
        kv_sources = config.kv_source_layer_ids
        inside = layer > source and source_of(layer, kv_sources) == source_of(source, kv_sources)
        candidates = "publish" if layer == source else "use" if inside else None
    return LayerSpec(
        layer_type=kind,
        ratio=config.compress_ratios[layer],
        mlp_type=config.mlp_layer_types[layer],
        reads_embedding=config.hc_delayed and layer == 0,
        engram=engram.layer_ids.index(layer) if engram is not None and layer in engram.layer_ids else None,
        candidates=candidates,
        tap=dspark.target_layer_ids.index(layer) if dspark is not None and layer in dspark.target_layer_ids else None,
        kv_source=source_of(layer, config.kv_source_layer_ids) if kind in ("reindex", "reuse") else None,
    )


def draft_layer(config: ModelConfig) -> LayerSpec:
    """The layer inside every draft stage, whatever the backbone looks like."""
    if config.mla is not None:
        return LayerSpec("mla_moe", 1, "moe")
    return LayerSpec("sliding", 0, "moe", reads_embedding=config.hc_delayed)


def draft_stages(config: ModelConfig) -> tuple[LayerSpec, ...]:
    """The layers of a drafter whose stages follow each other."""
    first = draft_layer(config)
    return (first, *(replace(first, reads_embedding=False),) * (config.num_draft_stages - 1))


def compressor_roles(ratio: int) -> int:
    """Series of channels a compressor projects: two where windows overlap (ratio 4), one where they do not."""
    return 2 if ratio == 4 else 1
