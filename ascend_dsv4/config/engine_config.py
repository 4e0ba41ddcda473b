# SPDX-License-Identifier: Apache-2.0
"""How a model is run: backend, number formats, limits. Defaults, help texts and flags all derive from here."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

import yaml

from ascend_dsv4.config.checks import Problems, check_keys, check_number, read_text, show
from ascend_dsv4.errors import ConfigError

_MAX_FILE_BYTES: Final = 1 << 16
_MAX_TOKENS: Final = 1 << 40  # of all sequences together

# Every cache block holds whole entries of every compression ratio, and the widest entry covers this many tokens.
BLOCK_MULTIPLE: Final = 128


def _choice(default: str, text: str) -> Any:
    return field(default=default, metadata={"help": text})


def _number(default: int | None, low: int, high: int, text: str, *, multiple: int = 1) -> Any:
    return field(default=default, metadata={"help": text, "limits": (low, high), "multiple": multiple})


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Options of one engine. Each field's metadata has its `help` text. Checked whenever one is made.

    A legal value is not a promise: a backend or implementation refuses what it cannot run with `UnsupportedError`.
    Raises `ConfigError` listing every bad value.
    """

    backend: Literal["cpu", "npu", "mindspore", "null"] = _choice(
        "cpu", "where the model runs; null computes nothing and exercises the engine alone"
    )
    ops: str = _choice("auto", "implementations of the operators: auto takes the fastest, reference the plain-torch ones")
    dtype: Literal["float32", "bfloat16"] = _choice("float32", "number format of activations")
    weights: Literal["released", "fp32", "bf16", "w8a8", "w4a8"] = _choice(
        "released", "format of weights in memory; released keeps the stored fp8 and fp4 bytes and decodes them on use"
    )
    kv_cache: Literal["float32", "bf16", "packed"] = _choice(
        "float32", "format of the caches; packed stores the model's own fp8 and fp4 codes"
    )
    cache_rounding: Literal["released", "off"] = _choice(
        "released", "round cached keys and values as the model was trained to; off is plain maths"
    )
    max_model_len: int | None = _number(
        None, 1, 1 << 24, "tokens of the longest sequence, prompt and output; default: the model's own limit"
    )
    max_num_seqs: int = _number(8, 1, 1 << 16, "sequences that run at the same time")
    max_num_batched_tokens: int = _number(512, 1, 1 << 20, "tokens computed in one step, of all sequences together")
    max_total_tokens: int | None = _number(
        None, 1, _MAX_TOKENS, "tokens held in the caches by all sequences together; default: max_model_len"
    )
    block_size: int = _number(
        128, 1, 1 << 16, "tokens per block of the caches of compressed entries", multiple=BLOCK_MULTIPLE
    )
    window_block_size: int = _number(32, 1, 1 << 16, "rows per block of the sliding-window cache")
    batch_bucket: int = _number(1, 1, 1 << 16, "the rows of a step are padded up to a multiple of this")
    seed: int = _number(0, 0, (1 << 63) - 1, "seed of sampling for requests that bring none")

    def __post_init__(self) -> None:
        problems = Problems("EngineConfig")
        _check_values(dataclasses.asdict(self), problems)
        problems.raise_if_any()

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any], *, source: str = "engine options") -> EngineConfig:
        """Options from parsed data; absent ones keep their defaults. `source` names the data in errors."""
        if not isinstance(mapping, Mapping):
            raise ConfigError(f"{source}: got {show(mapping)}; expected options with values, such as backend: cpu.")
        options = {option.name: option.default for option in fields(cls)}
        problems = Problems(source)
        check_keys(problems, mapping, options)
        given = {name: mapping[name] for name in options if name in mapping}
        _check_values({**options, **given}, problems)
        problems.raise_if_any()
        return cls(**given)

    @classmethod
    def from_yaml(cls, path: str | Path) -> EngineConfig:
        """Options from a YAML file: a flat mapping, each key once, no tags or aliases; empty for all defaults."""
        text = read_text(Path(path), _MAX_FILE_BYTES)
        try:
            data = yaml.load(text, Loader=_PlainLoader)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"{path}: {reason}; expected plain YAML, `option: value` lines. Correct it.") from None
        return cls.from_dict({} if data is None else data, source=str(path))

    def replace(self, **changes: Any) -> EngineConfig:
        """A copy with some options changed. Unknown names and bad values raise `ConfigError`."""
        return type(self).from_dict({**dataclasses.asdict(self), **changes})


_CHOICES: Final = {
    name: get_args(hint) for name, hint in get_type_hints(EngineConfig).items() if get_origin(hint) is Literal
}


def _check_values(values: Mapping[str, Any], problems: Problems) -> None:
    sound = {option.name for option in fields(EngineConfig) if _is_sound(option, values[option.name], problems)}
    if values["kv_cache"] == "packed" and values["cache_rounding"] == "off":
        problems.add(
            "cache_rounding",
            "off",
            "'released' with kv_cache 'packed'",
            "packed caches hold the rounded codes and nothing else",
            "Set kv_cache to float32 or cache_rounding to released.",
        )
    longest, held = values["max_model_len"], values["max_total_tokens"]
    if {"max_model_len", "max_total_tokens"} <= sound and longest is not None and held is not None and held < longest:
        expected, because = f"at least max_model_len, {longest}", "one sequence of full length must fit"
        problems.add("max_total_tokens", held, expected, because, "Raise it or lower max_model_len.")


def _is_sound(option: dataclasses.Field[Any], value: Any, problems: Problems) -> bool:
    name, metadata = option.name, option.metadata
    if "limits" in metadata:
        if value is None and option.default is None:
            return True
        if not check_number(problems, name, value, metadata["limits"], "limits keep all sizes inside 64-bit integers"):
            return False
        if value % metadata["multiple"]:
            because = "a block holds whole entries, and the widest entry covers that many tokens"
            problems.add(name, value, f"a multiple of {metadata['multiple']}", because, f"Round {name} up.")
            return False
        return True
    if name in _CHOICES:
        legal = isinstance(value, str) and value in _CHOICES[name]
        expected = f"one of {', '.join(_CHOICES[name])}"
    else:
        legal = isinstance(value, str) and value.isprintable() and value.split() == [value] and len(value) <= 4096
        expected = "the name of a set of implementations, without spaces"
    if not legal:
        problems.add(name, value, expected, option.metadata["help"], f"Correct {name}.")
    return legal


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
