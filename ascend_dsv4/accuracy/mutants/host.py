# SPDX-License-Identifier: Apache-2.0
"""Wrong n-gram hashes. They are computed on the host, outside any operator, and are compared like one all the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.engram.hashing import ABSENT, DEAD, EngramHash

HOST_FUNCTIONS: Mapping[str, tuple[str, ...]] = {"engram_hash": ("hash", "compressed", "history")}
"""Function → its arguments."""

Ids = NDArray[np.int32]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class HostCase:
    """One call and its answer."""

    name: str
    hash: EngramHash
    compressed: Ids
    history: Ids
    golden: Rows


def engram_hash(hash: EngramHash, compressed: Ids, history: Ids) -> Rows:
    """The rows of every token, as the model computes them."""
    return hash.row_ids(compressed, history)


def specified_rows(hash: EngramHash, compressed: Ids, history: Ids) -> Rows:
    """The same token by token in Python's integers, from the model's definition."""
    ids = [int(token) for token in (*history, *compressed)]
    rows = np.zeros((len(compressed), len(hash.layer_ids), hash.num_columns), dtype=np.int64)
    for t, layer in np.ndindex(rows.shape[:2]):
        columns, rolled, is_blocked = [], 0, False
        for back in range(hash.history_len + 1):
            token = ids[t + hash.history_len - back]
            is_blocked = is_blocked or token in (DEAD, ABSENT)
            rolled ^= (hash.pad if is_blocked else token) * int(hash.multipliers[layer, back])
            if back:
                columns += [rolled % int(prime) for prime in hash.primes[layer, back - 1]]
        rows[t, layer] = np.array(columns) + hash.offsets[layer]
    return rows


def host_cases() -> Iterator[HostCase]:
    """A sequence from its start, one with images, and a chunk in mid-sequence."""
    hash = EngramHash.make(layer_ids=(1, 14), max_ngram_size=4, num_heads=8, vocab_size=5000, num_compressed=900, pad=2)
    rng = np.random.default_rng(20)
    tokens = rng.integers(0, 900, 64).astype(np.int32)
    images = tokens.copy()
    images[[0, 7, 20, 21, 22, 40]] = DEAD
    start = np.full(hash.history_len, ABSENT, dtype=np.int32)
    for name, compressed, history in (
        ("text", tokens, start),
        ("images", images, start),
        ("chunk", images[30:], images[27:30]),
        ("one-token", images[42:43], images[39:42]),
    ):
        yield HostCase(name, hash, compressed, history, specified_rows(hash, compressed, history))


def look_back_not_blocked(hash: EngramHash, compressed: Ids, history: Ids) -> Rows:
    """A token of an image is passed over, and the look-back goes on behind it."""
    return hash.row_ids(
        np.where(compressed == DEAD, hash.pad, compressed).astype(np.int32),
        np.where(history == DEAD, hash.pad, history).astype(np.int32),
    )


def start_not_blocked(hash: EngramHash, compressed: Ids, history: Ids) -> Rows:
    """Before the first token stands token 0 instead of nothing."""
    return hash.row_ids(compressed, np.where(history == ABSENT, 0, history).astype(np.int32))


def history_forgotten(hash: EngramHash, compressed: Ids, history: Ids) -> Rows:
    """Every chunk begins like a sequence."""
    return hash.row_ids(compressed, np.full_like(history, ABSENT))


MUTANTS = {
    "engram_hash/look-back-not-blocked": look_back_not_blocked,
    "engram_hash/start-is-token-0": start_not_blocked,
    "engram_hash/history-forgotten": history_forgotten,
}
