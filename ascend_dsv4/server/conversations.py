# SPDX-License-Identifier: Apache-2.0
"""Chat Completions, Responses and Messages: one way for all three, from the body to the last event."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Container
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from ascend_dsv4.engine.engine import Output
from ascend_dsv4.engine.sampling_params import SamplingParams
from ascend_dsv4.errors import AscendDsv4Error
from ascend_dsv4.runner.batch import PlacedRows
from ascend_dsv4.server.bodies import Body, ChatBody, CountTokensBody, MessagesBody, ResponsesBody, Sampling
from ascend_dsv4.server.dialog import CHAT, MESSAGES, RESPONSES, Dialog, Event, JsonObject, Protocol, Reply
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

B = TypeVar("B", bound=Body)


@dataclass(frozen=True, slots=True)
class _Turn:
    """A conversation that waits for its replies."""

    dialog: Dialog
    prompt: Prompt
    is_stream: bool
    with_usage: bool
    """Whether a Chat Completions stream ends with a chunk of token counts."""
    created: int
    """In seconds since 1970."""


class Conversations:
    """The routes of the three protocols."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def chat_completions(self, request: Request) -> Response:
        return await self._answer(request, CHAT, ChatBody)

    async def responses(self, request: Request) -> Response:
        return await self._answer(request, RESPONSES, ResponsesBody)

    async def messages(self, request: Request) -> Response:
        return await self._answer(request, MESSAGES, MessagesBody)

    async def count_tokens(self, request: Request) -> Response:
        data = await read_body(request, self._service.server.max_body_bytes)
        dialog = await asyncio.to_thread(self._count, data)
        await measure_images(self._service, request, dialog)
        return JSONResponse({"input_tokens": len(dialog.prompt_ids)})

    def _count(self, data: bytes) -> Dialog:
        body, content = parse_body(data, CountTokensBody, reads_images=self._service.images is not None)
        self._service.check_model(body.model)
        self._service.check_length(content["messages"])
        return self._service.dialog_format().open(MESSAGES, content)

    async def _answer(self, request: Request, protocol: Protocol, kind: type[B]) -> Response:
        data = await read_body(request, self._service.server.max_body_bytes)
        body, dialog = await asyncio.to_thread(self._open, protocol, data, kind)
        del data  # images may take long, and are in the dialog
        images: tuple[PlacedRows, ...] = ()
        if dialog.images and self._service.images is not None:
            images = await until_disconnect(request, self._service.images.place(dialog))
        turn = await asyncio.to_thread(self._settle, body, dialog, images)
        log_prompt(turn.dialog.prompt_ids)
        request.state.log = {"prompt_tokens": len(turn.dialog.prompt_ids), "images": len(images), "stream": turn.is_stream}
        reply_id = f"{protocol.id_prefix}{secrets.token_hex(16)}"
        if turn.is_stream:
            return await EventStream.opened(self._stream(turn, reply_id))
        return JSONResponse(await until_disconnect(request, self._whole(turn, reply_id)))

    def _open(self, protocol: Protocol, data: bytes, kind: type[B]) -> tuple[B, Dialog]:
        """Check, convert and render; off the event loop, for prompts may be long."""
        body, content = parse_body(data, kind, reads_images=self._service.images is not None)
        service = self._service
        service.check_model(body.model)  # type: ignore[attr-defined]
        service.check_length(content.get("messages", content.get("input")))
        if isinstance(body, ChatBody):
            content = plain_chat(body, content)
        return body, service.dialog_format().open(protocol, content)

    def _settle(self, body: Body, dialog: Dialog, images: tuple[PlacedRows, ...]) -> _Turn:
        """How the tokens of the replies are drawn."""
        service = self._service
        assert isinstance(body, Sampling)
        with_usage = isinstance(body, ChatBody) and bool(body.stream_options and body.stream_options.include_usage)
        options = dialog.request.inference_options
        params = sampling_params(
            body,
            service.server,
            max_tokens=self._max_tokens(dialog, options.max_tokens),
            logprobs=(options.top_logprobs or 0) if options.logprobs else None,
            default_top_p=options.top_p,
        )
        constraint = None
        if _has_grammar(dialog):
            constraint = partial(service.structured.constraint, dialog.turn, enforce_tools=dialog.is_strict)
        _check_combination(body, dialog)
        prompt = Prompt(dialog.prompt_ids, params, images, constraint)
        return _Turn(dialog, prompt, bool(dialog.request.stream), with_usage, int(time.time()))

    def _max_tokens(self, dialog: Dialog, asked: int | None) -> int:
        """Tokens to generate at most: as asked, else as the server says, else as the model's publisher does."""
        length, limit = len(dialog.prompt_ids), self._service.max_model_len
        default = self._service.server.default_max_tokens
        if length + (asked or 1) > limit:
            raise HttpError(
                400, f"the prompt has {length} tokens and {asked or 'at least 1'} more are wanted, but max_model_len={limit}. "
                "Shorten the conversation or ask for fewer tokens.", code="context_length_exceeded",
            )  # fmt: skip
        if asked is None and default is not None:
            return min(default, limit - length)
        return int(dialog.request.resolve_max_tokens(length, limit))

    async def _whole(self, turn: _Turn, reply_id: str) -> JsonObject:
        replies: dict[int, Reply] = {}
        async with aclosing(self._replies(turn, reply_id)) as events:
            async for index, reply, _ in events:
                replies[index] = reply
        bodies = [replies[index].response() for index in sorted(replies)]
        return _merged_chat(bodies) if turn.dialog.protocol is CHAT else bodies[0]

    async def _stream(self, turn: _Turn, reply_id: str) -> AsyncGenerator[bytes, None]:
        protocol = turn.dialog.protocol
        usages: list[JsonObject] = []
        num_events = 0
        try:
            async with aclosing(self._replies(turn, reply_id)) as replies:
                async for index, _, events in replies:
                    if events is None:
                        yield KEEP_ALIVE
                    for event in events or ():
                        num_events += 1
                        yield encode_event(_choice(event, index, usages) if protocol is CHAT else event)
            if protocol is CHAT and turn.with_usage:
                yield encode_event(_usage_chunk(turn, reply_id, self._service.model_name, usages))
        except AscendDsv4Error as error:
            if num_events == 0:
                raise
            yield _error_event(protocol, as_http_error(error, self._service.server.retry_after_s), num_events)
        if protocol is CHAT:
            yield b"data: [DONE]\n\n"

    async def _replies(self, turn: _Turn, reply_id: str) -> AsyncGenerator[tuple[int, Reply, list[Event] | None], None]:
        """Choice, its reader, and its new events; None for events when nothing has happened for a while."""
        async with self._service.generate([turn.prompt]) as generation:
            # Ids that end replies; those of the model also where the request passes over them.
            silent_ids = {*turn.prompt.params.stop_token_ids, *self._service.config.eos_token_id}
            replies = [turn.dialog.reply(reply_id, turn.created) for _ in generation.requests]
            for index, reply in enumerate(replies):
                yield index, reply, reply.begin()
            async for output in generation.outputs(self._service.server.keep_alive_s):
                if output is None:
                    yield 0, replies[0], None
                    continue
                index = generation.requests.index(output.request)
                yield index, replies[index], _advance(replies[index], output, turn.prompt.params, silent_ids, generation)


async def measure_images(service: Service, request: Request, dialog: Dialog) -> None:
    """Count the tokens of a dialog's images in its prompt. Raises ClientGone if nobody waits for the count any more."""
    if dialog.images and service.images is not None:
        await until_disconnect(request, service.images.measure(dialog))


def _has_grammar(dialog: Dialog) -> bool:
    """Whether the reply is held to a form."""
    wanted = dialog.turn.inference_options.output_constraint
    return wanted is not None and (wanted.kind != "tool_call" or dialog.is_strict)


def _check_combination(body: Sampling, dialog: Dialog) -> None:
    """Refuse what would be lost: the package, which looks for stop texts, and grammars know nothing of such limits."""
    if body.ignore_eos and _has_grammar(dialog):
        raise HttpError(400, "ignore_eos: a reply ends where its grammar does. Leave one of them out.", param="ignore_eos")
    if body.min_tokens and (_has_grammar(dialog) or dialog.turn.parsing_options.stop_sequences):
        raise HttpError(
            400, "min_tokens: got it with stop texts, forced calls or response_format, which end a reply when they say. Leave "
            "one of them out.", param="min_tokens",
        )  # fmt: skip


def _advance(
    reply: Reply, output: Output, params: SamplingParams, silent_ids: Container[int], generation: Generation
) -> list[Event]:
    """Hand new tokens to a reply; returns its events. A stop text ends the request. `silent_ids` are no text."""
    spoken = [i for i, token_id in enumerate(output.token_ids) if token_id not in silent_ids]
    logprobs = [output.logprobs[i] for i in spoken] if output.logprobs else []
    events = reply.push([output.token_ids[i] for i in spoken], logprobs, params.logprobs or 0)
    events += reply.count_silent(len(output.token_ids) - len(spoken))
    if reply.is_finished:
        generation.stop(output.request)
        return events + reply.finish("stop")
    if output.finish_reason is not None:
        events += reply.finish("length" if output.finish_reason == "length" else "stop")
    return events


def plain_chat(body: ChatBody, content: JsonObject) -> JsonObject:
    """A Chat Completions body in the words that `deepseek_recipe` knows."""
    content = {name: value for name, value in content.items() if name not in ("n", "chat_template_kwargs")}
    options = body.chat_template_kwargs
    if options is not None:
        thinking = options.thinking if options.thinking is not None else options.enable_thinking
        if thinking is not None and body.thinking is None:
            content["thinking"] = {"type": "enabled" if thinking else "disabled"}
        if options.reasoning_effort is not None and body.reasoning_effort is None:
            content["reasoning_effort"] = options.reasoning_effort
    if body.max_completion_tokens is not None:
        content["max_tokens"] = body.max_completion_tokens
        content.pop("max_completion_tokens", None)
    if body.stream_options is not None and not body.stream:
        raise HttpError(400, "stream_options: only a stream has them. Set stream, or leave them out.", param="stream_options")
    messages = [{**message, "role": "system"} if message["role"] == "developer" else message for message in content["messages"]]
    return {**content, "messages": messages}


def _choice(event: Event, index: int, usages: list[JsonObject]) -> Event:
    """A chunk of one of n choices. Token counts are taken out: they come once, behind all choices, if they were asked for."""
    data = event.data
    for choice in data["choices"]:
        choice["index"] = index
    if (usage := data.pop("usage", None)) is not None:
        usages.append(usage)
    return event


def _usage_chunk(turn: _Turn, reply_id: str, model: str, usages: list[JsonObject]) -> Event:
    data = {"id": reply_id, "object": "chat.completion.chunk", "created": turn.created, "model": model, "choices": []}
    return Event(None, {**data, "usage": _sum_usage(usages)})


def _merged_chat(bodies: list[JsonObject]) -> JsonObject:
    """One Chat Completions response of n choices."""
    choices = [{**body["choices"][0], "index": index} for index, body in enumerate(bodies)]
    return {**bodies[0], "choices": choices, "usage": _sum_usage([body["usage"] for body in bodies])}


def _sum_usage(usages: list[JsonObject]) -> JsonObject:
    """Token counts of n choices: the prompt counts once."""
    total: JsonObject = {**usages[0]}
    total["completion_tokens"] = sum(usage["completion_tokens"] for usage in usages)
    total["total_tokens"] = total["prompt_tokens"] + total["completion_tokens"]
    if details := [usage["completion_tokens_details"] for usage in usages if "completion_tokens_details" in usage]:
        total["completion_tokens_details"] = {name: sum(one[name] for one in details) for name in details[0]}
    return total


def _error_event(protocol: Protocol, error: HttpError, num_events: int) -> bytes:
    """An error in the middle of a stream, after so many events."""
    if protocol is MESSAGES:
        return encode_event(Event("error", error.body("/v1/messages", "")))
    body: dict[str, Any] = error.body("", "")
    if protocol is RESPONSES:
        details = {"code": error.code, "message": error.message, "param": None, "sequence_number": num_events}
        return encode_event(Event("error", {"type": "error", **details}))
    return encode_event(Event(None, body))
