# SPDX-License-Identifier: Apache-2.0
"""One forward pass: batch to device, step tables, embedding, layers, head."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ascend_dsv4.backend.base import Backend, Observer, Plan, Tensor
from ascend_dsv4.config.engine_config import EngineConfig
from ascend_dsv4.config.layers import LayerSpec, layer_specs
from ascend_dsv4.config.model_config import ModelConfig
from ascend_dsv4.engram.hashing import ABSENT, DEAD
from ascend_dsv4.engram.store import EngramStore
from ascend_dsv4.graph.ir import Graph
from ascend_dsv4.graph.tree import leaves
from ascend_dsv4.kv_cache.layout import CachePlan, borrowed_caches, draft_caches
from ascend_dsv4.kv_cache.manager import CacheManager
from ascend_dsv4.model.weights import DSparkWeights, ModelWeights, MtpWeights, PlainMtpWeights
from ascend_dsv4.runner.batch import StepRequest, build_batch, image_batch
from ascend_dsv4.runner.graphs import DSparkGraphs, ModelGraphs, MtpGraphs

LayerTap = Callable[[int, Tensor], None]
"""Called with 0 and the streams after the embedding, then with i + 1 and the streams after layer i."""


class StepWatch(Protocol):
    """Looks into chosen nodes of chosen steps."""

    def observer(self, where: int | str) -> Observer | None:
        """The observer of a layer number, or of "step_tables", "embed", "head"; None where nothing is looked at."""

    def begin(self, requests: Sequence[StepRequest]) -> bool:
        """A step is about to be processed. Returns whether it is to be observed."""

    def end(self) -> None:
        """The observed step is over, or broke off."""


@dataclass(frozen=True, slots=True)
class Forward:
    """What a forward pass returns."""

    logits: Tensor
    """float32 [num_rows, vocab_size] of the rows the requests asked for, in order."""
    streams: Tensor
    """After the last layer, [num_tokens, hc_mult, hidden_size]; rows past the requests' tokens are padding."""
    carry: dict[str, Tensor]
    """What the layers handed on, inputs of the drafter ("tap0", "tap1", …) among it."""


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
        memory: EngramStore | None = None,
    ) -> None:
        self.config = config
        self.engine = engine
        self.plan = plan
        self.graphs = graphs
        self.weights = weights
        self.backend = backend
        self.memory = memory
        self.caches = [{cache.name: backend.zeros(plan.shape(cache), cache.dtype) for cache in layer} for layer in plan.layers]
        self._mtp: list[Plan] = []
        self._dspark: list[Plan] = []
        self._watch: tuple[StepWatch, ModelRunner] | None = None
        self._compile(None)

    def _compile(self, observer: Callable[[int | str], Observer | None] | None) -> None:
        """Bind all graphs; `observer` makes the observer of a layer number, or of "embed", "head", …"""

        def compiled(where: int | str, graph: Graph, weights: Any, caches: dict[str, Tensor]) -> Plan:
            watch = None if observer is None else observer(where)
            return self.backend.compile(graph, leaves(weights), caches, watch)

        graphs, weights = self.graphs, self.weights
        self._tables = compiled("step_tables", graphs.step_tables, weights.rotary, {})
        self._embed = compiled("embed", graphs.embed, weights.embed, {})
        self._layers = [
            compiled(i, graphs.layers[spec], weights.layers[i], self._readable(spec, i))
            for i, spec in enumerate(layer_specs(self.config))
        ]
        self._head = compiled("head", graphs.head, weights.head, {})

    def _readable(self, spec: LayerSpec, layer: int) -> dict[str, Tensor]:
        """A layer's own caches, and those it reads out of its source."""
        if spec.kv_source is None:
            return self.caches[layer]
        source = self.caches[spec.kv_source]
        return self.caches[layer] | {name: source[name] for name in borrowed_caches(spec)}

    def observed(self, observer: Callable[[int | str], Observer | None], engine: EngineConfig) -> ModelRunner:
        """The same weights and caches with plans whose nodes are observed, and other options."""
        twin = copy.copy(self)
        twin.engine = engine
        twin._watch = None
        twin._compile(observer)
        return twin

    def watch(self, watch: StepWatch | None) -> None:
        """Let `watch` look into steps from here on, None for nobody. Others run on the plans they always had."""
        self._watch = None if watch is None else (watch, self.observed(watch.observer, self.engine))

    def run(self, requests: Sequence[StepRequest], manager: CacheManager, tap: LayerTap | None = None) -> Forward:
        """Process a step."""
        if self._watch is None or not self._watch[0].begin(requests):
            return self._run(requests, manager, tap)
        watch, twin = self._watch
        try:
            return twin._run(requests, manager, tap)
        finally:
            watch.end()

    def _run(self, requests: Sequence[StepRequest], manager: CacheManager, tap: LayerTap | None) -> Forward:
        num_tokens = sum(len(request.token_ids) for request in requests)
        return self.forward(self._batch(requests, manager), num_tokens, tap)

    def forward(self, batch: dict[str, Tensor], num_tokens: int, tap: LayerTap | None = None) -> Forward:
        """Process a batch that is on the device and has its step tables.

        The first `num_tokens` rows are tokens, the others padding, which `tap` does not see.
        """
        streams, carry = self._embed(None, {}, batch)
        if tap is not None:
            tap(0, streams[:num_tokens])
        for i, layer in enumerate(self._layers):
            streams, added = layer(streams, carry, batch)
            carry |= added
            if tap is not None:
                tap(i + 1, streams[:num_tokens])
        return Forward(self._head(streams, carry, batch)[0], streams, carry)

    def _batch(self, requests: Sequence[StepRequest], manager: CacheManager, backbone: bool = True) -> dict[str, Tensor]:
        """`backbone`: whether the layers that read memory and images will see it."""
        arrays = build_batch(requests, manager, self.engine.batch_bucket)
        if not backbone:
            batch = {name: self.backend.to_device(array) for name, array in arrays.items()}
            return batch | self._tables(None, {}, batch)[1]
        if self.memory is not None:
            arrays |= self._memory_rows(self.memory, requests, len(arrays["input_ids"]))
        if self.config.image_token_id is not None:
            arrays["is_image"] = (arrays["input_ids"] == self.config.image_token_id).astype(np.int32)
            arrays |= image_batch(requests, self.config.hidden_size)
        batch = {name: self.backend.to_device(array) for name, array in arrays.items()}
        return batch | self._tables(None, {}, batch)[1]

    def _memory_rows(self, memory: EngramStore, requests: Sequence[StepRequest], num_rows: int) -> dict[str, np.ndarray]:
        """engram<n> of the batch: uint8 [num_rows, columns, row_bytes], zero in padding."""
        found = [memory.take((request.request_id, request.start), self._row_ids(memory, request)) for request in requests]
        rows = np.zeros((found[0].shape[1], num_rows, *found[0].shape[2:]), np.uint8)
        np.concatenate([part.swapaxes(0, 1) for part in found], axis=1, out=rows[:, : sum(map(len, found))])
        return {f"engram{i}": layer_rows for i, layer_rows in enumerate(rows)}

    def _row_ids(self, memory: EngramStore, request: StepRequest) -> np.ndarray:
        """Rows that a request's tokens read; those of images have none of their own and end every look back."""
        missing = self.plan.history - len(request.history)
        ids = np.asarray([*[ABSENT] * missing, *request.history, *request.token_ids], np.int32)
        if self.config.image_token_id is not None:
            ids[ids == self.config.image_token_id] = DEAD
        return memory.ids_for(ids[self.plan.history :], ids[: self.plan.history])

    def prefetch(self, request: StepRequest) -> None:
        """Begin to fetch what these tokens will read out of n-gram tables, if the model has any."""
        if self.memory is not None:
            self.memory.prefetch((request.request_id, request.start), self._row_ids(self.memory, request))

    def drop_prefetch(self, request_id: int, start: int) -> None:
        """Forget what was fetched for a step that would have begun at this position."""
        if self.memory is not None:
            self.memory.drop((request_id, start))

    def _draft_caches(self) -> dict[str, Tensor]:
        """New cache tensors for the draft stages."""
        caches = draft_caches(self.config, self.engine)
        return {cache.name: self.backend.zeros(self.plan.shape(cache), cache.dtype) for cache in caches}

    def attach_mtp(self, graphs: MtpGraphs, weights: MtpWeights | PlainMtpWeights) -> None:
        """Make the MTP stage ready to run, and its caches."""
        tensors = self._draft_caches()
        self._mtp = [self.backend.compile(graph, leaves(weights), tensors) for graph in graphs.all()]

    def mtp_input(self, forward: Forward) -> Tensor:
        """What the MTP stage reads of a step, for `run_mtp`."""
        return forward.streams if len(self._mtp) == 1 else self._mtp[0](forward.streams, {}, {})[0]

    def run_mtp(
        self, requests: Sequence[StepRequest], streams: Tensor, rows: Sequence[int], manager: CacheManager
    ) -> Forward:
        """Run the MTP stage behind processed tokens: the logits of position t are for token t + 2.

        requests   positions as in the backbone; `token_ids` are the ids one position on
        streams    `mtp_input` of the step, or streams of this stage in the draft step before; row rows[i] belongs to the
                   i-th token
        """
        batch = self._batch(requests, manager, backbone=False)
        padding = [0] * (batch["input_ids"].shape[0] - len(rows))
        logits, added = self._mtp[-1](streams[[*rows, *padding]], {}, batch)
        return Forward(logits, added["streams"], {})

    def attach_dspark(self, graphs: DSparkGraphs, weights: DSparkWeights) -> None:
        """Make the block drafter ready to run, and its caches."""
        tensors = self._draft_caches()
        self._dspark = [self.backend.compile(graph, leaves(weights), tensors) for graph in graphs.all()]

    def write_dspark_context(
        self, requests: Sequence[StepRequest], forward: Forward, rows: Sequence[int], manager: CacheManager
    ) -> None:
        """Write the drafter's keys of final positions; row rows[i] of the step belongs to the i-th token."""
        batch = self._batch(requests, manager, backbone=False)
        rows = [*rows, *[0] * (batch["input_ids"].shape[0] - len(rows))]
        self._dspark[0](None, {name: taps[rows] for name, taps in forward.carry.items() if name.startswith("tap")}, batch)

    def run_dspark_block(self, requests: Sequence[StepRequest], manager: CacheManager) -> tuple[Tensor, Tensor]:
        """A block of each request through the stages: rows [num_tokens, hidden_size], and their first logits."""
        batch = self._batch(requests, manager, backbone=False)
        ends = np.full(batch["input_ids"].shape[0], -1, np.int32)
        first = 0
        for request in requests:
            ends[first : first + len(request.token_ids)] = request.end - 1
            first += len(request.token_ids)
        rows, added = self._dspark[1](None, {}, batch | {"block_ends": self.backend.to_device(ends)})
        return rows, added["logits"]

    def run_dspark_markov(self, rows: Tensor, logits: Tensor, before: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Logits and confidence of one row per request, `before` being the tokens that stand in front of them."""
        batch = {"input_ids": self.backend.to_device(np.asarray(before, np.int32))}
        corrected, added = self._dspark[2](rows, {"logits": logits}, batch)
        return corrected, added["confidence"]

    def cache_bytes(self) -> int:
        """Bytes of the cache tensors as allocated."""
        return sum(tensor.nbytes for layer in self.caches for tensor in layer.values())
