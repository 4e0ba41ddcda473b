# SPDX-License-Identifier: Apache-2.0
"""Prompts, their lengths and their arrivals. Equal seeds give equal ones; each has a stream of random numbers of its own,
so that another rate sends the same prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from ascend_dsv4.bench.config import DEFAULT_NUM_PROMPTS, LoadConfig
from ascend_dsv4.errors import ConfigError

# Common nouns: with the space before it each is one token in the usual vocabularies.
_NOUNS: Final = """
    time year people way day man thing woman life child world school state family student group country problem hand part
    place case week company system program question work government number night point home water room mother area money
    story fact month lot right study book eye job word business issue side kind head house service friend father power hour
    game line end member law car city community name president team minute idea body information back parent face level
    office door health person art war history party result change morning reason research girl guy moment air teacher force
    education foot boy age policy music market sense nation plan college interest death experience effect use class control
    care field development role effort rate heart show leader light voice price report decision son view relationship town
    road arm difference value building action season society tax director position player record paper space ground form
    event official matter center couple site project activity star table need court oil situation cost industry figure street
    image phone data picture practice piece land product doctor wall patient worker news test movie north love step support
    technology
"""
WORDS: Final = tuple(_NOUNS.split())
_SAMPLE_SEED: Final = 0
_Stream = Literal["input lengths", "output lengths", "words", "arrivals", "warm-up"]
_STREAMS: Final[tuple[_Stream, ...]] = ("input lengths", "output lengths", "words", "arrivals", "warm-up")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What differs between requests."""

    content: Mapping[str, Any]  # {"prompt": text or token ids} or {"messages": […]}
    max_tokens: int
    input_len: int | None = None  # asked for; None for prompts from a file


@dataclass(frozen=True, slots=True)
class WordCount:
    """How the server counts tokens of random words: tokens = overhead + tokens_per_word * words."""

    tokens_per_word: float = 1.0
    overhead: float = 0.0  # begin tokens, chat template
    is_measured: bool = False

    @classmethod
    def from_samples(cls, few: tuple[int, int], many: tuple[int, int]) -> WordCount:
        """From words and tokens of two prompts; the default if the figures make no sense."""
        slope = (many[1] - few[1]) / (many[0] - few[0])
        overhead = few[1] - slope * few[0]
        # Two equal halves may join to a token less than they have alone.
        return cls(slope, max(overhead, 0.0), True) if slope > 0 and overhead >= -2 else cls()

    def words(self, num_tokens: int) -> int:
        """Words of a prompt of that many tokens, at least one."""
        return max(1, round((num_tokens - self.overhead) / self.tokens_per_word))


def sample_prompts(config: LoadConfig) -> list[tuple[int, Prompt]]:
    """Two prompts to learn a WordCount from, and their words: some words, and the same ones twice, so that the difference
    is what they take without the overhead. The longer one is no longer than what is going to be sent anyway, or short."""
    shuffled = [WORDS[i] for i in np.random.default_rng(_SAMPLE_SEED).permutation(len(WORDS)).tolist()]
    words = shuffled[: max(16, config.input_len.high // 2)]
    prompts = (" ".join(words), " ".join(words + words))
    return [(len(text.split()), Prompt(text_prompt(text, config.endpoint), 1)) for text in prompts]


def random_stream(seed: int, name: _Stream) -> np.random.Generator:
    """Random numbers for one purpose."""
    return np.random.default_rng([seed, _STREAMS.index(name)])


def text_prompt(text: str | list[int], endpoint: str) -> dict[str, Any]:
    """A prompt as the endpoint wants it."""
    return {"prompt": text} if endpoint == "completions" else {"messages": [{"role": "user", "content": text}]}


def make_prompts(config: LoadConfig, count: WordCount) -> list[Prompt]:
    """The requests of the measurement, in order. Raises ConfigError for a bad --prompt-file."""
    if config.prompt_file is not None:
        return _file_prompts(config, config.prompt_file)
    num_prompts = config.num_prompts or DEFAULT_NUM_PROMPTS
    return random_prompts(config, count, num_prompts, random_stream(config.seed, "words"))


def random_prompts(config: LoadConfig, count: WordCount, num_prompts: int, words: np.random.Generator) -> list[Prompt]:
    """Prompts of random words. Their lengths follow from the seed, their words come from `words`."""
    lengths = random_stream(config.seed, "input lengths").integers(
        config.input_len.low, config.input_len.high, num_prompts, endpoint=True
    )
    max_tokens = _output_lengths(config, num_prompts)
    prompts = []
    for length, limit in zip(lengths.tolist(), max_tokens, strict=True):
        drawn = words.integers(0, len(WORDS), count.words(length))
        text = " ".join(WORDS[i] for i in drawn.tolist())
        prompts.append(Prompt(text_prompt(text, config.endpoint), limit, length))
    return prompts


def warmup_prompts(config: LoadConfig, count: WordCount) -> list[Prompt]:
    """As those of the measurement, but other words: a server that caches prefixes must not know the real ones."""
    if config.prompt_file is not None:
        prompts = _file_prompts(config, config.prompt_file)
        return [prompts[i % len(prompts)] for i in range(config.warmup)]
    return random_prompts(config, count, config.warmup, random_stream(config.seed, "warm-up"))


def arrival_times(config: LoadConfig, num_requests: int) -> npt.NDArray[np.float64]:
    """Seconds from the start at which requests of an open loop are due, the first at 0. [num_requests]

    Gaps are gamma distributed with mean 1 / request_rate and shape `burstiness`; shape 1 is a Poisson process.
    """
    assert config.request_rate is not None
    scale = 1.0 / (config.request_rate * config.burstiness)
    gaps = random_stream(config.seed, "arrivals").gamma(config.burstiness, scale, max(num_requests - 1, 0))
    return np.concatenate([np.zeros(min(num_requests, 1)), np.cumsum(gaps)])


def _output_lengths(config: LoadConfig, num_prompts: int) -> list[int]:
    stream = random_stream(config.seed, "output lengths")
    drawn: list[int] = stream.integers(config.output_len.low, config.output_len.high, num_prompts, endpoint=True).tolist()
    return drawn


def _file_prompts(config: LoadConfig, file: str) -> list[Prompt]:
    try:
        lines = Path(file).read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"--prompt-file {file}: {error.strerror}; expected a JSON Lines file. Check the path.") from error
    rows = [_row(line, f"--prompt-file {file} line {number}", config.endpoint)
            for number, line in enumerate(lines, 1) if line.strip()]  # fmt: skip
    if not rows:
        raise ConfigError(f"--prompt-file {file}: has no lines; expected a JSON object per line with a prompt. Check the file.")
    num_prompts = config.num_prompts or len(rows)
    limits = _output_lengths(config, num_prompts)
    chosen = (rows[i % len(rows)] for i in range(num_prompts))
    return [Prompt(content, limit or drawn) for (content, limit), drawn in zip(chosen, limits, strict=True)]


def _row(line: bytes, where: str, endpoint: str) -> tuple[dict[str, Any], int | None]:
    """Content and max_tokens of a line of a prompt file."""
    try:
        row = json.loads(line.decode("utf-8"))
    except ValueError as error:  # also of UTF-8
        raise ConfigError(f'{where}: no JSON ({error}); expected an object such as {{"prompt": "Hello"}}.') from error
    known = {"prompt", "messages", "max_tokens"}
    if not isinstance(row, dict) or ("prompt" in row) == ("messages" in row) or row.keys() - known:
        got = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise ConfigError(
            f"{where}: got {got or 'nothing'}; expected an object with either prompt or messages, and max_tokens if wanted. "
            "Other fields go into --extra-body, for all requests."
        )
    limit = row.get("max_tokens")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ConfigError(f"{where}: max_tokens is {limit!r}; expected a number of tokens, 1 or more. Correct the line.")
    return _row_content(row, where, endpoint), limit


def _row_content(row: Mapping[str, Any], where: str, endpoint: str) -> dict[str, Any]:
    if "messages" in row:
        messages = row["messages"]
        if endpoint != "chat":
            raise ConfigError(f"{where}: messages need --endpoint chat; got {endpoint}, which takes a prompt. Change either.")
        if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
            raise ConfigError(f"{where}: messages is no list of objects with role and content. Correct the line.")
        return {"messages": messages}
    prompt = row["prompt"]
    is_ids = isinstance(prompt, list) and bool(prompt) and all(type(token) is int for token in prompt)
    if not (isinstance(prompt, str) or (is_ids and endpoint == "completions")):
        raise ConfigError(f"{where}: prompt is neither text nor, for --endpoint completions, token ids. Correct the line.")
    return text_prompt(prompt, endpoint)
