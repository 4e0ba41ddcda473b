# SPDX-License-Identifier: Apache-2.0
"""The demo's tokenizer.json: byte-level BPE of the V4 family's form over a small vocabulary.

    0 … 2                          begin, end and padding
    3 … 258                        the bytes
    259 …                          merges, learned from `text.TEXT`
    vocab_size − 12 … vocab_size − 1   the control tokens of conversations
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import tokenizers

from ascend_dsv4.demo.text import TEXT
from ascend_dsv4.tokenizer.tokenizer import BYTE_OF_CHAR

BOS: Final = "<｜begin▁of▁sentence｜>"
EOS: Final = "<｜end▁of▁sentence｜>"
FIRST_TOKENS: Final = (BOS, EOS, "<｜▁pad▁｜>")
LAST_TOKENS: Final = (
    "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "｜DSML｜", "<｜latest_reminder｜>", "<｜action｜>", "<｜query｜>",
    "<｜authority｜>", "<｜domain｜>", "<｜title｜>", "<｜read_url｜>",
)  # fmt: skip
EXTRA_TOKENS: Final = ("<｜System｜>", "<｜dspark_noise｜>", "<｜image｜>")
"""Behind `LAST_TOKENS` in V4.1: system turns, the mask of the drafter, an image's place."""

# How released tokenizers cut text before merging: numbers by threes, Chinese and Japanese runs, then words and signs.
_SPLITS: Final = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
    r""" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
)

Pair = tuple[str, str]


def tokenizer_json(vocab_size: int, extra_tokens: Sequence[str] = ()) -> dict[str, Any]:
    """Contents of tokenizer.json for ids 0 … vocab_size − 1. Depends on nothing but the arguments and the text."""
    last_tokens = (*LAST_TOKENS, *extra_tokens)
    vocab = list(FIRST_TOKENS) + sorted(BYTE_OF_CHAR, key=lambda char: BYTE_OF_CHAR[char])
    merges = _learn_merges(vocab, vocab_size - len(last_tokens))
    content = _content({token: i for i, token in enumerate(vocab)}, merges)
    content["added_tokens"] = [
        *(_added_token(i, token, special=True) for i, token in enumerate(FIRST_TOKENS)),
        *(_added_token(i, token, special=False) for i, token in enumerate(last_tokens, len(vocab))),
    ]
    return content


def unreadable_ids(content: dict[str, Any]) -> list[int]:
    """Ids that show nothing when they stand alone: control tokens, control characters, parts of a character."""
    added = {token["id"] for token in content["added_tokens"]}
    return sorted(added | {i for token, i in content["model"]["vocab"].items() if i not in added and not _is_text(token)})


def _is_text(token: str) -> bool:
    text = bytes(BYTE_OF_CHAR[char] for char in token).decode("utf-8", errors="replace")
    return "\ufffd" not in text and text.replace("\n", "").isprintable()


def tokenizer_config(max_position_embeddings: int) -> dict[str, Any]:
    """Contents of tokenizer_config.json."""
    return {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": max_position_embeddings,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _content(vocab: dict[str, int], merges: list[Pair]) -> dict[str, Any]:
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False} for pattern in _SPLITS
    ]
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    from_bytes = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, to_bytes]},
        "post_processor": None,
        "decoder": from_bytes,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": [list(pair) for pair in merges],
        },
    }


def _added_token(token_id: int, token: str, *, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special, "special": special}
    return {"id": token_id, "content": token, **flags}


def _learn_merges(vocab: list[str], size: int) -> list[Pair]:
    """Extend `vocab` to `size` tokens by merging the most frequent pairs; ties by spelling, so the result is the only one.

    Our own loop instead of the library's trainer: the files must not change with a version of the library.
    """
    words = _words()
    merges: list[Pair] = []
    known = set(vocab)
    counts = Counter[Pair]()
    for word, count in words.items():
        counts.update(_pairs(word, count))
    while len(vocab) < size:
        count, best = max(zip(counts.values(), counts, strict=True))
        assert count > 0, f"the text has too few pairs for {size} tokens"
        merges.append(best)
        token = best[0] + best[1]
        if token not in known:
            known.add(token)
            vocab.append(token)
        for word in [word for word in words if best[0] in word and best in zip(word, word[1:], strict=False)]:
            count = words.pop(word)
            counts.subtract(_pairs(word, count))
            merged = _merged(word, best)
            words[merged] += count
            counts.update(_pairs(merged, count))
    return merges


def _words() -> Counter[tuple[str, ...]]:
    """The pieces of the text as byte characters, with how often each occurs."""
    cutter = tokenizers.Tokenizer.from_str(json.dumps(_content({}, []))).pre_tokenizer
    assert cutter is not None
    return Counter(tuple(piece) for piece, _ in cutter.pre_tokenize_str(TEXT))


def _pairs(word: tuple[str, ...], count: int) -> Counter[Pair]:
    pairs = Counter(zip(word, word[1:], strict=False))
    return Counter({pair: times * count for pair, times in pairs.items()})


def _merged(word: tuple[str, ...], pair: Pair) -> tuple[str, ...]:
    parts: list[str] = []
    for part in word:
        if parts and (parts[-1], part) == pair:
            parts[-1] += part
        else:
            parts.append(part)
    return tuple(parts)
