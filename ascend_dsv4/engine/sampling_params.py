# SPDX-License-Identifier: Apache-2.0
"""How the tokens of a request are drawn, and when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ascend_dsv4.errors import RequestError

MAX_LOGPROBS: Final = 20
MAX_LOGIT_BIAS: Final = 1024
MAX_STOP_IDS: Final = 128
MAX_STOP_STRINGS: Final = 16
MAX_STOP_CHARS: Final = 1024
"""Limits that bound what one request can make every step cost."""

_MAX_INT32: Final = (1 << 31) - 1
_WHOLE: Final = {
    "max_tokens": (0, _MAX_INT32),
    "top_k": (0, _MAX_INT32),
    "seed": (0, (1 << 64) - 1),
    "n": (1, 128),
    "min_tokens": (0, _MAX_INT32),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
}
_OPTIONAL: Final = ("seed", "logprobs", "prompt_logprobs")
_REAL: Final = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repetition_penalty": (1e-30, 100),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}
_NOT_ZERO: Final = ("top_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. Raises RequestError for values out of range.

    A logit is first divided (if positive, else multiplied) by repetition_penalty, then logit_bias is added and the
    presence and frequency penalties are taken off, then temperature, top_k, top_p and min_p apply in that order.
    """

    max_tokens: int = 16
    """Tokens to generate at most; fewer if max_model_len ends the sequence. 0 only processes the prompt."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Factor against tokens of the prompt and of the output; 1 is off."""
    presence_penalty: float = 0.0
    """Taken off the logit of every token that the output holds."""
    frequency_penalty: float = 0.0
    """Taken off the logit of a token for each time the output holds it."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token id → what is added to its logit, -100 to 100."""
    seed: int | None = None
    """Same seed, same prompt, same tokens, whatever else runs. None draws by the engine's seed and the request's number."""
    n: int = 1
    """Completions of the prompt; the first is the one that n = 1 gives."""
    stop: tuple[str, ...] = ()
    """Texts that end the output; it is cut before them."""
    stop_token_ids: tuple[int, ...] = ()
    """Ids that end the text besides the model's own end token; they are part of the output ids, not of the text."""
    ignore_eos: bool = False
    min_tokens: int = 0
    """Tokens before which no end token is drawn and no stop text is heeded."""
    logprobs: int | None = None
    """Alternatives to report per token besides the drawn one: the model's own log-probabilities, before all of the above."""
    prompt_logprobs: int | None = None
    """The same for the tokens of the prompt."""

    def __post_init__(self) -> None:
        for name, (low, high) in _WHOLE.items():
            value = getattr(self, name)
            if not (_is_whole(value) and low <= value <= high) and not (value is None and name in _OPTIONAL):
                raise _out_of_range(name, value, f"a whole number from {low} to {high}")
        for name, limits in _REAL.items():
            value, not_zero = getattr(self, name), name in _NOT_ZERO
            if not _is_real(value, *limits) or (not_zero and value == 0):
                expected = f"a number from {limits[0]} to {limits[1]}{', not 0' if not_zero else ''}"
                raise _out_of_range(name, value, expected)
        self._check_lists()

    def _check_lists(self) -> None:
        ids, stop, bias = self.stop_token_ids, self.stop, self.logit_bias
        whole = isinstance(ids, tuple) and all(_is_whole(token) for token in ids)
        if not whole or len(ids) > MAX_STOP_IDS:
            raise _out_of_range("stop_token_ids", ids, f"a tuple of at most {MAX_STOP_IDS} whole numbers")
        texts = isinstance(stop, tuple) and all(isinstance(text, str) and 0 < len(text) <= MAX_STOP_CHARS for text in stop)
        if not texts or len(stop) > MAX_STOP_STRINGS:
            raise _out_of_range("stop", stop, f"a tuple of at most {MAX_STOP_STRINGS} texts, 1 to {MAX_STOP_CHARS} long")
        pairs = isinstance(bias, Mapping) and all(_is_whole(i) and _is_real(x, -100, 100) for i, x in bias.items())
        if not pairs or len(bias) > MAX_LOGIT_BIAS:
            raise _out_of_range("logit_bias", bias, f"at most {MAX_LOGIT_BIAS} token ids with a number from -100 to 100 each")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: object, low: float, high: float) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and low <= value <= high  # type: ignore[operator]


def _out_of_range(name: str, value: Any, expected: str) -> RequestError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:80]}…"
    return RequestError(f"sampling parameter {name}={shown}: expected {expected}; change it in the request")
