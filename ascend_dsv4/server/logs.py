# SPDX-License-Identifier: Apache-2.0
"""Log lines of the server: one JSON object or one line of text each, on stderr.

    log.info("request finished", extra={"fields": {"status": 200, "duration_ms": 12.5}})

Calls never hand over text of a request, its prompt or its output: there is nothing to redact. The one exception is
`log_prompt`, which is silent unless `log_prompts` is on.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Any, Final

from ascend_dsv4.config.checks import show
from ascend_dsv4.config.server_config import ServerConfig
from ascend_dsv4.errors import ConfigError

LEVEL_VARIABLE: Final = "ASCEND_DSV4_LOG"
"""Environment variable: the level where no option names one."""

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The request that is being served, in every record that is logged meanwhile. Threads of their own do not inherit it."""

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_NEVER: Final = logging.CRITICAL + 1
_MAX_DEPTH: Final = 6
_MAX_BITS: Final = 128  # of integers that are written as numbers; Python refuses to print those of thousands of digits

_prompts = logging.getLogger("ascend_dsv4.prompts")
_prompts.setLevel(_NEVER)  # whoever else configures logging gets no prompts either


def configure_logging(server: ServerConfig) -> None:
    """Send all log lines of this process to stderr, in one format; may be called again.

    Other packages write warnings and errors only, since their lower levels may show what a request said. uvicorn writes
    with our level, and no access lines. It must run with `log_config=None`, or it installs handlers of its own.
    raises   ConfigError if the level in $ASCEND_DSV4_LOG is none
    """
    level = _level(server)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if server.log_format == "json" else _TextFormatter())
    handler.addFilter(_add_request_id)  # on the handler, for filters of loggers do not see records of their children
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in ("ascend_dsv4", "uvicorn", "uvicorn.error", "uvicorn.asgi"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(level)
    access = logging.getLogger("uvicorn.access")
    access.handlers.clear()
    access.propagate = False  # uvicorn looks for handlers before it makes a record
    _prompts.setLevel(logging.INFO if server.log_prompts else _NEVER)
    logging.captureWarnings(True)


@contextmanager
def request_scope(name: str) -> Iterator[None]:
    """Within it, `name` is the `request_id` of every record that this task or thread logs."""
    token = request_id.set(name)
    try:
        yield
    finally:
        request_id.reset(token)


def log_prompt(prompt: str | Sequence[int]) -> None:
    """Write a prompt into the log if `log_prompts` is on, whatever the level; else nothing."""
    _prompts.info("prompt", extra={"fields": {"prompt": prompt}})


def _level(server: ServerConfig) -> int:
    """The option if it is set, else the environment, else info."""
    if server.log_level is not None:
        return _LEVELS[server.log_level]
    named = os.environ.get(LEVEL_VARIABLE, "").strip().lower() or "info"
    if named not in _LEVELS:
        raise ConfigError(
            f"environment: {LEVEL_VARIABLE}={show(os.environ[LEVEL_VARIABLE])}; expected one of {', '.join(_LEVELS)} (it is "
            "the level of log lines where --log-level names none). Correct or unset it."
        )
    return _LEVELS[named]


def _add_request_id(record: logging.LogRecord) -> bool:
    record.request_id = request_id.get()
    return True


def _contents(record: logging.LogRecord) -> dict[str, Any]:
    """What a record says, as plain data in the order it is written."""
    moment = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
    contents: dict[str, Any] = {
        "time": moment.replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
    }
    reserved = {*contents, "exception", "stack"}
    if (name := getattr(record, "request_id", None)) is not None:
        contents["request_id"] = name
    fields = getattr(record, "fields", None) or {}
    for key, value in fields.items():
        # A field must not pass for something else; request_id may be given, by threads that serve many requests.
        contents[f"{key}_" if key in reserved else str(key)] = _plain(value)
    return contents


def _plain(value: object, depth: int = 0) -> Any:
    """JSON data for any value: what has no JSON form becomes text."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= _MAX_BITS else show(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth < _MAX_DEPTH and isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if depth < _MAX_DEPTH and isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, depth + 1) for item in value]
    return show(value) if depth >= _MAX_DEPTH else str(value)


class _JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII: every control character and lone surrogate is escaped."""

    def format(self, record: logging.LogRecord) -> str:
        contents = _contents(record)
        if record.exc_info:
            contents["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            contents["stack"] = self.formatStack(record.stack_info)
        return json.dumps(contents, allow_nan=False)


class _TextFormatter(logging.Formatter):
    """One line for people; only tracebacks take more, and those are indented so that none looks like a line of the log."""

    def format(self, record: logging.LogRecord) -> str:
        contents = _contents(record)
        time, level, name, message = (contents.pop(key) for key in ("time", "level", "logger", "message"))
        fields = [f"{_escaped(key)}={_word(value)}" for key, value in contents.items()]
        lines = [" ".join([time, f"{level.upper():<7}", f"{_escaped(name)}:", _escaped(message), *fields])]
        if record.exc_info:
            lines += self.formatException(record.exc_info).split("\n")
        if record.stack_info:
            lines += self.formatStack(record.stack_info).split("\n")
        return "\n    ".join([lines[0], *map(_escaped, lines[1:])])


def _word(value: Any) -> str:
    """A plain value without spaces, or in quotes."""
    if isinstance(value, str) and value.isprintable() and value and not set(value) & set(" \"'="):
        return value
    return _escaped(json.dumps(value, ensure_ascii=False))


def _escaped(text: str) -> str:
    """The text with everything that could end a line or steer a terminal spelled out."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
