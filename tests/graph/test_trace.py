# SPDX-License-Identifier: Apache-2.0
"""Tracing: what the graph holds, and what a model function may not do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ascend_dsv4.config import EngineConfig, ModelConfig
from ascend_dsv4.config.layers import layer_specs
from ascend_dsv4.graph import Graph, format_graph
from ascend_dsv4.graph.trace import TraceError, trace
from ascend_dsv4.llm import model_graphs
from ascend_dsv4.ops.registry import get_spec
from ascend_dsv4.ops.spec import TensorType

ROWS = TensorType(("num_tokens", 8), "float32")
CACHE = TensorType((4, 16, 8), "float32")
BATCH = {"slots": TensorType(("num_tokens",), "int32")}
STORE = {"rounding": "none", "rope_dim": 0}


def traced(function: Any, **caches: TensorType) -> Graph:
    return trace("test", function, None, w=TensorType((8,), "float32"), streams=ROWS, carry={}, batch=BATCH, caches=caches)


def test_values_are_typed_and_pruned() -> None:
    def model(ops: Any, cfg: Any, w: Any, streams: Any, carry: Any, batch: Any, caches: Any) -> Any:
        return (ops.rms_norm(streams, w, eps=1e-6) * 2.0).reshape(-1, 2, 4), carry

    graph = traced(model)
    assert [node.op for node in graph.nodes] == ["rms_norm", "mul", "reshape"]
    assert graph.streams is not None
    assert graph.streams.type == TensorType(("num_tokens", 2, 4), "float32")
    assert set(graph.inputs) == {"streams", "w"}, "an input that nothing reads is not an input"
    assert graph.weight_bytes() == 32


def test_a_written_cache_is_a_new_value_and_an_output() -> None:
    def model(ops: Any, cfg: Any, w: Any, streams: Any, carry: Any, batch: Any, caches: Any) -> Any:
        caches["kv"] = ops.store_kv(caches["kv"], streams, batch["slots"], **STORE)
        caches["kv"] = ops.store_kv(caches["kv"], streams, batch["slots"], **STORE)
        return streams, carry

    graph = traced(model, kv=CACHE, other=CACHE)
    assert {name: value.name for name, value in graph.caches.items()} == {"kv": "store_kv_1.cache"}
    first, second = graph.nodes
    assert second.args[0] == first.writes["cache"]
    assert first.outs == ()


def dropped(ops: Any, cfg: Any, w: Any, streams: Any, carry: Any, batch: Any, caches: Any) -> Any:
    ops.store_kv(caches["kv"], streams, batch["slots"], **STORE)
    return streams, carry


def stale(ops: Any, cfg: Any, w: Any, streams: Any, carry: Any, batch: Any, caches: Any) -> Any:
    before = caches["kv"]
    caches["kv"] = ops.store_kv(before, streams, batch["slots"], **STORE)
    ops.store_kv(before, streams, batch["slots"], **STORE)
    return streams, carry


def method(ops: Any, cfg: Any, w: Any, streams: Any, carry: Any, batch: Any, caches: Any) -> Any:
    return streams.transpose(0, 1), carry


def misshapen(ops: Any, cfg: Any, w: Any, streams: Any, carry: Any, batch: Any, caches: Any) -> Any:
    return ops.rms_norm(streams.reshape(-1, 4), w, eps=1e-6), carry


def branching(ops: Any, cfg: Any, w: Any, streams: Any, carry: Any, batch: Any, caches: Any) -> Any:
    return (streams if batch["slots"][0] > 0 else streams * 2.0), carry


def unknown(ops: Any, cfg: Any, w: Any, streams: Any, carry: Any, batch: Any, caches: Any) -> Any:
    return ops.batch_norm(streams), carry


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (dropped, r"'kv'\] was written but the returned handle \(store_kv_0.cache\) was dropped"),
        (stale, "caches.kv was written after this handle was made"),
        (method, "a tensor has no 'transpose' in model code"),
        (misshapen, r"rms_norm: weight has shape \[8\], expected \[dim=4\]"),
        (branching, "cut along num_tokens"),
        (unknown, "no operator is called 'batch_norm'"),
    ],
)
def test_what_model_functions_may_not_do(function: Any, message: str) -> None:
    with pytest.raises(Exception, match=message) as error:
        traced(function, kv=CACHE)
    if function is not unknown:
        assert isinstance(error.value, TraceError)


@pytest.fixture(scope="module")
def golden_config(golden_v4: Path) -> ModelConfig:
    return ModelConfig.from_file(golden_v4 / "fp8_fp4")


def test_one_graph_per_layer_type(golden_config: ModelConfig) -> None:
    graphs = model_graphs(golden_config, EngineConfig())
    assert set(graphs.layers) == set(layer_specs(golden_config))
    for spec, graph in graphs.layers.items():
        written = set(graph.caches)
        assert (
            written
            == {
                "sliding": {"win_kv"},
                "csa": {"win_kv", "cmp_kv", "cmp_state", "idx_kv", "idx_state"},
                "hca": {"win_kv", "cmp_kv", "cmp_state"},
            }[spec.layer_type]
        )


def test_the_printed_graph_names_every_call_and_its_line(golden_config: ModelConfig) -> None:
    for graph in model_graphs(golden_config, EngineConfig()).all():
        text = format_graph(graph)
        for node, _ in graph.walk():
            assert f"= {node.op}(" in text
            assert node.where in text
            assert node.where.split(":")[0] in {"decoder.py", "attention.py", "moe.py"}


def test_writes_come_before_reads(golden_config: ModelConfig) -> None:
    """Keys of this step are stored before anything attends to them."""
    graphs = model_graphs(golden_config, EngineConfig())
    for graph in graphs.layers.values():
        attention = next(node for node in graph.nodes if node.op == "sparse_attention")
        args = dict(zip(get_spec("sparse_attention").args, attention.args, strict=True))
        assert args["win_kv"].name.startswith("store_kv")
        assert args["cmp_kv"] is None or args["cmp_kv"].name.startswith("compress_kv")


@pytest.mark.parametrize("name", ["v4_flash", "v4_flash_0731", "v4_pro", "v4_pro_0813"])
def test_released_models_trace_without_weights(name: str) -> None:
    config = ModelConfig.from_file(Path(__file__).parents[2] / "configs" / "models" / f"{name}.json")
    graphs = model_graphs(config, EngineConfig(kv_cache="bf16", dtype="bfloat16", max_model_len=4096))
    assert len(graphs.layers) == len(set(layer_specs(config)))
    assert all(graph.nodes for graph in graphs.all())
