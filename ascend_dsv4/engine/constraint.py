# SPDX-License-Identifier: Apache-2.0
"""What a request's next token may be: the engine's view of a grammar."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class TokenConstraint(Protocol):
    """Moves along with one request's output. Only the engine's thread calls it."""

    def fill(self, bits: np.ndarray) -> bool:
        """Write the tokens that may come next; False, with `bits` untouched, if any may.

        bits   int32 [ceil(vocab_size / 32)]; token i is allowed where bit i % 32 of word i // 32 is set
        """

    def accept(self, token_id: int) -> None:
        """The request's next token is this one."""
