# SPDX-License-Identifier: Apache-2.0
"""The graphs of a model: every function traced once per layer type."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from ascend_dsv4.config.layers import LayerSpec, layer_specs
from ascend_dsv4.config.model_config import ModelConfig
from ascend_dsv4.engram.rows import row_bytes
from ascend_dsv4.graph.ir import Graph
from ascend_dsv4.graph.trace import ModelFunction, trace
from ascend_dsv4.graph.tree import map_leaves
from ascend_dsv4.kv_cache.layout import CachePlan, CacheSpec
from ascend_dsv4.model.decoder import ForwardConfig, decoder_layer, embed, head, step_tables
from ascend_dsv4.model.dspark import dspark_block, dspark_context, dspark_markov
from ascend_dsv4.model.mtp import mtp_stage, plain_mtp_input, plain_mtp_stage
from ascend_dsv4.model.weights import (
    DSparkWeights,
    ModelWeights,
    MtpWeights,
    PlainMtpWeights,
    is_parameter,
    rotary_tables,
)
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

    def by_place(self, config: ModelConfig) -> dict[int | str, Graph]:
        """By layer number, or "step_tables", "embed", "head", as a step runs them."""
        layers: dict[int | str, Graph] = {i: self.layers[spec] for i, spec in enumerate(layer_specs(config))}
        return {"step_tables": self.step_tables, "embed": self.embed, **layers, "head": self.head}


class _Tracer:
    """Traces functions of one model over its batch."""

    def __init__(self, config: ModelConfig, cfg: ForwardConfig, plan: CachePlan) -> None:
        self._cfg = cfg
        self._plan = plan
        self._batch = batch_types(plan)
        if config.engram is not None:
            row = (config.engram.num_columns, row_bytes(cfg.engram_format, config.engram.head_dim))
            rows = TensorType(("num_tokens", *row), "uint8")
            self._batch |= {f"engram{i}": rows for i in range(len(config.engram.layer_ids))}
        if config.image_token_id is not None:
            self._batch["is_image"] = TensorType(("num_tokens",), "int32")
            self._batch["image_rows"] = TensorType(("num_image_rows", config.hidden_size), "float32")
            self._batch["image_at"] = TensorType(("num_image_rows",), "int32")
        sizes = (config.hc_mult, config.hidden_size) if config.hc_mult else (config.hidden_size,)
        self.streams = TensorType(("num_tokens", *sizes), cfg.dtype)
        self._carry: dict[str, TensorType] = {}

    def graph(
        self, name: str, function: ModelFunction, params: Any, into: TensorType | None, caches: tuple[CacheSpec, ...] = ()
    ) -> Graph:
        types = map_leaves(lambda _, leaf: leaf.type, params, is_parameter)
        cache_types = {cache.name: TensorType(self._plan.shape(cache), cache.dtype) for cache in caches}
        return trace(name, function, self._cfg, w=types, streams=into, carry=self._carry, batch=self._batch, caches=cache_types)

    def tables(self, rotary: dict[str, Any]) -> Graph:
        """Trace the step tables; the graphs traced after them see the tables in the batch."""
        graph = self.graph("step_tables", step_tables, rotary, None)
        self._batch |= {name: value.type for name, value in graph.carry.items()}
        return graph

    def expect(self, carry: dict[str, TensorType], batch: dict[str, TensorType]) -> None:
        """Further inputs of the graphs traced from here on."""
        self._carry |= carry
        self._batch |= batch

    def add_to_carry(self, graph: Graph) -> None:
        """What a graph hands on is there for the graphs traced after it."""
        self._carry |= {name: value.type for name, value in graph.carry.items()}


def trace_model(config: ModelConfig, cfg: ForwardConfig, params: ModelWeights, plan: CachePlan) -> ModelGraphs:
    """Trace the backbone for these parameters and caches. Needs no weights."""
    tracer = _Tracer(config, cfg, plan)
    tables = tracer.tables(params.rotary)
    embedding = tracer.graph("embed", embed, params.embed, None)
    layers: dict[LayerSpec, Graph] = {}
    for i, (spec, w) in enumerate(zip(layer_specs(config), params.layers, strict=True)):
        if spec not in layers:
            caches = plan.readable(spec, i)
            layers[spec] = tracer.graph(f"layer {spec}", partial(decoder_layer, spec=spec), w, tracer.streams, caches)
        tracer.add_to_carry(layers[spec])
    return ModelGraphs(tables, embedding, layers, tracer.graph("head", head, params.head, tracer.streams))


@dataclass(frozen=True, slots=True)
class MtpGraphs:
    """The MTP stage, and what makes its input of the backbone's streams; None where it reads them as they are."""

    input: Graph | None
    stage: Graph

    def all(self) -> tuple[Graph, ...]:
        """In order of execution."""
        return (self.stage,) if self.input is None else (self.input, self.stage)


def trace_mtp(
    config: ModelConfig,
    cfg: ForwardConfig,
    params: MtpWeights | PlainMtpWeights,
    plan: CachePlan,
    caches: tuple[CacheSpec, ...],
) -> MtpGraphs:
    """Trace the MTP stage over the caches of its layer."""
    tracer = _Tracer(config, cfg, plan)
    tracer.tables(rotary_tables(config))
    if isinstance(params, MtpWeights):
        return MtpGraphs(None, tracer.graph("mtp", mtp_stage, params, tracer.streams, caches))
    made = tracer.graph("mtp_input", plain_mtp_input, params, tracer.streams)
    return MtpGraphs(made, tracer.graph("mtp", plain_mtp_stage, params, tracer.streams, caches))


@dataclass(frozen=True, slots=True)
class DSparkGraphs:
    """The three parts of the block drafter."""

    context: Graph
    block: Graph
    markov: Graph

    def all(self) -> tuple[Graph, ...]:
        """In order of execution."""
        return (self.context, self.block, self.markov)


def trace_dspark(
    config: ModelConfig, cfg: ForwardConfig, params: DSparkWeights, plan: CachePlan, caches: tuple[CacheSpec, ...]
) -> DSparkGraphs:
    """Trace the block drafter; `caches` hold the window rows of its stages, draft_kv0, draft_kv1, …"""
    assert config.dspark is not None
    tracer = _Tracer(config, cfg, plan)
    tracer.tables(rotary_tables(config))
    row = TensorType(("num_tokens", config.hidden_size), cfg.dtype)
    tracer.expect(
        carry={f"tap{i}": row for i in range(len(config.dspark.target_layer_ids))},
        batch={"block_ends": TensorType(("num_tokens",), "int32")},
    )
    context = tracer.graph("dspark_context", dspark_context, params, None, caches)
    block = tracer.graph("dspark_block", dspark_block, params, None, caches)
    tracer.expect(carry={"logits": TensorType(("num_tokens", config.vocab_size), "float32")}, batch={})
    return DSparkGraphs(context, block, tracer.graph("dspark_markov", dspark_markov, params, row))
