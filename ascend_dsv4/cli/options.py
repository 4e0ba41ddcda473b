# SPDX-License-Identifier: Apache-2.0
"""Flags shared by the commands. Names, types, choices and defaults come from the dataclasses the flags fill."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from ascend_dsv4.config import EngineConfig
from ascend_dsv4.engine.request import SamplingParams
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
    hints = get_type_hints(EngineConfig)
    for option in dataclasses.fields(EngineConfig):
        choices = get_args(hints[option.name]) if get_origin(hints[option.name]) is Literal else None
        default = defaults.get(option.name, option.default)
        shown = "" if default is None else f" (default: {default})"
        group.add_argument(
            flag(option.name),
            type=int if "limits" in option.metadata else str,
            choices=choices,
            metavar=None if choices else "N" if "limits" in option.metadata else "NAME",
            default=argparse.SUPPRESS,  # so that only flags that were given override --config
            help=(option.metadata["help"] + shown).replace("%", "%%"),
        )
    parser.set_defaults(engine_defaults=defaults)


def engine_config(args: argparse.Namespace) -> EngineConfig:
    """The options of a command line: the preset if there is one, else the command's defaults, then flags.

    raises   ConfigError for a bad file, an unknown option or a bad value
    """
    base = args.engine_defaults if args.config is None else dataclasses.asdict(EngineConfig.from_yaml(_preset(args.config)))
    names = [option.name for option in dataclasses.fields(EngineConfig)]
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return EngineConfig.from_dict({**base, **given}, source="command line")


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


def _preset(text: str) -> Path:
    """A YAML file given as a path, or a shipped preset given by name."""
    return Path(text) if Path(text).exists() else _shipped("engine", "yaml").get(text, Path(text))


def _shipped(kind: str, suffix: str) -> dict[str, Path]:
    """Configurations that come with the package: name → file."""
    found = (path for folder in _CONFIG_FOLDERS for path in sorted((folder / kind).glob(f"*.{suffix}")))
    return {path.stem: path for path in found}
