# SPDX-License-Identifier: Apache-2.0
"""A request: what was asked, how far it has come, what it has produced."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ascend_dsv4.config.model_config import ModelConfig
from ascend_dsv4.engine.constraint import TokenConstraint
from ascend_dsv4.engine.sampling_params import SamplingParams
from ascend_dsv4.errors import RequestError
from ascend_dsv4.runner.batch import PlacedRows
from ascend_dsv4.spec_decode.draft import Draft
from ascend_dsv4.spec_decode.pace import Pace

FinishReason = Literal["stop", "length", "abort", "timeout", "error"]
"""An end token or text; max_tokens or max_model_len; given up by whoever asked; its deadline; see `Request.error`."""

Logprobs = dict[int, float]
"""Token id → log-probability, the token that stands in the text first."""


def as_token_ids(prompt: Iterable[Any]) -> tuple[int, ...]:
    """Ids of any integer type as Python integers. Raises RequestError for anything that is not an integer."""
    try:
        return tuple(operator.index(token) for token in prompt)
    except TypeError:
        raise RequestError(
            f"prompt of type {type(prompt).__name__}: expected whole-number token ids, and nothing else is an id. "
            "Send text, or the tokenizer's ids."
        ) from None


def check_prompt(prompt: Iterable[Any], config: ModelConfig, max_model_len: int) -> tuple[int, ...]:
    """The ids of a prompt. Raises RequestError if the model cannot process them."""
    prompt_ids = as_token_ids(prompt)
    if not prompt_ids:
        raise RequestError("the prompt is empty: got 0 token ids, expected at least 1. Send text or token ids.")
    if len(prompt_ids) > max_model_len:
        raise RequestError(
            f"prompt of {len(prompt_ids)} tokens is longer than max_model_len={max_model_len}; shorten it, or start with a "
            f"larger max_model_len (the model allows {config.max_position_embeddings})."
        )
    for position, token in enumerate(prompt_ids):
        if not 0 <= token < config.vocab_size:
            raise RequestError(
                f"token id {token} at position {position} is outside the vocabulary of {config.vocab_size} ids; "
                "check that prompt and model use the same tokenizer."
            )
    return prompt_ids


@dataclass(slots=True, eq=False)
class Request:
    """One sequence in the engine."""

    request_id: int
    """Ascends in order of arrival."""
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    max_tokens: int
    """Tokens to generate at most; 0 for a request that only processes its prompt."""
    seed: tuple[int, int]
    """Key of the request's random numbers."""
    end_ids: frozenset[int]
    """Ids that end the output."""
    deadline: float | None = None
    """When to give up, on the engine's clock, in seconds."""
    constraint: TokenConstraint | None = None
    chunk_size: int | None = None
    """Tokens of one step at most; None leaves it to the scheduler."""
    keep_logits: bool = False
    """Whether logits of every processed token are kept."""
    images: tuple[PlacedRows, ...] = ()
    """What stands in the place of the prompt's image tokens."""
    num_computed: int = 0
    """Tokens whose keys are in the caches; back to 0 when preempted."""
    num_prefilled: int = 0
    """Prompt tokens processed at least once; their logits are not asked for again after preemption."""
    last_step: int = -1
    """Number of the step that last processed a token of this request, or after which it was admitted."""
    draft: Draft | None = None
    """Guesses for the tokens after the last one, for the next step to verify."""
    pace: Pace | None = None
    """Whether drafting pays; made with the first draft."""
    output_ids: list[int] = field(default_factory=list)
    output_counts: Counter[int] = field(default_factory=Counter)
    prompt_set: np.ndarray | None = None
    """The different ids of the prompt, ascending; made when first needed."""
    logprobs: list[Logprobs] = field(default_factory=list)
    """One per output token, if asked for."""
    prompt_logprobs: list[Logprobs | None] = field(default_factory=list)
    """One per prompt token, if asked for; None for the first, which nothing predicts."""
    logits: list[np.ndarray] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: str | None = None
    """What went wrong, with finish_reason "error" or "timeout"."""

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def num_whole_drafts(self) -> int:
        """Drafts that a step has to take all or none of; see `Draft.probs`."""
        return 0 if self.draft is None or self.draft.probs is None else len(self.draft.ids)

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def is_scored(self) -> bool:
        """Whether logits of prompt tokens are wanted."""
        return self.keep_logits or self.params.prompt_logprobs is not None

    @property
    def logits_from(self) -> int:
        """Position from which on the logits of processed tokens are wanted."""
        last = self.num_tokens - 1 if self.max_tokens else self.num_tokens
        return min(self.num_prefilled, last) if self.is_scored and self.num_prefilled < len(self.prompt_ids) else last

    def tokens(self, start: int, end: int) -> list[int]:
        """Token ids of positions start … end − 1."""
        prompt = len(self.prompt_ids)
        return [*self.prompt_ids[start:end], *self.output_ids[max(start - prompt, 0) : max(end - prompt, 0)]]
