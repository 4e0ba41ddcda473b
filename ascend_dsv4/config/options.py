# SPDX-License-Identifier: Apache-2.0
"""What the option dataclasses share: how a field is declared, checked, and read from YAML. Flags derive from it too."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from ascend_dsv4.config.checks import Problems, check_keys, check_number, read_text, show
from ascend_dsv4.errors import ConfigError

Kind = Literal["choice", "integer", "real", "switch", "string"]

_MAX_FILE_BYTES: Final = 1 << 16
_SIZES: Final = "limits keep all sizes inside 64-bit integers"


def choice(default: str | None, text: str, *, unset: str | None = None) -> Any:
    """A field whose annotation is a Literal of words. `unset` tells what None stands for, here and below."""
    return field(default=default, metadata={"help": text, "unset": unset})


def integer(
    default: int | None,
    low: int,
    high: int,
    text: str,
    *,
    unset: str | None = None,
    because: str = _SIZES,
    multiple: tuple[int, str] | None = None,
) -> Any:
    """An int field with inclusive limits. `because` is their reason; `multiple` a divisor it must have, and the reason."""
    metadata = {"help": text, "unset": unset, "limits": (low, high), "because": because, "multiple": multiple}
    return field(default=default, metadata=metadata)


def real(default: float | None, low: float, high: float, text: str, *, because: str, unset: str | None = None) -> Any:
    """A float field with inclusive finite limits, so NaN and infinities are refused; integers are welcome."""
    metadata = {"help": text, "unset": unset, "limits": (float(low), float(high)), "because": because}
    return field(default=default, metadata=metadata)


def switch(default: bool, text: str) -> Any:
    """A bool field."""
    return field(default=default, metadata={"help": text})


def word(value: str) -> bool:
    """Whether a text is one printable word."""
    return value.isprintable() and value.split() == [value] and len(value) <= 4096


def path_text(value: str) -> bool:
    """Whether a text can be the path of a file or folder."""
    return bool(value.strip()) and value.isprintable() and len(value) <= 4096


def string(
    default: str | None, text: str, expected: str, *, legal: Callable[[str], bool] = word, unset: str | None = None
) -> Any:
    """A str field. `expected` describes in errors what `legal` accepts."""
    return field(default=default, metadata={"help": text, "unset": unset, "expected": expected, "legal": legal})


@dataclass(frozen=True, slots=True)
class Option:
    """One field of an option dataclass.

    nullable   whether None is legal; `unset` then tells what it stands for
    choices    of kind choice, else empty
    limits     of kinds integer and real (inclusive), else None; `because` is their reason
    multiple   of kind integer: a divisor and its reason, or None
    expected   of kind string: what `legal` accepts
    """

    name: str
    kind: Kind
    default: Any
    nullable: bool
    choices: tuple[str, ...]
    help: str
    unset: str | None = None
    limits: tuple[float, float] | None = None
    because: str = ""
    multiple: tuple[int, str] | None = None
    expected: str = ""
    legal: Callable[[str], bool] = word


_KINDS: Final[Mapping[Any, Kind]] = {int: "integer", float: "real", bool: "switch", str: "string"}


def options_of(cls: type[Options]) -> tuple[Option, ...]:
    """The fields of an option dataclass, in order."""
    hints = get_type_hints(cls)
    return tuple(_option(item, hints[item.name]) for item in fields(cls))


def _option(item: dataclasses.Field[Any], hint: Any) -> Option:
    nullable = type(None) in get_args(hint)
    (bare,) = [part for part in get_args(hint) if part is not type(None)] if nullable else [hint]
    choices = get_args(bare) if get_origin(bare) is Literal else ()
    kind: Kind = "choice" if choices else _KINDS[bare]
    return Option(item.name, kind, item.default, nullable, choices, **item.metadata)


_O = TypeVar("_O", bound="Options")


@dataclass(frozen=True, slots=True)
class Options:
    """Base of the option dataclasses: fields made by the functions above, checked whenever one is made."""

    SOURCE: ClassVar[str] = "options"
    """What errors call values that come from no file."""

    def __post_init__(self) -> None:
        problems = Problems(type(self).__name__)
        _check_values(type(self), dataclasses.asdict(self), problems)
        problems.raise_if_any()

    @classmethod
    def check_together(cls, values: Mapping[str, Any], sound: set[str], problems: Problems) -> None:
        """Note what goes wrong between options. `sound` are those whose own value is legal."""

    @classmethod
    def from_dict(cls: type[_O], mapping: Mapping[str, Any], *, source: str | None = None) -> _O:
        """Options from parsed data; absent ones keep their defaults. `source` names the data in errors."""
        check_options(mapping, (cls,), source=cls.SOURCE if source is None else source)
        return pick(cls, mapping)

    @classmethod
    def from_yaml(cls: type[_O], path: str | Path) -> _O:
        """Options from a YAML file: a flat mapping, each key once, no tags or aliases; empty for all defaults."""
        return cls.from_dict(read_yaml(path), source=str(path))

    def replace(self: _O, **changes: Any) -> _O:
        """A copy with some options changed. Unknown names and bad values raise `ConfigError`."""
        return type(self).from_dict({**dataclasses.asdict(self), **changes})


def check_options(mapping: Mapping[str, Any], classes: Sequence[type[Options]], *, source: str) -> None:
    """Check a flat mapping with the options of all `classes`. Raises `ConfigError` listing every problem."""
    options = [option for cls in classes for option in options_of(cls)]
    if not isinstance(mapping, Mapping):
        example = f"{options[0].name}: {options[0].default}"
        raise ConfigError(f"{source}: got {show(mapping)}; expected options with values, such as {example}.")
    problems = Problems(source)
    check_keys(problems, mapping, [option.name for option in options])
    for cls in classes:
        values = {option.name: mapping.get(option.name, option.default) for option in options_of(cls)}
        _check_values(cls, values, problems)
    problems.raise_if_any()


def pick(cls: type[_O], mapping: Mapping[str, Any]) -> _O:
    """The options of `cls` out of a mapping that may have other keys; absent ones keep their defaults."""
    return cls(**{option.name: mapping[option.name] for option in options_of(cls) if option.name in mapping})


def read_yaml(path: str | Path) -> Any:
    """The data of a small YAML file without tags, aliases or repeated keys; {} for an empty one. Raises `ConfigError`."""
    text = read_text(Path(path), _MAX_FILE_BYTES)
    try:
        data = yaml.load(text, Loader=_PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{path}: {reason}; expected plain YAML, `option: value` lines. Correct it.") from None
    return {} if data is None else data


def _check_values(cls: type[Options], values: Mapping[str, Any], problems: Problems) -> None:
    sound = {option.name for option in options_of(cls) if _is_sound(option, values[option.name], problems)}
    cls.check_together(values, sound, problems)


def _is_sound(option: Option, value: Any, problems: Problems) -> bool:
    name = option.name
    if value is None and option.nullable:
        return True
    if option.limits is not None:
        return check_number(problems, name, value, option.limits, option.because) and _is_multiple(option, value, problems)
    if option.kind == "switch":
        legal, expected = isinstance(value, bool), "true or false"
    elif option.kind == "choice":
        legal, expected = isinstance(value, str) and value in option.choices, f"one of {', '.join(option.choices)}"
    else:
        legal, expected = isinstance(value, str) and option.legal(value), option.expected
    if not legal:
        problems.add(name, value, expected, option.help, f"Correct {name}.")
    return legal


def _is_multiple(option: Option, value: int, problems: Problems) -> bool:
    if option.multiple is None or value % option.multiple[0] == 0:
        return True
    divisor, because = option.multiple
    problems.add(option.name, value, f"a multiple of {divisor}", because, f"Round {option.name} up.")
    return False


class _PlainLoader(yaml.SafeLoader):
    """Plain data only: no aliases, tags, merge keys or repeated keys, all of which hide what an option is set to."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
            raise yaml.composer.ComposerError(None, None, "aliases and tags are not accepted", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                raise yaml.constructor.ConstructorError(None, None, "keys must be option names", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} occurs twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_BOOL: Final = "tag:yaml.org,2002:bool"
# `cache_rounding: off` is a word, not the boolean that YAML 1.1 takes it for: only true and false are booleans.
_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_PlainLoader.add_implicit_resolver(_BOOL, re.compile("^(?:true|false)$"), list("tf"))
