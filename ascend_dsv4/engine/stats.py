# SPDX-License-Identifier: Apache-2.0
"""What an engine has done so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from ascend_dsv4.config.engine_config import MAX_DRAFTS


@dataclass(slots=True)
class EngineStats:
    """Totals since the engine was made; another thread may read them at any time."""

    num_steps: int = 0
    num_prompt_tokens: int = 0
    """Processed; a recomputation after preemption does not count again."""
    num_output_tokens: int = 0
    num_preemptions: int = 0
    num_dropped_tokens: int = 0
    """In the caches of preempted requests, to be recomputed."""
    num_drafts: int = 0
    """Times that drafts of a request were verified."""
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_accepted_at: list[int] = field(default_factory=lambda: [0] * MAX_DRAFTS)
    """How often the first, second, … draft was accepted."""
