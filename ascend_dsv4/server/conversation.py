# SPDX-License-Identifier: Apache-2.0
"""Conversations of V4 and V4.1 checkpoints: messages to a prompt, generated ids to reasoning, content and tool calls.

Rendering and parsing are those of the official package `deepseek_recipe`; this file adds the effort rules of the
releases before 0731, the `developer` role, typed errors, and events that are easy to print.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import deepseek_recipe as recipe

from ascend_dsv4.config.model_config import ModelConfig
from ascend_dsv4.errors import RequestError, UnsupportedError
from ascend_dsv4.tokenizer import Tokenizer

Effort = Literal["low", "high", "max"]

# The names clients send, as the package reads them. Unset is low: that is the default of the encoding published with
# the weights (the package alone would take high).
EFFORTS: Mapping[str | None, Effort] = {
    None: "low",
    "minimal": "low",
    "low": "low",
    "medium": "high",
    "high": "high",
    "xhigh": "high",
    "ultra": "max",
    "max": "max",
}
# The same texts under other names: no text was `high` and is `low` since 0731, the text of `max` is that of `high` now.
PREVIEW_EFFORTS: Mapping[Effort, Effort] = {"low": "low", "high": "low", "max": "high"}

PROTOCOL_TOKENS = (
    recipe.SpecialToken.Bos,
    recipe.SpecialToken.Eos,
    recipe.SpecialToken.User,
    recipe.SpecialToken.Assistant,
    recipe.SpecialToken.LatestReminder,
    recipe.SpecialToken.ThinkingStart,
    recipe.SpecialToken.ThinkingEnd,
    recipe.SpecialToken.Dsml,
)


@dataclass(frozen=True, slots=True)
class PromptVersion:
    """How a family writes conversations.

    name            of the family
    package_name    the model that `deepseek_recipe` knows by this format
    tools_format    what `xgrammar` calls the markup of its tool calls
    default_effort  where the client names none; None: as `EFFORTS` says
    """

    name: str
    package_name: str
    tools_format: str
    tokens: tuple[recipe.SpecialToken, ...]
    default_effort: Effort | None = None

    def encoding(self) -> Any:
        """The package's encoder, without a tokenizer."""
        return recipe.DeepseekV4Encoding() if self is V4 else recipe.DeepseekV41Encoding()

    def version(self) -> recipe.ModelVersion:
        """The package's name for it."""
        return recipe.ModelVersion.DeepseekV4Pro if self is V4 else recipe.ModelVersion.DeepseekV41Flash


V4 = PromptVersion("V4", "DeepSeek-V4-Pro", "deepseek_v4", PROTOCOL_TOKENS)
V41 = PromptVersion(
    "V4.1", "DeepSeek-V4.1-Flash", "deepseek_v4_1", (*PROTOCOL_TOKENS, recipe.SpecialToken.System), default_effort="high"
)


def prompt_version(config: ModelConfig) -> PromptVersion:
    """The conversation format of a model. Raises UnsupportedError for a family that no encoder is known for."""
    if config.mla is not None:
        raise UnsupportedError(
            f"{config.architecture}: got a model whose conversations no installed encoder writes, expected V4 or V4.1, because "
            "deepseek_recipe has no format of this family and another one would not be understood. Use `generate` or "
            "/v1/completions with a prompt in the model's own format."
        )
    return V41 if config.hc_delayed else V4


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A prompt and how its reply is to be read.

    token_ids   of `text`, except that control tokens spelled inside a message stay ordinary text
    request     the converted request: parsing options, output constraint
    """

    text: str
    token_ids: tuple[int, ...]
    request: recipe.ConversationRequest


@dataclass(frozen=True, slots=True)
class TextEvent:
    """A piece of reasoning, or of the answer."""

    kind: Literal["reasoning", "content"]
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallEvent:
    """A call the model makes; `arguments` is the JSON text it wrote, not checked against the tool's schema."""

    id: str
    name: str
    arguments: str


ChatEvent = TextEvent | ToolCallEvent


def check_control_tokens(tokenizer: Tokenizer, version: PromptVersion) -> None:
    """Raises UnsupportedError if a token of the conversation format is not in the vocabulary."""
    for token in (kind.default_str() for kind in version.tokens):
        if tokenizer.token_id(token) is None:
            raise UnsupportedError(
                f"{tokenizer.path}: no token {token!r}, expected all control tokens of the {version.name} conversation format: "
                "without its id a turn is only text to the model. Use `generate` or /v1/completions with a plain prompt."
            )


class ChatFormat:
    """How one checkpoint writes conversations. Holds no conversation, so requests may share it."""

    def __init__(self, tokenizer: Tokenizer, *, preview_rules: bool, version: PromptVersion = V4) -> None:
        """Prepare rendering and parsing with `tokenizer`.

        preview_rules   V4 only: effort texts of the releases before 0731, that is of configurations without `dspark_*` values
        raises          UnsupportedError if a token of the conversation format is not in the vocabulary
        """
        check_control_tokens(tokenizer, version)
        self._preview_rules = preview_rules and version is V4
        self._version = version
        # Loaded a second time because the package decodes ids itself: it tells a control token from its spelling.
        self._tokenizer = recipe.Tokenizer.from_file(str(tokenizer.path))
        self._encoding = version.encoding().with_tokenizer(self._tokenizer)
        self._eos_token_id = tokenizer.token_id(recipe.SpecialToken.Eos.default_str())

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        thinking: bool,
        reasoning_effort: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        response_format: Mapping[str, Any] | None = None,
    ) -> RenderedPrompt:
        """Prompt for the next assistant turn.

        messages, tools, response_format   as in a Chat Completions request; role `developer` counts as `system`
        reasoning_effort                   a key of `EFFORTS`; has an effect in thinking mode only
        raises                             RequestError for a conversation or an effort that cannot be rendered
        """
        body: dict[str, Any] = {
            "model": self._version.package_name,
            "messages": [_wire_message(index, message) for index, message in enumerate(messages)],
            "thinking": {"type": "enabled" if thinking else "disabled"},
            "reasoning_effort": effort_for_release(
                reasoning_effort or self._version.default_effort, preview_rules=self._preview_rules
            ),
        }
        if tools:
            body["tools"] = [dict(tool) for tool in tools]
        if response_format is not None:
            body["response_format"] = dict(response_format)
        request = _converted(body)
        return RenderedPrompt(
            text=self._encoding.render_conversation(request.conversation).prompt,
            token_ids=tuple(self._encoding.encode(request.conversation)),
            request=request,
        )

    def open_stream(self, prompt: RenderedPrompt) -> ChatStream:
        """Reader of the reply to `prompt`."""
        return ChatStream(prompt, self._tokenizer, self._eos_token_id)


@dataclass(slots=True)
class _OpenCall:
    """A tool call whose arguments are still arriving."""

    id: str
    name: str
    arguments: list[str] = field(default_factory=list)


class ChatStream:
    """Splits one reply, given as token ids while they are generated, into events.

    Text events may be cut anywhere, but joined per kind they do not depend on how the ids were grouped into pushes.
    `</think>` and `｜DSML｜` are markers by token id: spelled out by other tokens they are text. EOS ends the reply,
    ids after it are dropped. Newlines at the start of reasoning and content belong to the format and are dropped;
    so are last tokens that stop inside a character.
    """

    def __init__(self, prompt: RenderedPrompt, tokenizer: recipe.Tokenizer, eos_token_id: int | None) -> None:
        generator = recipe.ChatCompletionRequest.chunk_generator(prompt.request, "", "")
        self._processor = recipe.StreamProcessor(generator, prompt.request.parsing_options, tokenizer)
        self._processor.push(recipe.InferenceChunk.ready())
        self._eos_token_id = eos_token_id
        self._has_ended = False
        self._open_call: _OpenCall | None = None
        self.finish_reason: Literal["stop", "length", "tool_calls"] | None = None

    def push(self, token_ids: int | Iterable[int]) -> list[ChatEvent]:
        """Events that became certain with these ids. A tool call comes whole, at the next call or at the end."""
        events: list[ChatEvent] = []
        for token_id in token_ids if isinstance(token_ids, Iterable) else (token_ids,):
            self._has_ended = self._has_ended or token_id == self._eos_token_id
            if not self._has_ended:
                # One id per chunk: at the end the package drops the whole chunk that stops inside a character.
                events += self._events(self._processor.push(recipe.InferenceChunk.tokens([token_id])))
        return events

    def finish(self, reason: Literal["stop", "length"] = "stop") -> list[ChatEvent]:
        """Remaining events; sets `finish_reason`, which is "tool_calls" if the reply stopped after calls.

        reason   why generation ended; after "length" the last call's arguments may be incomplete JSON
        """
        self._has_ended = True
        finish = recipe.InferenceFinishReason
        ending = recipe.InferenceChunk.finish(finish.Length if reason == "length" else finish.Stop)
        events = self._events([*self._processor.push(ending), *self._processor.finish()])
        return events + self._closed_call()

    def _events(self, chunks: Iterable[Any]) -> list[ChatEvent]:
        """Events of the package's Chat Completions chunks (its only view of a reply), usually one or none."""
        events: list[ChatEvent] = []
        for choice in (choice for chunk in chunks for choice in json.loads(chunk.to_json())["choices"]):
            delta = choice["delta"]
            if delta.get("reasoning_content"):
                events.append(TextEvent("reasoning", delta["reasoning_content"]))
            if delta.get("content"):
                events.append(TextEvent("content", delta["content"]))
            for part in delta.get("tool_calls") or ():
                events += self._advance_call(part)
            self.finish_reason = choice["finish_reason"]
        return events

    def _advance_call(self, part: Mapping[str, Any]) -> list[ChatEvent]:
        """Take one fragment of a call; the first fragment of a call completes the one before it."""
        done: list[ChatEvent] = []
        if "id" in part:
            done = self._closed_call()
            self._open_call = _OpenCall(part["id"], part["function"]["name"])
        assert self._open_call is not None
        self._open_call.arguments.append(part["function"]["arguments"])
        return done

    def _closed_call(self) -> list[ChatEvent]:
        call, self._open_call = self._open_call, None
        return [] if call is None else [ToolCallEvent(call.id, call.name, "".join(call.arguments))]


def effort_for_release(effort: str | None, *, preview_rules: bool) -> Effort:
    """Effort to hand to `deepseek_recipe`, which knows the 0731 texts only, for the text `effort` has in this release.

    raises   RequestError for a name that is not a key of `EFFORTS`
    """
    if effort not in EFFORTS:
        known = ", ".join(name for name in EFFORTS if name is not None)
        raise RequestError(
            f"reasoning_effort: got {effort!r}, expected one of {known}: each stands for a fixed text before the first "
            "message. Leave it out for no text."
        )
    return PREVIEW_EFFORTS[EFFORTS[effort]] if preview_rules else EFFORTS[effort]


def _wire_message(index: int, message: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(
            f"messages[{index}]: got {type(message).__name__}, expected an object with role and content: that is the "
            "form of a Chat Completions message. Correct the message."
        )
    role = {"role": "system"} if message.get("role") == "developer" else {}  # unknown to the package
    return {**message, **role}


def _converted(body: dict[str, Any]) -> recipe.ConversationRequest:
    """The package's own checks and conversion, with its refusals as RequestError."""
    try:
        return recipe.ChatCompletionRequest(body).convert(recipe.ConversionOptions())
    except recipe.ConversionError as error:
        reason = json.loads(error.body)["error"]["message"]
        cause: Exception = error
    except (ValueError, TypeError, RecursionError) as error:  # not Unicode text, not JSON, a missing or unknown field
        reason, cause = str(error), error
    raise RequestError(
        f"conversation: got {reason.rstrip('.')}; expected messages, tools and response_format of a valid Chat "
        "Completions request: deepseek_recipe, which renders the prompt, refuses others. Correct the request."
    ) from cause
