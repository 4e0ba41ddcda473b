# SPDX-License-Identifier: Apache-2.0
"""Response bodies, as /openapi.json describes them. Nothing is built from these classes: `deepseek_recipe` and the routes
write the answers, and the tests hold them against this description. Answers may have more fields than are listed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0)]
FinishReason = Literal["stop", "length", "tool_calls"]
State = Literal["serving", "draining", "failed"]


class Answer(BaseModel):
    """Base of all answers."""


class ErrorDetails(Answer):
    """What is wrong, and what to do."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(Answer):
    """An error of the OpenAI protocols and of our own routes."""

    error: ErrorDetails


class MessagesErrorDetails(Answer):
    """What is wrong, and what to do."""

    type: str
    message: str


class MessagesError(Answer):
    """An error of the Messages protocol."""

    type: Literal["error"]
    error: MessagesErrorDetails
    request_id: str


class FunctionCall(Answer):
    """Which function, and its arguments as JSON text that the model wrote."""

    name: str
    arguments: str


class ToolCall(Answer):
    """A call that the model asks for."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class ReplyMessage(Answer):
    """The model's turn."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] = []


class TokenScore(Answer):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[Annotated[int, Field(ge=0, le=255)]] | None
    top_logprobs: list[dict[str, Any]]


class ChatLogprobs(Answer):
    """Scores of the reply, token by token."""

    content: list[TokenScore] | None = None
    reasoning_content: list[TokenScore] | None = None


class ChatChoice(Answer):
    """One of n replies."""

    index: Count
    message: ReplyMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class Usage(Answer):
    """Token counts; a prompt counts once for all its choices."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count


class ChatCompletion(Answer):
    """A Chat Completions response."""

    id: str
    object: Literal["chat.completion"]
    created: Count
    model: str
    choices: Annotated[list[ChatChoice], Field(min_length=1)]
    usage: Usage


class CompletionLogprobs(Answer):
    """Scores token by token; None for the first token of an echoed prompt, which nothing predicts."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[Count]


class CompletionChoice(Answer):
    """One of n completions of one of the prompts."""

    index: Count
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]
    token_ids: list[Count] = []


class Completion(Answer):
    """A Completions response."""

    id: str
    object: Literal["text_completion"]
    created: Count
    model: str
    choices: Annotated[list[CompletionChoice], Field(min_length=1)]
    usage: Usage


class OutputItem(Answer):
    """Reasoning, a message, or a call."""

    type: str
    id: str


class ResponsesUsage(Answer):
    """Token counts."""

    input_tokens: Count
    output_tokens: Count
    total_tokens: Count


class Response(Answer):
    """A Responses response."""

    id: str
    object: Literal["response"]
    created_at: Count
    model: str
    status: Literal["completed", "incomplete"]
    output: list[OutputItem]
    usage: ResponsesUsage
    error: None
    incomplete_details: dict[str, Any] | None


class ContentBlock(Answer):
    """Text, thinking, or the use of a tool."""

    type: Literal["text", "thinking", "tool_use"]


class MessagesUsage(Answer):
    """Token counts."""

    input_tokens: Count
    output_tokens: Count


class Message(Answer):
    """A Messages response."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ContentBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: MessagesUsage


class TokenCount(Answer):
    """A count_tokens response."""

    input_tokens: Count


class Tokens(Answer):
    """Token ids of a text or of a conversation."""

    count: Count
    max_model_len: Count
    tokens: list[Count]
    token_strs: list[str] = []


class Text(Answer):
    """The text of token ids."""

    prompt: str


class Model(Answer):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: Count
    owned_by: str
    max_model_len: Count


class Models(Answer):
    """All models: the one."""

    object: Literal["list"]
    data: list[Model]


class Health(Answer):
    """Whether requests are served."""

    status: State


class Version(Answer):
    """Of the package."""

    version: str


class RequestStatus(Answer):
    """Requests now, and how those before have ended."""

    running: Count
    waiting: Count
    max_running: Count
    max_waiting: Count | None
    finished: dict[str, Count]
    preemptions: Count


class SpeculationStatus(Answer):
    """What became of drafted tokens."""

    method: str
    num_speculative_tokens: Count
    drafts: Count
    draft_tokens: Count
    accepted_tokens: Count


class CacheStatus(Answer):
    """One group of cache blocks."""

    group: str
    used_blocks: Count
    num_blocks: Count


class Throughput(Answer):
    """Over the last seconds."""

    prompt_tokens_per_second: Share
    generation_tokens_per_second: Share
    window_seconds: Share


class Percentiles(Answer):
    """In milliseconds; None before the first request."""

    p50: Share | None
    p90: Share | None
    p99: Share | None


class Moment(Answer):
    """One second of the past."""

    prompt_tokens_per_second: Share
    generation_tokens_per_second: Share
    running: Count
    waiting: Count


class Status(Answer):
    """What the status page shows."""

    model: dict[str, Any]
    engine: dict[str, Any]
    version: str
    state: State
    uptime_seconds: Share
    requests: RequestStatus
    tokens: dict[str, Count]
    speculation: SpeculationStatus
    throughput: Throughput
    caches: list[CacheStatus]
    latency_ms: dict[str, Percentiles]
    history: list[Moment]
