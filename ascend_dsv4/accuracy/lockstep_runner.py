# SPDX-License-Identifier: Apache-2.0
"""A `ModelRunner` over two others in step. Engine and scheduler drive it as any other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from ascend_dsv4.accuracy.lockstep import Array, Clock, LockstepBackend, LockstepPlan, Override, Pair, Watch, label
from ascend_dsv4.backend.base import Observer
from ascend_dsv4.config.layers import LayerSpec, layer_specs
from ascend_dsv4.errors import ConfigError
from ascend_dsv4.graph.ir import BUILTINS, Graph
from ascend_dsv4.graph.tree import leaves
from ascend_dsv4.kv_cache.manager import CacheManager
from ascend_dsv4.ops import OP_NAMES
from ascend_dsv4.runner.batch import StepRequest
from ascend_dsv4.runner.runner import Forward, LayerTap, ModelRunner


class LockstepRunner(ModelRunner):
    """A runner over two others, which keep their weights; caches are new.

    reference, candidate   of one model, with caches of the same sizes
    overrides              functions in the place of the candidate's operators; the last one that fits counts
    watch                  sees every node
    take                   gets the logits of every step, of both
    shows                  whose half the engine sees; the reference's operators draw from either

    Raises ConfigError if the two cannot be compared, or if nothing could differ.
    """

    def __init__(
        self,
        reference: ModelRunner,
        candidate: ModelRunner,
        overrides: Sequence[Override] = (),
        watch: Watch | None = None,
        take: Callable[[Array, Array], None] | None = None,
        shows: Literal["reference", "candidate"] = "reference",
    ) -> None:
        check_comparable(reference, candidate, overrides)
        self.sides = reference, candidate
        self.config = reference.config
        self.engine = reference.engine
        self.plan = reference.plan
        self.graphs = reference.graphs
        self.weights = reference.weights
        self.memory = reference.memory
        self.lockstep = LockstepBackend(reference.backend, candidate.backend, shows)
        self.backend = self.lockstep
        self.caches = [
            {a.name: Pair(reference.backend.zeros(reference.plan.shape(a), a.dtype),
                          candidate.backend.zeros(candidate.plan.shape(b), b.dtype))
             for a, b in zip(*layers, strict=True)}
            for layers in zip(reference.plan.layers, candidate.plan.layers, strict=True)
        ]  # fmt: skip
        self._mtp, self._dspark = [], []
        self._overrides = tuple(overrides)
        self._watch = None  # what a runner lets look into its steps; nodes are shown to _sees
        self._sees = watch
        self._take = take
        self.clock = Clock()
        self._compile(None)

    def _compile(self, observer: Callable[[int | str], Observer | None] | None) -> None:
        def compiled(
            name: str, layer: int | None, graph: Callable[[ModelRunner], Graph], weights: Callable[[ModelRunner], Any],
            caches: Mapping[str, Pair],
        ) -> LockstepPlan:  # fmt: skip
            constants = []
            for side, half in zip(self.sides, ("reference", "candidate"), strict=True):
                named = {f"w.{path}" if path else "w": tensor for path, tensor in leaves(weights(side)).items()}
                constants.append(named | {f"caches.{name}": getattr(pair, half) for name, pair in caches.items()})
            graphs = graph(self.sides[0]), graph(self.sides[1])
            return LockstepPlan(self.lockstep, name, layer, graphs, (constants[0], constants[1]), self._overrides, self._sees,
                                self.clock)  # fmt: skip

        self._tables = compiled("step_tables", None, lambda r: r.graphs.step_tables, lambda r: r.weights.rotary, {})
        self._embed = compiled("embed", None, lambda r: r.graphs.embed, lambda r: r.weights.embed, {})
        self._layers = [
            compiled(f"layer{i}", i, partial(_layer_graph, spec), partial(_layer_weights, i), self._readable(spec, i))
            for i, spec in enumerate(layer_specs(self.config))
        ]
        self._head = compiled("head", None, lambda r: r.graphs.head, lambda r: r.weights.head, {})

    def run(self, requests: Sequence[StepRequest], manager: CacheManager, tap: LayerTap | None = None) -> Forward:
        self.clock.step += 1
        forward = super().run(requests, manager, tap)
        if self._take is not None:
            reference, candidate = self.sides
            self._take(reference.backend.to_host(forward.logits.reference),
                       candidate.backend.to_host(forward.logits.candidate))  # fmt: skip
        return forward


def _layer_graph(spec: LayerSpec, runner: ModelRunner) -> Graph:
    return runner.graphs.layers[spec]


def _layer_weights(layer: int, runner: ModelRunner) -> Any:
    return runner.weights.layers[layer]


def node_names(runner: ModelRunner) -> list[str]:
    """Every operator call of the model in order, as layer3/hc_pre.0."""
    places = runner.graphs.by_place(runner.config)
    named = {f"layer{place}" if isinstance(place, int) else place: graph for place, graph in places.items()}
    return [f"{name}/{label(node)}" for name, graph in named.items() for node in graph.nodes if node.op not in BUILTINS]


def check_comparable(reference: ModelRunner, candidate: ModelRunner, overrides: Sequence[Override] = ()) -> None:
    """Raises ConfigError for two models that cannot be compared, or two sides that compute the very same thing."""
    plans = [replace(side.plan, layers=()) for side in (reference, candidate)]
    if reference.config != candidate.config or plans[0] != plans[1]:
        raise ConfigError(
            "compare model: the sides have different models or cache sizes, expected one checkpoint and equal max_model_len, "
            "max_num_seqs, max_num_batched_tokens and block sizes, because both walk through the same tokens and blocks. Open "
            "both with the same options but for backend, ops, dtype, weights, kv_cache and cache_rounding."
        )
    count = reference.config.num_hidden_layers
    for override in overrides:
        if beyond := [layer for layer in override.layers or () if layer >= count]:
            raise ConfigError(
                f"compare model: override of {override.op} in layer {beyond[0]}, expected a layer below {count}, because the "
                "model has no more. Name another layer, or none for all."
            )
    _check_called(reference, overrides)
    bound = reference.backend.bound_ops().functions
    if same := [override.op for override in overrides if bound.get(override.op) is override.function]:
        raise ConfigError(
            f"compare model: the override of {same[0]} is the function that the reference runs; expected another, because a "
            "comparison of a function with itself always passes. Name your own function."
        )
    if not overrides and _description(reference) == _description(candidate):
        raise ConfigError(
            "compare model: same function on both sides: backend, operators and number formats are all equal, expected a "
            "difference, because a comparison of a thing with itself always passes. Choose another op set, backend, dtype or "
            "weights for the candidate, or override an operator."
        )


def _check_called(runner: ModelRunner, overrides: Sequence[Override]) -> None:
    """Raises ConfigError for an override that a step never calls, or not in every layer that it names."""
    places = runner.graphs.by_place(runner.config)
    for override in overrides:
        holders = [where for where, graph in places.items() if any(node.op == override.op for node in graph.nodes)]
        idle = sorted((override.layers or frozenset()) - set(holders))
        if idle or not holders:
            called = sorted({node.op for graph in places.values() for node in graph.nodes} - set(BUILTINS))
            where = f"only these do: {', '.join(map(str, holders))}" if holders else f"its steps call {', '.join(called)}"
            raise ConfigError(
                f"compare model: override of {override.op}: "
                f"{f'layer {idle[0]} does' if idle else 'this model does'} not call it, expected an operator that is called, "
                f"because nothing would be replaced and both sides would agree; {where}. Choose among them."
            )


def _description(runner: ModelRunner) -> tuple[Any, ...]:
    """What can make two runs of one model differ."""
    engine = runner.engine
    functions = runner.backend.bound_ops().functions
    implementations = tuple(functions.get(name) for name in OP_NAMES)
    return (runner.backend.name, implementations, engine.dtype, engine.weights, engine.kv_cache, engine.cache_rounding)
