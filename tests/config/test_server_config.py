# SPDX-License-Identifier: Apache-2.0
"""ServerConfig and the flat files of `serve`: what is accepted, what is refused and how, and keys that never show."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest

from ascend_dsv4.config import ApiKeys, EngineConfig, ServerConfig, serve_configs
from ascend_dsv4.config.options import options_of
from ascend_dsv4.errors import ConfigError

PRESETS = sorted((Path(__file__).parents[2] / "configs" / "serve").glob("*.yaml"))
FIRST, SECOND = "sk-first-0123456789", "sk-second#with/odd=signs"


def refused(*lines: str, tmp_path: Path, data: bytes | None = None) -> str:
    """The message about a file of keys."""
    file = tmp_path / "keys"
    file.write_bytes("\n".join(lines).encode() if data is None else data)
    with pytest.raises(ConfigError) as caught:
        ApiKeys.from_file(file)
    assert str(caught.value).startswith(f"{file}: ")
    return str(caught.value)


def test_defaults() -> None:
    assert dataclasses.asdict(ServerConfig()) == {
        "host": "127.0.0.1", "port": 8000, "served_model_name": None, "max_body_bytes": 16 * 1024 * 1024,
        "max_num_connections": 1024, "max_n": 16, "request_timeout_s": 3600, "drain_timeout_s": 30, "keep_alive_s": 15,
        "retry_after_s": 1, "default_thinking": "on", "default_max_tokens": None, "api_keys_file": None,
        "cors_origins": None, "max_images_per_prompt": 16, "max_image_bytes": 20_000_000, "allow_remote_images": False,
        "allowed_image_hosts": None, "allowed_image_networks": None, "allowed_image_ports": "80,443", "image_timeout_s": 10,
        "log_level": None, "log_format": "json", "log_prompts": False,
    }  # fmt: skip
    assert ServerConfig.from_dict({}) == ServerConfig()


def test_every_field_is_explained() -> None:
    for option in (*options_of(ServerConfig), *options_of(EngineConfig)):
        assert len(option.help) > 10, option.name
        assert (option.unset is not None) == option.nullable, option.name


def test_names_belong_to_one_dataclass() -> None:
    """A file of `serve` is flat, and so is a command line."""
    both = [option.name for cls in (EngineConfig, ServerConfig) for option in options_of(cls)]
    assert len(both) == len(set(both))
    # Other flags of commands, and what the parser keeps in the same namespace.
    assert not set(both) & {"model", "config", "run", "command", "help", "option_classes", "option_defaults"}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("host", ["0.0.0.0", "::", "::1", "fe80::1%eth0", "localhost", "a-1.example.org", "node_7", "x"]),
        ("port", [0, 1, 65535]),
        ("served_model_name", [None, "v4", "org/v4-flash@0731", "模型", "x" * 256]),
        ("max_body_bytes", [1024, 1 << 30]), ("max_num_connections", [1, 1 << 20]), ("max_n", [1, 128]),
        ("request_timeout_s", [None, 0.5, 600, 2_592_000]), ("drain_timeout_s", [0, 0.0, 1.5]),
        ("keep_alive_s", [0.01, 3600]), ("retry_after_s", [1, 3600]), ("default_thinking", ["on", "off"]),
        ("default_max_tokens", [None, 1, 1 << 24]), ("api_keys_file", [None, "keys", "/etc/my keys/ключи"]),
        ("log_level", [None, "debug", "info", "warning", "error"]), ("log_format", ["json", "text"]),
        ("log_prompts", [True, False]), ("max_images_per_prompt", [0, 1024]), ("max_image_bytes", [1024, 1 << 30]),
        ("allow_remote_images", [True, False]), ("image_timeout_s", [0.01, 3600]),
        ("allowed_image_hosts", [None, "img.example.org", "a.example, 192.0.2.7,::1"]),
        ("allowed_image_networks", [None, "10.0.0.0/8", "10.1.2.3, fd00::/8"]), ("allowed_image_ports", ["443", "80, 8080,1"]),
    ],
)  # fmt: skip
def test_legal_values(name: str, values: list[Any]) -> None:
    for value in values:
        assert getattr(ServerConfig.from_dict({name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("host", "", "a host name or an IP address"), ("host", "http://localhost", "without scheme"),
        ("host", "[::1]", "without scheme, brackets"), ("host", "0.0.0.0:8000", "or port"), ("host", "a b", "host="),
        ("host", "1.2.3.444", "an IP address"), ("host", "127.1", "an IP address"), ("host", None, "host=None"),
        ("host", "a" * 254, "a host name"), ("host", "-a", "a host name"), ("host", "a\n", "a host name"),
        ("port", -1, "from 0 to 65535"), ("port", 65536, "TCP has these ports"), ("port", "8000", "an integer"),
        ("port", True, "an integer"), ("port", None, "port=None"), ("port", 80.0, "an integer"),
        ("served_model_name", "", "one word"), ("served_model_name", "a b", "one word"),
        ("served_model_name", "x" * 257, "256 characters"), ("served_model_name", 4, "one word"),
        ("max_body_bytes", 1023, "from 1024"), ("max_num_connections", 0, "from 1 to"), ("max_n", 0, "from 1 to 128"),
        ("request_timeout_s", math.nan, "a number from 0.01"), ("request_timeout_s", math.inf, "a number from"),
        ("request_timeout_s", 0, "a number from 0.01"), ("request_timeout_s", "600", "a number"),
        ("request_timeout_s", True, "request_timeout_s=True"), ("request_timeout_s", 10**400, "an integer of"),
        ("drain_timeout_s", None, "drain_timeout_s=None"), ("drain_timeout_s", -0.1, "a number from 0.0"),
        ("drain_timeout_s", -math.inf, "a number from 0.0"), ("keep_alive_s", 0, "a number from 0.01"),
        ("retry_after_s", 1.5, "an integer"), ("retry_after_s", 0, "HTTP counts whole seconds"),
        ("default_thinking", True, "one of on, off"), ("default_thinking", None, "one of on, off"),
        ("default_max_tokens", 0, "from 1"), ("api_keys_file", "", "the path of a file"),
        ("api_keys_file", " ", "the path of a file"), ("api_keys_file", "a\0b", "the path of a file"),
        ("log_level", "trace", "one of debug, info, warning, error"), ("log_level", ["info"], "log_level"),
        ("log_format", None, "one of json, text"), ("log_prompts", 1, "true or false"), ("log_prompts", "yes", "true or false"),
        ("log_prompts", None, "true or false"), ("max_images_per_prompt", -1, "from 0 to 1024"),
        ("max_image_bytes", 1023, "from 1024"), ("allow_remote_images", "yes", "true or false"),
        ("image_timeout_s", 0, "a number from 0.01"), ("allowed_image_hosts", "", "host names"),
        ("allowed_image_hosts", "https://a.example", "without scheme and port"), ("allowed_image_hosts", "a,,b", "host names"),
        ("allowed_image_networks", "10.0.0.1/8", "networks such as"), ("allowed_image_networks", "intranet", "networks such"),
        ("allowed_image_networks", "", "networks such as"), ("allowed_image_ports", "0", "TCP ports"),
        ("allowed_image_ports", "65536", "TCP ports"), ("allowed_image_ports", "", "TCP ports"),
        ("allowed_image_ports", "80-90", "TCP ports"), ("allowed_image_ports", None, "allowed_image_ports=None"),
    ],
    ids=lambda value: repr(value)[:24],
)  # fmt: skip
def test_bad_values(name: str, value: Any, words: str) -> None:
    for make in (lambda **given: ServerConfig.from_dict(given), ServerConfig, ServerConfig().replace):
        with pytest.raises(ConfigError, match=re.escape(words)) as caught:
            make(**{name: value})
        assert f"{name}=" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        (None, ()), ("*", ("*",)), ("https://a.example", ("https://a.example",)),
        ("http://localhost:3000, app://x ,https://[::1]:8", ("http://localhost:3000", "app://x", "https://[::1]:8")),
    ],
)  # fmt: skip
def test_origins(text: str | None, origins: tuple[str, ...]) -> None:
    assert ServerConfig(cors_origins=text).allowed_origins == origins


@pytest.mark.parametrize(
    "text",
    ["", "*,https://a.example", "https://a.example/", "https://a.example,", "a.example", "https://A.example", "https://",
     "https://u@a.example", "https://a.example?x", "https://a.example https://b.example", "null", 5],
)  # fmt: skip
def test_bad_origins(text: Any) -> None:
    with pytest.raises(ConfigError, match="without a path or a final slash"):
        ServerConfig(cors_origins=text)


def test_lists_about_images() -> None:
    server = ServerConfig(
        allowed_image_hosts="a.example, b.example", allowed_image_networks="10.0.0.0/8,fd00::/8", allowed_image_ports="80, 8080"
    )
    assert server.image_hosts == ("a.example", "b.example")
    assert server.image_networks == ("10.0.0.0/8", "fd00::/8")
    assert server.image_ports == (80, 8080)
    assert (ServerConfig().image_hosts, ServerConfig().image_networks, ServerConfig().image_ports) == ((), (), (80, 443))


def test_serve_configs() -> None:
    engine, server = serve_configs({"max_num_seqs": 3, "port": 1234})
    assert engine == EngineConfig(max_num_seqs=3, max_num_waiting=256)
    assert server == ServerConfig(port=1234)
    assert serve_configs({"max_num_waiting": None})[0].max_num_waiting is None
    assert EngineConfig().max_num_waiting is None  # only a server has a limit by default


def test_serve_configs_tells_everything_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        serve_configs({"prot": 1, "max_seqs": 2, "port": -1, "block_size": 96, "zzz": 0}, source="there")
    message = str(caught.value)
    assert message.startswith("there: 3 problems")
    for part in ("prot (did you mean port?)", "max_seqs (did you mean max_num_seqs?)", "zzz", "port=-1", "block_size=96"):
        assert part in message
    with pytest.raises(ConfigError, match="cache_rounding='off': expected 'released'"):
        serve_configs({"kv_cache": "packed", "cache_rounding": "off"})
    with pytest.raises(ConfigError, match="^serve options: got 5; expected options with values"):
        serve_configs(5)  # type: ignore[arg-type]


def test_a_dataclass_refuses_the_options_of_the_other(tmp_path: Path) -> None:
    file = tmp_path / "both.yaml"
    file.write_text("port: 1\nmax_num_seqs: 2\n")
    assert serve_configs(file) == (EngineConfig(max_num_seqs=2, max_num_waiting=256), ServerConfig(port=1))
    with pytest.raises(ConfigError, match="unknown keys port"):
        EngineConfig.from_yaml(file)
    with pytest.raises(ConfigError, match="unknown keys max_num_seqs"):
        ServerConfig.from_yaml(file)


def test_yaml(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("default_thinking: off\nlog_prompts: true\nrequest_timeout_s: null\nkeep_alive_s: 5\nlog_level:\n")
    expected = ServerConfig(default_thinking="off", log_prompts=True, request_timeout_s=None, keep_alive_s=5)
    assert serve_configs(str(file)) == (EngineConfig(max_num_waiting=256), expected)
    file.write_text("")
    assert serve_configs(file) == serve_configs({})
    for text, words in [("keep_alive_s: .nan", "keep_alive_s=nan"), ("request_timeout_s: .inf", "request_timeout_s=inf"),
                        ("log_prompts: on", "true or false"), ("port: 1\nport: 2", "port occurs twice")]:  # fmt: skip
        file.write_text(text)
        with pytest.raises(ConfigError, match=words) as caught:
            serve_configs(file)
        assert str(caught.value).startswith(f"{file}: ")


def test_replace() -> None:
    server = ServerConfig(port=1)
    assert server.replace(max_n=2) == ServerConfig(port=1, max_n=2)
    with pytest.raises(ConfigError, match=re.escape("server options: unknown keys hots (did you mean host?)")):
        server.replace(hots="x")


def test_there_are_presets() -> None:
    assert {"cpu_demo", "cpu_small", "cpu_server"} <= {path.stem for path in PRESETS}


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets(preset: Path) -> None:
    """Each loads, changes something on both sides, and explains every key in the line above it."""
    engine, server = serve_configs(preset)
    assert engine != EngineConfig() and server != ServerConfig()
    lines = preset.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ") and lines[1] == ""
    keys = 0
    for above, line in zip(lines, lines[1:], strict=False):
        if line and not line.startswith("#"):
            keys += 1
            assert re.fullmatch(r"# .{10,}\.", above), line
    given = {line.split(":")[0] for line in lines if line and not line.startswith("#")}
    assert keys == len(given) > 5
    assert given <= {option.name for cls in (EngineConfig, ServerConfig) for option in options_of(cls)}
    # Nobody may open a server to the network, or write down what people ask, by naming a preset.
    assert server.host == "127.0.0.1" and not server.log_prompts and server.cors_origins is None
    assert engine.max_total_tokens is not None and engine.max_num_waiting is not None


def test_api_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys with a space"
    file.write_bytes(f"# team\r\n\r\n  {FIRST}  # Ada\r\n\t#{FIRST}x\n{SECOND}\n{FIRST}\n".encode())
    keys = ServerConfig(api_keys_file=str(file)).api_keys()
    assert keys is not None and len(keys) == 2
    assert keys.matches(FIRST) and keys.matches(SECOND)
    for wrong in ("", FIRST[:-1], FIRST + "x", FIRST + " ", FIRST.upper(), "# team", "Ada", FIRST + "\ud800", "é"):
        assert not keys.matches(wrong)
    assert ServerConfig().api_keys() is None


def test_keys_never_show(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(FIRST)
    server = ServerConfig(api_keys_file=str(file))
    keys = server.api_keys()
    assert keys is not None
    slots = [getattr(keys, name) for name in ApiKeys.__slots__]
    for shown in (repr(keys), str(keys), f"{keys}", repr(server), repr(slots)):
        assert FIRST not in shown and FIRST[3:8] not in shown
    assert not hasattr(keys, "__dict__")


def test_bad_key_files(tmp_path: Path) -> None:
    assert "got no API key" in refused("", "  ", "# only a comment", tmp_path=tmp_path)
    assert "got no API key" in refused(data=b"", tmp_path=tmp_path)
    secret = "geheimnisvöll-0123456789"
    message = refused(FIRST, "# fine", secret, "short", f"{FIRST} {SECOND}", "x" * 513, tmp_path=tmp_path)
    assert "no API key on line 3, 4, 5, 6; expected 8 to 512 printable ASCII" in message
    for text in (FIRST, SECOND, secret, "short "):
        assert text not in message
    message = refused(*["bad"] * 50_000, tmp_path=tmp_path)
    assert "line 1, 2, 3, 4, 5, 6, 7, 8 and others" in message and len(message) < 500
    assert "not UTF-8" in refused(data=b"\xff\xfe", tmp_path=tmp_path)
    assert "more than 1048576 bytes" in refused(data=b"#" * (1 << 20) + b"\n", tmp_path=tmp_path)


def test_key_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path, tmp_path / ("x" * 300)):
        server = ServerConfig(api_keys_file=str(path))  # a configuration is only names; reading is another step
        with pytest.raises(ConfigError, match="no such file|cannot be read"):
            server.api_keys()


def test_shortest_and_longest_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("12345678\n" + "x" * 512)
    keys = ApiKeys.from_file(file)
    assert keys.matches("12345678") and keys.matches("x" * 512) and not keys.matches("x" * 511)
    assert "line 1" in refused("1234567", tmp_path=tmp_path)
