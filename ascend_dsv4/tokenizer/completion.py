# SPDX-License-Identifier: Apache-2.0
"""Text of one completion: what its tokens say, up to the end token or the first stop text."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from ascend_dsv4.tokenizer.detokenize import IncrementalDetokenizer
from ascend_dsv4.tokenizer.tokenizer import Tokenizer


class CompletionText:
    """Turns the tokens of a completion into text while they arrive.

    Joined, what `push` and `finish` return is the text, however the tokens were grouped. Text that may turn out to be the
    beginning of a stop text is held back. Tokens after the stop text are ignored.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, stop: Sequence[str] = (), end_ids: Collection[int] = (), min_tokens: int = 0
    ) -> None:
        """`end_ids` are no part of the text; a stop text lies entirely behind the first `min_tokens` tokens."""
        self._detokenizer = IncrementalDetokenizer(tokenizer)
        self._stop = tuple(stop)
        self._longest = max(map(len, stop), default=0)
        self._end_ids = end_ids
        self._min_tokens = min_tokens
        self._held = ""
        self.num_tokens = 0
        """Tokens so far, the one that completed the stop text included."""
        self.stopped_by: str | None = None
        """The stop text that was found."""
        self.text = ""
        """All text returned so far."""

    @property
    def has_stopped(self) -> bool:
        return self.stopped_by is not None

    def push(self, token_ids: Iterable[int]) -> str:
        """Text that became certain with these tokens, possibly empty."""
        pieces = []
        for token_id in token_ids:
            if self.has_stopped:
                break
            self.num_tokens += 1
            if token_id not in self._end_ids:
                pieces.append(self._advance(self._detokenizer.push(token_id)))
        return self._certain("".join(pieces))

    def finish(self) -> str:
        """The rest, when no more tokens come."""
        if self.has_stopped:
            return ""
        rest = self._advance(self._detokenizer.finish())
        held, self._held = self._held, ""
        return self._certain(rest + ("" if self.has_stopped else held))

    def _certain(self, text: str) -> str:
        self.text += text
        return text

    def _advance(self, new: str) -> str:
        """Take in text; returns what can no longer become part of a stop text."""
        if not self._stop or self.num_tokens <= self._min_tokens:
            return new
        text = self._held + new
        found = [(at + len(stop), at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            _, at, self.stopped_by = min(found)  # the one that is complete first, wherever tokens end
            self._held = ""
            return text[:at]
        keep = next((n for n in range(min(self._longest - 1, len(text)), 0, -1) if self._may_become_stop(text[-n:])), 0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _may_become_stop(self, ending: str) -> bool:
        return any(stop.startswith(ending) for stop in self._stop)
