# SPDX-License-Identifier: Apache-2.0
"""The OpenAI SDK against a live process: Responses."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseFunctionToolCall

from tests.server.clients import (
    CALL_TOKENS,
    CITY,
    MODEL,
    QUESTION,
    THINKING_ENDS_AFTER_SOME_TOKENS,
    TIME,
    WEATHER,
    Offline,
    Point,
    Traffic,
)

NO_THINKING: Any = {"effort": "none"}
FLAT_TIME: Any = {"type": "function", **TIME["function"]}
FLAT_WEATHER: Any = {"type": "function", **WEATHER["function"]}


@pytest.fixture
def client(traffic: Traffic, live: Any) -> openai.OpenAI:
    return traffic.openai(live.url)


def respond(client: openai.OpenAI, content: Any = "Hello", **options: Any) -> Response:
    """A greedy response without thinking, unless `options` say otherwise."""
    result: Response = client.responses.create(**defaults(content, options))
    return result


def respond_stream(client: openai.OpenAI, content: Any = "Hello", **options: Any) -> list[Any]:
    return list(client.responses.create(stream=True, **defaults(content, options)))


def defaults(content: Any, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": MODEL, "input": content, "max_output_tokens": 10, "temperature": 0, "reasoning": NO_THINKING, **options
    }  # fmt: skip


def reasoning_of(response: Response) -> str:
    items = [item for item in response.output if item.type == "reasoning"]
    return "".join(part.text for item in items for part in item.content or ())


@pytest.mark.parametrize("thinking", [False, True])
def test_greedy_replies_are_those_of_the_offline_api(client: openai.OpenAI, offline: Offline, thinking: bool) -> None:
    expected = offline.reply(QUESTION, thinking=thinking, max_tokens=10)
    options = {"reasoning": {"effort": "low"} if thinking else NO_THINKING}
    whole = respond(client, **options)
    assert (reasoning_of(whole), whole.output_text) == (expected.reasoning, expected.content)
    assert whole.status == "incomplete" and whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens"
    assert whole.usage is not None
    counts = whole.usage.input_tokens, whole.usage.output_tokens, whole.usage.output_tokens_details.reasoning_tokens
    assert counts == (len(expected.prompt_ids), 10, 10 if thinking else 0)
    events = respond_stream(client, **options)
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].type == "response.incomplete"
    streamed = events[-1].response
    assert (reasoning_of(streamed), streamed.output_text, streamed.usage) == (expected.reasoning, expected.content, whole.usage)
    deltas = [event.delta for event in events if event.type in ("response.output_text.delta", "response.reasoning_text.delta")]
    assert "".join(deltas) == expected.reasoning + expected.content


def test_thinking_is_the_default(client: openai.OpenAI, offline: Offline) -> None:
    expected = offline.reply(QUESTION, thinking=True, max_tokens=10)
    assert reasoning_of(respond(client, reasoning=openai.omit)) == expected.reasoning


def test_reasoning_and_answer_of_one_reply(client: openai.OpenAI, offline: Offline) -> None:
    expected = offline.reply(QUESTION, thinking=True, max_tokens=14, **THINKING_ENDS_AFTER_SOME_TOKENS)
    assert expected.reasoning and expected.content
    options = {"max_output_tokens": 14, "reasoning": {"effort": "low"}, "extra_body": THINKING_ENDS_AFTER_SOME_TOKENS}
    whole, streamed = respond(client, **options), respond_stream(client, **options)[-1].response
    for response in (whole, streamed):
        assert [item.type for item in response.output] == ["reasoning", "message"]
        assert (reasoning_of(response), response.output_text) == (expected.reasoning, expected.content)
    assert whole.usage is not None
    assert whole.usage.output_tokens_details.reasoning_tokens == expected.token_ids.index(1015)


def test_a_reply_that_ends_by_itself(client: openai.OpenAI, offline: Offline) -> None:
    options = {"extra_body": {"stop_token_ids": [offline.reply(QUESTION, thinking=False, max_tokens=4).token_ids[3]]}}
    whole = respond(client, **options)
    assert (whole.status, whole.incomplete_details) == ("completed", None)
    assert whole.usage is not None and whole.usage.output_tokens == 4
    assert respond_stream(client, **options)[-1].type == "response.completed"


def test_seed(client: openai.OpenAI) -> None:
    texts = [respond(client, temperature=1, extra_body={"seed": seed}).output_text for seed in (1, 2, 1)]
    assert texts[0] == texts[2] != texts[1]


def test_logprobs(client: openai.OpenAI, offline: Offline) -> None:
    expected = offline.reply(QUESTION, thinking=False, max_tokens=10)
    options: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    message = respond(client, **options).output[0]
    assert message.type == "message" and message.content[0].type == "output_text"
    rows = message.content[0].logprobs
    assert rows is not None and b"".join(bytes(row.bytes) for row in rows).decode() == expected.content
    drawn = [scores[token_id] for token_id, scores in zip(expected.token_ids, expected.logprobs, strict=True)]
    assert [row.logprob for row in rows] == pytest.approx(drawn, rel=1e-5)
    assert [row.top_logprobs[0].logprob for row in rows] == pytest.approx(drawn, rel=1e-5)  # greedy
    assert {len(row.top_logprobs) for row in rows} == {2}
    deltas = [event for event in respond_stream(client, **options) if event.type == "response.output_text.delta"]
    assert [row.logprob for event in deltas for row in event.logprobs] == [row.logprob for row in rows]


def test_forms_of_input(client: openai.OpenAI) -> None:
    """Instructions, roles and parts: different ways to write the same conversation."""
    user: Any = {"role": "user", "content": "Hello"}
    parts: Any = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}
    system: Any = {"role": "system", "content": "Be brief."}
    replies = [
        respond(client, "Hello", instructions="Be brief."),
        respond(client, [user], instructions="Be brief."),
        respond(client, [system, user]),
        respond(client, [system, parts]),
    ]
    assert {reply.output_text for reply in replies} == {replies[0].output_text}
    assert replies[0].output_text != respond(client).output_text
    assert replies[0].instructions == "Be brief."


def test_several_turns(client: openai.OpenAI) -> None:
    """The output of one response is input of the next."""
    first = respond(client, reasoning={"effort": "low"}, max_output_tokens=6)
    assert [item.type for item in first.output] == ["reasoning"]
    items = [
        {"role": "user", "content": "Hello"},
        *[item.to_dict() for item in first.output],
        {"role": "user", "content": "And?"},
    ]
    second = respond(client, items)
    assert second.output_text and second.usage is not None and first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens


@pytest.mark.parametrize(("tool_choice", "stream"), [("required", False), ({"type": "function", "name": "weather"}, True)])
def test_forced_call_and_its_result(client: openai.OpenAI, offline: Offline, tool_choice: Any, stream: bool) -> None:
    """The random model would never call: the grammar makes it. Thinking, on by default, gives way."""
    tools = [FLAT_TIME, FLAT_WEATHER]
    options = {"tools": tools, "tool_choice": tool_choice, "max_output_tokens": CALL_TOKENS, "reasoning": openai.omit}
    options["extra_body"] = {"logit_bias": offline.one_call()}
    if stream:
        events = respond_stream(client, **options)
        response = events[-1].response
        deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
        done = [event for event in events if event.type == "response.function_call_arguments.done"]
        assert ["".join(deltas)] == [event.arguments for event in done]
    else:
        response = respond(client, **options)
    [call] = response.output
    assert isinstance(call, ResponseFunctionToolCall)
    assert (response.status, call.status) == ("completed", "completed")
    assert call.name in (("time", "weather") if tool_choice == "required" else ("weather",))
    assert json.loads(call.arguments) in ([{"city": "Rome"}, {"city": "Oslo"}] if call.name == "weather" else [{}])
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}
    answer = respond(client, [*QUESTION, call.to_dict(), result], tools=tools, tool_choice="none")
    assert answer.output_text and [item.type for item in answer.output] == ["message"]


def test_parse_helper_of_the_sdk(client: openai.OpenAI, offline: Offline) -> None:
    options = {"max_output_tokens": 60, "extra_body": {"logit_bias": offline.without_blanks()}}
    parsed = client.responses.parse(text_format=Point, **defaults("Hello", options))
    assert parsed.status == "completed" and isinstance(parsed.output_parsed, Point)


def test_json_schema(client: openai.OpenAI, offline: Offline) -> None:
    form = {"type": "json_schema", "name": "city", "strict": True, "schema": CITY}
    bias = {"logit_bias": offline.without_blanks()}
    response = respond(client, text={"format": form}, max_output_tokens=40, extra_body=bias)
    assert response.status == "completed"
    assert json.loads(response.output_text) in ({"city": "Rome"}, {"city": "Oslo"})


def test_stream_helper_of_the_sdk(client: openai.OpenAI) -> None:
    with client.responses.stream(
        model=MODEL, input="Hello", max_output_tokens=10, temperature=0, reasoning=NO_THINKING
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert "".join(deltas) == respond(client).output_text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("options", "param", "message"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "unknown field"),
        ({"background": True}, "background", "nothing is stored"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://127.0.0.1:9/x.png"}]}]},
         "input", "reads text only"),
        ({"max_output_tokens": 4095}, None, "max_model_len=4096"),
    ],
)  # fmt: skip
def test_bad_requests(client: openai.OpenAI, options: dict[str, Any], param: str | None, message: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        respond_stream(client, **options) if stream else respond(client, **options)
    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")


def test_async_client(live: Any, traffic: Traffic, offline: Offline) -> None:
    expected = offline.reply(QUESTION, thinking=False, max_tokens=10).content

    async def talk() -> tuple[str, str]:
        async with traffic.async_openai(live.url) as client:
            whole = await client.responses.create(**defaults("Hello", {}))
            stream = await client.responses.create(stream=True, **defaults("Hello", {}))
            text = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
            return whole.output_text, text

    assert asyncio.run(talk()) == (expected, expected)
