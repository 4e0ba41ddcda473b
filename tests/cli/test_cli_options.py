# SPDX-License-Identifier: Apache-2.0
"""Flags follow the dataclasses they fill; files, presets and flags override each other in that order."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from ascend_dsv4 import __version__
from ascend_dsv4.cli import build_parser
from ascend_dsv4.cli.options import SAMPLING_HELP, engine_config, sampling_params
from ascend_dsv4.config import EngineConfig
from ascend_dsv4.engine.request import SamplingParams
from tests.cli.conftest import Run

COMMANDS = {"generate": ["--model", "x"], "chat": ["--model", "x"], "check": [], "demo": []}
ENGINE_FIELDS = {field.name: field for field in dataclasses.fields(EngineConfig)}
PRESETS = sorted((Path(__file__).parents[2] / "configs" / "engine").glob("*.yaml"))


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def parse_engine(*args: str, command: str = "generate") -> EngineConfig:
    return engine_config(build_parser().parse_args([command, *COMMANDS[command], *args]))


def other_value(field: dataclasses.Field[Any]) -> Any:
    """A legal value that is not the default."""
    if "limits" in field.metadata:
        return 256
    hint = get_type_hints(EngineConfig)[field.name]
    return next(choice for choice in get_args(hint) if choice != field.default) if get_origin(hint) else "reference"


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
    assert all(f"\n    {command} " in result.out for command in COMMANDS)
    assert run().code == 2
    assert run("--version").out == f"ascend-dsv4 {__version__}\n"


def test_help_loads_no_framework() -> None:
    code = (
        "import sys\nfrom ascend_dsv4.cli import main\n"
        "for command in ([], ['generate'], ['chat'], ['check'], ['demo']):\n"
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
    assert left_out == {"seed", "stop_token_ids"}


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
