# SPDX-License-Identifier: Apache-2.0
"""The graphs of a model: every function traced once per layer type."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ascend_dsv4.config.layers import LayerSpec, layer_specs
from ascend_dsv4.config.model_config import ModelConfig
from ascend_dsv4.graph.ir import Graph
from ascend_dsv4.graph.trace import ModelFunction, trace
from ascend_dsv4.graph.tree import map_leaves
from ascend_dsv4.kv_cache.layout import CachePlan, CacheSpec
from ascend_dsv4.model.deepseek_v4 import ForwardConfig, decoder_layer, embed, head, step_table_names, step_tables
from ascend_dsv4.model.mtp import mtp_stage
from ascend_dsv4.model.weights import ModelWeights, MtpWeights, is_parameter
from ascend_dsv4.ops.spec import TensorType
from ascend_dsv4.runner.batch import batch_types


@dataclass(frozen=True, slots=True)
class ModelGraphs:
    """Everything the runner compiles."""

    step_tables: Graph
    embed: Graph
    layers: dict[LayerSpec, Graph]
    head: Graph

    def all(self) -> tuple[Graph, ...]:
        """In order of execution."""
        return (self.step_tables, self.embed, *self.layers.values(), self.head)


class _Tracer:
    """Traces functions of one model over its batch."""

    def __init__(self, config: ModelConfig, cfg: ForwardConfig, plan: CachePlan) -> None:
        self._cfg = cfg
        self._plan = plan
        half = config.qk_rope_head_dim // 2
        tables = {name: TensorType(("num_tokens", half), "float32") for name in step_table_names(config)}
        self._batch = batch_types(plan.ratios) | tables
        self.streams = TensorType(("num_tokens", config.hc_mult, config.hidden_size), cfg.dtype)

    def graph(
        self, name: str, function: ModelFunction, params: Any, into: TensorType | None, caches: tuple[CacheSpec, ...] = ()
    ) -> Graph:
        types = map_leaves(lambda _, leaf: leaf.type, params, is_parameter)
        cache_types = {cache.name: TensorType(self._plan.shape(cache), cache.dtype) for cache in caches}
        return trace(name, function, self._cfg, w=types, streams=into, carry=(), batch=self._batch, caches=cache_types)


def trace_model(config: ModelConfig, cfg: ForwardConfig, params: ModelWeights, plan: CachePlan) -> ModelGraphs:
    """Trace the backbone for these parameters and caches. Needs no weights."""
    tracer = _Tracer(config, cfg, plan)
    layers: dict[LayerSpec, Graph] = {}
    for spec, w, caches in zip(layer_specs(config), params.layers, plan.layers, strict=True):
        if spec not in layers:
            layers[spec] = tracer.graph(f"layer {spec}", partial(decoder_layer, spec=spec), w, tracer.streams, caches)
    return ModelGraphs(
        step_tables=tracer.graph("step_tables", step_tables, params.rotary, None),
        embed=tracer.graph("embed", embed, params.embed, None),
        layers=layers,
        head=tracer.graph("head", head, params.head, tracer.streams),
    )


def trace_mtp(config: ModelConfig, cfg: ForwardConfig, params: MtpWeights, plan: CachePlan, cache: CacheSpec) -> Graph:
    """Trace the MTP stage; `cache` holds its window rows."""
    tracer = _Tracer(config, cfg, plan)
    return tracer.graph("mtp", mtp_stage, params, tracer.streams, (replace(cache, name="win_kv"),))
