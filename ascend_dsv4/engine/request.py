# SPDX-License-Identifier: Apache-2.0
"""A request: what was asked, how it is sampled, how far it has come."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ascend_dsv4.config.model_config import ModelConfig
from ascend_dsv4.errors import RequestError

FinishReason = Literal["stop", "length", "abort", "error"]

_MAX_INT32 = (1 << 31) - 1


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
    """Same seed, same prompt, same tokens, whatever else runs. None draws by the engine's seed and the request's number."""
    stop_token_ids: tuple[int, ...] = ()
    """Ids that end the text besides the model's own end token; they are part of the output ids, not of the text."""
    ignore_eos: bool = False
    logprobs: int | None = None
    """Alternatives to report per token besides the drawn one."""

    def __post_init__(self) -> None:
        whole = {"max_tokens": (1, _MAX_INT32), "top_k": (0, _MAX_INT32), "seed": (0, (1 << 64) - 1), "logprobs": (0, 20)}
        for name, (low, high) in whole.items():
            value = getattr(self, name)
            if not (_is_whole(value) and low <= value <= high) and not (value is None and name in ("seed", "logprobs")):
                raise _out_of_range(name, value, f"a whole number from {low} to {high}")
        real = {"temperature": (0, 100), "top_p": (0, 1), "min_p": (0, 1)}
        for name, (low, high) in real.items():
            value = getattr(self, name)
            number = _is_whole(value) or isinstance(value, float)
            if not (number and low <= value <= high) or (name == "top_p" and value == 0):
                raise _out_of_range(name, value, f"a number from {low} to {high}{', not 0' if name == 'top_p' else ''}")
        for token in self.stop_token_ids:
            if not _is_whole(token):
                raise _out_of_range("stop_token_ids", token, "whole numbers")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _out_of_range(name: str, value: object, expected: str) -> RequestError:
    return RequestError(f"sampling parameter {name}={value!r}: expected {expected}; change it in the request")


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
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    max_tokens: int
    """Tokens to generate at most; 0 for a request that only processes its prompt."""
    seed: tuple[int, int]
    """Key of the request's random numbers."""
    chunk_size: int | None = None
    """Tokens of one step at most; None leaves it to the scheduler."""
    keep_logits: bool = False
    """Whether logits of every processed token are kept."""
    num_computed: int = 0
    """Tokens whose keys are in the caches."""
    last_step: int = -1
    """Number of the step that last processed a token of this request."""
    output_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, float]] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: str | None = None
    """What went wrong, with finish_reason "error"."""

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
