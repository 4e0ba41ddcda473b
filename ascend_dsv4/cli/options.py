# SPDX-License-Identifier: Apache-2.0
"""Flags shared by the commands. Names, types, choices and defaults come from the dataclasses the flags fill."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_type_hints

from ascend_dsv4.accuracy.selection import (
    DEFAULT_LIMIT,
    MODEL_GRAPHS,
    Selection,
    check_folder,
    parse_layers,
    parse_ops,
    parse_size,
    parse_steps,
)
from ascend_dsv4.config import SERVE_DEFAULTS, EngineConfig, ModelConfig, ServerConfig, serve_configs
from ascend_dsv4.config.options import Option, Options, check_options, options_of, pick
from ascend_dsv4.engine.sampling_params import SamplingParams
from ascend_dsv4.errors import ConfigError

if TYPE_CHECKING:
    from ascend_dsv4.accuracy.capture import Capture
    from ascend_dsv4.llm import LLM

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


@dataclasses.dataclass(frozen=True, slots=True)
class CaptureOptions:
    """What --capture and the flags around it say."""

    folder: Path
    ops: str
    layers: str
    steps: str
    limit: int

    @property
    def selection(self) -> Selection:
        """Which calls. Raises ConfigError for names and numbers that do not exist."""
        return Selection(parse_ops(self.ops), parse_layers(self.layers), parse_steps(self.steps))

    def check(self, model: Path, engine: EngineConfig) -> None:
        """Refuse what would end in an empty recording, before weights are read. Raises ConfigError, UnsupportedError."""
        from ascend_dsv4.llm import check_capture, model_graphs

        check_folder(self.folder)
        config, selection = ModelConfig.from_file(model), self.selection
        check_capture(engine, selection, model_graphs(config, engine).by_place(config))

    def record(self, llm: LLM) -> AbstractContextManager[Capture]:
        """`LLM.capture` with these options."""
        return llm.capture(self.folder, ops=self.ops, layers=self.layers, steps=self.steps, limit=self.limit)


def add_capture_options(parser: argparse.ArgumentParser) -> None:
    """Flags of recording operator calls."""
    group = parser.add_argument_group(
        "capture options", "record operator calls for `ascend-dsv4 compare replay`; they hold what users wrote"
    )
    group.add_argument("--capture", metavar="DIR", help="record into this new or empty folder")
    group.add_argument("--capture-ops", metavar="OP,OP", help="operators (default: all)")
    group.add_argument(
        "--capture-layers", metavar="0,3-5", help=f"layers, and {', '.join(MODEL_GRAPHS)} (default: all)"
    )
    group.add_argument(
        "--capture-steps", metavar="0,5-9,20-", help="steps, counted from 0 since the start (default: all)"
    )
    group.add_argument(
        "--capture-limit", metavar="SIZE",
        help=f"bytes to record at most, such as 500M (default: {DEFAULT_LIMIT >> 30}G)",
    )  # fmt: skip


def capture_options(args: argparse.Namespace) -> CaptureOptions | None:
    """The capture flags of a command line; None without --capture. Raises ConfigError for bad ones."""
    given = [name for name in ("ops", "layers", "steps", "limit") if getattr(args, f"capture_{name}") is not None]
    if args.capture is None:
        if given:
            raise ConfigError(
                f"--capture-{given[0]}: got it without --capture, expected both, because nothing is recorded otherwise. Name a "
                "folder with --capture."
            )
        return None
    chosen = {name: getattr(args, f"capture_{name}") for name in given if name != "limit"}
    limit = DEFAULT_LIMIT if args.capture_limit is None else parse_size(args.capture_limit)
    options = CaptureOptions(Path(args.capture), **{"ops": "all", "layers": "all", "steps": "all", **chosen}, limit=limit)
    assert options.selection is not None  # it is well-formed
    return options


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
