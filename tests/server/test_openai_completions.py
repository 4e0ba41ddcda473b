# SPDX-License-Identifier: Apache-2.0
"""The OpenAI SDK against a live process: Completions, and with them that tokens do not depend on what else runs."""

from __future__ import annotations

import asyncio
import json
import random
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

import openai
import pytest

from ascend_dsv4 import SamplingParams
from tests.server.clients import MODEL, Offline, Traffic


@pytest.fixture
def client(traffic: Traffic, live: Any) -> openai.OpenAI:
    return traffic.openai(live.url)


@pytest.mark.parametrize("prompt", ["Once upon", [72, 104, 300]])
def test_completions(client: openai.OpenAI, offline: Offline, prompt: Any) -> None:
    expected = offline.llm.generate([prompt], SamplingParams(max_tokens=8, temperature=0, logprobs=2))[0]
    options: dict[str, Any] = {"model": MODEL, "prompt": prompt, "max_tokens": 8, "temperature": 0, "logprobs": 2}
    options["extra_body"] = {"return_token_ids": True}
    whole = client.completions.create(**options)
    choice = whole.choices[0]
    assert (choice.text, choice.finish_reason) == (expected.text, "length")
    assert choice.to_dict()["token_ids"] == expected.token_ids
    assert whole.usage is not None and choice.logprobs is not None and expected.logprobs is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (len(expected.prompt_token_ids), 8)
    drawn = [row[token_id] for token_id, row in zip(expected.token_ids, expected.logprobs, strict=True)]
    assert choice.logprobs.token_logprobs == pytest.approx(drawn, rel=1e-5)
    assert "".join(choice.logprobs.tokens or ()) == expected.text
    chunks = list(client.completions.create(stream=True, stream_options={"include_usage": True}, **options))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == expected.text
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert [one for chunk in chunks[:-1] for one in chunk.choices[0].to_dict()["token_ids"]] == expected.token_ids


def test_completions_of_several_prompts(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": MODEL, "max_tokens": 5, "seed": 9}
    both = client.completions.create(prompt=["Once", "Two boats"], n=2, **options)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    for index, prompt in ((0, "Once"), (2, "Two boats")):
        assert both.choices[index].text == client.completions.create(prompt=prompt, **options).choices[0].text
    assert both.usage is not None and both.usage.completion_tokens == 20


def test_completions_stop(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": MODEL, "prompt": "Once", "max_tokens": 12, "temperature": 0}
    full = client.completions.create(**options).choices[0].text
    stop = full[len(full) // 2 : len(full) // 2 + 4]
    before = full[: full.index(stop)]
    cut = client.completions.create(stop=stop, **options).choices[0]
    assert (cut.text, cut.finish_reason) == (before, "stop")
    chunks = list(client.completions.create(stop=stop, stream=True, **options))
    assert "".join(chunk.choices[0].text for chunk in chunks) == before
    assert chunks[-1].choices[0].finish_reason == "stop"


# The same tokens whatever else runs


def status(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/status", timeout=10) as response:
        content: dict[str, Any] = json.load(response)
    return content


def stream_ids(url: str, requests: Sequence[dict[str, Any]], traffic: Traffic, *, at_once: bool = True) -> list[list[int]]:
    """The token ids of streamed completions, all at the same time or one after another."""

    async def one(client: openai.AsyncOpenAI, request: dict[str, Any]) -> list[int]:
        stream = await client.completions.create(stream=True, extra_body={"return_token_ids": True}, **request)
        return [token_id async for chunk in stream for token_id in chunk.choices[0].to_dict()["token_ids"]]

    async def every() -> list[list[int]]:
        async with traffic.async_openai(url) as client:
            if at_once:
                return await asyncio.gather(*(one(client, request) for request in requests))
            return [await one(client, request) for request in requests]

    return asyncio.run(every())


@pytest.fixture(scope="module")
def different_requests() -> list[dict[str, Any]]:
    """32 prompts of different lengths, half of them greedy. 14 outgrow a block of the caches, 128 tokens, on the way."""
    draw = random.Random(1)
    short, long = [draw.randint(4, 99) for _ in range(13)], [draw.randint(125, 127) for _ in range(14)]
    lengths = [1, 2, 31, 32, 33, *short, *long]
    return [
        {
            "model": MODEL,
            "prompt": [draw.randint(3, 1011) for _ in range(length)],
            "max_tokens": 5 + i % 3 if length > 100 else 2 + i % 4,
            "temperature": i % 2,
            "seed": i,
        }
        for i, length in enumerate(lengths)
    ]


@pytest.fixture(scope="module")
def ids_alone(different_requests: list[dict[str, Any]], live: Any) -> list[list[int]]:
    """What each request gives when nothing else runs."""
    with Traffic() as traffic:
        return stream_ids(live.url, different_requests, traffic, at_once=False)


def test_32_streams_at_once(
    different_requests: list[dict[str, Any]], ids_alone: list[list[int]], live: Any, traffic: Traffic
) -> None:
    assert [len(ids) for ids in ids_alone] == [request["max_tokens"] for request in different_requests]
    assert stream_ids(live.url, different_requests, traffic) == ids_alone


def test_preempted_requests(
    different_requests: list[dict[str, Any]], ids_alone: list[list[int]], start_server: Callable[..., Any], traffic: Traffic
) -> None:
    server = start_server("--max-num-seqs", "4", "--max-model-len", "256", "--max-total-tokens", "256")
    try:
        assert stream_ids(server.url, different_requests[16:], traffic) == ids_alone[16:]
        assert status(server.url)["requests"]["preemptions"] > 0
    finally:
        assert server.stop() == 0
