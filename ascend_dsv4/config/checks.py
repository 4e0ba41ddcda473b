# SPDX-License-Identifier: Apache-2.0
"""Checks shared by the configuration files: everything wrong with a file is collected and raised as one error."""

from __future__ import annotations

import difflib
import json
import reprlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from ascend_dsv4.errors import ConfigError, UnsupportedError

MISSING: Final = object()

_MAX_NAME = 64  # longer unknown names are shortened, and no similar name is searched for them
_MAX_LISTED = 32


class _ShortRepr(reprlib.Repr):
    """Short for any value, however large or deep."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 80, 80

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to print integers of thousands of digits.
        return repr(x) if x.bit_length() <= 128 else f"an integer of {x.bit_length()} bits"


def show(value: object) -> str:
    """The value as it is printed in errors."""
    return _ShortRepr().repr(value)


class Problems:
    """The problems of one configuration.

    Raised as `UnsupportedError` if each of them is a meaningful value that this version cannot run, else `ConfigError`.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._lines: list[str] = []
        self._all_unsupported = True

    def add(self, where: str, got: object, expected: str, because: str, do: str, *, unsupported: bool = False) -> None:
        """Note one problem. `got` is a value, or `MISSING` for one that is not there."""
        shown = f"{where} is missing" if got is MISSING else f"{where}={show(got)}"
        self.note(f"{shown}: expected {expected} ({because}). {do}", unsupported=unsupported)

    def note(self, line: str, *, unsupported: bool = False) -> None:
        """Note a problem that is not about one value."""
        self._lines.append(line)
        self._all_unsupported = self._all_unsupported and unsupported

    def raise_if_any(self) -> None:
        """Raise the collected problems; return if there are none."""
        if not self._lines:
            return
        error = UnsupportedError if self._all_unsupported else ConfigError
        if len(self._lines) == 1:
            raise error(f"{self._source}: {self._lines[0]}")
        raise error("\n  - ".join([f"{self._source}: {len(self._lines)} problems", *self._lines]))


def same(a: object, b: object) -> bool:
    """Equality that keeps true apart from 1."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def check_number(
    problems: Problems,
    where: str,
    value: object,
    limits: tuple[float, float],
    because: str = "limits leave room above every release and keep all sizes inside 64-bit integers",
) -> bool:
    """Whether `value` is a number within `limits` (inclusive); integer limits want an integer. A bool is no number."""
    whole = all(isinstance(limit, int) for limit in limits)
    if (type(value) is int or (type(value) is float and not whole)) and limits[0] <= value <= limits[1]:
        return True
    kind = "an integer" if whole else "a number"
    problems.add(where, value, f"{kind} from {limits[0]} to {limits[1]}", because, f"Correct {where}.")
    return False


def check_fixed(
    problems: Problems, mapping: Mapping[str, Any], allowed: Mapping[str, tuple[object, ...]], prefix: str = ""
) -> None:
    """Note keys of `mapping` whose value is none of the `allowed` ones as unsupported; absent keys are fine."""
    for key, choices in allowed.items():
        if key in mapping and not any(same(mapping[key], choice) for choice in choices):
            problems.add(
                prefix + key,
                mapping[key],
                " or ".join(show(choice) for choice in choices),
                "another value is a different model, which this version does not implement",
                "Use a checkpoint of a supported model.",
                unsupported=True,
            )


def check_keys(problems: Problems, keys: Iterable[object], known: Collection[str], prefix: str = "") -> None:
    """Note the keys outside `known` as one problem, each with the most similar known name."""
    unknown = [key for key in keys if key not in known]
    if not unknown:
        return
    names = []
    for key in unknown[:_MAX_LISTED]:
        if not isinstance(key, str) or len(key) > _MAX_NAME:
            names.append(show(key))
            continue
        close = difflib.get_close_matches(key, known, n=1)
        names.append(f"{prefix}{key}" + (f" (did you mean {prefix}{close[0]}?)" if close else ""))
    if len(unknown) > _MAX_LISTED:
        names.append(f"and {len(unknown) - _MAX_LISTED} more")
    expected = "known ones" if len(known) > _MAX_LISTED else f"only {', '.join(sorted(known))}"
    problems.note(
        f"unknown keys {', '.join(names)}: expected {expected} "
        "(a key that is not understood may change what is computed). Correct or remove them."
    )


def read_text(path: Path, max_bytes: int) -> str:
    """The UTF-8 text of a small regular file; `ConfigError` if it is missing, unreadable or above `max_bytes`."""

    def fail(got: str, expected: str, do: str) -> NoReturn:
        raise ConfigError(f"{path}: {got}; expected {expected}. {do}")

    try:
        if not path.is_file():  # also keeps us from waiting on a pipe or a device
            fail("no such file", "a configuration file", "Check the path.")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        fail(f"cannot be read ({error.strerror})", "a readable file", "Check its permissions.")
    if len(data) > max_bytes:
        fail(f"more than {max_bytes} bytes", "a small configuration file", "Check that the path names the right file.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        fail(f"byte {error.start} is not UTF-8", "UTF-8 text", "Save the file as UTF-8.")


def strict_json(text: str, max_depth: int) -> Any:
    """JSON without what Python's parser lets through: NaN, Infinity, repeated keys, any depth. Raises ValueError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise ValueError(f"the key {show(key)} occurs twice in one object")
            result[key] = value
        return result

    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not a JSON number")

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=constant)
        too_deep = _is_deeper(value, max_depth)
    except RecursionError:
        too_deep = True
    if too_deep:
        raise ValueError(f"nested deeper than {max_depth} levels")
    return value


def parse_json(text: str, source: str, max_depth: int = 16) -> Any:
    """`strict_json` of a file, called `source`. Raises ConfigError."""
    try:
        return strict_json(text, max_depth)
    except ValueError as error:
        raise ConfigError(f"{source}: {str(error)[:200]}; expected plain JSON. Correct the file.") from None


def _is_deeper(value: Any, max_depth: int) -> bool:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(max_depth):
        inner = (child for item in level for child in (item.values() if isinstance(item, dict) else item))
        level = [child for child in inner if isinstance(child, (dict, list))]
    return bool(level)
