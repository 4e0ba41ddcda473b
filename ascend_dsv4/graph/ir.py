# SPDX-License-Identifier: Apache-2.0
"""The graph of one model function: nodes in order of execution over typed values. Plain data, no framework."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ascend_dsv4.ops.spec import Dim, ShapeError, TensorType, multiply_dims

BUILTINS = ("add", "sub", "mul", "truediv", "reshape", "getitem")
"""What model functions may do with a tensor besides calling operators."""


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor in the graph. A written cache is a new value over the same memory."""

    name: str
    type: TensorType


@dataclass(frozen=True, slots=True)
class Node:
    """One operator call, or one of BUILTINS."""

    name: str
    op: str
    args: tuple[Any, ...]
    """Values; None for an optional tensor left out; plain Python data for builtins."""
    attrs: Mapping[str, Any]
    outs: tuple[Value, ...]
    writes: Mapping[str, Value]
    """Name of a mutated argument → the value that stands for the cache from here on."""
    scope: str
    """Model functions that lead to the call, outermost first: "decoder_layer/attention"."""
    where: str
    """file:line of the call in the model."""


@dataclass(frozen=True, slots=True)
class Graph:
    """A traced model function."""

    name: str
    inputs: Mapping[str, Value]
    """By path: "streams", "carry.mix", "batch.positions", "w.attn.q_norm", "caches.win_kv"."""
    nodes: tuple[Node, ...]
    streams: Value | None
    carry: Mapping[str, Value]
    """What later graphs of the step read, by name."""
    caches: Mapping[str, Value]
    """Every written cache: its last value."""

    def walk(self) -> Iterator[tuple[Node, tuple[Value, ...]]]:
        """Nodes in order, each with the tensors it reads."""
        for node in self.nodes:
            yield node, tuple(arg for arg in node.args if isinstance(arg, Value))

    def weight_bytes(self) -> int:
        """Bytes of the weights this graph reads."""
        return sum(value.type.num_bytes() for path, value in self.inputs.items() if is_weight(path))


def is_weight(path: str) -> bool:
    """Whether an input of this path is a weight."""
    return path == "w" or path.startswith("w.")


def infer_builtin(op: str, args: tuple[Any, ...]) -> TensorType:
    """Type of the result of a builtin. Raises ShapeError for what model functions must not do."""
    tensors = [arg.type for arg in args if isinstance(arg, Value)]
    if op == "reshape":
        return TensorType(_reshaped(tensors[0], args[1]), tensors[0].dtype)
    if op == "getitem":
        return TensorType(_indexed(tensors[0], args[1]), tensors[0].dtype)
    shape: tuple[Dim, ...] = ()
    for tensor in tensors:
        shape = _broadcast(op, shape, tensor.shape)
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) > 1:
        raise ShapeError(f"{op}: operands have different dtypes {', '.join(sorted(dtypes))}; frameworks promote differently")
    return TensorType(shape, dtypes.pop())


def _broadcast(op: str, left: tuple[Dim, ...], right: tuple[Dim, ...]) -> tuple[Dim, ...]:
    width = max(len(left), len(right))
    dims = []
    for a, b in zip((1,) * (width - len(left)) + left, (1,) * (width - len(right)) + right, strict=True):
        if a != b and a != 1 and b != 1:
            raise ShapeError(f"{op}: shapes {list(left)} and {list(right)} do not broadcast")
        dims.append(b if a == 1 else a)
    return tuple(dims)


def _reshaped(tensor: TensorType, target: tuple[Dim, ...]) -> tuple[Dim, ...]:
    symbols = [dim for dim in tensor.shape if isinstance(dim, str)]
    sizes = math.prod(dim for dim in tensor.shape if isinstance(dim, int))
    fixed = math.prod(dim for dim in target if isinstance(dim, int) and dim != -1)
    rest, remainder = divmod(sizes, fixed)
    if target.count(-1) != 1 or remainder:
        raise ShapeError(f"reshape: {tensor} does not fit {list(target)}; exactly one -1 stands for the tokens")
    unknown: Dim = rest
    for symbol in symbols:
        unknown = multiply_dims(unknown, symbol)
    return tuple(unknown if dim == -1 else dim for dim in target)


def _indexed(tensor: TensorType, index: Any) -> tuple[Dim, ...]:
    keys = index if isinstance(index, tuple) else (index,)
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        keys = keys[:at] + (slice(None),) * (len(tensor.shape) - len(keys) + 1) + keys[at + 1 :]
    dims: list[Dim] = []
    for dim, key in zip(tensor.shape, keys + (slice(None),) * (len(tensor.shape) - len(keys)), strict=True):
        if key == slice(None):
            dims.append(dim)
        elif isinstance(dim, str):
            raise ShapeError(f"getitem: {tensor} is cut along {dim}, whose size is known only at run time")
        elif isinstance(key, slice):
            dims.append(len(range(*key.indices(dim))))
        elif not -dim <= key < dim:
            raise ShapeError(f"getitem: index {key} is outside {tensor}")
    return tuple(dims)


def format_graph(graph: Graph) -> str:
    """The graph as text, one line a node, for people."""
    lines = [f"graph {graph.name}: {len(graph.nodes)} nodes, {graph.weight_bytes():,} weight bytes"]
    lines += [f"  in   {path}: {value.type}" for path, value in graph.inputs.items() if not is_weight(path)]
    scope = None
    for node in graph.nodes:
        if node.scope != scope:
            scope = node.scope
            lines.append(f"  # {scope}")
        results = [f"{out.name}: {out.type}" for out in node.outs]
        results += [f"{value.name} (writes {arg})" for arg, value in node.writes.items()]
        args = ", ".join(arg.name if isinstance(arg, Value) else repr(arg) for arg in node.args)
        attrs = "".join(f", {key}={value!r}" for key, value in node.attrs.items())
        lines.append(f"    {', '.join(results)} = {node.op}({args}{attrs})  # {node.where}")
    outs = ([graph.streams] if graph.streams else []) + list(graph.carry.values()) + list(graph.caches.values())
    lines.append(f"  out  {', '.join(value.name for value in outs)}")
    return "\n".join(lines)
