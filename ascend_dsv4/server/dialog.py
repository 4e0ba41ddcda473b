# SPDX-License-Identifier: Apache-2.0
"""Conversations over HTTP: a body of one of three protocols to a prompt, generated ids to that protocol's events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import deepseek_recipe as recipe

from ascend_dsv4.engine.request import Logprobs
from ascend_dsv4.errors import RequestError
from ascend_dsv4.server.conversation import V4, PromptVersion, check_control_tokens, effort_for_release
from ascend_dsv4.server.errors import HttpError
from ascend_dsv4.tokenizer import Tokenizer

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Protocol:
    """One of the wire protocols that `deepseek_recipe` speaks."""

    name: Literal["chat", "responses", "messages"]
    id_prefix: str
    request: Any
    response: Any
    effort_path: tuple[str, ...]
    """Where a body says how much to think."""


CHAT = Protocol("chat", "chatcmpl-", recipe.ChatCompletionRequest, recipe.ChatCompletionResponse, ("reasoning_effort",))
RESPONSES = Protocol("responses", "resp_", recipe.ResponsesRequest, recipe.ResponsesResponse, ("reasoning", "effort"))
MESSAGES = Protocol("messages", "msg_", recipe.MessagesRequest, recipe.MessagesResponse, ("output_config", "effort"))


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event."""

    name: str | None
    data: JsonObject


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """An image that a conversation names: a data URL or a remote one, and where it stands in the body."""

    url: str
    path: str


class DialogFormat:
    """Reads conversations for one checkpoint, and its replies. Nothing changes after loading: threads may share it."""

    def __init__(
        self, tokenizer: Tokenizer, model_name: str, *, preview_rules: bool, default_thinking: bool, max_tokens: int,
        version: PromptVersion = V4, image_token: str | None = None,
    ) -> None:  # fmt: skip
        """
        model_name         under which clients ask for the model
        version            the family's format
        preview_rules      V4 only: whether effort words mean what they meant before release 0731
        default_thinking   for requests that do not say
        max_tokens         largest number of output tokens that a request may ask for
        image_token        how the vocabulary spells the token that stands for an image; None for a model without
        raises             UnsupportedError if a control token of the format is not in the vocabulary
        """
        check_control_tokens(tokenizer, version)
        self.model_name = model_name
        self.think_end_id = tokenizer.token_id(recipe.SpecialToken.ThinkingEnd.default_str())
        self._preview_rules = preview_rules and version is V4
        self._default_effort = version.default_effort
        self._default_thinking = default_thinking
        self._tokenizer = recipe.Tokenizer.from_file(str(tokenizer.path))
        self._reads_images = image_token is not None
        spelling = recipe.SpecialTokens(image=image_token)
        self._encoding = version.encoding().with_special_tokens(spelling).with_tokenizer(self._tokenizer)
        options = recipe.ConversionOptions(
            thinking_max_tokens_upper_bound=max_tokens, non_thinking_max_tokens_upper_bound=max_tokens
        )
        self._options = options.with_special_tokens(spelling).with_model_alias(model_name, version.version())

    def open(self, protocol: Protocol, body: JsonObject) -> Dialog:
        """Convert and render a body, with our own fields already taken out. Slow for long prompts.

        raises   HttpError for a body or a conversation that cannot be rendered
        """
        forces_call = _forces_call(body.get("tool_choice"))
        if forces_call and not body.get("tools"):  # the package would let it pass, and nothing would be called
            raise RequestError("tool_choice: got a call that must be made, expected tools to call. Add tools or leave it out.")
        default_thinking = self._default_thinking and not forces_call
        options = self._options.with_default_thinking_mode(default_thinking)
        sent = self._with_effort(protocol, body if protocol is not MESSAGES else _plain_tools(body), default_thinking)
        try:
            echo = recipe.ResponsesRequest(body).echo() if protocol is RESPONSES else None
            names = recipe.ResponsesRequest(sent).namespace_tool_map(options) if protocol is RESPONSES else {}
            request = protocol.request(sent).convert(options)
            turn = _any_tool(request) if protocol is MESSAGES and _is_any(body.get("tool_choice")) else _as_converted(request)
            prompt_ids = tuple(self._encoding.encode(turn.conversation))
            images = self._images(turn.conversation)
        except recipe.ConversionError as error:
            details = json.loads(error.body)["error"]
            raise HttpError(error.status_code, details["message"], param=details.get("param")) from error
        except (ValueError, TypeError, RecursionError, OverflowError, RuntimeError) as error:
            raise HttpError(400, f"{error}; expected a body of the {protocol.name} protocol. Correct the request.") from error
        is_strict = any(tool.strict for tool in request.conversation.tools)
        if protocol is MESSAGES:  # where the package drops the word
            is_strict = any(tool.get("strict") for tool in body.get("tools") or ())
        return Dialog(protocol, self.model_name, request, turn, is_strict, prompt_ids, self._tokenizer, echo, names, images)

    def _images(self, conversation: Any) -> tuple[ImageUrl, ...]:
        """The images of a conversation in the order of their tokens, which is not always that of the messages."""
        if not self._reads_images or not any(message.image_sources for message in conversation.messages):
            return ()
        sources = self._encoding.render_conversation(conversation).image_sources
        return tuple(ImageUrl(str(source.data_url or source.url), source.path.lstrip(".")) for source in sources)

    def _with_effort(self, protocol: Protocol, body: JsonObject, default_thinking: bool) -> JsonObject:
        """The body with the word for its effort that the package understands as this release does."""
        *outer, last = protocol.effort_path
        holder = body.get(outer[0]) if outer else body
        effort = holder.get(last) if isinstance(holder, dict) else None
        if effort == "none" or (holder is not None and not isinstance(holder, dict)):
            return body  # thinking is off; or no object, which the package refuses
        switch = body.get("thinking")
        thinks = switch.get("type") != "disabled" if isinstance(switch, dict) else default_thinking
        if effort is None and not thinks:
            return body  # any word would turn thinking on
        mapped = effort_for_release(self._default_effort if effort is None else effort, preview_rules=self._preview_rules)
        return {**body, outer[0]: {**(holder or {}), last: mapped}} if outer else {**body, last: mapped}


def _forces_call(tool_choice: object) -> bool:
    """Whether a tool must be called. The format opens the call for the model then, and has no place to think before it."""
    if isinstance(tool_choice, dict):
        return tool_choice.get("type") not in ("auto", "none")
    return tool_choice == "required"


def _is_any(tool_choice: object) -> bool:
    return isinstance(tool_choice, dict) and tool_choice.get("type") == "any"


def _plain_tools(body: JsonObject) -> JsonObject:
    """A Messages body whose tools lack `"type": "custom"`: the protocol allows it, the package sees server tools in it."""
    tools = body.get("tools")
    if not isinstance(tools, list):
        return body
    plain = [
        {name: value for name, value in tool.items() if (name, value) not in (("type", "custom"), ("type", None))}
        if isinstance(tool, dict)
        else tool
        for tool in tools
    ]
    return {**body, "tools": plain}


@dataclass(frozen=True, slots=True)
class ModelTurn:
    """What the model is to say next: a `deepseek_recipe` request as far as rendering, grammars and readers look at it."""

    conversation: Any
    parsing_options: Any
    inference_options: Any


@dataclass(frozen=True, slots=True)
class _OutputConstraint:
    kind: str
    schema: str


@dataclass(frozen=True, slots=True)
class _InferenceOptions:
    output_constraint: _OutputConstraint


def _as_converted(request: Any) -> ModelTurn:
    return ModelTurn(request.conversation, request.parsing_options, request.inference_options)


def _any_tool(request: Any) -> ModelTurn:
    """The turn of a Messages request that must call a tool, whichever. The package converts this choice as if it were free."""
    free, options = request.conversation, request.parsing_options
    if free.thinking_mode:
        raise HttpError(
            400, "tool_choice: got `any` together with thinking, expected one of them: the format opens the call for the "
            "model, and has no place to think before it. Set thinking to disabled or tool_choice to auto.",
            param="tool_choice", code="invalid_value",
        )  # fmt: skip
    conversation = recipe.Conversation(free.messages, thinking_mode=False, tools=free.tools, tool_choice="required")
    options.starts_in_tool_calls = True
    tools = request.inference_options.output_constraint.schema
    return ModelTurn(conversation, options, _InferenceOptions(_OutputConstraint("tool_call_required", tools)))


class Dialog:
    """A request that is ready to be answered, n times if need be."""

    def __init__(
        self, protocol: Protocol, model_name: str, request: Any, turn: ModelTurn, is_strict: bool, prompt_ids: tuple[int, ...],
        tokenizer: Any, echo: Any, tool_names: dict[str, tuple[str, str]], images: tuple[ImageUrl, ...] = (),
    ) -> None:  # fmt: skip
        self.protocol = protocol
        self.request = request
        self.turn: Any = turn
        self.is_strict = is_strict
        """Whether a tool wants its calls to follow the schema also where the model is free not to call."""
        self.prompt_ids = prompt_ids
        """With one token for each of `images` until they have been read."""
        self.images = images
        self._model_name = model_name
        self._tokenizer = tokenizer
        self._echo = echo
        self._tool_names = tool_names

    def reply(self, reply_id: str, created: int) -> Reply:
        """A reader of one reply."""
        generator = self.protocol.request.chunk_generator(self.request, reply_id, self._model_name)
        if self._echo is not None:
            generator = generator.with_echo(self._echo).with_namespace_tool_map(self._tool_names)
        processor = recipe.StreamProcessor(generator, self.turn.parsing_options, self._tokenizer)
        response = self.protocol.response(reply_id, self._model_name, created, len(self.prompt_ids), 0)
        return Reply(self.protocol, processor, response, len(self.prompt_ids))


class Reply:
    """One reply while it is generated: events for a stream, or the whole response."""

    def __init__(self, protocol: Protocol, processor: Any, response: Any, num_prompt_tokens: int) -> None:
        self._protocol = protocol
        self._processor = processor
        self._response = response
        self._num_prompt_tokens = num_prompt_tokens
        self._item_names: dict[int, str | None] = {}
        """Of a response's items, the functions that are called."""

    @property
    def is_finished(self) -> bool:
        """Whether a stop text has ended the reply."""
        return bool(self._processor.finished)

    def begin(self) -> list[Event]:
        """Events before the first token."""
        usage = recipe.PromptUsage(prompt_tokens=self._num_prompt_tokens)
        return self._events(self._processor.push(recipe.InferenceChunk.ready(prompt_usage=usage)))

    def push(self, token_ids: Sequence[int], logprobs: Sequence[Logprobs] = (), num_top: int = 0) -> list[Event]:
        """Events that became certain with these ids."""
        events: list[Event] = []
        for i, token_id in enumerate(token_ids):
            if self.is_finished:
                break
            # One id per chunk: at the end the package drops the whole chunk that stops inside a character.
            scores = [_scores(logprobs[i], num_top)] if logprobs else None
            events += self._events(self._processor.push(recipe.InferenceChunk.tokens([token_id], scores)))
        return events

    def count_silent(self, count: int) -> list[Event]:
        """Count tokens that are no text, such as the end token, in the usage."""
        if not count or self.is_finished:
            return []
        return self._events(self._processor.push(recipe.InferenceChunk.text("", count)))

    def finish(self, reason: Literal["stop", "length"]) -> list[Event]:
        """The last events."""
        chunks = []
        if not self.is_finished:
            ending = recipe.InferenceFinishReason.Length if reason == "length" else recipe.InferenceFinishReason.Stop
            chunks = self._processor.push(recipe.InferenceChunk.finish(ending))
        return self._events([*chunks, *self._processor.finish()])

    def response(self) -> JsonObject:
        """The whole response, once the reply is finished."""
        content: JsonObject = json.loads(self._response.to_json())
        if self._protocol is RESPONSES:
            _complete_usage(content)
        return content

    def _events(self, chunks: Sequence[Any]) -> list[Event]:
        events = []
        for chunk in chunks:
            data = json.loads(chunk.to_json())
            if self._protocol is RESPONSES:
                self._complete(data)
            events.append(Event(self._protocol.response.sse_event_name(chunk), data))
            self._response.accumulate(chunk)
        return events

    def _complete(self, data: JsonObject) -> None:
        """Add to an event of the Responses protocol what that requires and the package leaves out."""
        if data["type"] == "response.output_item.added":
            self._item_names[data["output_index"]] = data["item"].get("name")
        elif data["type"] == "response.function_call_arguments.done":
            data["name"] = self._item_names[data["output_index"]]
        elif "response" in data:
            _complete_usage(data["response"])


def _complete_usage(response: JsonObject) -> None:
    """A count that the protocol requires since prompt caches are billed for writes, and that the package leaves out."""
    if response["usage"] is not None:
        response["usage"]["input_tokens_details"].setdefault("cache_write_tokens", 0)


def _scores(logprobs: Logprobs, num_top: int) -> tuple[float, list[tuple[int, float]]]:
    """The drawn token's log-probability, and the best tokens in order."""
    ranked = sorted(logprobs.items(), key=lambda item: -item[1])
    return next(iter(logprobs.values())), ranked[:num_top]
