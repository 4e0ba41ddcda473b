# SPDX-License-Identifier: Apache-2.0
"""What is sent, and when: lengths, words, arrivals, files; equal seeds give equal load."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ascend_dsv4.bench.config import Lengths, LoadConfig, parse_json_object
from ascend_dsv4.bench.workload import WORDS, Prompt, WordCount, arrival_times, make_prompts, sample_prompts, warmup_prompts
from ascend_dsv4.errors import ConfigError


def prompt_words(prompt: Prompt) -> list[str]:
    content = prompt.content
    text = content["prompt"] if "prompt" in content else content["messages"][0]["content"]
    return str(text).split()


@pytest.mark.parametrize(("text", "expected"), [("128", (128, 128)), ("1", (1, 1)), ("32:512", (32, 512)), ("7:7", (7, 7))])
def test_lengths(text: str, expected: tuple[int, int]) -> None:
    assert dataclasses.astuple(Lengths.parse(text)) == expected


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "5:4", "0:4", "1:", ":4", "1:2:3", "1.5", "ten", "1e3", "٣", "99999999999", " 1"]
)
def test_bad_lengths(text: str) -> None:
    with pytest.raises(ConfigError, match="32:512"):
        Lengths.parse(text)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '"x"'])
def test_bad_json_objects(text: str) -> None:
    with pytest.raises(ConfigError, match="top_p"):
        parse_json_object(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "127.0.0.1:8000"}, "--url '127.0.0.1:8000'"),
        ({"url": "ftp://host"}, "--url 'ftp://host'"),
        ({"url": "http://"}, "--url"),
        ({"url": "http://host:99999"}, "--url"),
        ({"url": "http://[::1"}, "--url"),
        ({"url": "http://host/v1?key=1"}, "--url"),
        ({"concurrency": 0}, "--concurrency 0: expected a number from 1"),
        ({"num_prompts": 0}, "--num-prompts 0"),
        ({"request_rate": 0.0}, "--request-rate 0"),
        ({"request_rate": math.inf}, "--request-rate inf"),
        ({"timeout": math.nan}, "--timeout nan"),
        ({"warmup": -1}, "--warmup -1"),
        ({"temperature": -0.5}, "--temperature -0.5"),
        ({"request_rate": 1.0, "burstiness": 0.0}, "--burstiness 0"),
        ({"concurrency": 2, "request_rate": 1.0}, "--concurrency 2: got it with --request-rate 1"),
        ({"max_concurrency": 2}, "--max-concurrency 2: got it without --request-rate"),
        ({"burstiness": 2.0}, "--burstiness 2: got it without --request-rate"),
        ({"extra_body": {"stream": False}}, '"stream": false'),
        ({"extra_body": {"n": 2}}, '"n": 2'),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LoadConfig(**options)
    assert message in str(caught.value)


def test_secrets_in_addresses_are_refused_without_repeating_them() -> None:
    with pytest.raises(ConfigError) as caught:
        LoadConfig(url="http://me:hunter2@host:8000")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://host:8000", "http://host:8000/", "http://host:8000/v1", "http://host:8000/v1/"])
def test_addresses(url: str) -> None:
    assert LoadConfig(url=url).base_url == "http://host:8000/v1"


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_random_prompts(endpoint: Any) -> None:
    config = LoadConfig(endpoint=endpoint, num_prompts=400, input_len=Lengths(10, 20), output_len=Lengths(3, 5), seed=4)
    prompts = make_prompts(config, WordCount())
    assert {len(prompt_words(prompt)) for prompt in prompts} == set(range(10, 21))
    assert {prompt.max_tokens for prompt in prompts} == {3, 4, 5}
    assert len({tuple(prompt_words(prompt)) for prompt in prompts}) == 400
    assert all(set(prompt_words(prompt)) <= set(WORDS) for prompt in prompts)
    assert prompts == make_prompts(config, WordCount())
    assert prompts != make_prompts(dataclasses.replace(config, seed=5), WordCount())


def test_the_rate_changes_no_prompt() -> None:
    closed = LoadConfig(num_prompts=20, input_len=Lengths(5, 50), seed=1)
    opened = dataclasses.replace(closed, request_rate=3.0, burstiness=2.0)
    assert make_prompts(closed, WordCount()) == make_prompts(opened, WordCount())


def test_more_prompts_begin_with_the_same() -> None:
    short, long = LoadConfig(num_prompts=5, seed=1), LoadConfig(num_prompts=9, seed=1)
    assert make_prompts(long, WordCount())[:5] == make_prompts(short, WordCount())


def test_warmup_knows_no_prompt_of_the_measurement() -> None:
    config = LoadConfig(num_prompts=20, warmup=20, input_len=Lengths(16, 16))
    measured = {tuple(prompt_words(prompt)[:4]) for prompt in make_prompts(config, WordCount())}
    warmup = {tuple(prompt_words(prompt)[:4]) for prompt in warmup_prompts(config, WordCount())}
    assert len(warmup) == 20
    assert not measured & warmup


def test_word_count() -> None:
    count = WordCount.from_samples((8, 19), (100, 157))  # 1.5 tokens per word and 7 more
    assert (count.tokens_per_word, count.overhead, count.is_measured) == (1.5, 7.0, True)
    assert [count.words(tokens) for tokens in (157, 10, 7, 1)] == [100, 2, 1, 1]
    assert WordCount.from_samples((16, 40), (32, 79)).overhead == 1
    assert WordCount.from_samples((16, 40), (32, 81)) == WordCount(41 / 16, 0.0, True)
    assert not WordCount.from_samples((8, 20), (16, 80)).is_measured  # a server that makes figures up
    assert not WordCount.from_samples((8, 20), (100, 20)).is_measured  # a server that counts nothing
    assert not WordCount.from_samples((8, 0), (100, 157)).is_measured


@pytest.mark.parametrize(("length", "words"), [(1, 16), (100, 50), (101, 50), (100000, len(WORDS))])
def test_samples(length: int, words: int) -> None:
    """Words, and the same words twice."""
    (few, once), (many, twice) = sample_prompts(LoadConfig(input_len=Lengths(1, length)))
    assert (few, many) == (words, 2 * words)
    assert len(set(prompt_words(once))) == words
    assert prompt_words(twice) == 2 * prompt_words(once)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_arrivals(burstiness: float) -> None:
    """Gaps are gamma distributed: their mean is 1 / rate, their relative deviation 1 / sqrt(burstiness)."""
    num_requests, rate = 40000, 50.0
    times = arrival_times(LoadConfig(request_rate=rate, burstiness=burstiness, seed=3), num_requests)
    gaps = np.diff(times) * rate
    assert times.shape == (num_requests,)
    assert times[0] == 0
    assert (gaps >= 0).all()
    deviation = burstiness**-0.5
    assert abs(gaps.mean() - 1) < 5 * deviation / math.sqrt(num_requests)
    assert gaps.std() == pytest.approx(deviation, rel=0.05)
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 0.03
    if burstiness == 1.0:  # exponential
        for limit in (0.1, 1.0, 3.0):
            assert abs((gaps > limit).mean() - math.exp(-limit)) < 0.01


def test_arrivals_follow_the_seed() -> None:
    config = LoadConfig(request_rate=2.0, seed=3)
    assert (arrival_times(config, 50) == arrival_times(config, 50)).all()
    assert (arrival_times(config, 50) != arrival_times(dataclasses.replace(config, seed=4), 50))[1:].all()
    slower = arrival_times(dataclasses.replace(config, request_rate=1.0), 50)
    assert slower == pytest.approx(2 * arrival_times(config, 50))
    assert arrival_times(config, 0).shape == (0,)
    assert arrival_times(config, 1).tolist() == [0.0]


def config_of(path: Path, content: str, **options: Any) -> LoadConfig:
    path.write_text(content, encoding="utf-8")
    return LoadConfig(prompt_file=str(path), **options)


def test_prompt_file(tmp_path: Path) -> None:
    content = (
        '{"prompt": "grüße"}\r\n\n{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], '
        '"max_tokens": 5}\n{"prompt": "\u2028"}'
    )
    prompts = make_prompts(config_of(tmp_path / "p.jsonl", content, output_len=Lengths(9, 9)), WordCount())
    assert [prompt.content["messages"][-1]["content"] for prompt in prompts] == ["grüße", "u", "\u2028"]
    assert [prompt.max_tokens for prompt in prompts] == [9, 5, 9]


def test_prompt_file_repeats(tmp_path: Path) -> None:
    config = config_of(tmp_path / "p.jsonl", '{"prompt": "a"}\n{"prompt": [1, 2]}\n', endpoint="completions", num_prompts=5)
    assert [prompt.content["prompt"] for prompt in make_prompts(config, WordCount())] == ["a", [1, 2], "a", [1, 2], "a"]
    fewer = dataclasses.replace(config, num_prompts=1, warmup=3)
    assert [prompt.content["prompt"] for prompt in make_prompts(fewer, WordCount())] == ["a"]
    assert len(warmup_prompts(fewer, WordCount())) == 3


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", {}, "has no lines"),
        ('{"prompt": "a"}\n{oops\n', {}, "line 2: no JSON"),
        ("[1]", {}, "line 1: got list"),
        ("{}", {}, "line 1: got nothing"),
        ('{"prompt": "a", "messages": []}', {}, "got prompt, messages"),
        ('{"prompt": "a", "temperature": 1}', {}, "got prompt, temperature"),
        ('{"prompt": "a", "max_tokens": 0}', {}, "max_tokens is 0"),
        ('{"prompt": "a", "max_tokens": true}', {}, "max_tokens is True"),
        ('{"prompt": 3}', {}, "prompt is neither text"),
        ('{"prompt": [1]}', {}, "prompt is neither text"),
        ('{"prompt": []}', {"endpoint": "completions"}, "prompt is neither text"),
        ('{"messages": ["a"]}', {}, "messages is no list of objects"),
        ('{"messages": []}', {}, "messages is no list of objects"),
        ('{"messages": [{}]}', {"endpoint": "completions"}, "messages need --endpoint chat"),
    ],
)
def test_bad_prompt_files(tmp_path: Path, content: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_prompts(config_of(tmp_path / "p.jsonl", content, **options), WordCount())


def test_prompt_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        make_prompts(LoadConfig(prompt_file=str(tmp_path / "none")), WordCount())
    (tmp_path / "binary").write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(ConfigError, match="line 1: no JSON"):
        make_prompts(LoadConfig(prompt_file=str(tmp_path / "binary")), WordCount())
