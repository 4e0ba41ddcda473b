# SPDX-License-Identifier: Apache-2.0
"""Torch on the CPU: the correctness reference. Executes graphs node by node over a register file."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ascend_dsv4.backend.base import Observer
from ascend_dsv4.errors import ConfigError, UnsupportedError
from ascend_dsv4.graph.ir import BUILTINS, Graph, Node, Value
from ascend_dsv4.ops.registry import BoundOps, bind, get_spec

_NUMPY_BITS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float8_e4m3fn": torch.float8_e4m3fn}


@dataclass(frozen=True, slots=True)
class _Step:
    function: Callable[..., Any]
    inputs: tuple[int, ...]
    attrs: dict[str, Any]
    outputs: tuple[int, ...]
    last_used: tuple[int, ...]
    node: Node

    def run(self, *inputs: Tensor | None) -> tuple[Any, ...]:
        """The results, none of a call that only writes."""
        result = self.function(*inputs, **self.attrs)
        return tuple(result) if len(self.outputs) > 1 else (result,) if self.outputs else ()


class CpuPlan:
    """A graph as a list of calls. Weights and caches sit in their registers; intermediates leave theirs after last use."""

    def __init__(self, graph: Graph, constants: Mapping[str, Tensor], ops: BoundOps, observer: Observer | None = None) -> None:
        self.graph = graph
        self._observer = observer
        self._registers: list[Any] = [None]  # register 0 is the tensor that was left out
        self._index: dict[str, int] = {}
        self._given: list[tuple[str, int]] = []
        for path, value in graph.inputs.items():
            self._index[value.name] = len(self._registers)
            self._registers.append(constants.get(path))
            if path not in constants:
                self._given.append((path, self._index[value.name]))
        self._steps = self._schedule(graph, ops)
        self._streams = 0 if graph.streams is None else self._index[graph.streams.name]
        self._carry = {name: self._index[value.name] for name, value in graph.carry.items()}

    @torch.inference_mode()
    def __call__(
        self, streams: Tensor | None, carry: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        registers = self._registers.copy()
        for path, register in self._given:
            kind, _, name = path.partition(".")
            registers[register] = streams if kind == "streams" else carry[name] if kind == "carry" else batch[name]
        for step in self._steps:
            inputs = [registers[i] for i in step.inputs]
            outputs = step.run(*inputs) if self._observer is None else self._observer(step.node, tuple(inputs), step.run)
            for register, output in zip(step.outputs, outputs, strict=True):
                registers[register] = output
            for register in step.last_used:
                registers[register] = None
        return registers[self._streams], {name: registers[i] for name, i in self._carry.items()}

    def _schedule(self, graph: Graph, ops: BoundOps) -> tuple[_Step, ...]:
        kept = {value.name for value in (*graph.inputs.values(), *graph.carry.values(), *graph.caches.values())}
        if graph.streams is not None:
            kept.add(graph.streams.name)
        last_use = {value.name: i for i, (_, reads) in enumerate(graph.walk()) for value in reads}
        steps = []
        for i, (node, reads) in enumerate(graph.walk()):
            function, attrs = _callable(node, ops)
            arguments = reads if node.op in BUILTINS else node.args
            inputs = tuple(0 if arg is None else self._index[arg.name] for arg in arguments)
            for name, value in node.writes.items():  # the same memory, so the same register
                self._index[value.name] = inputs[list(get_spec(node.op).args).index(name)]
                kept.add(value.name)
            for value in node.outs:
                self._index[value.name] = len(self._registers)
                self._registers.append(None)
            unread = {value.name for value in node.outs if value.name not in last_use}
            dead = {value.name for value in reads if last_use[value.name] == i} | unread
            last_used = tuple(self._index[name] for name in dead - kept)
            outputs = tuple(self._index[value.name] for value in node.outs)
            steps.append(_Step(function, inputs, attrs, outputs, last_used, node))
        return tuple(steps)


def _callable(node: Node, ops: BoundOps) -> tuple[Callable[..., Any], dict[str, Any]]:
    if node.op not in BUILTINS:
        return ops.functions[node.op], dict(node.attrs)
    if node.op == "reshape":
        shape = node.args[1]
        return lambda x: x.reshape(shape), {}
    if node.op == "getitem":
        index = node.args[1]
        return lambda x: x[index], {}
    function = getattr(operator, node.op)
    left, right = node.args
    if not isinstance(left, Value):
        return lambda x: function(left, x), {}
    if not isinstance(right, Value):
        return lambda x: function(x, right), {}
    return function, {}


class CpuBackend:
    """See `backend.base.Backend`."""

    name = "cpu"

    def __init__(self, ops: str = "auto") -> None:
        if torch.get_float32_matmul_precision() != "highest":
            raise ConfigError(
                f"backend 'cpu': torch.get_float32_matmul_precision() is {torch.get_float32_matmul_precision()!r}, expected "
                "'highest', because reduced products would be taken for float32 ones. Call "
                "torch.set_float32_matmul_precision('highest')."
            )
        self._ops = bind(ops)

    def parameter(self, name: str, dtype: str, shape: tuple[int, ...], data: np.ndarray) -> Tensor:
        if not data.flags.aligned or not data.flags.writeable:
            data = data.copy()  # torch wants aligned memory, and warns about memory it must not write
        tensor = torch.from_numpy(np.ascontiguousarray(data))
        if dtype in _NUMPY_BITS:
            tensor = tensor.view(_NUMPY_BITS[dtype])
        if tensor.dtype != getattr(torch, dtype):
            raise ConfigError(f"parameter {name}: the data holds {tensor.dtype}, expected {dtype}")
        return tensor.reshape(shape)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        return torch.zeros(shape, dtype=getattr(torch, dtype))

    def to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array)

    def to_host(self, tensor: Tensor) -> np.ndarray:
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()

    def memory(self) -> tuple[int, int]:
        page = os.sysconf("SC_PAGE_SIZE")
        return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page

    def compile(
        self, graph: Graph, weights: Mapping[str, Tensor], caches: Mapping[str, Tensor], observer: Observer | None = None
    ) -> CpuPlan:
        constants = {f"w.{path}" if path else "w": tensor for path, tensor in weights.items()}
        constants |= {f"caches.{name}": tensor for name, tensor in caches.items()}
        return CpuPlan(graph, constants, self._ops, observer)

    def capture(self, function: Callable[[], Tensor], static_inputs: Mapping[str, Tensor]) -> Callable[[], Tensor]:
        raise UnsupportedError("backend 'cpu' has no device graphs to capture; run the plan itself")

    def synchronize(self) -> None:
        """Torch on the CPU is synchronous."""

    def init_parallel(self, rank: int, world_size: int) -> None:
        if world_size != 1:
            raise UnsupportedError(f"backend 'cpu': world_size={world_size}; this version runs in one process")

    def bound_ops(self) -> BoundOps:
        return self._ops
