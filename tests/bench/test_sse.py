# SPDX-License-Identifier: Apache-2.0
"""Server-sent events come out whole however the network cuts them."""

from __future__ import annotations

import pytest

from ascend_dsv4.bench import sse
from ascend_dsv4.bench.sse import Event, EventDecoder, EventTooLarge

STREAM = (
    "\ufeffdata: first\n\n"
    ": keep-alive\n\n"
    "event: error\ndata: {\ndata:  two lines\ndata:}\nid: 7\nretry: 3\nunknown: x\n\n"
    "data\n\n"
    "event: without data\n\n"
    "data: 汉字😀\u2028\x0b\x85 one line\n\n"
    "data: [DONE]\n\n"
    "data: never ended\n"
)
EVENTS = [
    Event("message", "first"),
    Event("error", "{\n two lines\n}"),
    Event("message", ""),
    Event("message", "汉字😀\u2028\x0b\x85 one line"),
    Event("message", "[DONE]"),
]


def decode(*pieces: bytes) -> list[Event]:
    decoder = EventDecoder()
    return [event for piece in pieces for event in decoder.feed(piece)]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
def test_every_cut(ending: str) -> None:
    data = STREAM.replace("\n", ending).encode()
    assert decode(data) == EVENTS
    assert decode(*(data[i : i + 1] for i in range(len(data)))) == EVENTS
    for cut in range(len(data)):
        assert decode(data[:cut], b"", data[cut:]) == EVENTS


def test_events_come_at_once() -> None:
    """The blank line completes an event, even if it is a CR whose LF is still to come."""
    decoder = EventDecoder()
    assert decoder.feed(b"data: a\r\n\r") == [Event("message", "a")]
    assert decoder.feed(b"\ndata: b\r") == []
    assert decoder.feed(b"\n\r\n") == [Event("message", "b")]


def test_mixed_line_ends() -> None:
    assert decode(b"data: a\rdata: b\r\ndata: c\n\r\ndata: d\n\n") == [Event("message", "a\nb\nc"), Event("message", "d")]


def test_bytes_that_are_no_utf8() -> None:
    assert decode(b"data: a\xffb\n\n") == [Event("message", "a\ufffdb")]


@pytest.mark.parametrize("piece", [b"data: " + b"x" * 90, b"data: x\n" * 20], ids=["one line", "many lines"])
def test_an_event_has_a_size(monkeypatch: pytest.MonkeyPatch, piece: bytes) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    fitting = EventDecoder()
    for _ in range(50):
        assert fitting.feed(b"data: xxxxxxxxxx\n\n")
    decoder = EventDecoder()
    with pytest.raises(EventTooLarge, match="more than 100 bytes"):
        for _ in range(6):
            decoder.feed(piece)
