# SPDX-License-Identifier: Apache-2.0
"""The Anthropic SDK against a live process: Messages and its beta, count_tokens, models.

`traffic` holds every body and event that a test received against the SDK's types when the test ends. Temperature and seed
go through `extra_body`: the SDK has no arguments for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic.types import Message, ToolUseBlock

from tests.server.clients import (
    CALL_TOKENS,
    CITY,
    MODEL,
    MULTI_BYTE,
    QUESTION,
    THINKING_ENDS_AFTER_SOME_TOKENS,
    Offline,
    Traffic,
)

WEATHER: Any = {"name": "weather", "description": "Forecast", "input_schema": CITY}
TIME: Any = {"type": "custom", "name": "time", "input_schema": {"type": "object", "properties": {}}}
OFF: Any = {"type": "disabled"}
ON: Any = {"type": "enabled", "budget_tokens": 1024}


@pytest.fixture
def client(traffic: Traffic, live: Any) -> anthropic.Anthropic:
    return traffic.anthropic(live.url)


def defaults(messages: Any, options: dict[str, Any]) -> dict[str, Any]:
    """A greedy reply without thinking, unless `options` say otherwise."""
    base = {"model": MODEL, "messages": messages, "max_tokens": 10, "thinking": OFF, "extra_body": {"temperature": 0}}
    return {**base, **options}


def message(client: anthropic.Anthropic, messages: Any = QUESTION, **options: Any) -> Message:
    result: Message = client.messages.create(**defaults(messages, options))
    return result


def message_stream(client: anthropic.Anthropic, messages: Any = QUESTION, **options: Any) -> list[Any]:
    return list(client.messages.create(stream=True, **defaults(messages, options)))


def texts(blocks: Sequence[Any]) -> tuple[str, str]:
    """Thinking and text."""
    thinking = "".join(block.thinking for block in blocks if block.type == "thinking")
    return thinking, "".join(block.text for block in blocks if block.type == "text")


def streamed_texts(events: Sequence[Any]) -> tuple[str, str]:
    deltas = [event.delta for event in events if event.type == "content_block_delta"]
    thinking = "".join(delta.thinking for delta in deltas if delta.type == "thinking_delta")
    return thinking, "".join(delta.text for delta in deltas if delta.type == "text_delta")


# Models


def test_models(client: anthropic.Anthropic) -> None:
    listed = client.models.list().data
    assert [model.id for model in listed] == [MODEL]
    assert client.models.retrieve(MODEL) == listed[0]
    assert listed[0].max_input_tokens == 4096
    assert client.beta.models.retrieve(MODEL).id == MODEL
    with pytest.raises(anthropic.NotFoundError, match="'other'.*'demo'"):
        client.models.retrieve("other")


# Messages


@pytest.mark.parametrize("thinking", [False, True])
def test_greedy_replies_are_those_of_the_offline_api(client: anthropic.Anthropic, offline: Offline, thinking: bool) -> None:
    expected = offline.reply(QUESTION, thinking=thinking, max_tokens=10)
    options = {"thinking": ON if thinking else OFF}
    whole = message(client, **options)
    assert texts(whole.content) == (expected.reasoning, expected.content)
    assert [block.type for block in whole.content] == ["thinking" if thinking else "text"]
    assert (whole.stop_reason, whole.stop_sequence) == ("max_tokens", None)
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (len(expected.prompt_ids), 10)
    events = message_stream(client, **options)
    assert streamed_texts(events) == (expected.reasoning, expected.content)
    assert (events[0].type, events[-1].type) == ("message_start", "message_stop")
    assert events[0].message.usage.input_tokens == len(expected.prompt_ids)
    assert (events[-2].delta.stop_reason, events[-2].usage.output_tokens) == ("max_tokens", 10)


@pytest.mark.parametrize("thinking", [OFF, ON])
def test_beta_messages(client: anthropic.Anthropic, thinking: Any) -> None:
    expected = texts(message(client, thinking=thinking).content)
    options = defaults(QUESTION, {"thinking": thinking})
    assert texts(client.beta.messages.create(**options).content) == expected
    assert streamed_texts(list(client.beta.messages.create(stream=True, **options))) == expected


def test_thinking_by_other_words(client: anthropic.Anthropic) -> None:
    expected = message(client, thinking=ON).content
    assert texts(message(client, thinking=anthropic.omit).content) == texts(expected), "thinking is the default"
    assert texts(message(client, thinking={"type": "adaptive"}).content) == texts(expected)
    deep = message(client, thinking={"type": "adaptive"}, output_config={"effort": "max"})
    assert deep.usage.input_tokens > message(client, thinking=ON).usage.input_tokens


def test_thinking_and_text_of_one_reply(client: anthropic.Anthropic, offline: Offline) -> None:
    expected = offline.reply(QUESTION, thinking=True, max_tokens=14, **THINKING_ENDS_AFTER_SOME_TOKENS)
    assert expected.reasoning and expected.content
    options = {"max_tokens": 14, "thinking": ON, "extra_body": {"temperature": 0, **THINKING_ENDS_AFTER_SOME_TOKENS}}
    whole = message(client, **options)
    assert [block.type for block in whole.content] == ["thinking", "text"]
    assert texts(whole.content) == (expected.reasoning, expected.content)
    assert streamed_texts(message_stream(client, **options)) == (expected.reasoning, expected.content)


def test_a_reply_that_ends_by_itself(client: anthropic.Anthropic, offline: Offline) -> None:
    last = offline.reply(QUESTION, thinking=False, max_tokens=4).token_ids[3]
    whole = message(client, extra_body={"temperature": 0, "stop_token_ids": [last]})
    assert (whole.stop_reason, whole.usage.output_tokens) == ("end_turn", 4)


def test_seed(client: anthropic.Anthropic) -> None:
    replies = [texts(message(client, extra_body={"temperature": 1, "seed": seed}).content) for seed in (1, 2, 1)]
    assert replies[0] == replies[2] != replies[1]


def test_stop_sequences(client: anthropic.Anthropic, offline: Offline) -> None:
    full = offline.reply(QUESTION, thinking=False, max_tokens=10).content
    stop = full[len(full) // 2 : len(full) // 2 + 4]
    options = {"stop_sequences": ["not in the reply", stop]}
    whole = message(client, **options)
    assert texts(whole.content) == ("", full[: full.index(stop)])
    assert (whole.stop_reason, whole.stop_sequence) == ("stop_sequence", stop)
    events = message_stream(client, **options)
    assert streamed_texts(events) == texts(whole.content)
    assert (events[-2].delta.stop_reason, events[-2].delta.stop_sequence) == ("stop_sequence", stop)
    assert events[-2].usage.output_tokens == whole.usage.output_tokens < 10


def test_system_blocks(client: anthropic.Anthropic) -> None:
    cached = {"cache_control": {"type": "ephemeral"}}
    system = [{"type": "text", "text": "Be brief.", **cached}, {"type": "text", "text": "Be kind.", **cached}]
    question = [{"role": "user", "content": [{"type": "text", "text": "Hello", **cached}]}]
    reply = message(client, question, system=system)
    assert (
        texts(reply.content) == texts(message(client, system="Be brief.\n\nBe kind.").content) != texts(message(client).content)
    )
    assert (reply.usage.cache_creation_input_tokens, reply.usage.cache_read_input_tokens) == (0, 0)


def test_count_tokens(client: anthropic.Anthropic) -> None:
    conversation: dict[str, Any] = {
        "messages": [{"role": "user", "content": MULTI_BYTE}],
        "system": "Be brief.",
        "tools": [WEATHER, TIME],
        "thinking": OFF,
    }
    counted = client.messages.count_tokens(model=MODEL, **conversation)
    reply = client.messages.create(model=MODEL, max_tokens=1, **conversation)
    assert counted.input_tokens == reply.usage.input_tokens > 100
    assert client.beta.messages.count_tokens(model=MODEL, **conversation).input_tokens == counted.input_tokens


@pytest.mark.parametrize(("tool_choice", "stream"), [({"type": "any"}, False), ({"type": "tool", "name": "weather"}, True)])
def test_forced_call_and_its_result(client: anthropic.Anthropic, offline: Offline, tool_choice: Any, stream: bool) -> None:
    """The random model would never call: the grammar makes it. Thinking, on by default, gives way."""
    tools = [TIME, WEATHER]
    options = {"tools": tools, "tool_choice": tool_choice, "max_tokens": CALL_TOKENS, "thinking": anthropic.omit}
    options["extra_body"] = {"temperature": 0, "logit_bias": offline.one_call()}
    if stream:
        with client.messages.stream(**defaults(QUESTION, options)) as events:
            reply: Any = events.get_final_message()
    else:
        reply = message(client, **options)
    [call] = reply.content
    assert isinstance(call, ToolUseBlock) and reply.stop_reason == "tool_use"
    assert call.name in (("weather", "time") if tool_choice["type"] == "any" else ("weather",))
    assert call.input in ([{"city": "Rome"}, {"city": "Oslo"}] if call.name == "weather" else [{}])
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "Rain."}]}
    turns = [{"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    answer = message(client, [*QUESTION, *turns], tools=tools, tool_choice={"type": "none"})
    assert [block.type for block in answer.content] == ["text"]


def test_tool_runner(client: anthropic.Anthropic, offline: Offline, traffic: Traffic) -> None:
    """The SDK's loop: it runs what the model calls and sends the results back. It asks for a thread that the server keeps
    first, and does without when it hears that there are none."""
    called: list[str] = []

    @anthropic.beta_tool
    def clock() -> str:
        """What time it is."""
        called.append("clock")
        return "Noon."

    options = {"tools": [clock], "tool_choice": {"type": "any"}, "max_tokens": CALL_TOKENS, "max_iterations": 2}
    options["extra_body"] = {"temperature": 0, "logit_bias": offline.one_call()}
    replies = list(client.beta.messages.tool_runner(**defaults(QUESTION, options)))
    assert [reply.stop_reason for reply in replies] == ["tool_use"] * 2
    assert called and traffic.last.sent["messages"][-1]["content"][0]["content"] == "Noon."
    assert [exchange.status for exchange in traffic.exchanges] == [400, 200, 200]


def test_tools_that_need_not_be_used(client: anthropic.Anthropic) -> None:
    reply = message(client, tools=[{**WEATHER, "strict": True}, TIME], tool_choice={"type": "auto"})
    assert [block.type for block in reply.content] == ["text"] and reply.usage.input_tokens > 100


def test_thinking_is_passed_back(client: anthropic.Anthropic) -> None:
    first = message(client, thinking=ON)
    turns = [*QUESTION, {"role": "assistant", "content": first.content}, {"role": "user", "content": "And?"}]
    assert [block.type for block in message(client, turns, thinking=ON).content] == ["thinking"]


def test_multi_byte_text(client: anthropic.Anthropic, offline: Offline) -> None:
    usage = message(client, [{"role": "user", "content": MULTI_BYTE}], max_tokens=1).usage
    empty = message(client, [{"role": "user", "content": "a"}], max_tokens=1).usage
    assert usage.input_tokens == empty.input_tokens - 1 + len(offline.tokenizer.encode(MULTI_BYTE))


def test_stream_helper_of_the_sdk(client: anthropic.Anthropic) -> None:
    with client.messages.stream(**defaults(QUESTION, {})) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    whole = message(client)
    assert ("", text) == texts(final.content) == texts(whole.content)
    assert (final.usage, final.stop_reason) == (whole.usage, whole.stop_reason)


# Errors


IMAGE = {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1:9/image.png"}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_tokens": 0}, "max_tokens: got 0"),
        ({"extra_body": {"temprature": 1}}, "Did you mean temperature"),
        ({"messages": []}, "at least 1"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "reads text only"),
        ({"messages": [{"role": "user", "content": "Hello " * 2000}]}, "max_model_len=4096"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "server tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "any"}, "thinking": ON}, "no place to think"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "other"}}, "other"),
    ],
)
def test_bad_requests(client: anthropic.Anthropic, options: dict[str, Any], text: str, stream: bool) -> None:
    with pytest.raises(anthropic.BadRequestError, match=text) as caught:
        message_stream(client, **options) if stream else message(client, **options)
    assert caught.value.type == "invalid_request_error"


def test_request_ids(client: anthropic.Anthropic) -> None:
    """The SDK reads them from a header of its own name."""
    assert message(client)._request_id
    with pytest.raises(anthropic.BadRequestError) as caught:
        message(client, max_tokens=0)
    assert caught.value.request_id


def test_unknown_model(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="'other'"):
        message(client, model="other")
    with pytest.raises(anthropic.NotFoundError, match="'other'"):
        client.messages.count_tokens(model="other", messages=QUESTION)


def test_keys_and_full_queue(start_server: Callable[..., Any], tmp_path: Path, traffic: Traffic) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("the-only-key\n")
    limits = ("--max-num-seqs", "1", "--max-num-waiting", "0", "--max-model-len", "2048", "--retry-after-s", "2")
    server = start_server("--api-keys-file", str(keys), *limits)
    client = traffic.anthropic(server.url, "the-only-key")
    with pytest.raises(anthropic.AuthenticationError, match="no valid API key"):
        message(traffic.anthropic(server.url, "another-key"))
    with client.messages.create(stream=True, **defaults(QUESTION, {"max_tokens": 1500})) as stream:
        next(iter(stream))
        with pytest.raises(anthropic.RateLimitError, match="max_num_waiting") as caught:
            message(client)
        assert caught.value.response.headers["retry-after"] == "2"
    assert message(traffic.anthropic(server.url, "the-only-key", max_retries=1), max_tokens=1).usage.output_tokens == 1
    assert server.stop() == 0


def test_async_client(live: Any, traffic: Traffic, offline: Offline) -> None:
    expected = "", offline.reply(QUESTION, thinking=False, max_tokens=10).content

    async def talk() -> tuple[tuple[str, str], tuple[str, str]]:
        async with traffic.async_anthropic(live.url) as client:
            whole = await client.messages.create(**defaults(QUESTION, {}))
            stream = await client.messages.create(stream=True, **defaults(QUESTION, {}))
            return texts(whole.content), streamed_texts([event async for event in stream])

    assert asyncio.run(talk()) == (expected, expected)
