# SPDX-License-Identifier: Apache-2.0
"""Libraries that applications are built with against a live process: litellm and langchain-openai.

Each holds a conversation with a tool, user → call → result → answer, whole and streamed. They are imported by fixtures:
importing litellm costs seconds, and it must be told first not to fetch its list of prices.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.server.clients import API_KEY, CALL_TOKENS, MODEL, QUESTION, TIME, WEATHER, City, Offline, Traffic

CITIES = ({"city": "Rome"}, {"city": "Oslo"})
NO_THINKING = {"thinking": {"type": "disabled"}}

pytestmark = pytest.mark.usefixtures("only_this_machine")


@pytest.fixture
def only_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that calls home fails."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX or address[0] == "127.0.0.1", f"a connection to {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="module")
def litellm() -> Iterator[Any]:
    loop = asyncio.new_event_loop()  # litellm would make one, and leave it open
    asyncio.set_event_loop(loop)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        import litellm

        yield litellm
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture
def complete(litellm: Any, live: Any, traffic: Traffic) -> Callable[..., Any]:
    """`litellm.completion`, greedy, brief and without thinking, unless options say otherwise."""
    defaults = {"model": f"openai/{MODEL}", "temperature": 0, "max_tokens": 10, "extra_body": NO_THINKING}
    defaults["client"] = traffic.openai(live.url)
    return lambda messages=QUESTION, **options: litellm.completion(messages=messages, **{**defaults, **options})


# litellm describes a type with a qualifier that pydantic does not enforce, and looks at all attributes of a pydantic object.
@pytest.mark.filterwarnings("ignore:Item 'summary' on TypedDict:UserWarning")
@pytest.mark.filterwarnings("ignore:Accessing the 'model_:pydantic.warnings.PydanticDeprecatedSince211")
class TestLitellm:
    @pytest.mark.parametrize("thinking", [False, True])
    def test_replies(self, complete: Callable[..., Any], offline: Offline, thinking: bool) -> None:
        expected = offline.reply(QUESTION, thinking=thinking, max_tokens=10)
        options: dict[str, Any] = {"extra_body": {}} if thinking else {}
        message = complete(**options).choices[0].message
        assert (getattr(message, "reasoning_content", ""), message.content) == (expected.reasoning, expected.content)
        deltas = [chunk.choices[0].delta for chunk in complete(stream=True, **options)]
        assert "".join(delta.content or "" for delta in deltas) == expected.content
        assert "".join(getattr(delta, "reasoning_content", "") or "" for delta in deltas) == expected.reasoning

    @pytest.mark.parametrize("stream", [False, True])
    def test_conversation_with_a_tool(self, litellm: Any, complete: Callable[..., Any], offline: Offline, stream: bool) -> None:
        tool, arguments = (WEATHER, CITIES) if stream else (TIME, ({},))
        options = {"tools": [tool], "tool_choice": "required", "max_tokens": CALL_TOKENS, "logit_bias": offline.one_call()}
        reply = complete(stream=stream, **options)
        if stream:
            reply = litellm.stream_chunk_builder(list(reply), messages=QUESTION)
        assert reply.choices[0].finish_reason == "tool_calls"
        message = reply.choices[0].message
        [call] = message.tool_calls
        assert call.function.name == tool["function"]["name"] and json.loads(call.function.arguments) in arguments
        result = {"role": "tool", "tool_call_id": call.id, "content": "Rain."}
        answer = complete([*QUESTION, message, result], tools=[tool], tool_choice="none", stream=stream)
        texts = [chunk.choices[0].delta.content for chunk in answer] if stream else [answer.choices[0].message.content]
        assert "".join(text or "" for text in texts)

    def test_messages_protocol(
        self, litellm: Any, complete: Callable[..., Any], live: Any, traffic: Traffic, offline: Offline
    ) -> None:
        from litellm.llms.custom_httpx.http_handler import HTTPHandler

        expected = offline.reply(QUESTION, thinking=True, max_tokens=10).reasoning
        options = {"model": f"anthropic/{MODEL}", "api_base": live.url, "api_key": API_KEY, "extra_body": None}
        options["client"] = HTTPHandler(client=traffic.http_client())
        assert complete(**options).choices[0].message.reasoning_content == expected
        deltas = [chunk.choices[0].delta for chunk in complete(stream=True, **options)]
        assert "".join(getattr(delta, "reasoning_content", "") or "" for delta in deltas) == expected

    def test_errors(self, litellm: Any, complete: Callable[..., Any]) -> None:
        with pytest.raises(litellm.NotFoundError, match="'other'"):
            complete(model="openai/other")
        with pytest.raises(litellm.BadRequestError, match="max_model_len=4096"):
            complete([{"role": "user", "content": "Hello " * 2000}])


@pytest.fixture
def chat_model(live: Any, traffic: Traffic) -> Callable[..., Any]:
    """A maker of greedy langchain models."""
    from langchain_openai import ChatOpenAI

    place = {"model": MODEL, "base_url": f"{live.url}/v1", "api_key": API_KEY, "http_client": traffic.http_client()}
    return lambda **options: ChatOpenAI(**{**place, "temperature": 0, "max_retries": 0, "max_tokens": 10, **options})


@pytest.fixture
def caller(chat_model: Callable[..., Any], offline: Offline) -> Any:
    """A model that takes its time for a call, and makes one."""
    return chat_model(max_tokens=CALL_TOKENS, logit_bias=offline.one_call(), extra_body=NO_THINKING)


class TestLangchain:
    def test_replies(self, chat_model: Callable[..., Any], offline: Offline) -> None:
        expected = offline.reply(QUESTION, thinking=False, max_tokens=10)
        model = chat_model(extra_body=NO_THINKING)
        whole = model.invoke("Hello")
        assert whole.content == expected.content
        assert whole.usage_metadata["input_tokens"] == len(expected.prompt_ids)
        assert whole.usage_metadata["output_tokens"] == len(expected.token_ids)
        assert "".join(chunk.content for chunk in model.stream("Hello")) == expected.content

    @pytest.mark.parametrize("stream", [False, True])
    def test_conversation_with_a_tool(self, caller: Any, stream: bool) -> None:
        from langchain_core.messages import HumanMessage, ToolMessage

        tool, arguments = (WEATHER, CITIES) if stream else (TIME, ({},))
        question = HumanMessage("Hello")
        bound = caller.bind_tools([tool], tool_choice="any")
        called = _sum(bound.stream([question])) if stream else bound.invoke([question])
        [call] = called.tool_calls
        assert call["name"] == tool["function"]["name"] and call["args"] in arguments
        turns = [question, called, ToolMessage("Rain.", tool_call_id=call["id"])]
        free = caller.bind_tools([tool], tool_choice="none").bind(max_tokens=8)
        answer = _sum(free.stream(turns)) if stream else free.invoke(turns)
        assert answer.content and not answer.tool_calls

    @pytest.mark.parametrize("method", ["json_schema", "function_calling"])
    def test_structured_output(self, caller: Any, method: str) -> None:
        assert isinstance(caller.with_structured_output(City, method=method).invoke("Hello"), City)

    def test_responses_protocol(self, chat_model: Callable[..., Any], offline: Offline) -> None:
        expected = offline.reply(QUESTION, thinking=False, max_tokens=10).content
        model = chat_model(reasoning={"effort": "none"}, use_responses_api=True)
        assert model.invoke("Hello").text == expected
        assert "".join(chunk.text for chunk in model.stream("Hello")) == expected


def _sum(chunks: Iterator[Any]) -> Any:
    """One message out of the chunks of a stream."""
    total = next(chunks)
    for chunk in chunks:
        total += chunk
    return total
