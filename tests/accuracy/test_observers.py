# SPDX-License-Identifier: Apache-2.0
"""Observers stand in the place of a node: they see what it writes before and after, and what they return is its result."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ascend_dsv4.backend.base import Observer, RunNode
from ascend_dsv4.backend.cpu import CpuBackend
from ascend_dsv4.graph.ir import Node
from ascend_dsv4.graph.trace import trace
from ascend_dsv4.ops.spec import TensorType

ROWS = TensorType(("num_tokens", 8), "float32")


def model(ops: Any, cfg: Any, w: Any, streams: Any, carry: Any, batch: Any, caches: Any) -> Any:
    normed = ops.rms_norm(streams, w, eps=1e-6)
    caches["kv"] = ops.store_kv(caches["kv"], normed, batch["slots"], rounding="none", rope_dim=0)
    return normed + streams, carry


def run(observer: Observer | None) -> tuple[Tensor, Tensor]:
    """Streams and cache after a step of two tokens."""
    graph = trace(
        "test", model, None, w=TensorType((8,), "float32"), streams=ROWS, carry={},
        batch={"slots": TensorType(("num_tokens",), "int32")}, caches={"kv": TensorType((1, 4, 8), "float32")},
    )  # fmt: skip
    cache = torch.zeros(1, 4, 8)
    plan = CpuBackend().compile(graph, {"": torch.ones(8)}, {"kv": cache}, observer)
    streams, _ = plan(torch.arange(16.0).reshape(2, 8), {}, {"slots": torch.tensor([3, 0], dtype=torch.int32)})
    assert streams is not None
    return streams, cache


def test_an_observer_sees_every_node_before_and_after() -> None:
    seen: list[tuple[str, float, int, float]] = []

    def observe(node: Node, inputs: tuple[Tensor, ...], call: RunNode) -> tuple[Tensor, ...]:
        before = float(inputs[0].abs().sum())
        outputs = call(*inputs)
        seen.append((node.op, before, len(outputs), float(inputs[0].abs().sum())))
        return outputs

    plain, observed = run(None), run(observe)
    assert all(torch.equal(a, b) for a, b in zip(plain, observed, strict=True))
    assert [(op, count) for op, _, count, _ in seen] == [("rms_norm", 1), ("store_kv", 0), ("add", 1)]
    assert seen[1][1] == 0 < seen[1][3], "the cache was empty before it was written"


def test_what_an_observer_returns_is_the_result() -> None:
    def observe(node: Node, inputs: tuple[Tensor, ...], call: RunNode) -> tuple[Tensor, ...]:
        if node.op == "rms_norm":
            return (torch.full_like(inputs[0], 2.0),)
        if node.op == "store_kv":
            return call(inputs[0], inputs[1] * 3, inputs[2])
        return call(*inputs)

    streams, cache = run(observe)
    assert torch.equal(streams, torch.arange(16.0).reshape(2, 8) + 2)
    assert torch.equal(cache[0].sum(1), torch.tensor([48.0, 0, 0, 48.0]))
