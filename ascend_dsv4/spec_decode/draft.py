# SPDX-License-Identifier: Apache-2.0
"""What a drafter returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Draft:
    """Guesses for the tokens that follow a request's last one."""

    ids: tuple[int, ...]
    probs: np.ndarray | None = None
    """float64 [len(ids), vocab_size]: the distributions the ids were drawn from, for rejection sampling; see `verify`.

    None for ids that are what they are, which are compared with what the model draws. Such drafts may be shortened, and the
    output is that of a run without drafts, to the bit. Drafts with distributions are verified whole or wait: the output has
    the model's distribution, and is the same however steps are scheduled, but not the one of a run without drafts.
    """
