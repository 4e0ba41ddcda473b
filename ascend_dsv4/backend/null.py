# SPDX-License-Identifier: Apache-2.0
"""A backend that computes nothing: engine and scheduler are tested on it without a model.

Logits are one-hot: the row of a request whose last known token is t asks for token t + 1 (mod vocab_size).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ascend_dsv4.backend.base import Observer
from ascend_dsv4.errors import UnsupportedError
from ascend_dsv4.graph.ir import Graph
from ascend_dsv4.ops import OP_NAMES
from ascend_dsv4.ops.adjust_logits import check_mask
from ascend_dsv4.ops.registry import BoundOps


class NullPlan:
    """Passes streams and carry through; a graph that ends in `logits` produces them."""

    def __init__(self, graph: Graph) -> None:
        self._carry = dict.fromkeys(graph.carry, np.zeros(0, np.float32))
        last = graph.nodes[-1]
        self._vocab_size = int(last.outs[0].type.shape[-1]) if last.op == "logits" else None

    def __call__(
        self, streams: np.ndarray | None, carry: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
        if self._vocab_size is None:
            return batch["input_ids"], self._carry
        ids = batch["input_ids"][batch["logits_rows"]]
        logits = np.zeros((len(ids), self._vocab_size), np.float32)
        logits[np.arange(len(ids)), (ids + 1) % self._vocab_size] = 1
        return logits, {}


def _greedy(logits: np.ndarray, *_: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return logits.argmax(-1).astype(np.int32), np.zeros(len(logits), np.float32)


def _adjust_logits(
    logits: np.ndarray, rows: np.ndarray, ids: np.ndarray, repetition: np.ndarray, bias: np.ndarray, allowed: np.ndarray
) -> np.ndarray:
    check_mask(logits.shape, allowed.shape)
    y = logits.copy()
    kept, tokens = rows >= 0, np.arange(logits.shape[1])
    at, penalty = (rows[kept], ids[kept]), repetition[kept]
    with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN are results of the contract
        y[at] = np.where(y[at] > 0, y[at] / penalty, y[at] * penalty) + bias[kept]
        y[(allowed[:, tokens // 32] >> (tokens % 32) & 1) == 0] -= np.inf
    return y


class NullBackend:
    """See `backend.base.Backend`. Parameters and caches have a type but no memory."""

    name = "null"

    def parameter(self, name: str, dtype: str, shape: tuple[int, ...], data: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.zeros((), np.uint8), shape)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.broadcast_to(np.zeros((), np.uint8), shape)

    def to_device(self, array: np.ndarray) -> np.ndarray:
        return array

    def to_host(self, tensor: np.ndarray) -> np.ndarray:
        return tensor

    def memory(self) -> tuple[int, int]:
        return 0, 0

    def compile(
        self,
        graph: Graph,
        weights: Mapping[str, np.ndarray],
        caches: Mapping[str, np.ndarray],
        observer: Observer | None = None,
    ) -> NullPlan:
        return NullPlan(graph)

    def capture(self, function: Callable[[], np.ndarray], static_inputs: Mapping[str, np.ndarray]) -> Callable[[], np.ndarray]:
        raise UnsupportedError("backend 'null' has nothing to capture")

    def synchronize(self) -> None:
        """Nothing runs."""

    def init_parallel(self, rank: int, world_size: int) -> None:
        """Nothing to join."""

    def bound_ops(self) -> BoundOps:
        functions = {"adjust_logits": _adjust_logits, "sample": _greedy}
        return BoundOps(functions, dict.fromkeys(OP_NAMES, "null"))
