# SPDX-License-Identifier: Apache-2.0
"""The OpenAI SDK against a live process: Chat Completions, Completions, Responses, models.

`traffic` holds every body and event that a test received against the SDK's types when the test ends.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.server.clients import (
    CALL_TOKENS,
    MODEL,
    MULTI_BYTE,
    QUESTION,
    THINKING_ENDS_AFTER_SOME_TOKENS,
    TIME,
    WEATHER,
    City,
    Offline,
    Point,
    Traffic,
)


@pytest.fixture
def client(traffic: Traffic, live: Any) -> openai.OpenAI:
    return traffic.openai(live.url)


def chat(client: openai.OpenAI, messages: Any = QUESTION, **options: Any) -> ChatCompletion:
    """A greedy reply without thinking, unless `options` say otherwise."""
    options = {"model": MODEL, "messages": messages, "max_tokens": 12, "temperature": 0, **switch(False), **options}
    result: ChatCompletion = client.chat.completions.create(**options)
    return result


def chat_stream(client: openai.OpenAI, messages: Any = QUESTION, **options: Any) -> list[ChatCompletionChunk]:
    options = {"model": MODEL, "messages": messages, "max_tokens": 12, "temperature": 0, **switch(False), **options}
    return list(client.chat.completions.create(stream=True, **options))


def switch(thinking: bool) -> dict[str, Any]:
    return {"extra_body": {"thinking": {"type": "enabled" if thinking else "disabled"}}}


def reasoning_of(message: Any) -> str:
    """DeepSeek's field, which the SDK's types do not declare."""
    return getattr(message, "reasoning_content", None) or ""


def joined(chunks: Sequence[ChatCompletionChunk], index: int = 0) -> tuple[str, str, str | None]:
    """Reasoning, content and finish reason of one choice of a stream."""
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    assert [choice.finish_reason for choice in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[0].delta.role == "assistant"
    reasoning = "".join(reasoning_of(choice.delta) for choice in choices)
    return reasoning, "".join(choice.delta.content or "" for choice in choices), choices[-1].finish_reason


# Models


def test_models(client: openai.OpenAI) -> None:
    listed = client.models.list().data
    assert [model.id for model in listed] == [MODEL]
    assert client.models.retrieve(MODEL) == listed[0]
    with pytest.raises(openai.NotFoundError, match="'other'.*'demo'"):
        client.models.retrieve("other")


# Chat Completions


@pytest.mark.parametrize("thinking", [False, True])
def test_greedy_replies_are_those_of_the_offline_api(client: openai.OpenAI, offline: Offline, thinking: bool) -> None:
    expected = offline.reply(QUESTION, thinking=thinking, max_tokens=12)
    whole = chat(client, **switch(thinking))
    choice, usage = whole.choices[0], whole.usage
    assert (reasoning_of(choice.message), choice.message.content) == (expected.reasoning, expected.content)
    assert bool(expected.reasoning) == thinking and bool(expected.content) != thinking
    assert choice.finish_reason == "length" and usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(expected.prompt_ids), len(expected.token_ids))
    assert joined(chat_stream(client, **switch(thinking))) == (expected.reasoning, expected.content, "length")


def test_temperature_counts_in_thinking_mode(client: openai.OpenAI) -> None:
    replies = {reasoning_of(chat(client, temperature=1, seed=seed, **switch(True)).choices[0].message) for seed in range(4)}
    assert len(replies) > 1


def test_reasoning_and_answer_of_one_reply(client: openai.OpenAI, offline: Offline) -> None:
    expected = offline.reply(QUESTION, thinking=True, max_tokens=16, **THINKING_ENDS_AFTER_SOME_TOKENS)
    assert expected.reasoning and expected.content
    options = {"max_tokens": 16, **THINKING_ENDS_AFTER_SOME_TOKENS, **switch(True)}
    whole = chat(client, **options)
    message = whole.choices[0].message
    assert (reasoning_of(message), message.content) == (expected.reasoning, expected.content)
    assert whole.usage is not None and whole.usage.completion_tokens_details is not None
    assert whole.usage.completion_tokens_details.reasoning_tokens == expected.token_ids.index(1015)
    assert joined(chat_stream(client, **options)) == (expected.reasoning, expected.content, "length")


@pytest.mark.parametrize(
    "options",
    [
        {"extra_body": {"chat_template_kwargs": {"thinking": False}}},
        {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
        {"reasoning_effort": "none", "extra_body": {}},
    ],
)
def test_other_ways_to_turn_thinking_off(client: openai.OpenAI, options: dict[str, Any]) -> None:
    assert chat(client, **options).choices[0].message == chat(client).choices[0].message


def test_thinking_is_the_default(client: openai.OpenAI) -> None:
    by_default = chat(client, extra_body={}).choices[0].message
    assert by_default == chat(client, extra_body={"chat_template_kwargs": {"thinking": True}}).choices[0].message
    assert reasoning_of(by_default) and not by_default.content


def test_effort_changes_the_prompt(client: openai.OpenAI) -> None:
    lengths = {}
    for effort in ("low", "max"):
        usage = chat(client, max_tokens=1, reasoning_effort=effort, extra_body={}).usage
        assert usage is not None
        lengths[effort] = usage.prompt_tokens
    assert lengths["low"] < lengths["max"]


@pytest.mark.parametrize("thinking", [False, True])
def test_logprobs(client: openai.OpenAI, offline: Offline, thinking: bool) -> None:
    expected = offline.reply(QUESTION, thinking=thinking, max_tokens=6)
    options = {"max_tokens": 6, "logprobs": True, "top_logprobs": 3, **switch(thinking)}
    field = "reasoning_content" if thinking else "content"
    whole = chat(client, **options).choices[0].logprobs
    assert whole is not None
    rows = whole.to_dict()[field]
    assert isinstance(rows, list) and len(rows) == 6
    for row, (token_id, scores) in zip(rows, zip(expected.token_ids, expected.logprobs, strict=True), strict=True):
        assert row["logprob"] == pytest.approx(scores[token_id], rel=1e-5)
        best = sorted(scores.values(), reverse=True)[:3]
        assert [top["logprob"] for top in row["top_logprobs"]] == pytest.approx(best, rel=1e-5)
        assert row["top_logprobs"][0]["token"] == row["token"]  # greedy
    text = b"".join(bytes(row["bytes"]) for row in rows).decode()
    assert text == (expected.reasoning or expected.content)
    choices = [choice for chunk in chat_stream(client, **options) for choice in chunk.choices]
    pieces: list[Any] = [choice.logprobs.to_dict().get(field) for choice in choices if choice.logprobs]
    assert [row for piece in pieces for row in piece or ()] == rows


def test_no_logprobs_unless_asked_for(client: openai.OpenAI) -> None:
    assert chat(client).choices[0].logprobs is None


def test_stop_text_ends_a_reply_and_is_left_out(client: openai.OpenAI, offline: Offline) -> None:
    full = offline.reply(QUESTION, thinking=False, max_tokens=12).content
    stop = full[len(full) // 2 : len(full) // 2 + 4]  # not at the edges of tokens
    before = full[: full.index(stop)]
    options = {"stop": ["not in the reply", stop], "stream_options": {"include_usage": True}}
    whole = chat(client, stop=options["stop"])
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (before, "stop")
    assert whole.usage is not None and 0 < whole.usage.completion_tokens < 12
    chunks = chat_stream(client, **options)
    assert joined(chunks) == ("", before, "stop")
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_stop_text_that_never_completes_is_text(client: openai.OpenAI, offline: Offline) -> None:
    full = offline.reply(QUESTION, thinking=False, max_tokens=12).content
    stop = full[-3:] + "…"
    assert joined(chat_stream(client, stop=stop)) == ("", full, "length")


def test_usage_chunk_comes_last_and_only_if_asked_for(client: openai.OpenAI) -> None:
    chunks = chat_stream(client, stream_options={"include_usage": True})
    assert [bool(chunk.choices) for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].usage == chat(client).usage
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert all(chunk.choices and chunk.usage is None for chunk in chat_stream(client))
    assert all(chunk.usage is None for chunk in chat_stream(client, stream_options={"include_usage": False}))


def test_end_token_counts_and_says_nothing(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"logit_bias": {"1": 100}, "stream_options": {"include_usage": True}}
    whole = chat(client, logit_bias=options["logit_bias"])
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("", "stop")
    assert whole.usage is not None and whole.usage.completion_tokens == 1
    chunks = chat_stream(client, **options)
    assert joined(chunks) == ("", "", "stop") and chunks[-1].usage == whole.usage


def test_choices(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"temperature": 1, "seed": 3}
    alone = chat(client, **options)
    three = chat(client, n=3, **options)
    texts = [choice.message.content for choice in three.choices]
    assert [choice.index for choice in three.choices] == [0, 1, 2] and len(set(texts)) == 3
    assert texts[0] == alone.choices[0].message.content
    assert three.usage is not None and alone.usage is not None
    assert three.usage.prompt_tokens == alone.usage.prompt_tokens
    assert (three.usage.completion_tokens, three.usage.total_tokens) == (36, 36 + alone.usage.prompt_tokens)
    chunks = chat_stream(client, n=3, stream_options={"include_usage": True}, **options)
    assert [joined(chunks, index) for index in range(3)] == [("", text, "length") for text in texts]
    assert chunks[-1].usage == three.usage


def test_token_limits(client: openai.OpenAI) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        reply = chat(client, **{"max_tokens": openai.omit, name: 3})
        assert reply.usage is not None and reply.usage.completion_tokens == 3


def test_roles(client: openai.OpenAI, traffic: Traffic) -> None:
    replies = [chat(client, [{"role": role, "content": "Be brief."}, *QUESTION]) for role in ("system", "developer")]
    assert replies[0].choices[0].message == replies[1].choices[0].message != chat(client).choices[0].message
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert chat(client, [{"role": "user", "content": parts}]).usage is not None


def test_reasoning_that_is_passed_back(client: openai.OpenAI) -> None:
    """It is part of the prompt as long as tools are in use, and is left out else: so the official encoding wants it."""
    answer = {"role": "assistant", "content": "Good day.", "reasoning_content": "A greeting, so I greet back."}
    messages = [*QUESTION, answer, {"role": "user", "content": "And now?"}]
    without = [*QUESTION, {**answer, "reasoning_content": ""}, messages[-1]]
    for tools, is_kept in ((openai.omit, False), ([WEATHER], True)):
        lengths = []
        for one in (messages, without):
            usage = chat(client, one, max_tokens=1, tools=tools, extra_body={}).usage
            assert usage is not None
            lengths.append(usage.prompt_tokens)
        assert (lengths[0] > lengths[1]) == is_kept


def test_assistant_prefix_is_continued(client: openai.OpenAI, offline: Offline) -> None:
    """DeepSeek's `prefix`: the model goes on where the message ends, so what it would have said anyway follows."""
    full = offline.reply(QUESTION, thinking=False, max_tokens=12)
    start = offline.tokenizer.decode(full.token_ids[:3])
    assert offline.tokenizer.encode(start) == list(full.token_ids[:3]), "the text must be cut the same way"
    reply = chat(client, [*QUESTION, {"role": "assistant", "content": start, "prefix": True}], max_tokens=9)
    assert start + (reply.choices[0].message.content or "") == full.content


def test_multi_byte_text(client: openai.OpenAI, offline: Offline) -> None:
    text = MULTI_BYTE * 6
    num_tokens = len(offline.tokenizer.encode(text))
    echoed = client.completions.create(model=MODEL, prompt=text, max_tokens=0, echo=True)
    assert echoed.choices[0].text == text
    assert echoed.usage is not None and echoed.usage.prompt_tokens == num_tokens
    usage = chat(client, [{"role": "user", "content": text}], max_tokens=1).usage
    empty = chat(client, [{"role": "user", "content": "a"}], max_tokens=1).usage
    assert usage is not None and empty is not None and usage.prompt_tokens == empty.prompt_tokens - 1 + num_tokens


def test_stream_helper_of_the_sdk(client: openai.OpenAI) -> None:
    expected = chat(client, stop="ull").choices[0].message.content
    options: Any = {"model": MODEL, "messages": QUESTION, "max_tokens": 12, "temperature": 0, "stop": "ull", **switch(False)}
    with client.chat.completions.stream(**options) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert final.choices[0].message.content == expected
    assert "".join(event.delta for event in events if event.type == "content.delta") == expected


# Structured replies


def test_json_schema(client: openai.OpenAI, offline: Offline) -> None:
    schema = Point.model_json_schema()
    options: dict[str, Any] = {
        "max_tokens": 60,
        "temperature": 1,
        "seed": 1,
        "logit_bias": offline.without_blanks(),
        "response_format": {"type": "json_schema", "json_schema": {"name": "point", "strict": True, "schema": schema}},
    }
    whole = chat(client, **options)
    content = whole.choices[0].message.content
    assert content is not None and whole.choices[0].finish_reason == "stop"
    Point.model_validate_json(content)
    chunks = chat_stream(client, **options)
    assert joined(chunks) == ("", content, "stop")
    assert not any("\ufffd" in (choice.delta.content or "") for chunk in chunks for choice in chunk.choices)


def test_json_schema_behind_thinking(client: openai.OpenAI, offline: Offline) -> None:
    point = {"name": "point", "schema": Point.model_json_schema()}
    ending = THINKING_ENDS_AFTER_SOME_TOKENS
    reply = chat(
        client, max_tokens=80, response_format={"type": "json_schema", "json_schema": point},
        **{**ending, "logit_bias": {**offline.without_blanks(), **ending["logit_bias"]}}, **switch(True),
    )  # fmt: skip
    message = reply.choices[0].message
    assert reasoning_of(message) and reply.choices[0].finish_reason == "stop"
    Point.model_validate_json(message.content or "")


def test_json_object(client: openai.OpenAI, offline: Offline) -> None:
    """Anything but JSON is impossible; a bias for the closing brace keeps the random model short."""
    bias = {**offline.without_blanks(), str(offline.tokenizer.encode("}")[0]): 20}
    reply = chat(
        client, [{"role": "user", "content": "Answer in json"}], max_tokens=60, response_format={"type": "json_object"},
        logit_bias=bias,
    )  # fmt: skip
    assert reply.choices[0].finish_reason == "stop"
    assert isinstance(json.loads(reply.choices[0].message.content or ""), dict)


def test_parse_helper_of_the_sdk(client: openai.OpenAI, offline: Offline) -> None:
    parsed = client.chat.completions.parse(
        model=MODEL, messages=QUESTION, max_tokens=60, temperature=0, logit_bias=offline.without_blanks(),  # type: ignore[arg-type]
        response_format=Point, **switch(False),
    )  # fmt: skip
    assert isinstance(parsed.choices[0].message.parsed, Point)


# Tools


@pytest.mark.parametrize(
    ("tool_choice", "stream"), [("required", False), ({"type": "function", "function": {"name": "weather"}}, True)]
)
def test_forced_call_and_its_result(client: openai.OpenAI, offline: Offline, tool_choice: Any, stream: bool) -> None:
    """The random model would never call: the grammar makes it. Thinking, on by default, gives way."""
    tools = [TIME, WEATHER]
    options = {"tools": tools, "tool_choice": tool_choice, "max_tokens": CALL_TOKENS, "extra_body": {}}
    options["logit_bias"] = offline.one_call()
    call = streamed_call(chat_stream(client, **options)) if stream else called(chat(client, **options))
    name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
    assert name in (("time", "weather") if tool_choice == "required" else ("weather",))
    assert arguments in ([{"city": "Rome"}, {"city": "Oslo"}] if name == "weather" else [{}])
    messages = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "Rain."},
    ]
    answer = chat(client, messages, tools=tools, tool_choice="none")
    assert answer.choices[0].message.content and answer.choices[0].message.tool_calls is None


def called(reply: ChatCompletion) -> dict[str, Any]:
    """The first call of a reply, as it is sent back."""
    choice = reply.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.tool_calls
    assert not choice.message.content and not reasoning_of(choice.message)
    return choice.message.tool_calls[0].to_dict()


def streamed_call(chunks: Sequence[ChatCompletionChunk]) -> dict[str, Any]:
    assert joined(chunks) == ("", "", "tool_calls")
    parts = [part for chunk in chunks for choice in chunk.choices for part in choice.delta.tool_calls or () if part.index == 0]
    first, functions = parts[0], [part.function for part in parts if part.function]
    assert first.type == "function" and [part.id for part in parts[1:]] == [None] * (len(parts) - 1)
    assert functions[0].name and all(function.name is None for function in functions[1:])
    arguments = "".join(function.arguments or "" for function in functions)
    return {"id": first.id, "type": "function", "function": {"name": functions[0].name, "arguments": arguments}}


def test_forced_call_while_thinking_is_asked_for(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="Thinking mode does not support this tool_choice"):
        chat(client, tools=[WEATHER], tool_choice="required", **switch(True))


def test_tools_that_need_not_be_used(client: openai.OpenAI) -> None:
    reply = chat(client, tools=[WEATHER], tool_choice="auto")
    assert reply.choices[0].message.tool_calls is None and reply.choices[0].message.content
    assert reply.usage is not None and reply.usage.prompt_tokens > 100, "the prompt describes the tool"


def test_tool_helper_of_the_sdk(client: openai.OpenAI, offline: Offline) -> None:
    """A strict tool made from a pydantic type, its arguments parsed into it."""
    parsed = client.chat.completions.parse(
        model=MODEL, messages=QUESTION, max_tokens=CALL_TOKENS, temperature=0, tool_choice="required",
        tools=[openai.pydantic_function_tool(City, name="weather")], logit_bias=offline.one_call(),  # type: ignore[arg-type]
        **switch(False),
    )  # fmt: skip
    calls = parsed.choices[0].message.tool_calls
    assert calls and isinstance(calls[0].function.parsed_arguments, City)


# Errors


IMAGE = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/image.png"}}
NONSENSE = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "nonsense"}}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("options", "param", "message"),
    [
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"extra_body": {"temprature": 1}}, "temprature", "Did you mean temperature"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages", "wizard"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, None, "preceding"),
        ({"messages": [{"role": "user", "content": "Hello " * 2000}]}, None, "max_model_len=4096"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages", "reads text only"),
        ({"n": 100}, "n", "max_n"),
        ({"reasoning_effort": "enormous", "extra_body": {}}, None, "enormous"),
        ({"tools": [NONSENSE]}, None, "nonsense"),
    ],
)
def test_bad_requests(client: openai.OpenAI, options: dict[str, Any], param: str | None, message: str, stream: bool) -> None:
    """They get a status code of their own also where a stream was asked for."""
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        chat_stream(client, **options) if stream else chat(client, **options)
    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")
    assert caught.value.request_id


def test_stream_options_without_a_stream(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="only a stream"):
        chat(client, stream_options={"include_usage": True})


def test_unknown_model_and_path(client: openai.OpenAI) -> None:
    for call in (
        lambda: chat(client, model="other"),
        lambda: client.completions.create(model="other", prompt="x"),
        lambda: client.embeddings.create(model=MODEL, input="x"),
    ):
        with pytest.raises(openai.NotFoundError):
            call()


@pytest.fixture(scope="module")
def narrow(start_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server that wants keys, serves one request at a time, and does not think unless it is asked to."""
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text("# for the tests\nfirst-key-of-two\nsecond-key-of-two # another\n")
    limits = ("--max-num-seqs", "1", "--max-num-waiting", "0", "--max-model-len", "2048", "--retry-after-s", "2")
    server = start_server("--api-keys-file", str(keys), "--default-thinking", "off", *limits)
    yield server
    assert server.stop() == 0


def test_api_keys(narrow: Any, traffic: Traffic) -> None:
    for key in ("first-key-of-two", "second-key-of-two"):
        assert chat(traffic.openai(narrow.url, key), max_tokens=1).usage is not None
    for key in ("first-key-of-tw", "# for the tests"):
        with pytest.raises(openai.AuthenticationError, match="no valid API key"):
            chat(traffic.openai(narrow.url, key), max_tokens=1)
    assert not any("key-of-two" in line for line in narrow.log)


def test_thinking_only_on_demand(narrow: Any, traffic: Traffic, offline: Offline) -> None:
    client = traffic.openai(narrow.url, "first-key-of-two")
    replies = [chat(client, extra_body={}, **options).choices[0].message for options in ({}, {"reasoning_effort": "low"})]
    assert replies[0].content == offline.reply(QUESTION, thinking=False, max_tokens=12).content
    assert reasoning_of(replies[1]) == offline.reply(QUESTION, thinking=True, max_tokens=12).reasoning


def test_full_queue(narrow: Any, traffic: Traffic) -> None:
    client = traffic.openai(narrow.url, "first-key-of-two")
    with client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=1500, stream=True) as stream:
        next(iter(stream))
        with pytest.raises(openai.RateLimitError, match="at most 0 may wait") as caught:
            chat(client, max_tokens=1)
        assert caught.value.response.headers["retry-after"] == "2"
    # The stream was left: its place is free again after as long as the client is told to wait.
    patient = traffic.openai(narrow.url, "first-key-of-two", max_retries=1)
    assert chat(patient, max_tokens=1).usage is not None


def test_async_client(live: Any, traffic: Traffic, offline: Offline) -> None:
    expected = offline.reply(QUESTION, thinking=False, max_tokens=12).content

    async def talk() -> tuple[str | None, str]:
        async with traffic.async_openai(live.url) as client:
            options: Any = {"model": MODEL, "messages": QUESTION, "max_tokens": 12, "temperature": 0, **switch(False)}
            whole = await client.chat.completions.create(**options)
            stream = await client.chat.completions.create(stream=True, **options)
            text = "".join([choice.delta.content or "" async for chunk in stream for choice in chunk.choices])
            return whole.choices[0].message.content, text

    assert asyncio.run(talk()) == (expected, expected)
