# SPDX-License-Identifier: Apache-2.0
"""Errors as HTTP responses, in the shape of the protocol that was spoken."""

from __future__ import annotations

from typing import Any, Final

from ascend_dsv4.errors import AscendDsv4Error, CapacityError, RequestError, UnsupportedError

_OPENAI_TYPES: Final = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES: Final = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 408: "timeout_error",
    413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip

_NO_THREADS: Final = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
"""Anthropic's SDK asks for conversations that the server keeps, and goes on without when it reads this."""


class HttpError(AscendDsv4Error):
    """An error with its status code.

    param         the field of the body that is wrong
    code          a word for programs
    retry_after   seconds after which to try again
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = {} if retry_after is None else {"Retry-After": str(max(1, round(retry_after)))}

    def body(self, path: str, request_id: str) -> dict[str, Any]:
        """The JSON body for a request to `path`."""
        if path.startswith("/v1/messages"):
            kind = _ANTHROPIC_TYPES.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")
            error: dict[str, Any] = {"type": kind, "message": self.message}
            if self.code == "unknown_field" and self.param == "thread":
                error["details"] = _NO_THREADS
            return {"type": "error", "error": error, "request_id": request_id}
        kind = _OPENAI_TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def as_http_error(error: AscendDsv4Error, retry_after: float) -> HttpError:
    """What one of our errors means to a client."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, CapacityError):
        return HttpError(429, str(error), code="queue_full", retry_after=retry_after)
    if isinstance(error, RequestError):
        return HttpError(400, str(error), code="invalid_request")
    if isinstance(error, UnsupportedError):
        return HttpError(400, str(error), code="unsupported")
    return HttpError(500, str(error), code="internal_error")
