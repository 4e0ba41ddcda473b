# SPDX-License-Identifier: Apache-2.0
"""Whether drafting pays for a request, from what became of its drafts.

A draft costs `cost` of a step and saves a whole one if it is accepted, so drafting is a loss while the accepted share is below
`cost`. Then it pauses for some tokens, after which one attempt decides whether it goes on. Nothing is measured in seconds: the
same tokens give the same drafts on every machine, and without drafts that carry distributions no output depends on it anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ROW_COST: Final = 0.05
"""Declared cost of one more row in a decode step: such a step waits for weights, which all rows share."""
WEIGHT: Final = 0.25
"""Of the newest step in the moving average."""
PAUSE: Final = 32
"""Output tokens without drafts before the next attempt."""


@dataclass(slots=True)
class Pace:
    """Of one request."""

    cost: float
    share: float = 1.0
    """Moving average of the share of drafts that were accepted."""
    resume_at: int = 0
    """Output length from which on there are drafts."""

    def allows(self, num_output: int) -> bool:
        """Whether to draft behind this many output tokens."""
        return num_output >= self.resume_at

    def record(self, num_drafted: int, num_accepted: int, num_output: int) -> None:
        """What became of the drafts of a step, after which the output has this many tokens."""
        self.share += (num_accepted / num_drafted - self.share) * WEIGHT
        if self.share < self.cost:
            self.share = self.cost  # so that a single attempt decides
            self.resume_at = num_output + PAUSE
