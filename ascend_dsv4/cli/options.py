# SPDX-License-Identifier: Apache-2.0
"""Flags shared by the commands. Names, types, choices and defaults come from the dataclasses the flags fill."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, get_type_hints

from ascend_dsv4.config import SERVE_DEFAULTS, EngineConfig, ServerConfig, serve_configs
from ascend_dsv4.config.options import Option, Options, check_options, options_of, pick
from ascend_dsv4.engine.sampling_params import SamplingParams
from ascend_dsv4.errors import ConfigError

SAMPLING_HELP: Final[Mapping[str, str]] = {
    "max_tokens": "tokens to generate at most",
    "temperature": "sharpness of the draw; 0 always takes the likeliest token",
    "top_p": "draw among the likeliest tokens that together reach this probability",
    "top_k": "draw among this many of the likeliest tokens; 0 for all",
    "min_p": "leave out tokens less likely than this share of the likeliest one",
    "ignore_eos": "go on after the model's end token",
    "logprobs": "report log-probabilities of each token and of this many alternatives",
}
"""Fields of `SamplingParams` that are flags. Its seed is not: `--seed` is the engine's, from which requests take theirs."""

_PACKAGE = Path(__file__).parents[1]
_CONFIG_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")  # installed; in a checkout


def flag(name: str) -> str:
    """max_model_len → --max-model-len."""
    return "--" + name.replace("_", "-")


def add_engine_options(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """A flag for every field of `EngineConfig`, and --config. `defaults` are those in which the command differs."""
    group = parser.add_argument_group("engine options")
    group.add_argument(
        "--config", metavar="FILE",
        help=f"YAML file of engine options, or a preset ({', '.join(_shipped('engine', 'yaml'))}); flags override it, and "
        "what it leaves out has the defaults of EngineConfig",
    )  # fmt: skip
    _add_flags(group, EngineConfig, defaults)
    parser.set_defaults(option_classes=(EngineConfig,), option_defaults=defaults)


def add_server_options(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Flags for every field of `ServerConfig` and of `EngineConfig`, and --config for a file of both.

    `defaults` are those in which the command differs from `SERVE_DEFAULTS` and the dataclasses, as long as there is no file.
    """
    defaults = {**SERVE_DEFAULTS, **defaults}
    group = parser.add_argument_group("server options")
    group.add_argument(
        "--config", metavar="FILE",
        help=f"YAML file of server and engine options, or a preset ({', '.join(_shipped('serve', 'yaml'))}); flags override it",
    )  # fmt: skip
    _add_flags(group, ServerConfig, defaults)
    _add_flags(parser.add_argument_group("engine options"), EngineConfig, defaults)
    parser.set_defaults(option_classes=(EngineConfig, ServerConfig), option_defaults=defaults)


def _add_flags(group: argparse._ArgumentGroup, cls: type[Options], defaults: Mapping[str, Any]) -> None:
    """A flag for every field of an option dataclass. Only flags that were given appear in the namespace."""
    for option in options_of(cls):
        default = defaults.get(option.name, option.default)
        form: dict[str, Any] = {"type": str, "metavar": "NAME"}
        if option.kind == "switch":
            form = {"action": argparse.BooleanOptionalAction}
        elif option.kind == "choice":
            form = {"choices": option.choices}
        elif option.kind == "integer":
            form = {"type": int, "metavar": "N"}
        elif option.kind == "real":
            form = {"type": float, "metavar": "X"}
        if "type" in form and option.nullable and default is not None:
            form["type"] = _or_none(form["type"])
        text = (option.help + _shown_default(option, default)).replace("%", "%%")
        group.add_argument(flag(option.name), default=argparse.SUPPRESS, help=text, **form)


def _shown_default(option: Option, default: Any) -> str:
    """The end of a help text."""
    if default is None:
        return f"; default: {option.unset}"
    if option.kind == "switch":
        return f" (default: {'on' if default else 'off'})"
    return f" (default: {default}; none: {option.unset})" if option.nullable else f" (default: {default})"


def _or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """A value, or the word that takes a default away."""

    def parse(text: str) -> Any:
        return None if text == "none" else kind(text)

    parse.__name__ = kind.__name__  # argparse calls it that in its errors
    return parse


def engine_config(args: argparse.Namespace) -> EngineConfig:
    """The engine options of a command line: the file if there is one, else the command's defaults, then flags.

    raises   ConfigError for a bad file, an unknown option or a bad value, of the server options too where there are any
    """
    return pick(EngineConfig, _values(args))


def server_config(args: argparse.Namespace) -> ServerConfig:
    """The server options of a command line, as `engine_config`."""
    return pick(ServerConfig, _values(args))


def _values(args: argparse.Namespace) -> dict[str, Any]:
    """Every option of the command by name, checked."""
    classes: tuple[type[Options], ...] = args.option_classes
    names = [option.name for cls in classes for option in options_of(cls)]
    base = args.option_defaults if args.config is None else _file_values(args.config, serve=ServerConfig in classes)
    values = {**base, **{name: getattr(args, name) for name in names if hasattr(args, name)}}
    check_options(values, classes, source="command line")
    return values


def _file_values(text: str, *, serve: bool) -> dict[str, Any]:
    """All options that a file or preset sets or leaves at its default."""
    if not serve:
        return dataclasses.asdict(EngineConfig.from_yaml(_preset(text, "engine")))
    engine, server = serve_configs(_preset(text, "serve"))
    return dataclasses.asdict(engine) | dataclasses.asdict(server)


def add_sampling_options(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Flags of `SamplingParams`. `defaults` are those in which the command differs."""
    group = parser.add_argument_group("sampling options", "--seed is an engine option")
    fields = {field.name: field for field in dataclasses.fields(SamplingParams)}
    hints = get_type_hints(SamplingParams)
    for name, text in SAMPLING_HELP.items():
        default = defaults.get(name, fields[name].default)
        if hints[name] is bool:
            group.add_argument(flag(name), action="store_true", help=text)
            continue
        kind = float if hints[name] is float else int
        shown = "" if default is None else f" (default: {default})"
        group.add_argument(
            flag(name), type=kind, metavar="X" if kind is float else "N", default=default, help=text + shown
        )


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """The sampling parameters of a command line. Raises RequestError for a value out of range."""
    return SamplingParams(**{name: getattr(args, name) for name in SAMPLING_HELP})


def model_path(text: str) -> Path:
    """A checkpoint folder or config.json given as a path, or one of the shipped configurations given by name.

    raises   ConfigError if there is no such thing
    """
    path = Path(text)
    if text and path.exists():
        return path
    shipped = _shipped("models", "json")
    if text in shipped:
        return shipped[text]
    raise ConfigError(
        f"--model {text!r}: no such file or folder; expected a checkpoint folder, a config.json, or the name of a shipped "
        f"configuration ({', '.join(shipped)}). Check the path."
    )


def _preset(text: str, kind: str) -> Path:
    """A YAML file given as a path, or a shipped preset given by name."""
    return Path(text) if Path(text).exists() else _shipped(kind, "yaml").get(text, Path(text))


def _shipped(kind: str, suffix: str) -> dict[str, Path]:
    """Configurations that come with the package: name → file."""
    found = (path for folder in _CONFIG_FOLDERS for path in sorted((folder / kind).glob(f"*.{suffix}")))
    return {path.stem: path for path in found}
