# SPDX-License-Identifier: Apache-2.0
"""Completions: prompts as they stand, text or token ids, one or many."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from ascend_dsv4.engine.engine import Output
from ascend_dsv4.engine.request import Logprobs
from ascend_dsv4.engine.sampling_params import SamplingParams
from ascend_dsv4.errors import AscendDsv4Error
from ascend_dsv4.server.bodies import CompletionBody
from ascend_dsv4.server.dialog import Event, JsonObject
from ascend_dsv4.server.errors import HttpError, as_http_error
from ascend_dsv4.server.logs import log_prompt
from ascend_dsv4.server.sampling import sampling_params
from ascend_dsv4.server.service import Generation, Prompt, Service
from ascend_dsv4.server.transport import (
    KEEP_ALIVE,
    EventStream,
    encode_event,
    parse_body,
    read_body,
    until_disconnect,
)
from ascend_dsv4.tokenizer import CompletionText, Tokenizer

DEFAULT_MAX_TOKENS = 16
"""As in the OpenAI API."""
MAX_PROMPTS = 256
"""Of one request."""


class Completions:
    """The route of the Completions protocol."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def completions(self, request: Request) -> Response:
        data = await read_body(request, self._service.server.max_body_bytes)
        body, prompts = await asyncio.to_thread(self._open, data)
        for prompt in prompts:
            log_prompt(prompt.token_ids)
        is_stream = bool(body.stream)
        request.state.log = {"prompt_tokens": sum(len(prompt.token_ids) for prompt in prompts), "stream": is_stream}
        run = _Run(self._service, body, prompts)
        if is_stream:
            return await EventStream.opened(run.stream())
        return JSONResponse(await until_disconnect(request, run.whole()))

    def _open(self, data: bytes) -> tuple[CompletionBody, list[Prompt]]:
        body, _ = parse_body(data, CompletionBody)
        self._service.check_model(body.model)
        if body.stream_options is not None and not body.stream:
            raise HttpError(400, "stream_options: only a stream has any. Set stream or leave it out.", param="stream_options")
        stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        if stop:
            self._service.text_tokenizer()
        prompts = self._token_ids(body.prompt)
        # Scores of the prompt are part of the answer only if the prompt is.
        prompt_logprobs = body.logprobs if body.echo else None
        return body, [
            Prompt(
                ids,
                sampling_params(
                    body, self._service.server, max_tokens=self._max_tokens(body, ids), logprobs=body.logprobs,
                    prompt_logprobs=prompt_logprobs, stop=stop,
                ),
            )
            for ids in prompts
        ]  # fmt: skip

    def _max_tokens(self, body: CompletionBody, prompt_ids: Sequence[int]) -> int:
        limit, length = self._service.max_model_len, len(prompt_ids)
        if body.max_tokens is None:
            return min(self._service.server.default_max_tokens or DEFAULT_MAX_TOKENS, max(limit - length, 1))
        if length + body.max_tokens > limit:
            raise HttpError(
                400, f"the prompt has {length} tokens and max_tokens={body.max_tokens}, but max_model_len={limit}. Shorten the "
                "prompt or ask for fewer tokens.", code="context_length_exceeded",
            )  # fmt: skip
        return body.max_tokens

    def _token_ids(self, prompt: str | list[str] | list[int] | list[list[int]]) -> list[Sequence[int]]:
        if isinstance(prompt, str):
            prompts: list[Any] = [prompt]
        else:
            prompts = [prompt] if isinstance(prompt[0], int) else list(prompt)
        if len(prompts) > MAX_PROMPTS:
            raise HttpError(
                400, f"prompt: got {len(prompts)} prompts, expected at most {MAX_PROMPTS}. Send more requests.", param="prompt"
            )
        for one in prompts:
            if isinstance(one, str):
                self._service.check_length(one)
        return [self._service.text_tokenizer().encode(one) if isinstance(one, str) else one for one in prompts]


class _Choice:
    """One completion while it grows."""

    def __init__(self, index: int, prompt_ids: Sequence[int], params: SamplingParams, tokenizer: Tokenizer | None) -> None:
        self.index = index
        self.params = params
        self.prompt_ids = prompt_ids
        self.tokenizer = tokenizer
        self.text: CompletionText | None = None
        self.finish_reason: str | None = None
        self.num_tokens = 0
        self.offset = 0
        """Characters of the prompt and of the text before the next token."""

    def begin(self, end_ids: frozenset[int]) -> None:
        if self.tokenizer is not None:
            self.text = CompletionText(
                self.tokenizer, stop=self.params.stop, end_ids=end_ids, min_tokens=self.params.min_tokens
            )

    def advance(self, output: Output, generation: Generation) -> str:
        """New text; a stop text ends the request."""
        new = self.text.push(output.token_ids) if self.text is not None else ""
        self.num_tokens += len(output.token_ids)
        if self.text is not None and self.text.has_stopped:
            generation.stop(output.request)
            self.finish_reason = "stop"
        elif output.finish_reason is not None:
            self.finish_reason = output.finish_reason
            new += self.text.finish() if self.text is not None else ""
        return new

    def spelled(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self.tokenizer is None else self.tokenizer.decode([token_id])

    def scores(self, token_ids: Sequence[int], logprobs: Sequence[Logprobs | None]) -> JsonObject:
        """The `logprobs` object of these tokens."""
        result: JsonObject = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token_id, row in zip(token_ids, logprobs, strict=True):
            text = self.spelled(token_id)
            best = None if row is None else {self.spelled(other): value for other, value in row.items()}
            result["tokens"].append(text)
            result["token_logprobs"].append(None if row is None else row[token_id])
            result["top_logprobs"].append(best)
            result["text_offset"].append(self.offset)
            self.offset += len(text)
        return result


class _Run:
    """One Completions request under way."""

    def __init__(self, service: Service, body: CompletionBody, prompts: Sequence[Prompt]) -> None:
        self._service = service
        self._body = body
        self._prompts = prompts
        self._id = f"cmpl-{secrets.token_hex(16)}"
        self._created = int(time.time())
        self._choices = [
            _Choice(index, prompt.token_ids, prompt.params, service.tokenizer)
            for index, prompt in enumerate(prompt for prompt in prompts for _ in range(prompt.params.n))
        ]

    async def whole(self) -> JsonObject:
        """The response without a stream."""
        parts: dict[int, list[JsonObject]] = {choice.index: [] for choice in self._choices}
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                if piece is not None:
                    parts[piece["index"]].append(piece)
        return {**self._head(), "choices": [_joined(parts[choice.index]) for choice in self._choices], "usage": self._usage()}

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The response as server-sent events."""
        has_started = False
        try:
            async with aclosing(self._pieces()) as pieces:
                async for piece in pieces:
                    if piece is None:
                        # The first comment opens the response, so that the client knows its request was taken.
                        yield KEEP_ALIVE if has_started else b""
                    else:
                        yield encode_event(Event(None, {**self._head(), "choices": [piece]}))
                    has_started = True
            if self._body.stream_options is not None and self._body.stream_options.include_usage:
                yield encode_event(Event(None, {**self._head(), "choices": [], "usage": self._usage()}))
        except AscendDsv4Error as error:
            if not has_started:
                raise
            yield encode_event(Event(None, as_http_error(error, self._service.server.retry_after_s).body("", "")))
        yield b"data: [DONE]\n\n"

    async def _pieces(self) -> AsyncGenerator[JsonObject | None, None]:
        """New parts of choices; None at the start and when nothing has happened for a while."""
        async with self._service.generate(self._prompts) as generation:
            for request, choice in zip(generation.requests, self._choices, strict=True):
                choice.begin(request.end_ids)
            yield None
            async for output in generation.outputs(self._service.server.keep_alive_s):
                if output is None:
                    yield None
                    continue
                choice = self._choices[generation.requests.index(output.request)]
                yield self._piece(choice, output, generation)

    def _piece(self, choice: _Choice, output: Output, generation: Generation) -> JsonObject:
        is_first = choice.num_tokens == 0
        text = choice.advance(output, generation)
        token_ids, logprobs = list(output.token_ids), list[Logprobs | None](output.logprobs)
        if is_first and self._body.echo:
            prompt_ids = list(choice.prompt_ids)
            text = self._prompt_text(prompt_ids) + text
            token_ids = prompt_ids + token_ids
            logprobs = [*output.request.prompt_logprobs, *logprobs]
        scores = None if self._body.logprobs is None else choice.scores(token_ids, logprobs)
        ids = {"token_ids": token_ids} if self._body.return_token_ids else {}
        return {"index": choice.index, "text": text, "logprobs": scores, "finish_reason": choice.finish_reason, **ids}

    def _prompt_text(self, prompt_ids: Sequence[int]) -> str:
        tokenizer = self._service.tokenizer
        return "" if tokenizer is None else tokenizer.decode(prompt_ids)

    def _head(self) -> JsonObject:
        return {
            "id": self._id, "object": "text_completion", "created": self._created, "model": self._service.model_name,
        }  # fmt: skip

    def _usage(self) -> JsonObject:
        prompt = sum(len(prompt.token_ids) for prompt in self._prompts)
        completion = sum(choice.num_tokens for choice in self._choices)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _joined(pieces: Sequence[JsonObject]) -> JsonObject:
    """The pieces of one choice as a whole."""
    scores = [piece["logprobs"] for piece in pieces if piece["logprobs"] is not None]
    logprobs = {name: [x for one in scores for x in one[name]] for name in scores[0]} if scores else None
    ids = {"token_ids": [x for piece in pieces for x in piece["token_ids"]]} if "token_ids" in pieces[0] else {}
    return {**pieces[-1], "text": "".join(piece["text"] for piece in pieces), "logprobs": logprobs, **ids}
