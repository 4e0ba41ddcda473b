# SPDX-License-Identifier: Apache-2.0
"""A request: what was asked, how it is sampled, how far it has come."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ascend_dsv4.errors import RequestError

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. Raises RequestError for values out of range."""

    max_tokens: int = 16
    """Tokens to generate at most; fewer if max_model_len ends the sequence."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    min_p: float = 0.0
    seed: int | None = None
    """Same seed, same prompt, same tokens, whatever else runs. None takes the engine's seed and the request's number."""
    stop_token_ids: tuple[int, ...] = ()
    """Ids that end the text besides the model's own end token; they are part of the output ids, not of the text."""
    ignore_eos: bool = False
    logprobs: int | None = None
    """Alternatives to report per token besides the drawn one."""

    def __post_init__(self) -> None:
        checks = (
            ("max_tokens", self.max_tokens, self.max_tokens >= 1, "at least 1"),
            ("temperature", self.temperature, 0 <= self.temperature <= 100, "between 0 and 100"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k, self.top_k >= 0, "0 (off) or more"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "between 0 and 1"),
            ("logprobs", self.logprobs, self.logprobs is None or 0 <= self.logprobs <= 20, "between 0 and 20"),
        )
        for name, value, ok, expected in checks:
            if not ok or (isinstance(value, float) and math.isnan(value)):
                raise RequestError(f"sampling parameter {name}={value}: expected {expected}; change the request")


@dataclass(slots=True, eq=False)
class Request:
    """One sequence in the engine."""

    request_id: int
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    max_tokens: int
    """Tokens to generate at most; 0 only fills caches and returns logits."""
    seed: int
    chunk_size: int | None = None
    """Tokens of one step at most; None leaves it to the scheduler."""
    keep_logits: bool = False
    """Whether logits of every processed token are kept."""
    num_computed: int = 0
    """Tokens whose keys are in the caches."""
    output_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, float]] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def max_len(self) -> int:
        """Longest this request can become."""
        return len(self.prompt_ids) + self.max_tokens

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    def tokens(self, start: int, end: int) -> list[int]:
        """Token ids of positions start … end − 1."""
        prompt = len(self.prompt_ids)
        return [*self.prompt_ids[start:end], *self.output_ids[max(start - prompt, 0) : max(end - prompt, 0)]]
