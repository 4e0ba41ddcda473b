# SPDX-License-Identifier: Apache-2.0
"""Text of a growing list of token ids."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from ascend_dsv4.tokenizer.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """Turns token ids into text as they arrive.

    What `push` and `finish` return, joined, equals `Tokenizer.decode` of all ids. A character split over several tokens
    appears when its last byte is there; bytes that can no longer become a character appear at once as U+FFFD. Each
    token costs its own bytes only: Python's incremental UTF-8 decoder keeps at most three pending bytes, and replaces
    malformed ones by the same maximal-subpart rule (Unicode 15, section 3.9) as `tokenizers`.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_ids: int | Iterable[int]) -> str:
        """Text that became certain with these ids, possibly empty.

        raises   RequestError if an id is outside the vocabulary; the call then has no effect
        """
        ids = token_ids if isinstance(token_ids, Iterable) else (token_ids,)
        new = b"".join(self._tokenizer.token_bytes(token_id) for token_id in ids if token_id not in self._skipped)
        text = self._decoder.decode(new)
        pending, _ = self._decoder.getstate()
        if pending[:1] == b"\xed" and pending[1:] >= b"\xa0":  # half a surrogate: Python waits for a third byte in vain
            text += self._decoder.decode(b"", final=True)
        return text

    def finish(self) -> str:
        """Text of pending bytes: U+FFFD if the ids stop inside a character, else empty. A later push starts anew."""
        return self._decoder.decode(b"", final=True)
