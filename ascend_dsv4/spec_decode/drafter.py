# SPDX-License-Identifier: Apache-2.0
"""What guesses tokens ahead, and what it sees of a step and of a request.

After the draw of a step and before its window blocks go back, `observe` is told which positions are final; a drafter with
caches of its own writes them here, from the model's states and never from its own guesses. Then `propose` is asked for
drafts of the requests that will go on. The next step processes them behind the last token; what the model accepts is
final and comes back with the next `observe`, the rest is overwritten later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ascend_dsv4.backend.base import Tensor
from ascend_dsv4.kv_cache.manager import CacheManager
from ascend_dsv4.runner.runner import Forward
from ascend_dsv4.spec_decode.draft import Draft


class DraftRequest(Protocol):
    """What a drafter reads of a request."""

    @property
    def request_id(self) -> int: ...
    @property
    def num_tokens(self) -> int:
        """Prompt and output together; the last one is not processed yet."""

    def tokens(self, start: int, end: int) -> list[int]:
        """Token ids of positions start … end − 1."""


@dataclass(frozen=True, slots=True)
class Committed:
    """Rows of one request that a step has made final."""

    request: DraftRequest
    first_row: int
    """Row of the step's batch that holds the first of them; the others follow."""
    start: int
    """Position of the first."""
    count: int

    @property
    def end(self) -> int:
        """Position after the last."""
        return self.start + self.count


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request that may be drafted for, and how far."""

    request: DraftRequest
    num_drafts: int


Draw = Callable[[Tensor, Sequence[Any], Sequence[Sequence[int]]], np.ndarray]
"""draw(logits, requests, ahead) → ids: one token per row of logits, int32, -1 where a row is no distribution.

It draws as the model's own token of that position will be drawn: with the request's temperature, filters, penalties and
random number, taking the ids in `ahead` as drawn already. The better the logits, the more often it is that very token.
"""


class Drafter(Protocol):
    """See the module. One engine's thread calls it."""

    cost: float
    """What one draft adds to the time of a step, its check included, as a share of a step without drafts."""

    def observe(self, forward: Forward, rows: Sequence[Committed], manager: CacheManager) -> None:
        """These rows of a step are final. `request` already has the tokens that were drawn from them."""

    def propose(self, wanted: Sequence[Wanted], manager: CacheManager, draw: Draw) -> list[Draft]:
        """A draft each, of at most num_drafts ids, possibly none. Called after the `observe` of the same step."""

    def forget(self, request_id: int) -> None:
        """The request has ended."""
