# SPDX-License-Identifier: Apache-2.0
"""One forward pass: batch to device, step tables, embedding, layers, head."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ascend_dsv4.backend.base import Backend, Observer, Plan, Tensor
from ascend_dsv4.config.engine_config import EngineConfig
from ascend_dsv4.config.layers import layer_specs
from ascend_dsv4.config.model_config import ModelConfig
from ascend_dsv4.graph.ir import Graph
from ascend_dsv4.graph.tree import leaves
from ascend_dsv4.kv_cache.layout import CachePlan, draft_cache
from ascend_dsv4.kv_cache.manager import CacheManager
from ascend_dsv4.model.deepseek_v4 import step_table_names
from ascend_dsv4.model.weights import ModelWeights, MtpWeights
from ascend_dsv4.runner.batch import StepRequest, build_batch
from ascend_dsv4.runner.graphs import ModelGraphs

LayerTap = Callable[[int, Tensor], None]
"""Called with 0 and the streams after the embedding, then with i + 1 and the streams after layer i."""


@dataclass(frozen=True, slots=True)
class Forward:
    """What a forward pass returns."""

    logits: Tensor
    """float32 [num_rows, vocab_size] of the rows the requests asked for, in order."""
    streams: Tensor
    """After the last layer, [num_tokens, hc_mult, hidden_size]; rows past the requests' tokens are padding."""


class ModelRunner:
    """Compiled plans over weights and caches. `weights` is the parameter tree with tensors as leaves."""

    def __init__(
        self,
        config: ModelConfig,
        engine: EngineConfig,
        plan: CachePlan,
        graphs: ModelGraphs,
        weights: ModelWeights,
        backend: Backend,
    ) -> None:
        self.config = config
        self.engine = engine
        self.plan = plan
        self.graphs = graphs
        self.weights = weights
        self.backend = backend
        self.caches = [{cache.name: backend.zeros(plan.shape(cache), cache.dtype) for cache in layer} for layer in plan.layers]
        self._table_names = step_table_names(config)
        self._mtp: Plan | None = None
        self._compile(None)

    def _compile(self, observer: Callable[[int | str], Observer] | None) -> None:
        """Bind all graphs; `observer` makes the observer of a layer number, or of "embed", "head", …"""

        def compiled(where: int | str, graph: Graph, weights: Any, caches: dict[str, Tensor]) -> Plan:
            watch = None if observer is None else observer(where)
            return self.backend.compile(graph, leaves(weights), caches, watch)

        graphs, weights = self.graphs, self.weights
        self._tables = compiled("step_tables", graphs.step_tables, weights.rotary, {})
        self._embed = compiled("embed", graphs.embed, weights.embed, {})
        self._layers = [
            compiled(i, graphs.layers[spec], weights.layers[i], self.caches[i])
            for i, spec in enumerate(layer_specs(self.config))
        ]
        self._head = compiled("head", graphs.head, weights.head, {})

    def observed(self, observer: Callable[[int | str], Observer], engine: EngineConfig) -> ModelRunner:
        """The same weights and caches with plans that report every node, and other options."""
        twin = copy.copy(self)
        twin.engine = engine
        twin._compile(observer)
        return twin

    def run(self, requests: Sequence[StepRequest], manager: CacheManager, tap: LayerTap | None = None) -> Forward:
        """Process a step."""
        num_tokens = sum(len(request.token_ids) for request in requests)
        return Forward(*self.forward(self._batch(requests, manager), num_tokens, tap))

    def forward(
        self, batch: dict[str, Tensor], num_tokens: int, tap: LayerTap | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits, and the streams after the last layer, of a batch that is on the device and has its step tables.

        The first `num_tokens` rows are tokens, the others padding, which `tap` does not see.
        """
        streams, carry = self._embed(None, (), batch)
        if tap is not None:
            tap(0, streams[:num_tokens])
        for i, layer in enumerate(self._layers):
            streams, carry = layer(streams, carry, batch)
            if tap is not None:
                tap(i + 1, streams[:num_tokens])
        return self._head(streams, carry, batch)[0], streams

    def _batch(self, requests: Sequence[StepRequest], manager: CacheManager) -> dict[str, Tensor]:
        arrays = build_batch(requests, manager, self.engine.batch_bucket)
        batch = {name: self.backend.to_device(array) for name, array in arrays.items()}
        tables = self._tables(None, (), batch)[1]
        return batch | dict(zip(self._table_names, tables, strict=True))

    def attach_mtp(self, graph: Graph, weights: MtpWeights) -> None:
        """Make the MTP stage ready to run, and its cache."""
        cache = draft_cache(self.config, self.engine)
        draft_kv = self.backend.zeros(self.plan.shape(cache), cache.dtype)
        self._mtp = self.backend.compile(graph, leaves(weights), {"win_kv": draft_kv})

    def run_mtp(
        self, requests: Sequence[StepRequest], streams: Tensor, rows: Sequence[int], manager: CacheManager
    ) -> Forward:
        """Run the MTP stage behind processed tokens: the logits of position t are for token t + 2.

        requests   positions as in the backbone; `token_ids` are the ids one position on
        streams    of the backbone, or of this stage in the draft step before; row rows[i] belongs to the i-th token
        """
        assert self._mtp is not None, "attach_mtp comes first"
        batch = self._batch(requests, manager)
        padding = [0] * (batch["input_ids"].shape[0] - len(rows))
        logits, (own,) = self._mtp(streams[[*rows, *padding]], (), batch)
        return Forward(logits, own)

    def cache_bytes(self) -> int:
        """Bytes of the cache tensors as allocated."""
        return sum(tensor.nbytes for layer in self.caches for tensor in layer.values())
