# SPDX-License-Identifier: Apache-2.0
"""Real clients whose traffic is kept, so that every byte they received can be held against the types of their SDK.

The SDKs construct their types without checks: a client that works does not prove that what it got is right.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import httpx
import httpx2
from anthropic import Anthropic, AsyncAnthropic
from anthropic.types import ErrorResponse, Message, MessageTokensCount, ModelInfo, RawMessageStreamEvent
from anthropic.types.beta import BetaMessage, BetaMessageTokensCount, BetaModelInfo, BetaRawMessageStreamEvent
from openai import AsyncOpenAI, OpenAI
from openai.types import Completion, CompletionChoice, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from ascend_dsv4 import LLM, SamplingParams
from ascend_dsv4.engine.request import Logprobs
from ascend_dsv4.server.conversation import ChatFormat, TextEvent

MODEL = "demo"
API_KEY = "no-secret-at-all"
QUESTION: list[Any] = [{"role": "user", "content": "Hello"}]
THINKING_ENDS_AFTER_SOME_TOKENS: dict[str, Any] = {"presence_penalty": 2.0, "logit_bias": {"1015": 9}}
"""1015 is the demo's </think>, which its random weights hardly ever draw. Greedy replies to QUESTION have both parts then."""

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "description": "Forecast", "parameters": CITY}}
TIME: Any = {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}}
CALL_TOKENS = 140
"""Enough for a call of one of these under `Offline.one_call`: the demo spells the markup in many tokens."""


class City(BaseModel):
    """What a tool is called with."""

    city: Literal["Rome", "Oslo"]


MULTI_BYTE = "Größe 海边 🐳🇨🇳 — ½ naïve café, Ελλάδα; 昇腾"


class Point(BaseModel):
    """What replies are asked to hold."""

    name: Literal["海边 🐳", "½"]
    x: int = Field(ge=0, le=9)


_PLAIN: dict[str, Any] = {"timeout": 60, "verify": False}
"""The server speaks no TLS, and reading the machine's certificates takes longer than most requests."""


class OpenAIError(BaseModel):
    """The error object of the OpenAI protocols."""

    model_config = ConfigDict(extra="forbid")
    message: str
    type: str
    param: str | None
    code: str | None


class ModelList(BaseModel):
    """`GET /v1/models` as OpenAI's clients read it."""

    object: Literal["list"]
    data: list[Model]


class ModelInfoList(BaseModel):
    """`GET /v1/models` as Anthropic's clients read it."""

    data: list[ModelInfo]
    has_more: Literal[False]
    first_id: str
    last_id: str


class StreamedChoice(CompletionChoice):
    """The SDK has one type for whole choices and for pieces of them; before the last piece there is no reason yet."""

    finish_reason: Literal["stop", "length", "content_filter"] | None  # type: ignore[assignment]


class StreamedCompletion(Completion):
    choices: list[StreamedChoice]  # type: ignore[assignment]


class Ping(BaseModel):
    """An event that Anthropic's protocol allows anywhere, and its SDK skips."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["ping"]


_WHOLE: Mapping[tuple[str, str, bool], Any] = {
    ("openai", "/v1/chat/completions", False): ChatCompletion,
    ("openai", "/v1/completions", False): Completion,
    ("openai", "/v1/responses", False): Response,
    ("openai", "/v1/models", False): ModelList,
    ("openai", "/v1/models/demo", False): Model,
    ("anthropic", "/v1/messages", False): Message,
    ("anthropic", "/v1/messages", True): BetaMessage,
    ("anthropic", "/v1/messages/count_tokens", False): MessageTokensCount,
    ("anthropic", "/v1/messages/count_tokens", True): BetaMessageTokensCount,
    ("anthropic", "/v1/models", False): ModelInfoList,
    ("anthropic", "/v1/models/demo", False): ModelInfo,
    ("anthropic", "/v1/models/demo", True): BetaModelInfo,
}
_PIECES: Mapping[tuple[str, bool], Any] = {
    ("/v1/chat/completions", False): ChatCompletionChunk,
    ("/v1/completions", False): StreamedCompletion,
    ("/v1/responses", False): ResponseStreamEvent,
    ("/v1/messages", False): RawMessageStreamEvent,
    ("/v1/messages", True): BetaRawMessageStreamEvent,
}


@dataclass(slots=True)
class Exchange:
    """One request and all that came back."""

    path: str
    family: Literal["openai", "anthropic"]
    is_beta: bool
    sent: dict[str, Any]
    status: int
    headers: dict[str, str]
    chunks: list[bytes] = field(default_factory=list)
    has_ended: bool = False
    """Whether the client read to the end: most stop at [DONE], and tests leave early."""

    @property
    def is_stream(self) -> bool:
        return self.headers["content-type"].startswith("text/event-stream")

    def json(self) -> dict[str, Any]:
        """The body of a response that is no stream."""
        content: dict[str, Any] = json.loads(b"".join(self.chunks))
        return content

    def events(self) -> list[tuple[str | None, dict[str, Any] | None]]:
        """Name and JSON of a stream's events, without comments; None instead of JSON for [DONE]."""
        text = b"".join(self.chunks).decode()
        blocks = [block for block in text.split("\n\n")[:-1] if not block.startswith(":")]
        return [_event(block) for block in blocks]

    def check(self) -> None:
        """Every event or body has the type that the SDK declares; streams have the frame of their protocol."""
        if self.status != 200:
            self._check_error()
        elif self.is_stream:
            self._check_stream()
        else:
            validate(_WHOLE[self.family, self.path, self.is_beta], self.json())

    def _check_error(self) -> None:
        body = self.json()
        if self.path.startswith("/v1/messages"):
            validate(ErrorResponse, body)
            assert body["request_id"] == self.headers["x-request-id"]
        else:
            assert body.keys() == {"error"}
            validate(OpenAIError, body["error"])

    def _check_stream(self) -> None:
        events, kind = self.events(), _PIECES[self.path, self.is_beta]
        if self.path in ("/v1/chat/completions", "/v1/completions"):
            assert all(name is None for name, _ in events)
            if events[-1:] == [(None, None)]:
                events.pop()
            else:
                assert not self.has_ended, "the stream does not end with [DONE]"
        datas = [data for _, data in events if data is not None]
        assert len(datas) == len(events)
        if self.path in ("/v1/responses", "/v1/messages"):
            assert [name for name, _ in events] == [data["type"] for data in datas]
        if self.path == "/v1/responses":
            assert [data["sequence_number"] for data in datas] == list(range(len(datas)))
        for data in datas:
            validate(_member(kind, data["type"]) if "type" in data else kind, data)


def _event(block: str) -> tuple[str | None, dict[str, Any] | None]:
    lines = [line.partition(": ") for line in block.split("\n")]
    fields = {name: value for name, _, value in lines}
    assert len(fields) == len(lines) and fields.keys() <= {"event", "data"} and "data" in fields, block
    return fields.get("event"), None if fields["data"] == "[DONE]" else json.loads(fields["data"])


def validate(kind: Any, value: Any) -> None:
    """Raises ValidationError if the JSON value is not of this type as it stands: nothing missing, nothing converted."""
    _adapter(kind).validate_json(json.dumps(value), strict=True)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@cache
def _member(union: Any, type_name: str) -> Any:
    """The one type in a union of events that has this name."""
    types = [one for arg in get_args(union) for one in get_args(arg)]
    named = [one for one in [*types, Ping] if type_name in get_args(_type_annotation(one))]
    assert len(named) == 1, f"{type_name!r} is no event of this protocol"
    return named[0]


def _type_annotation(kind: type[BaseModel]) -> Any:
    return kind.model_fields["type"].annotation


class _Tee(httpx.SyncByteStream, httpx.AsyncByteStream, httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A response body that is kept while it is read."""

    def __init__(self, stream: Any, exchange: Exchange) -> None:
        self._stream = stream
        self._exchange = exchange

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            self._exchange.chunks.append(chunk)
            yield chunk
        self._exchange.has_ended = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            self._exchange.chunks.append(chunk)
            yield chunk
        self._exchange.has_ended = True

    def close(self) -> None:
        self._stream.close()

    async def aclose(self) -> None:
        await self._stream.aclose()


class Traffic:
    """Makes clients, keeps what they send and receive, and checks it at the end of the context, when they are closed."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        self._clients = ExitStack()

    def __enter__(self) -> Traffic:
        return self

    def __exit__(self, *_: object) -> None:
        self._clients.close()
        for exchange in self.exchanges:
            exchange.check()

    @property
    def last(self) -> Exchange:
        return self.exchanges[-1]

    def http_client(self) -> httpx.Client:
        """For libraries that make their own client of the SDK, or none."""
        return self._clients.enter_context(httpx.Client(event_hooks={"response": [self._keep]}, **_PLAIN))

    def openai(self, url: str, api_key: str = API_KEY, **options: Any) -> OpenAI:
        options = {"max_retries": 0, **options}
        return OpenAI(base_url=f"{url}/v1", api_key=api_key, http_client=self.http_client(), **options)

    def anthropic(self, url: str, api_key: str = API_KEY, **options: Any) -> Anthropic:
        http_client = httpx2.Client(event_hooks={"response": [self._keep]}, **_PLAIN)
        client = Anthropic(base_url=url, api_key=api_key, http_client=http_client, **{"max_retries": 0, **options})
        return self._clients.enter_context(client)

    @asynccontextmanager
    async def async_openai(self, url: str) -> AsyncIterator[AsyncOpenAI]:
        http_client = httpx.AsyncClient(event_hooks={"response": [self._keep_async]}, **_PLAIN)
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key=API_KEY, http_client=http_client, max_retries=0) as client:
            yield client

    @asynccontextmanager
    async def async_anthropic(self, url: str) -> AsyncIterator[AsyncAnthropic]:
        http_client = httpx2.AsyncClient(event_hooks={"response": [self._keep_async]}, **_PLAIN)
        async with AsyncExitStack() as stack:
            client = AsyncAnthropic(base_url=url, api_key=API_KEY, http_client=http_client, max_retries=0)
            yield await stack.enter_async_context(client)

    def _keep(self, response: Any) -> None:
        request = response.request
        exchange = Exchange(
            path=request.url.path,
            family="anthropic" if "anthropic-version" in request.headers else "openai",
            is_beta=request.url.params.get("beta") == "true",
            sent=json.loads(request.content) if request.content else {},
            status=response.status_code,
            headers=dict(response.headers),
        )
        self.exchanges.append(exchange)
        response.stream = _Tee(response.stream, exchange)

    async def _keep_async(self, response: Any) -> None:
        self._keep(response)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model says to a conversation, by the offline API."""

    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    logprobs: Sequence[Logprobs]
    reasoning: str
    content: str


@cache
def offline_model(checkpoint: Path) -> Offline:
    """Loaded once for all files of tests."""
    return Offline(checkpoint)


class Offline:
    """The same checkpoint without a server."""

    def __init__(self, checkpoint: Path) -> None:
        self.llm = LLM(checkpoint, weights="fp32", max_model_len=4096, progress=False)
        assert self.llm.tokenizer is not None
        self.tokenizer = self.llm.tokenizer
        self._replies: dict[str, Reply] = {}
        self._format = ChatFormat(self.tokenizer, preview_rules=True)

    def without_blanks(self) -> dict[str, float]:
        """A `logit_bias` for grammars that allow blanks, of which the random model would make ample use."""
        ids = range(self.llm.config.vocab_size)
        return {str(token_id): -100.0 for token_id in ids if self.tokenizer.decode([token_id]).isspace()}

    def one_call(self) -> dict[str, float]:
        """A `logit_bias` under which the markup of calls is closed as soon as it may be."""
        return {**self.without_blanks(), str(self.tokenizer.encode("/")[0]): 30.0}

    def reply(self, messages: Sequence[Mapping[str, Any]], *, thinking: bool, **sampling: Any) -> Reply:
        """The greedy reply, unless `sampling` says otherwise."""
        key = json.dumps([messages, thinking, sampling])
        if key not in self._replies:
            self._replies[key] = self._reply(messages, thinking, sampling)
        return self._replies[key]

    def _reply(self, messages: Sequence[Mapping[str, Any]], thinking: bool, sampling: dict[str, Any]) -> Reply:
        prompt = self._format.render_chat(messages, thinking=thinking)
        bias = {int(token): value for token, value in sampling.pop("logit_bias", {}).items()}
        params = SamplingParams(**{"temperature": 0.0, "logprobs": 3, "logit_bias": bias, **sampling})
        output = self.llm.generate(list(prompt.token_ids), params)[0]
        stream = self._format.open_stream(prompt)
        texts = {"reasoning": "", "content": ""}
        for event in [*stream.push(output.token_ids), *stream.finish("length")]:
            assert isinstance(event, TextEvent), "tests ask for no tools here"
            texts[event.kind] += event.text
        return Reply(prompt.token_ids, output.token_ids, output.logprobs or (), texts["reasoning"], texts["content"])
