# SPDX-License-Identifier: Apache-2.0
"""Two models in step. Every node of the graph runs three times: on the reference, in the candidate's own run, and on the
candidate with the reference's inputs, so that what an operator adds is told from what it was handed.

Nothing of the runner or the engine changes: a tensor is a `Pair`, a plan a `LockstepPlan`. The reference's half decides what
the engine sees, so the candidate is teacher-forced on the reference's tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from ascend_dsv4.accuracy.calls import to_numpy, told
from ascend_dsv4.accuracy.oracles import ORACLES
from ascend_dsv4.backend.base import Backend, Observer, Tensor
from ascend_dsv4.backend.cpu import CpuBackend
from ascend_dsv4.errors import ConfigError, UnsupportedError
from ascend_dsv4.graph.ir import BUILTINS, Graph, Node, Value, is_weight
from ascend_dsv4.ops.library import tensor_type
from ascend_dsv4.ops.linear.reference import decode_weight
from ascend_dsv4.ops.registry import FOREIGN_ERRORS, BoundOps, get_implementation, get_spec
from ascend_dsv4.ops.spec import Implementation

Array = np.ndarray[Any, np.dtype[Any]]
ORACLE_BYTES = 1 << 26
"""Weights of a node that its oracle, which works in float64, is given at most."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One tensor of the model in both runs."""

    reference: Tensor
    candidate: Tensor

    def __getitem__(self, index: Any) -> Pair:
        return Pair(self.reference[index], self.candidate[index])

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.reference.shape)

    @property
    def dtype(self) -> Any:
        """Of the reference."""
        return self.reference.dtype

    @property
    def nbytes(self) -> int:
        return int(self.reference.nbytes) + int(self.candidate.nbytes)


@dataclass(frozen=True, slots=True)
class Override:
    """A function in the place of one of the candidate's operators."""

    op: str
    function: Implementation
    layers: frozenset[int] | None = None
    """None for every graph of the model."""
    name: str = "override"
    """What results call it."""

    def replaces(self, op: str, layer: int | None) -> bool:
        """Whether it stands for this operator there."""
        return op == self.op and (self.layers is None or layer in self.layers)


def parse_override(text: str) -> Override:
    """An override as people write it: hc_pre=my_module:my_hc_pre, or hc_pre@3,5=… for two layers alone. A path to a file stands
    for a module too.

    Raises ConfigError for another form, UnsupportedError for an unknown operator or a function that is not there.
    """
    target, equals, path = text.partition("=")
    op, at, layers = target.partition("@")
    numbers = [part.strip() for part in layers.split(",")] if at else []
    module, _, function = path.rpartition(":")
    if not (equals and op and module and function and all(number.isdecimal() for number in numbers)):
        raise ConfigError(
            f"override {text!r}: expected op=module:function or op@layer,layer=module:function, because it says which operator "
            "is replaced, where, and by what. Example: hc_pre@3=my_kernels:hc_pre."
        )
    get_spec(op)
    try:
        found = get_implementation(op, path)
    except (ImportError, AttributeError) as error:
        raise UnsupportedError(
            f"override {text!r}: {error}; expected a module that can be imported and a function in it, because the candidate "
            "calls it. Check the name, and put the module's folder on PYTHONPATH."
        ) from error
    return Override(op, found, frozenset(map(int, numbers)) if at else None, path)


@dataclass(frozen=True, slots=True)
class Shown:
    """One output of a node, or a cache it wrote, as host arrays of one shape."""

    name: str
    dtype: str
    """Whose tolerance holds: that of the candidate's rounding."""
    golden: Array
    """The reference's operator on the reference's inputs, in the candidate's number format."""
    introduced: Array
    """The candidate's operator on the same inputs."""
    reference: Array
    candidate: Array
    """The two runs."""
    value: Value
    """In the reference's graph."""


@dataclass(frozen=True, slots=True)
class Visit:
    """A node that has run on both sides."""

    number: int
    step: int
    graph: str
    layer: int | None
    label: str
    """hc_pre.0"""
    node: Node
    """Of the candidate's graph."""
    outputs: tuple[Shown, ...]
    overwritten: tuple[str, ...]
    """Arguments that the candidate's operator changed though its contract says it reads them."""
    args: Mapping[str, Value]
    """Argument name → value in the reference's graph; optional ones may be missing."""
    host: Callable[[str], Array]
    """Argument name → what `golden` was computed from; caches that were written hold what was written."""
    batch: Callable[[str], Array | None]
    """What the step's batch holds by this name."""


Watch = Callable[[Visit], None]


class LockstepBackend:
    """Two backends as one; see `backend.base.Backend`. A graph given to `compile` is that of both."""

    name = "lockstep"

    def __init__(self, reference: Backend, candidate: Backend, shows: Literal["reference", "candidate"] = "reference") -> None:
        """`shows`: whose half the engine sees."""
        self.reference = reference
        self.candidate = candidate
        self._shows = shows
        self._share_torch = isinstance(reference, CpuBackend) and isinstance(candidate, CpuBackend)

    def parameter(self, name: str, dtype: str, shape: tuple[int, ...], data: Array) -> Pair:
        return Pair(*(side.parameter(name, dtype, shape, data) for side in (self.reference, self.candidate)))

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Pair:
        return Pair(self.reference.zeros(shape, dtype), self.candidate.zeros(shape, dtype))

    def to_device(self, array: Array) -> Pair:
        return Pair(self.reference.to_device(array), self.candidate.to_device(array.copy()))

    def to_host(self, tensor: Pair) -> Array:
        """The half that is shown."""
        if self._shows == "candidate":
            return self.candidate.to_host(tensor.candidate)
        return self.reference.to_host(tensor.reference)

    def memory(self) -> tuple[int, int]:
        return self.reference.memory()

    def compile(
        self, graph: Graph, weights: Mapping[str, Pair], caches: Mapping[str, Pair], observer: Observer | None = None
    ) -> LockstepPlan:
        pairs = {f"w.{path}" if path else "w": pair for path, pair in weights.items()}
        pairs |= {f"caches.{name}": pair for name, pair in caches.items()}
        constants = ({k: pair.reference for k, pair in pairs.items()}, {k: pair.candidate for k, pair in pairs.items()})
        return LockstepPlan(self, graph.name, None, (graph, graph), constants)

    def capture(self, function: Callable[[], Any], static_inputs: Mapping[str, Any]) -> Callable[[], Any]:
        raise UnsupportedError("backend 'lockstep' has nothing to capture: it looks at every node. Run the plan itself.")

    def synchronize(self) -> None:
        self.reference.synchronize()
        self.candidate.synchronize()

    def init_parallel(self, rank: int, world_size: int) -> None:
        self.reference.init_parallel(rank, world_size)
        self.candidate.init_parallel(rank, world_size)

    def bound_ops(self) -> BoundOps:
        """The reference's operators on the reference's halves: what is drawn is drawn from there."""
        bound = self.reference.bound_ops()
        return BoundOps({name: _on_reference(function) for name, function in bound.functions.items()}, bound.implementations)

    def to_candidate(self, tensor: Tensor, dtype: str) -> Tensor:
        """A copy of a reference's tensor on the candidate."""
        return self._moved(tensor, dtype, self.reference, self.candidate)

    def to_reference(self, tensor: Tensor, dtype: str) -> Tensor:
        """A copy of a candidate's tensor on the reference."""
        return self._moved(tensor, dtype, self.candidate, self.reference)

    def _moved(self, tensor: Tensor, dtype: str, source: Backend, target: Backend) -> Tensor:
        if self._share_torch:
            return tensor.to(getattr(torch, dtype), copy=True)
        array = np.array(source.to_host(tensor))
        if dtype not in ("bfloat16", "float16"):
            return target.to_device(array if array.dtype.kind != "f" else array.astype(dtype))
        bits = torch.from_numpy(array).to(getattr(torch, dtype)).view(torch.int16).numpy()
        return target.parameter("activation", dtype, array.shape, bits)


def _on_reference(function: Implementation) -> Implementation:
    def call(*args: Any, **attrs: Any) -> Any:
        outs = function(*(arg.reference if isinstance(arg, Pair) else arg for arg in args), **attrs)
        return tuple(Pair(out, out) for out in outs) if isinstance(outs, tuple) else Pair(outs, outs)

    return call


class _Call:
    """One node on one backend, or a function in its place."""

    def __init__(self, backend: Backend, node: Node, function: Implementation | None = None) -> None:
        self.node = node
        self.args = tuple(arg for arg in node.args if isinstance(arg, Value) or node.op not in BUILTINS)
        self._function = function
        self._plan = None if function is not None else backend.compile(_alone(node, self.args), {}, {})

    def __call__(self, tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """The outputs; caches among the arguments are written."""
        if self._plan is not None:
            given = {arg.name: tensor for arg, tensor in zip(self.args, tensors, strict=True) if arg is not None}
            made = self._plan(None, {}, given)[1]
            return tuple(made[value.name] for value in self.node.outs)
        assert self._function is not None
        try:
            outs = self._function(*tensors, **self.node.attrs)
        except FOREIGN_ERRORS as error:
            spec = get_spec(self.node.op)
            raise UnsupportedError(
                f"override of {spec.name}, node {label(self.node)}: {told(error, spec)}; expected the outputs of the contract, "
                f"because later nodes read them. Try it alone: compare ops --op {spec.name} --impl with the same function."
            ) from error
        outs = () if outs is None else tuple(outs) if isinstance(outs, tuple | list) else (outs,)
        self._check_outputs(tensors, outs)
        return outs

    def _check_outputs(self, tensors: Sequence[Tensor | None], outs: tuple[Tensor, ...]) -> None:
        """Raises UnsupportedError unless a function of somebody's own returned what the contract promises."""
        spec = get_spec(self.node.op)
        expected = spec.infer([None if tensor is None else tensor_type(tensor) for tensor in tensors], self.node.attrs)
        got = [str(tensor_type(out)) if isinstance(out, torch.Tensor) else type(out).__name__ for out in outs]
        if got != [str(wanted) for wanted in expected]:
            promised = ", ".join(f"{name} {wanted}" for name, wanted in zip(spec.outs, expected, strict=True))
            raise UnsupportedError(
                f"override of {spec.name}: it returned {', '.join(got) or 'nothing'}, expected {promised or 'nothing'}, "
                f"because later nodes read each of them. The contract is the docstring of ascend_dsv4.ops.{spec.name}."
            )


def _alone(node: Node, args: tuple[Value | None, ...]) -> Graph:
    """A graph of one node, all of whose arguments come with the batch."""
    inputs = {f"batch.{arg.name}": arg for arg in args if arg is not None}
    return Graph(node.name, inputs, (node,), None, {value.name: value for value in node.outs}, node.writes)


@dataclass(frozen=True, slots=True)
class _Step:
    label: str
    reference: _Call
    candidate: _Call
    alone: bool
    """Whether it is an operator, which is looked at; builtins only move and add."""
    rounds: bool
    """Whether the candidate computes in another number format."""
    narrow: _Call | None
    """The reference in the candidate's number format, for an operator that then rounds in mid-way: one format says nothing
    about the other there."""
    by_oracle: bool
    """Whether that would be the candidate's own function, so that its oracle is asked instead, if it is not too large."""
    dead: tuple[tuple[str, ...], tuple[str, ...]]
    """Values that nothing reads afterwards."""


class LockstepPlan:
    """A graph on two backends, node by node. `constants` are weights and caches by path, of either side."""

    def __init__(
        self,
        backend: LockstepBackend,
        name: str,
        layer: int | None,
        graphs: tuple[Graph, Graph],
        constants: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
        overrides: Sequence[Override] = (),
        watch: Watch | None = None,
        clock: Clock | None = None,
    ) -> None:
        _check_alike(name, graphs)
        self._backend = backend
        self._name = name
        self._layer = layer
        self._graphs = graphs
        self._constants = constants
        self._watch = watch
        self._clock = clock or Clock()
        dead = tuple(_dead(graph) for graph in graphs)
        self._steps = tuple(
            self._step(nodes, overrides, (dead[0][i], dead[1][i]))
            for i, nodes in enumerate(zip(graphs[0].nodes, graphs[1].nodes, strict=True))
        )

    def _step(
        self, nodes: tuple[Node, Node], overrides: Sequence[Override], dead: tuple[tuple[str, ...], tuple[str, ...]]
    ) -> _Step:
        op = nodes[0].op
        function = next((o.function for o in reversed(overrides) if o.replaces(op, self._layer)), None)
        calls = _Call(self._backend.reference, nodes[0]), _Call(self._backend.candidate, nodes[1], function)
        rounds = any(a.type.dtype != b.type.dtype for a, b in _activations(*calls)) or _dtypes(nodes[0]) != _dtypes(nodes[1])
        inside = op not in BUILTINS and (get_spec(op).rounds_inside or nodes[0].attrs.get("rounding", "none") != "none")
        narrow = None
        if rounds and inside:
            narrow = _Call(self._backend.reference, replace(nodes[0], attrs={**nodes[0].attrs, **_dtypes(nodes[1])}))
        theirs = function or self._backend.candidate.bound_ops().functions.get(op)
        own = theirs is self._backend.reference.bound_ops().functions.get(op)
        by_oracle = narrow is not None and own and _weight_bytes(nodes[0]) <= ORACLE_BYTES
        return _Step(label(nodes[0]), *calls, op not in BUILTINS, rounds, narrow, by_oracle, dead)

    @torch.inference_mode()
    def __call__(
        self, streams: Pair | None, carry: Mapping[str, Pair], batch: Mapping[str, Pair]
    ) -> tuple[Pair | None, dict[str, Pair]]:
        sides = tuple(
            _inputs(graph, constants, streams, carry, batch, half)
            for graph, constants, half in zip(self._graphs, self._constants, ("reference", "candidate"), strict=True)
        )
        for step in self._steps:
            self._run(step, sides, batch)
            for registers, names in zip(sides, step.dead, strict=True):
                for name in names:
                    del registers[name]
        out = self._graphs[0].streams, self._graphs[1].streams
        made = None if out[0] is None or out[1] is None else Pair(sides[0][out[0].name], sides[1][out[1].name])
        handed = zip(self._graphs[0].carry.items(), self._graphs[1].carry.values(), strict=True)
        return made, {name: Pair(sides[0][a.name], sides[1][b.name]) for (name, a), b in handed}

    def _run(self, step: _Step, sides: tuple[dict[str, Tensor], ...], batch: Mapping[str, Pair]) -> None:
        tensors = tuple(
            [None if arg is None else registers[arg.name] for arg in call.args]
            for call, registers in zip((step.reference, step.candidate), sides, strict=True)
        )
        looks = step.alone and self._watch is not None and not self._clock.quiet
        isolated = self._isolated(step, *tensors) if looks else []
        rounded = self._rounded(step, tensors[0], isolated) if looks and step.rounds else None
        golden = None if rounded is None else self._golden(step, rounded, isolated)
        outs = step.reference(tensors[0]), step.candidate(tensors[1])
        for call, registers, made, given in zip((step.reference, step.candidate), sides, outs, tensors, strict=True):
            registers.update((value.name, tensor) for value, tensor in zip(call.node.outs, made, strict=True))
            for arg, value in call.node.writes.items():
                registers[value.name] = given[list(get_spec(call.node.op).args).index(arg)]
        if looks:
            runs = [_results(call, *pair) for call, *pair in zip((step.reference, step.candidate), tensors, outs, strict=True)]
            shown = {
                "introduced": self._hosted(1, _results(step.candidate, isolated, step.candidate(isolated))),
                "reference": self._hosted(0, runs[0]),
                "candidate": self._hosted(1, runs[1]),
            }
            shown["golden"] = golden or shown["reference"]
            self._show(step, rounded or tensors[0], shown, self._overwritten(step, tensors[0], isolated), batch)
        self._clock.number += step.alone

    def _isolated(self, step: _Step, reference: list[Tensor], candidate: list[Tensor]) -> list[Tensor]:
        """The reference's inputs on the candidate, in its number formats; weights are the candidate's own."""
        given = []
        for mine, arg, tensor, own in zip(step.reference.args, step.candidate.args, reference, candidate, strict=True):
            keeps = arg is None or mine is None or is_weight(arg.name)
            given.append(own if keeps else self._backend.to_candidate(tensor, arg.type.dtype))
        return given

    def _rounded(self, step: _Step, reference: list[Tensor], isolated: list[Tensor]) -> list[Tensor]:
        """The same inputs back on the reference, whose own weights they meet."""
        given = []
        for arg, other, tensor, moved in zip(step.reference.args, step.candidate.args, reference, isolated, strict=True):
            keeps = arg is None or other is None or is_weight(arg.name)
            given.append(tensor if keeps else self._backend.to_reference(moved, arg.type.dtype))
        return given

    def _golden(self, step: _Step, rounded: list[Tensor], isolated: list[Tensor]) -> dict[str, Array]:
        """What the candidate should return if its number format is another than the reference's."""
        if step.narrow is None:
            return self._hosted(0, _results(step.reference, rounded, step.reference(rounded)))
        if step.by_oracle:
            return _specified(step, rounded)
        given = []
        for arg, other, tensor, moved in zip(step.reference.args, step.candidate.args, rounded, isolated, strict=True):
            keeps = arg is None or other is None or is_weight(arg.name)
            given.append(tensor if keeps else self._backend.to_reference(moved, other.type.dtype))
        return self._hosted(0, _results(step.narrow, given, step.narrow(given)))

    def _overwritten(self, step: _Step, reference: list[Tensor], isolated: list[Tensor]) -> tuple[str, ...]:
        """Arguments that no longer hold what they were given."""
        spec, host = get_spec(step.candidate.node.op), self._backend.candidate.to_host
        again = self._isolated(step, reference, isolated)
        return tuple(
            name
            for name, used, fresh in zip(spec.args, isolated, again, strict=True)
            if used is not fresh and name not in spec.mutates and host(used).tobytes() != host(fresh).tobytes()
        )

    def _hosted(self, side: int, results: Mapping[str, Tensor]) -> dict[str, Array]:
        backend = (self._backend.reference, self._backend.candidate)[side]
        return {name: backend.to_host(tensor) for name, tensor in results.items()}

    def _show(
        self,
        step: _Step,
        given: list[Tensor],
        shown: Mapping[str, Mapping[str, Array]],
        overwritten: tuple[str, ...],
        batch: Mapping[str, Pair],
    ) -> None:
        assert self._watch is not None
        node, spec = step.candidate.node, get_spec(step.candidate.node.op)
        mine = dict(zip(spec.outs, step.reference.node.outs, strict=True)) | dict(step.reference.node.writes)
        theirs = dict(zip(spec.outs, node.outs, strict=True)) | dict(node.writes)
        outputs = []
        for name, value in mine.items():
            # An entry is rounded on its way into a cache that may be wider.
            dtype = node.attrs.get("entry_dtype") if name == "cache" else None
            arrays = {run: results[name] for run, results in shown.items()}
            outputs.append(Shown(name, dtype or theirs[name].type.dtype, **arrays, value=value))
        at = {name: i for i, name in enumerate(spec.args)}
        self._watch(
            Visit(
                number=self._clock.number,
                step=self._clock.step,
                graph=self._name,
                layer=self._layer,
                label=step.label,
                node=node,
                outputs=tuple(outputs),
                overwritten=overwritten,
                args={name: arg for name, arg in zip(spec.args, step.reference.args, strict=True) if arg is not None},
                host=lambda name: self._backend.reference.to_host(given[at[name]]),
                batch=lambda name: self._backend.to_host(batch[name]) if name in batch else None,
            )
        )


@dataclass(slots=True)
class Clock:
    """How far two models in step have come."""

    step: int = -1
    number: int = 0
    quiet: bool = False
    """Whether nodes run without being looked at."""


def label(node: Node) -> str:
    """Operator and how many of its kind came before in the graph: hc_pre.0."""
    return f"{node.op}.{node.name.rpartition('_')[2]}"


def _results(call: _Call, given: Sequence[Tensor | None], outs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Outputs and written arguments of a call by name."""
    spec = get_spec(call.node.op)
    written = {name: given[list(spec.args).index(name)] for name in spec.mutates}
    return {**dict(zip(spec.outs, outs, strict=True)), **written}


def _activations(reference: _Call, candidate: _Call) -> list[tuple[Value, Value]]:
    """Arguments of both that are not weights."""
    pairs = zip(reference.args, candidate.args, strict=True)
    return [(a, b) for a, b in pairs if a is not None and b is not None and not is_weight(a.name)]


def _dtypes(node: Node) -> dict[str, Any]:
    """Attributes that name number formats."""
    return {name: value for name, value in node.attrs.items() if name.endswith("_dtype")}


def _weight_bytes(node: Node) -> int:
    return sum(arg.type.num_bytes() for arg in node.args if isinstance(arg, Value) and is_weight(arg.name))


def _decoded(tensors: Mapping[str, Any], block: Sequence[int]) -> dict[str, Any]:
    """Arguments of `expert_mlp` with plain weights."""
    plain = dict(tensors)
    for name in ("w13", "w2"):
        weights, scale = plain[name], plain[f"{name}_scale"]
        scales = [None] * len(weights) if scale is None else scale
        plain[name] = torch.stack([decode_weight(*pair, block, torch.float32) for pair in zip(weights, scales, strict=True)])
        plain[f"{name}_scale"] = None
    return plain


def _specified(step: _Step, given: Sequence[Tensor | None]) -> dict[str, Array]:
    """What the contract promises of an operator that rounds in mid-way, by its oracle in the candidate's number format."""
    reference, candidate = step.reference.node, step.candidate.node
    tensors = dict(zip(get_spec(reference.op).args, given, strict=True))
    if reference.op == "expert_mlp":  # the oracle decodes code by code, which takes longer than everything else
        tensors = _decoded(tensors, reference.attrs["block"])
    arrays = {name: None if t is None else to_numpy(t) for name, t in tensors.items()}
    wide = {name: a.astype(np.float64) if a is not None and a.dtype.kind == "f" else a for name, a in arrays.items()}
    narrower = [b.type.dtype for a, b in _activations(step.reference, step.candidate) if a.type.dtype != b.type.dtype]
    dtype = next(iter([*_dtypes(candidate).values(), *narrower]))
    with np.errstate(all="ignore"):  # NaN in rows of padding
        return ORACLES[reference.op](wide, {**reference.attrs, **_dtypes(candidate)}, dtype)


def _inputs(
    graph: Graph,
    constants: Mapping[str, Tensor],
    streams: Pair | None,
    carry: Mapping[str, Pair],
    batch: Mapping[str, Pair],
    half: str,
) -> dict[str, Tensor]:
    """Values by name as a graph begins."""
    registers = {}
    for path, value in graph.inputs.items():
        kind, _, name = path.partition(".")
        if path in constants:
            registers[value.name] = constants[path]
        else:
            pair = streams if kind == "streams" else carry[name] if kind == "carry" else batch[name]
            registers[value.name] = getattr(pair, half)
    return registers


def _dead(graph: Graph) -> list[tuple[str, ...]]:
    """By node: values that neither a later node nor the graph's caller reads."""
    kept = {value.name for value in (*graph.carry.values(), *graph.caches.values())}
    kept |= {graph.streams.name} if graph.streams is not None else set()
    last = {value.name: i for i, (_, reads) in enumerate(graph.walk()) for value in reads}
    unread = {value.name: i for i, node in enumerate(graph.nodes) for value in node.outs if value.name not in last}
    ends: list[list[str]] = [[] for _ in graph.nodes]
    for name, i in (last | unread).items():
        if name not in kept:
            ends[i].append(name)
    return [tuple(names) for names in ends]


def _check_alike(name: str, graphs: tuple[Graph, Graph]) -> None:
    """Raises ConfigError unless both graphs call the same operators in the same order."""
    ops = tuple([node.op for node in graph.nodes] for graph in graphs)
    if ops[0] != ops[1]:
        at = next((i for i, pair in enumerate(zip(*ops, strict=False)) if pair[0] != pair[1]), min(map(len, ops)))
        names = [listed[at] if at < len(listed) else "the end" for listed in ops]
        raise ConfigError(
            f"compare model, graph {name!r}: node {at} is {names[0]} on the reference and {names[1]} on the candidate, "
            "expected the same operators in the same order, because they are compared one by one. Open both from one "
            "checkpoint."
        )
