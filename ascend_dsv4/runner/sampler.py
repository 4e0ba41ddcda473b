# SPDX-License-Identifier: Apache-2.0
"""Token ids from logits, outside the graph. Random numbers depend on the request's seed and the position alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np

from ascend_dsv4.backend.base import Backend, Tensor


class Sampling(Protocol):
    """What the sampler reads of a request's sampling parameters."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def top_p(self) -> float: ...
    @property
    def min_p(self) -> float: ...


@dataclass(frozen=True, slots=True)
class LogitChanges:
    """What requests change about their logits before the draw; see the operator `adjust_logits`."""

    rows: np.ndarray
    ids: np.ndarray
    repetition: np.ndarray
    bias: np.ndarray
    allowed: np.ndarray


def uniforms(seed: tuple[int, int], position: int) -> np.ndarray:
    """The four random numbers of a position, float64 [4]: Philox, keyed by two 64-bit words, counted by the position.

    The first draws the token; the others are for drafts (`spec_decode.verify`). No two positions share a number.
    """
    key = np.asarray(seed, dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=position)).random(4)


def uniform(seed: tuple[int, int], position: int) -> float:
    """The random number that draws the token of a position."""
    return float(uniforms(seed, position)[0])


def sample(
    backend: Backend,
    logits: Tensor,
    params: Sequence[Sampling],
    seeds: Sequence[tuple[int, int]],
    positions: Sequence[int],
    changes: LogitChanges | None = None,
) -> np.ndarray:
    """One id per row, int32; -1 for a row that is not a distribution. `positions` are those of the drawn tokens."""
    columns = (
        np.asarray([p.temperature for p in params], np.float32),
        np.asarray([p.top_k for p in params], np.int32),
        np.asarray([p.top_p for p in params], np.float32),
        np.asarray([p.min_p for p in params], np.float32),
        np.asarray([uniform(*key) for key in zip(seeds, positions, strict=True)], np.float64),
    )
    logits = adjusted(backend, logits, changes)
    ids, _ = backend.bound_ops().sample(logits, *(backend.to_device(column) for column in columns))
    return backend.to_host(ids)


def adjusted(backend: Backend, logits: Tensor, changes: LogitChanges | None) -> Tensor:
    """The logits that tokens are drawn from: a new tensor if there are changes."""
    if changes is None:
        return logits
    given = (backend.to_device(getattr(changes, field.name)) for field in fields(changes))
    return backend.bound_ops().adjust_logits(logits, *given)
