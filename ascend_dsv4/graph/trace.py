# SPDX-License-Identifier: Apache-2.0
"""Trace a model function into a typed graph with torch.fx proxies. Operators are leaves; nothing is decomposed.

A model function has the form `f(ops, cfg, w, streams, carry, batch, caches) -> (streams, carry)`. Types are inferred while
it runs, so a wrong shape is an error that names the model line.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx
from torch.fx.proxy import TracerBase

from ascend_dsv4.graph.ir import Graph, Node, Value, infer_builtin
from ascend_dsv4.graph.tree import map_leaves
from ascend_dsv4.ops.library import overload
from ascend_dsv4.ops.registry import get_spec
from ascend_dsv4.ops.spec import OpSpec, ShapeError, TensorType

ModelFunction = Callable[..., tuple[Any, dict[str, Any]]]

_BUILTIN_NAMES = {
    operator.add: "add", operator.sub: "sub", operator.mul: "mul", operator.truediv: "truediv",
    operator.getitem: "getitem", "reshape": "reshape",
}  # fmt: skip
_MODEL_ROOM = "ascend_dsv4.model."


class TraceError(TypeError):
    """A model function that breaks the rules of tracing. Names operator and model line."""


def written(cache: Any, call: Any) -> Any:
    """In the fx graph: the cache after `call` has written to it."""
    return cache


def _model_frames() -> tuple[str, str]:
    """Scope ("decoder_layer/attention") and place ("attention.py:40") of the innermost call made by a model function."""
    names: list[str] = []
    where = ""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(_MODEL_ROOM):
            where = where or f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"
            names.append(frame.f_code.co_name)
        frame = frame.f_back  # type: ignore[assignment]
    return "/".join(reversed(names)), where


class _Tracer(TracerBase):
    """Records typed nodes; also keeps the fx graph, whose leaves are the registered operator overloads."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.nodes: list[Node] = []
        self.values: dict[fx.Node, Value] = {}
        self.current: dict[str, Value] = {}
        self.stale: set[str] = set()
        self.counts: dict[str, int] = {}

    def input(self, path: str, tensor: TensorType) -> fx.Proxy:
        return self._proxy(self.graph.placeholder(path.replace(".", "_")), Value(path, tensor))

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *_: Any, **__: Any) -> fx.Proxy:
        """Called by fx for every operation on a proxy that is not an operator call."""
        scope, where = _model_frames()
        if target not in _BUILTIN_NAMES or kwargs:
            raise TraceError(f"{where}: a tensor has no {target!r} in model code; add an operator, or use one of + - * / "
                             "[...] .reshape(...)")  # fmt: skip
        op = _BUILTIN_NAMES[target]
        if op == "reshape":
            shape = args[1] if isinstance(args[1], tuple) else tuple(args[1:])
            args = (args[0], shape)
        plain = tuple(self._value(arg, where) if isinstance(arg, fx.Proxy) else arg for arg in args)
        try:
            value = Value(self._name(op), infer_builtin(op, plain))
        except ShapeError as error:
            raise TraceError(f"{where}: {error}") from error
        self.nodes.append(Node(value.name, op, plain, {}, (value,), {}, scope, where))
        return self._proxy(self.graph.create_node(kind, target, tuple(map(self.create_arg, args)), {}), value)

    def call(self, spec: OpSpec, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Record an operator call; returns its outputs, or the written caches as new handles."""
        scope, where = _model_frames()
        try:
            tensors, attrs = spec.bind(args, kwargs)
            inputs = tuple(None if t is None else self._value(t, where) for t in tensors)
            types = spec.infer([None if v is None else v.type for v in inputs], attrs)
        except ShapeError as error:
            raise TraceError(f"{where}: {error}") from error
        name = self._name(spec.name)
        fx_node = self.graph.create_node("call_function", overload(spec.name), tuple(map(self.create_arg, tensors)), attrs)
        outs = tuple(Value(f"{name}.{out}", tensor) for out, tensor in zip(spec.outs, types, strict=True))
        by_name = dict(zip(spec.args, zip(inputs, tensors, strict=True), strict=True))
        writes: dict[str, Value] = {}
        handles = []
        for arg in spec.mutates:
            before, proxy = by_name[arg]
            writes[arg] = Value(f"{name}.{arg}", before.type)
            path = next(path for path, value in self.current.items() if value == before)
            self.current[path] = writes[arg]
            self.stale.add(before.name)
            fx_written = self.graph.create_node("call_function", written, (proxy.node, fx_node), {})
            handles.append(self._proxy(fx_written, writes[arg]))
        self.nodes.append(Node(name, spec.name, inputs, attrs, outs, writes, scope, where))
        if handles:
            return handles[0] if len(handles) == 1 else tuple(handles)
        if len(outs) == 1:
            return self._proxy(fx_node, outs[0])
        getters = (self.graph.create_node("call_function", operator.getitem, (fx_node, i), {}) for i in range(len(outs)))
        return tuple(self._proxy(node, out) for node, out in zip(getters, outs, strict=True))

    def _proxy(self, node: fx.Node, value: Value) -> fx.Proxy:
        self.values[node] = value
        node.meta["value"] = value
        return fx.Proxy(node, self)

    def _name(self, op: str) -> str:
        self.counts[op] = self.counts.get(op, -1) + 1
        return f"{op}_{self.counts[op]}"

    def _value(self, proxy: Any, where: str) -> Value:
        if not isinstance(proxy, fx.Proxy):
            raise TraceError(f"{where}: expected a tensor, got {type(proxy).__name__}")
        value = self.values[proxy.node]
        if value.name in self.stale:
            raise TraceError(f"{where}: {value.name} was written after this handle was made; rebind what the operator "
                             "returned: caches[name] = ops.store_kv(caches[name], ...)")  # fmt: skip
        return value


class _TracingOps:
    """The `ops` a model function sees while it is traced."""

    def __init__(self, tracer: _Tracer) -> None:
        self._tracer = tracer

    def __getattr__(self, name: str) -> Callable[..., Any]:
        spec = get_spec(name)
        return lambda *args, **kwargs: self._tracer.call(spec, args, kwargs)


def trace(
    name: str,
    function: ModelFunction,
    cfg: Any,
    *,
    w: Any,
    streams: TensorType | None,
    carry: Mapping[str, TensorType],
    batch: Mapping[str, TensorType],
    caches: Mapping[str, TensorType],
) -> Graph:
    """Run `function` on proxies of these types. `w` is a weight tree with TensorType leaves.

    Raises TraceError for an operation that is not an operator, a shape that does not fit, the use of a cache handle
    after the cache was written, and a written handle that was dropped instead of put back into `caches`.
    """
    tracer = _Tracer()
    inputs: dict[str, fx.Proxy] = {}

    def make(path: str, tensor: TensorType) -> fx.Proxy:
        inputs[path] = tracer.input(path, tensor)
        return inputs[path]

    tree = {"w": w, "streams": streams, "carry": dict(carry), "batch": dict(batch), "caches": dict(caches)}
    proxies = map_leaves(make, tree)
    given = {key: tracer.values[proxy.node] for key, proxy in proxies["caches"].items()}
    tracer.current = dict(given)
    out_streams, out_carry = function(
        _TracingOps(tracer), cfg, proxies["w"], proxies["streams"], proxies["carry"], proxies["batch"], proxies["caches"]
    )
    for key, latest in tracer.current.items():
        kept = tracer.values[proxies["caches"][key].node]
        if kept != latest:
            raise TraceError(f"{name}: caches[{key!r}] was written but the returned handle ({latest.name}) was dropped; "
                             "put it back: caches[name] = ops.<write>(caches[name], ...)")  # fmt: skip
    used = {arg.name for node in tracer.nodes for arg in node.args if isinstance(arg, Value)}
    return Graph(
        name=name,
        inputs={path: tracer.values[p.node] for path, p in inputs.items() if path in used},
        nodes=tuple(tracer.nodes),
        streams=None if out_streams is None else tracer.values[out_streams.node],
        carry={key: tracer.values[proxy.node] for key, proxy in out_carry.items()},
        caches={key: value for key, value in tracer.current.items() if value != given[key]},
    )
