# SPDX-License-Identifier: Apache-2.0
"""From token ids to rows of the Engram tables: compressed tokens, primes, multipliers, n-gram hashes. Integers, exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import normalizers

from ascend_dsv4.errors import CheckpointError, ConfigError

DEAD: Final = -1
"""A compressed id that no n-gram may look at or past: a token of an image, or padding."""
ABSENT: Final = -2
"""A compressed id before the first token of the sequence."""
LAYER_SEED: Final = 10007
"""The multipliers of layer l are drawn by a generator seeded with seed + 10007 · l."""

_MAX_ROWS: Final = 2**31 - 1  # row ids travel to devices as int32
_MAX_INT64: Final = 2**63 - 1
_REPLACEMENT: Final = "\ufffd"
_PRIVATE: Final = "\ue000"  # stands for a lone space while the ends are stripped


def compressed_token_map(tokenizer_json: Path | str | bytes, vocab_size: int | None = None) -> NDArray[np.int32]:
    """Compressed id of every token: tokens whose text differs in case, accents or white space share one.

    tokenizer_json  path of the file, or its bytes
    vocab_size      length of the map; None: as many ids as the tokenizer has. Ids without a token decode to no text and
                    share one compressed id
    returns  int32 [vocab_size], numbered by first appearance
    raises   CheckpointError if the file is missing or is no tokenizer

    The normalisers are those of `tokenizers`, whose Unicode tables do not change with the version of Python. Source:
    DeepSeek-V4.1 model definition, Engram; the released tokenizer gives 99,092 compressed ids.
    """
    backend = _load_backend(tokenizer_json)
    normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.NFD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(tokenizers.Regex(r"[ \t\r\n]+"), " "),
            normalizers.Replace(tokenizers.Regex(r"^ $"), _PRIVATE),
            normalizers.Strip(),
            normalizers.Replace(_PRIVATE, " "),
        ]
    )
    if vocab_size is None:
        vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
    ids: dict[str, int] = {}
    token_map = np.empty(vocab_size, dtype=np.int32)
    for token in range(vocab_size):
        text = backend.decode([token], skip_special_tokens=False)
        # Part of a character has no text of its own, but a spelling in the vocabulary.
        key = str(backend.id_to_token(token)) if _REPLACEMENT in text else normalizer.normalize_str(text) or text
        token_map[token] = ids.setdefault(key, len(ids))
    return token_map


def _load_backend(tokenizer_json: Path | str | bytes) -> tokenizers.Tokenizer:
    is_path = not isinstance(tokenizer_json, bytes)
    where = str(tokenizer_json) if is_path else "tokenizer.json given as bytes"
    try:
        data = Path(tokenizer_json).read_bytes() if not isinstance(tokenizer_json, bytes) else tokenizer_json
        return tokenizers.Tokenizer.from_buffer(data)
    except OSError as error:
        raise CheckpointError(
            f"{where}: cannot be read ({error.strerror}), expected the tokenizer.json of the checkpoint, because the hashes "
            "of Engram follow from it. Check the path."
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"{where}: {error}, expected the JSON of a `tokenizers` tokenizer, because the hashes of Engram follow from "
            "it. Download the file again."
        ) from error


@dataclass(frozen=True, eq=False)
class EngramHash:
    """How the Engram layers of one model hash. Make one with `EngramHash.make`; arrays are read-only.

    layer_ids       the layers, ascending as in the configuration
    primes          int64 [layers, orders, heads]: rows per hash column; orders are n = 2, 3, … max_ngram_size
    offsets         int64 [layers, columns]: first row of each column in the layer's table; columns = orders · heads
    multipliers     int64 [layers, max_ngram_size], odd
    pad             compressed id that stands for every token that cannot be looked at
    num_compressed  number of compressed ids
    """

    layer_ids: tuple[int, ...]
    primes: NDArray[np.int64]
    offsets: NDArray[np.int64]
    multipliers: NDArray[np.int64]
    pad: int
    num_compressed: int

    @classmethod
    def make(
        cls,
        *,
        layer_ids: Sequence[int],
        max_ngram_size: int,
        num_heads: int,
        vocab_size: int | Sequence[int],
        num_compressed: int,
        pad: int,
        seed: int = 0,
    ) -> EngramHash:
        """Find the primes and draw the multipliers.

        vocab_size  where the search for primes starts: one number (V4.1), or one per order (the original paper)
        pad         compressed id of the pad token: token_map[pad_token_id]
        raises      ConfigError if a size is out of range, or a table would have more rows than int32 counts
        """
        num_orders = max_ngram_size - 1
        starts = [vocab_size] * num_orders if isinstance(vocab_size, int) else list(vocab_size)
        _check_sizes(layer_ids, max_ngram_size, num_heads, starts, num_compressed, pad)
        primes = _distinct_primes(len(layer_ids), starts, num_heads)
        sums = np.cumsum(primes.reshape(len(layer_ids), -1), axis=1)
        if len(layer_ids) and sums[:, -1].max() > _MAX_ROWS:
            raise ConfigError(
                f"engram_vocab_size={vocab_size}: a table of {sums[:, -1].max():,} rows, expected at most {_MAX_ROWS:,}, "
                "because row ids are int32 on devices. Lower engram_vocab_size or engram_n_heads."
            )
        offsets = np.concatenate([np.zeros_like(sums[:, :1]), sums[:, :-1]], axis=1)
        # Below this bound id · (2v + 1) stays below 2^63, so that no product wraps and XOR stays positive.
        bound = max(1, _MAX_INT64 // num_compressed // 2)
        drawn = [np.random.default_rng(seed + LAYER_SEED * layer).integers(0, bound, max_ngram_size) for layer in layer_ids]
        multipliers = 2 * np.array(drawn, dtype=np.int64).reshape(len(layer_ids), max_ngram_size) + 1
        for array in (primes, offsets, multipliers):
            array.flags.writeable = False
        return cls(tuple(layer_ids), primes, offsets, multipliers, pad, num_compressed)

    @property
    def num_rows(self) -> tuple[int, ...]:
        """Rows of each layer's table."""
        return tuple(int(total) for total in self.primes.sum(axis=(1, 2)))

    @property
    def num_columns(self) -> int:
        """Rows that a token reads per layer: one per order and head."""
        return int(self.offsets.shape[1])

    @property
    def history_len(self) -> int:
        """How many ids before a chunk its hashes depend on."""
        return int(self.multipliers.shape[1]) - 1

    def row_ids(self, compressed: NDArray[np.int32], history: NDArray[np.int32]) -> NDArray[np.int64]:
        """Rows that a chunk of one sequence reads.

        compressed  int32 [n] compressed ids, DEAD for tokens of images and padding
        history     int32 [max_ngram_size - 1] the ids before the chunk, oldest first; ABSENT before the first token
        returns     int64 [n, layers, columns], each at least 0 and below the layer's `num_rows`

        The hash of the last k + 1 tokens is the XOR of id · multiplier; from the first token backwards that is DEAD or
        ABSENT on, all count as `pad`. A token's rows therefore do not depend on where the sequence is cut into chunks.
        """
        ids = np.concatenate([history, compressed]).astype(np.int64)
        past, count = self.history_len, len(compressed)
        is_blocked = np.zeros(count, dtype=np.bool_)
        rolling = np.zeros((count, len(self.layer_ids)), dtype=np.int64)
        rows = np.empty((count, len(self.layer_ids), *self.primes.shape[1:]), dtype=np.int64)
        for back in range(past + 1):
            token = ids[past - back : past - back + count]
            is_blocked |= token < 0
            token = np.where(is_blocked, self.pad, token)
            rolling ^= token[:, None] * self.multipliers[:, back]
            if back > 0:
                np.remainder(rolling[:, :, None], self.primes[:, back - 1], out=rows[:, :, back - 1])
        return rows.reshape(count, len(self.layer_ids), self.num_columns) + self.offsets


def look_back(token_ids: Sequence[int], start: int, length: int, is_image: Sequence[bool] | None = None) -> NDArray[np.int32]:
    """The `length` token ids before position `start`, oldest first: DEAD for tokens of images, ABSENT before the first.

    token_ids  the sequence's ids, at least up to `start`
    is_image   per token; None: text throughout
    """
    history = np.full(length, ABSENT, dtype=np.int32)
    first = max(0, start - length)
    if first < start:
        history[length - (start - first) :] = token_ids[first:start]
    if is_image is not None:
        for position in range(first, start):
            if is_image[position]:
                history[length - (start - position)] = DEAD
    return history


def _check_sizes(
    layer_ids: Sequence[int], max_ngram_size: int, num_heads: int, starts: Sequence[int], num_compressed: int, pad: int
) -> None:
    """Raise ConfigError that lists every size that cannot be used."""
    problems = []
    if any(layer < 0 for layer in layer_ids) or len(set(layer_ids)) != len(layer_ids):
        problems.append(f"engram_layer_ids={list(layer_ids)}: expected distinct layers from 0 on")
    if max_ngram_size < 2:
        problems.append(f"engram_max_ngram_size={max_ngram_size}: expected 2 or more, for a bigram is the shortest key")
    if num_heads < 1:
        problems.append(f"engram_n_heads={num_heads}: expected 1 or more")
    if len(starts) != max_ngram_size - 1 or any(start < 2 or start > _MAX_ROWS for start in starts):
        problems.append(f"engram_vocab_size={list(starts)}: expected one size from 2 to {_MAX_ROWS:,} per order")
    if num_compressed < 1 or not 0 <= pad < num_compressed:
        problems.append(f"pad={pad} of {num_compressed} compressed ids: expected an id from 0 to their number")
    if problems:
        raise ConfigError("; ".join(problems) + " (the rows that a token reads follow from these). Correct the configuration.")


def _distinct_primes(num_layers: int, starts: Sequence[int], num_heads: int) -> NDArray[np.int64]:
    """Primes [layers, orders, heads]. Each order searches upwards from its start; no prime is handed out twice."""
    primes = np.empty((num_layers, len(starts), num_heads), dtype=np.int64)
    used: set[int] = set()
    for layer in range(num_layers):
        for order, start in enumerate(starts):
            candidate = start - 1
            for head in range(num_heads):
                candidate += 1
                while candidate in used or not _is_prime(candidate):
                    candidate += 1
                used.add(candidate)
                primes[layer, order, head] = candidate
    return primes


def _is_prime(number: int) -> bool:
    """Trial division; numbers are below 2^31, so at most 23,170 odd divisors."""
    if number < 4:
        return number > 1
    if number % 2 == 0:
        return False
    divisors = np.arange(3, int(number**0.5) + 2, 2)
    return bool((number % divisors[divisors < number] != 0).all())
