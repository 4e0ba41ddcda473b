# SPDX-License-Identifier: Apache-2.0
"""Flags follow the dataclasses they fill; files, presets and flags override each other in that order."""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from ascend_dsv4 import __version__
from ascend_dsv4.cli import build_parser
from ascend_dsv4.cli.options import SAMPLING_HELP, add_server_options, engine_config, sampling_params, server_config
from ascend_dsv4.config import EngineConfig, ServerConfig, serve_configs
from ascend_dsv4.config.options import Option, options_of
from ascend_dsv4.engine.sampling_params import SamplingParams
from ascend_dsv4.errors import ConfigError
from tests.cli.conftest import Run

COMMANDS = {"generate": ["--model", "x"], "chat": ["--model", "x"], "check": [], "demo": []}
ENGINE_FIELDS = {field.name: field for field in dataclasses.fields(EngineConfig)}
CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = sorted((CONFIGS / "engine").glob("*.yaml"))
SERVE_PRESETS = sorted((CONFIGS / "serve").glob("*.yaml"))
SERVE_OPTIONS = {option.name: option for cls in (ServerConfig, EngineConfig) for option in options_of(cls)}


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def parse_engine(*args: str, command: str = "generate") -> EngineConfig:
    return engine_config(build_parser().parse_args([command, *COMMANDS[command], *args]))


def serve_parser(**defaults: Any) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="serve", allow_abbrev=False)
    add_server_options(parser, **defaults)
    return parser


def parse_serve(*args: str, **defaults: Any) -> tuple[EngineConfig, ServerConfig]:
    namespace = serve_parser(**defaults).parse_args(args)
    return engine_config(namespace), server_config(namespace)


def other_value(field: dataclasses.Field[Any]) -> Any:
    """A legal value that is not the default."""
    if "limits" in field.metadata:
        return min(256, field.metadata["limits"][1])
    hint = get_type_hints(EngineConfig)[field.name]
    if hint is str or str in get_args(hint):
        return "reference"
    return next(choice for choice in get_args(hint) if choice != field.default)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_every_option(command: str, run: Run) -> None:
    result = run(command, "--help")
    text = " ".join(result.out.split()).replace("- ", "-")
    assert result.code == 0
    for name, field in ENGINE_FIELDS.items():
        assert flag(name) in text
        assert field.metadata["help"].replace("- ", "-") in text
    has_sampling = command != "check"
    for name in SAMPLING_HELP:
        assert (flag(name) + " " in text) == has_sampling
    assert f"{flag('window_block_size')} N rows per block of the sliding-window cache (default: 32)" in text


def test_help_of_the_program(run: Run) -> None:
    result = run("--help")
    assert result.code == 0
    assert all(f"\n    {command} " in result.out for command in (*COMMANDS, "convert"))
    assert run().code == 2
    assert run("--version").out == f"ascend-dsv4 {__version__}\n"


def test_help_loads_no_framework() -> None:
    code = (
        "import sys\nfrom ascend_dsv4.cli import main\n"
        "for command in ([], ['generate'], ['chat'], ['check'], ['convert'], ['demo']):\n"
        "    try: main([*command, '--help'])\n"
        "    except SystemExit: pass\n"
        "sys.exit(str([name for name in ('torch', 'mindspore', 'tokenizers', 'rich') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("field", ENGINE_FIELDS.values(), ids=ENGINE_FIELDS)
def test_every_engine_field_is_a_flag(field: dataclasses.Field[Any], tmp_path: Path) -> None:
    value = other_value(field)
    assert getattr(parse_engine(flag(field.name), str(value)), field.name) == value
    file = tmp_path / "engine.yaml"
    file.write_text(f"{field.name}: {json.dumps(value)}\n")
    assert getattr(parse_engine("--config", str(file)), field.name) == value


def test_sampling_flags_have_the_defaults_of_the_dataclass() -> None:
    assert sampling_params(build_parser().parse_args(["generate", "--model", "x"])) == SamplingParams()
    given = {"max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "logprobs": 3}
    args = [part for name, value in given.items() for part in (flag(name), str(value))] + ["--ignore-eos"]
    expected = SamplingParams(**given, ignore_eos=True)
    assert sampling_params(build_parser().parse_args(["generate", "--model", "x", *args])) == expected
    left_out = {field.name for field in dataclasses.fields(SamplingParams)} - SAMPLING_HELP.keys()
    assert left_out == {
        "seed", "stop_token_ids", "stop", "n", "min_tokens", "prompt_logprobs", "logit_bias", "repetition_penalty",
        "presence_penalty", "frequency_penalty",
    }  # fmt: skip


def test_flags_override_the_file_and_the_file_the_command(tmp_path: Path) -> None:
    file = tmp_path / "engine.yaml"
    file.write_text("max_num_seqs: 3\nblock_size: 256\n")
    assert parse_engine() == EngineConfig()
    assert parse_engine(command="check") == EngineConfig(max_num_seqs=1)
    assert parse_engine("--config", str(file), command="check") == EngineConfig(max_num_seqs=3, block_size=256)
    both = parse_engine("--config", str(file), "--max-num-seqs", "5", command="check")
    assert both == EngineConfig(max_num_seqs=5, block_size=256)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets(preset: Path) -> None:
    assert parse_engine("--config", preset.stem) == EngineConfig.from_yaml(preset)
    assert EngineConfig.from_yaml(preset) != EngineConfig()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("max_model_length: 4", "unknown keys max_model_length (did you mean max_model_len?)"),
        ("block_size: 96", "block_size=96: expected a multiple of 128"),
        ("backend: cuda", "cpu, npu, mindspore, null"),
        ("- 1", "expected options with values"),
    ],
)
def test_bad_files(content: str, words: str, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "engine.yaml"
    file.write_text(content)
    result = run("check", "--config", file)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"error: {file}: ")
    assert words in result.err


def test_bad_flags(run: Run, tmp_path: Path) -> None:
    assert "no such file" in run("check", "--config", tmp_path / "nope.yaml").err
    assert "invalid choice: 'cuda'" in run("check", "--backend", "cuda").err
    assert "command line: block_size=96: expected a multiple of 128" in run("check", "--block-size", "96").err
    assert "packed caches hold the rounded codes" in run("check", "--kv-cache", "packed", "--cache-rounding", "off").err
    assert "unrecognized arguments: --max-model" in run("check", "--max-model", "5").err


def another(option: Option) -> tuple[Any, list[str]]:
    """A legal value that is not the default of the option, and the flag that sets it."""
    if option.kind == "switch":
        value: Any = not option.default
        return value, [flag(option.name) if value else "--no-" + flag(option.name)[2:]]
    if option.kind == "string":
        special = {
            "cors_origins": "https://a.example", "allowed_image_networks": "10.0.0.0/8", "allowed_image_ports": "8080",
        }  # fmt: skip
        value = special.get(option.name, "another")
    elif option.kind == "choice":
        value = next(choice for choice in option.choices if choice != option.default)
    else:
        small = option.name in ("max_n", "retry_after_s", "num_speculative_tokens", "max_images_per_prompt")
        value = 9 if small else {"integer": 1280, "real": 1.0 if option.name == "speculative_threshold" else 2.5}[option.kind]
    return value, [flag(option.name), str(value)]


@pytest.mark.parametrize("option", SERVE_OPTIONS.values(), ids=SERVE_OPTIONS)
def test_every_option_of_a_server_is_a_flag(option: Option, tmp_path: Path) -> None:
    value, args = another(option)
    side = int(option.name in {server.name for server in options_of(ServerConfig)})
    assert value != option.default
    assert getattr(parse_serve(*args)[side], option.name) == value
    untouched = parse_serve()[1 - side]
    assert parse_serve(*args)[1 - side] == untouched
    file = tmp_path / "serve.yaml"
    file.write_text(f"{option.name}: {json.dumps(value)}\n")
    assert getattr(parse_serve("--config", str(file))[side], option.name) == value
    assert serve_configs(file) == parse_serve("--config", str(file))


def test_server_flags_override_the_file_and_the_file_the_command(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("port: 3\nmax_num_seqs: 3\nlog_prompts: true\n")
    assert parse_serve() == serve_configs({}) == (EngineConfig(max_num_waiting=256), ServerConfig())
    assert parse_serve(max_n=4, max_num_waiting=7) == (EngineConfig(max_num_waiting=7), ServerConfig(max_n=4))
    assert parse_serve("--config", str(file), max_n=4) == serve_configs(file)
    engine, server = parse_serve("--config", str(file), "--max-num-seqs", "5", "--no-log-prompts", "--port", "0")
    assert engine == EngineConfig(max_num_seqs=5, max_num_waiting=256)
    assert server == ServerConfig(port=0)


def test_the_word_none_takes_a_default_away(capsys: pytest.CaptureFixture[str]) -> None:
    engine, server = parse_serve("--max-num-waiting", "none", "--request-timeout-s", "none")
    assert engine.max_num_waiting is None and server.request_timeout_s is None
    for name, value, kind in [("--max-num-waiting", "nine", "int"), ("--request-timeout-s", "x", "float"),
                              ("--port", "none", "int"), ("--keep-alive-s", "none", "float")]:  # fmt: skip
        with pytest.raises(SystemExit):
            parse_serve(name, value)
        assert f"argument {name}: invalid {kind} value: '{value}'" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # no limit is the default there: nothing to take away
        parse_engine("--max-num-waiting", "none")


def test_help_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    lines = [" ".join(line.split()) for line in serve_parser(port=80).format_help().splitlines()]
    for name, option in SERVE_OPTIONS.items():
        assert sum(line.startswith(flag(name) + ("" if option.kind == "switch" else " ")) for line in lines) == 1
        assert sum(option.help in line for line in lines) == 1
    text = " ".join(lines)
    for part in (
        "--port N TCP port; 0 takes any free one (default: 80)",
        "more are refused (default: 256; none: no limit)",
        "ends with an error (default: 3600; none: no limit)",
        "--served-model-name NAME name by which clients ask for the model; default: the name of its folder",
        "which otherwise has no text of any request (default: off)",
        "default: $ASCEND_DSV4_LOG, else info",
        "--keep-alive-s X seconds without a token after which a stream gets a comment, so that proxies keep it open "
        "(default: 15)",
    ):
        assert part in text, part
    config = next(line for line in lines if line.startswith("--config"))
    assert all(preset.stem in config for preset in SERVE_PRESETS) and "cpu_long_context" not in config


@pytest.mark.parametrize("preset", SERVE_PRESETS, ids=lambda path: path.stem)
def test_serve_presets_by_name(preset: Path) -> None:
    assert parse_serve("--config", preset.stem) == serve_configs(preset)


def test_bad_server_options(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("prot: 1\n")
    cases = {
        ("--config", str(file)): f"{file}: unknown keys prot (did you mean port?)",
        ("--config", "cpu_long_context"): "cpu_long_context: no such file",  # a preset of the other commands
        ("--port", "65536", "--block-size", "96"): "command line: 2 problems",
        ("--request-timeout-s", "nan"): "command line: request_timeout_s=nan: expected a number",
        ("--keep-alive-s", "inf"): "command line: keep_alive_s=inf: expected a number",
        ("--host", "http://x"): "command line: host='http://x'",
    }
    for args, words in cases.items():
        namespace = serve_parser().parse_args(args)
        for read in (engine_config, server_config):
            with pytest.raises(ConfigError) as caught:
                read(namespace)
            assert str(caught.value).startswith(words)
