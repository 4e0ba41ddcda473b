# SPDX-License-Identifier: Apache-2.0
"""What happened to one request. Times are seconds of time.perf_counter(); the derived ones are milliseconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["ok", "failed", "interrupted"]


@dataclass(slots=True)
class Record:
    """One request. In a closed loop it is due when it is sent; in an open loop when it should have arrived."""

    index: int
    max_tokens: int
    due: float
    ready: float = 0.0  # the generator got to it
    admitted: float = 0.0  # it had a slot, if --max-concurrency bounds them
    sent: float | None = None
    chunks: list[float] = field(default_factory=list)  # arrivals of chunks with text, reasoning or tool calls
    end: float | None = None  # of the answer, or of the attempt
    input_tokens: int | None = None  # as the server counts them; None if it does not say
    cached_tokens: int | None = None  # of the input, found in the server's cache
    usage_tokens: int | None = None  # of the output, as the server counts them
    finish_reason: str | None = None
    error_kind: str | None = None
    error: str | None = None

    @property
    def status(self) -> Status:
        """Interrupted: neither finished nor failed when the measurement was stopped."""
        if self.error_kind is not None:
            return "failed"
        return "interrupted" if self.end is None else "ok"

    @property
    def has_usage(self) -> bool:
        """Whether the server counted the output. Zero tokens in several chunks are no count."""
        return self.usage_tokens is not None and (self.usage_tokens > 0 or not self.chunks)

    @property
    def output_tokens(self) -> int:
        """As the server counts them, else the chunks."""
        return self.usage_tokens or len(self.chunks)

    @property
    def ttft_ms(self) -> float | None:
        """Time to first token, from when the request was due."""
        return 1e3 * (self.chunks[0] - self.due) if self.chunks else None

    @property
    def ttft_from_send_ms(self) -> float | None:
        """Time to first token, from when the request was sent."""
        return 1e3 * (self.chunks[0] - self.sent) if self.chunks and self.sent is not None else None

    @property
    def tpot_ms(self) -> float | None:
        """Time per output token after the first; None for an answer of fewer than two tokens or chunks."""
        if len(self.chunks) < 2 or self.output_tokens < 2:
            return None
        return 1e3 * (self.chunks[-1] - self.chunks[0]) / (self.output_tokens - 1)

    @property
    def itl_ms(self) -> list[float]:
        """Gaps between chunks, one less than chunks."""
        return [1e3 * (after - before) for before, after in zip(self.chunks, self.chunks[1:], strict=False)]

    @property
    def e2e_ms(self) -> float | None:
        """Until the whole answer was there, from when the request was due."""
        return None if self.end is None else 1e3 * (self.end - self.due)

    @property
    def e2e_from_send_ms(self) -> float | None:
        """Until the whole answer was there, from when the request was sent."""
        return None if self.end is None or self.sent is None else 1e3 * (self.end - self.sent)

    @property
    def send_delay_ms(self) -> float | None:
        """How late the generator itself was; waiting for a slot is not part of it."""
        return None if self.sent is None else 1e3 * ((self.ready - self.due) + (self.sent - self.admitted))

    @property
    def slot_wait_ms(self) -> float | None:
        """How long --max-concurrency held the request back."""
        return None if self.sent is None else 1e3 * (self.admitted - self.ready)

    def fail(self, kind: str, reason: str, now: float) -> None:
        """The request ended without its answer."""
        self.error_kind, self.error, self.end = kind, reason, now

    def to_dict(self, origin: float) -> dict[str, Any]:
        """Plain values for JSON; points in time are seconds since `origin`."""
        return {
            "index": self.index,
            "status": self.status,
            "max_tokens": self.max_tokens,
            "due_s": self.due - origin,
            "sent_s": None if self.sent is None else self.sent - origin,
            "end_s": None if self.end is None else self.end - origin,
            "send_delay_ms": self.send_delay_ms,
            "slot_wait_ms": self.slot_wait_ms,
            "ttft_ms": self.ttft_ms,
            "ttft_from_send_ms": self.ttft_from_send_ms,
            "tpot_ms": self.tpot_ms,
            "e2e_ms": self.e2e_ms,
            "e2e_from_send_ms": self.e2e_from_send_ms,
            "itl_ms": self.itl_ms,
            "num_chunks": len(self.chunks),
            "input_tokens": self.input_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "output_tokens_from": "usage" if self.has_usage else "chunks",
            "finish_reason": self.finish_reason,
            "error_kind": self.error_kind,
            "error": self.error,
        }
