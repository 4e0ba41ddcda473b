# SPDX-License-Identifier: Apache-2.0
"""Server-sent events from bytes as the network cuts them (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

from typing import Final, NamedTuple

MAX_EVENT_BYTES: Final = 1 << 24
"""A server that never ends an event must not fill the memory."""


class Event(NamedTuple):
    """One event."""

    type: str  # "message" unless the server names it
    data: str


class EventTooLarge(ValueError):
    """An event longer than MAX_EVENT_BYTES."""


class EventDecoder:
    """Bytes in, events out as soon as the blank line that ends them is there.

    Lines are decoded once they are whole, so that a character may be cut anywhere. Lines end with LF, CRLF or CR. An event
    without its blank line at the end of the stream is none.
    """

    def __init__(self) -> None:
        self._partial = bytearray()  # of a line
        self._data: list[str] = []
        self._num_bytes = 0  # in _data
        self._type = ""
        self._is_first_line = True
        self._is_after_cr = False  # an LF that comes now belongs to it

    def feed(self, data: bytes) -> list[Event]:
        """The events that these bytes complete. Raises EventTooLarge."""
        if self._is_after_cr and data:
            data = data.removeprefix(b"\n")
            self._is_after_cr = False
        self._is_after_cr |= data.endswith(b"\r")
        events = []
        for piece in data.splitlines(keepends=True):  # of bytes: CR, LF and CRLF only
            self._partial += piece
            if piece.endswith((b"\n", b"\r")):
                line = bytes(self._partial).rstrip(b"\r\n")
                self._partial.clear()
                if event := self._line(line):
                    events.append(event)
            if len(self._partial) + self._num_bytes > MAX_EVENT_BYTES:
                raise EventTooLarge(f"an event of more than {MAX_EVENT_BYTES} bytes")
        return events

    def _line(self, line: bytes) -> Event | None:
        if self._is_first_line:
            line = line.removeprefix(b"\xef\xbb\xbf")
            self._is_first_line = False
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")  # a comment has an empty name
        text = value.removeprefix(b" ").decode("utf-8", errors="replace")
        if name == b"data":
            self._data.append(text)
            self._num_bytes += len(value) + 1
        elif name == b"event":
            self._type = text
        return None

    def _dispatch(self) -> Event | None:
        event = Event(self._type or "message", "\n".join(self._data)) if self._data else None
        self._data.clear()
        self._num_bytes = 0
        self._type = ""
        return event
