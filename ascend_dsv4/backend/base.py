# SPDX-License-Identifier: Apache-2.0
"""What the runner needs from a framework and device. Ten methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from ascend_dsv4.graph.ir import Graph, Node
from ascend_dsv4.ops.registry import BoundOps

Tensor = Any
"""A tensor of whichever framework the backend uses."""

RunNode = Callable[..., tuple[Tensor, ...]]
"""Called with a node's tensor arguments in contract order, None for one left out; returns the results, () if it only writes."""

Observer = Callable[[Node, tuple[Tensor, ...], RunNode], tuple[Tensor, ...]]
"""Called in place of every node with the node, its tensor arguments and what runs it; returns the node's results. So it sees
written arguments before and after, and may run the node on others or not at all."""


class Plan(Protocol):
    """A compiled graph, bound to its weights and caches."""

    def __call__(
        self, streams: Tensor | None, carry: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Streams (None for a graph without), and what the graph adds to the carry or replaces in it."""
        ...


class Backend(Protocol):
    """A framework and device. dtype names are those of `ops.spec`."""

    name: str

    def parameter(self, name: str, dtype: str, shape: tuple[int, ...], data: np.ndarray) -> Tensor:
        """Host bytes (a C-contiguous array of the stored bits) as a resident weight. May share memory with `data`."""

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        """Memory for a cache."""

    def to_device(self, array: np.ndarray) -> Tensor:
        """A host array as a tensor."""

    def to_host(self, tensor: Tensor) -> np.ndarray:
        """A tensor as a host array (bfloat16 as float32); waits for it."""

    def memory(self) -> tuple[int, int]:
        """Free and total bytes."""

    def compile(
        self, graph: Graph, weights: Mapping[str, Tensor], caches: Mapping[str, Tensor], observer: Observer | None = None
    ) -> Plan:
        """Bind a graph to weights (by path inside `w`) and caches (by name)."""

    def capture(self, function: Callable[[], Tensor], static_inputs: Mapping[str, Tensor]) -> Callable[[], Tensor]:
        """Record a decode step for replay. Raises UnsupportedError where the device cannot."""

    def synchronize(self) -> None:
        """Wait for the device."""

    def init_parallel(self, rank: int, world_size: int) -> None:
        """Join the process group. Raises UnsupportedError where the backend runs in one process only."""

    def bound_ops(self) -> BoundOps:
        """The operators this backend resolved at start-up."""
