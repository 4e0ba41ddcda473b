# SPDX-License-Identifier: Apache-2.0
"""The receipt of a comparison: everything it found as one JSON document, written and read back without loss."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union

from ascend_dsv4.accuracy.report.wording import printable, write_file
from ascend_dsv4.accuracy.results import Report
from ascend_dsv4.errors import ConfigError

_ENVELOPE = ("format", "version", "exit_code")
_Record = TypeVar("_Record")


def write_receipt(report: Report, path: str | Path) -> None:
    """Write `report.to_json()`; its keys `format` and `version` say how to read it. Raises ConfigError if it cannot."""
    write_file("receipt", path, json.dumps(report.to_json(), indent=1, allow_nan=False) + "\n")


def read_receipt(path: str | Path) -> Report:
    """The report of a receipt. Raises ConfigError if it cannot be read, is no receipt, or was changed in a way that shows."""
    name = printable(str(path))
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        because = getattr(error, "strerror", None) or str(error)
        message = f"receipt {name}: cannot be read ({because}), expected a JSON document as `compare --receipt` writes it"
        raise ConfigError(f"{message}, because a damaged one proves nothing. Run the comparison again.") from error
    wanted = Report("", "", {}, "").to_json()
    got = {key: content.get(key) for key in wanted} if isinstance(content, dict) else {}
    for key in ("format", "version"):
        if got.get(key) != wanted[key]:
            _refuse(name, key, got.get(key), wanted[key], "other documents and versions mean other things by the same keys")
    report = _record(Report, {key: value for key, value in content.items() if key not in _ENVELOPE}, name, "")
    if content["exit_code"] != report.exit_code:
        _refuse(name, "exit_code", content["exit_code"], report.exit_code, "that is what its results amount to")
    return report


def _refuse(name: str, where: str, got: Any, expected: Any, because: str) -> NoReturn:
    shown = printable(repr(got))
    shown = shown if len(shown) <= 80 else shown[:79] + "…"
    message = f"receipt {name}: {where or 'document'} is {shown}, expected {expected}, because {because}."
    raise ConfigError(f"{message} Run the comparison again with this version.")


def _record(kind: type[_Record], content: Any, name: str, where: str) -> _Record:
    """A dataclass of a JSON object: every field without a default must be there, and nothing else."""
    if not isinstance(content, dict):
        _refuse(name, where, content, "an object", f"it stands for a {kind.__name__}")
    hints, needed = _fields(kind)  # type: ignore[arg-type]
    if not needed <= content.keys() <= hints.keys():
        _refuse(name, where, sorted(content), f"the keys {sorted(hints)}", f"it stands for a {kind.__name__}")
    inside = f"{where}." if where else ""
    return kind(**{key: _value(hints[key], value, name, inside + key) for key, value in content.items()})


@functools.cache
def _fields(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Types of a dataclass's fields by name, and the names of those without a default."""
    missing = dataclasses.MISSING
    needed = (field.name for field in dataclasses.fields(kind) if field.default is missing and field.default_factory is missing)
    return typing.get_type_hints(kind), frozenset(needed)


def _value(hint: Any, content: Any, name: str, where: str) -> Any:
    """A value of a field's type; numbers that JSON lacks come as strings."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        rest = [part for part in parts if part is not type(None)]
        return None if content is None else _value(rest[0], content, name, where)
    if origin is tuple and isinstance(content, list):
        if all(type(item) is parts[0] for item in content):  # plain numbers and texts, of which there are most
            return tuple(content)
        return tuple(_value(parts[0], item, name, f"{where}[{i}]") for i, item in enumerate(content))
    if origin is Mapping and isinstance(content, dict):
        return {key: _value(parts[1], item, name, f"{where}.{key}") for key, item in content.items()}
    if origin is Literal and content in parts:
        return content
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _record(hint, content, name, where)
    if hint is float and (type(content) in (int, float) or content in ("inf", "-inf", "nan")):
        return float(content)
    if hint in (int, str, bool) and type(content) is hint:
        return content
    expected = f"one of {list(parts)}" if origin is Literal else getattr(hint, "__name__", str(hint))
    return _refuse(name, where, content, expected, "the field holds nothing else")
