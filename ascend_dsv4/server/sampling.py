# SPDX-License-Identifier: Apache-2.0
"""Sampling parameters of a body, with the server's defaults for what it leaves out."""

from __future__ import annotations

from typing import Any

from ascend_dsv4.config.server_config import ServerConfig
from ascend_dsv4.engine.sampling_params import SamplingParams
from ascend_dsv4.server.bodies import Sampling
from ascend_dsv4.server.errors import HttpError


def sampling_params(
    body: Sampling,
    server: ServerConfig,
    *,
    max_tokens: int,
    logprobs: int | None,
    default_top_p: float | None = None,
    prompt_logprobs: int | None = None,
    stop: tuple[str, ...] = (),
) -> SamplingParams:
    """How the tokens of a request are drawn: as the body says, thinking or not. Raises HttpError, RequestError."""
    n = getattr(body, "n", None) or 1
    if n > server.max_n:
        raise HttpError(
            400, f"n: got {n}, expected at most {server.max_n}, the limit of this server (max_n). Send several requests.",
            param="n", code="invalid_value",
        )  # fmt: skip
    given: dict[str, Any] = {
        name: getattr(body, name)
        for name in (
            "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed",
            "min_tokens", "ignore_eos",
        )
        if getattr(body, name, None) is not None
    }  # fmt: skip
    if "top_p" not in given and default_top_p is not None:
        given["top_p"] = default_top_p
    if body.top_k is not None:
        given["top_k"] = max(body.top_k, 0)
    if body.stop_token_ids:
        given["stop_token_ids"] = tuple(body.stop_token_ids)
    if bias := getattr(body, "logit_bias", None):
        given["logit_bias"] = {int(token): value for token, value in bias.items()}
    return SamplingParams(
        max_tokens=max_tokens, logprobs=logprobs, prompt_logprobs=prompt_logprobs, n=n, stop=stop, **given
    )
