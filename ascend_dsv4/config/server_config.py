# SPDX-License-Identifier: Apache-2.0
"""How the HTTP server behaves, and the one flat set of options (server and engine together) that `serve` takes."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Final, Literal

from ascend_dsv4.config.checks import read_text
from ascend_dsv4.config.engine_config import EngineConfig
from ascend_dsv4.config.options import (
    Options,
    check_options,
    choice,
    integer,
    path_text,
    pick,
    read_yaml,
    real,
    string,
    switch,
    word,
)
from ascend_dsv4.errors import ConfigError

SERVE_DEFAULTS: Final[Mapping[str, Any]] = MappingProxyType({"max_num_waiting": 256})
"""Where a server differs from the defaults of `EngineConfig`: strangers must not be able to fill the memory with requests."""

_MAX_KEY_FILE_BYTES: Final = 1 << 20
_LONGEST_S: Final = 30 * 24 * 3600
_TIME: Final = "it is a time in seconds, and a month is the longest"
_COUNT: Final = "each one takes memory of the server"

_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?")
# As browsers send it: scheme and host in lower case, no path.
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^\sA-Z/?#@,]+")
_KEY: Final = re.compile(r"[!-~]{8,512}")


def _is_host(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        # Digits and dots alone are meant as an address: 127.0.0 or 1.2.3.444 is a slip, and resolvers differ on it.
        return _HOST_NAME.fullmatch(value) is not None and re.fullmatch(r"[0-9.]+", value) is None
    return True


def _listed(value: str | None) -> tuple[str, ...]:
    return () if value is None else tuple(item.strip() for item in value.split(","))


def _are_hosts(value: str) -> bool:
    return len(value) <= 4096 and all(_is_host(host) for host in _listed(value))


def _are_networks(value: str) -> bool:
    try:
        return len(value) <= 4096 and all(ipaddress.ip_network(network) for network in _listed(value))
    except ValueError:
        return False


def _are_ports(value: str) -> bool:
    ports = _listed(value)
    return len(value) <= 4096 and all(re.fullmatch(r"[0-9]{1,5}", port) and 1 <= int(port) <= 65535 for port in ports)


def _are_origins(value: str) -> bool:
    origins = _listed(value)
    return len(value) <= 4096 and (origins == ("*",) or all(_ORIGIN.fullmatch(origin) for origin in origins))


@dataclass(frozen=True, slots=True)
class ServerConfig(Options):
    """Options of the HTTP server. Each field's metadata has its `help` text. Checked whenever one is made.

    Holds the name of the file of API keys, never a key: `api_keys` reads it. Raises `ConfigError` listing every bad value.
    """

    SOURCE: ClassVar[str] = "server options"

    host: str = string(
        "127.0.0.1",
        "address to listen on; 0.0.0.0 or :: for all of this machine's",
        "a host name or an IP address, without scheme, brackets or port",
        legal=_is_host,
    )
    port: int = integer(8000, 0, 65535, "TCP port; 0 takes any free one", because="TCP has these ports")
    served_model_name: str | None = string(
        None,
        "name by which clients ask for the model",
        "one word of at most 256 characters",
        legal=lambda value: word(value) and len(value) <= 256,
        unset="the name of its folder",
    )
    max_body_bytes: int = integer(
        16 << 20, 1 << 10, 1 << 30, "bytes of the longest request body; a prompt given as token ids takes up to 8 a token",
        because="a body is held in memory while it is read",
    )  # fmt: skip
    max_num_connections: int = integer(
        1024, 1, 1 << 20, "connections open at the same time, idle ones too; more are refused", because=_COUNT
    )
    max_n: int = integer(16, 1, 128, "choices that one request may ask for", because=_COUNT)
    request_timeout_s: float | None = real(
        3600, 0.01, _LONGEST_S, "seconds from when a request is queued after which it ends with an error",
        because=_TIME, unset="no limit",
    )  # fmt: skip
    drain_timeout_s: float = real(
        30, 0, _LONGEST_S, "seconds that running requests get to finish when the server is told to stop", because=_TIME
    )
    keep_alive_s: float = real(
        15, 0.01, 3600, "seconds without a token after which a stream gets a comment, so that proxies keep it open",
        because="proxies close a stream that is silent for longer",
    )  # fmt: skip
    retry_after_s: int = integer(
        1, 1, 3600, "seconds after which a refused client is told to try again", because="HTTP counts whole seconds here"
    )
    default_thinking: Literal["on", "off"] = choice("on", "whether chats think first when the request does not say")
    default_max_tokens: int | None = integer(
        None, 1, 1 << 24, "tokens generated at most when the request does not say",
        unset="what the model's publisher advises, 16 for plain completions",
    )
    api_keys_file: str | None = string(
        None,
        "file of API keys, one a line, # starts a comment",
        "the path of a file",
        legal=path_text,
        unset="everybody may ask",
    )
    cors_origins: str | None = string(
        None,
        "origins of web pages that may use the server, separated by commas, or * for any",
        "origins in lower case such as https://chat.example.org, without a path or a final slash, or * alone",
        legal=_are_origins,
        unset="none",
    )
    max_images_per_prompt: int = integer(16, 0, 1024, "images that one request may send; 0 refuses all", because=_COUNT)
    max_image_bytes: int = integer(
        20_000_000, 1 << 10, 1 << 30, "bytes of the largest image file; one that is sent as a data URL also has to fit into "
        "max_body_bytes", because="a file is held in memory while it is read",
    )  # fmt: skip
    allow_remote_images: bool = switch(False, "fetch images that requests name by http and https URLs, from public addresses")
    allowed_image_hosts: str | None = string(
        None,
        "the only hosts that images are fetched from, separated by commas",
        "host names or IP addresses, without scheme and port, separated by commas",
        legal=_are_hosts,
        unset="any",
    )
    allowed_image_networks: str | None = string(
        None,
        "networks that images may be fetched from although they are not public, separated by commas",
        "networks such as 10.1.2.0/24, separated by commas",
        legal=_are_networks,
        unset="none",
    )
    allowed_image_ports: str = string(
        "80,443", "ports that images may be fetched from, separated by commas", "TCP ports separated by commas",
        legal=_are_ports,
    )  # fmt: skip
    image_timeout_s: float = real(10, 0.01, 3600, "seconds in which all remote images of a request must arrive", because=_TIME)
    log_level: Literal["debug", "info", "warning", "error"] | None = choice(
        None, "least severe log lines that are written", unset="$ASCEND_DSV4_LOG, else info"
    )
    log_format: Literal["json", "text"] = choice("json", "log lines for programs or for people")
    log_prompts: bool = switch(False, "write prompts into the log, which otherwise has no text of any request")

    def api_keys(self) -> ApiKeys | None:
        """The keys clients must present, read now; None if there is no file of keys. Raises `ConfigError`."""
        return None if self.api_keys_file is None else ApiKeys.from_file(self.api_keys_file)

    @property
    def allowed_origins(self) -> tuple[str, ...]:
        """`cors_origins` one by one; ("*",) for any, empty for none."""
        return _listed(self.cors_origins)

    @property
    def image_hosts(self) -> tuple[str, ...]:
        """`allowed_image_hosts` one by one; empty for any."""
        return _listed(self.allowed_image_hosts)

    @property
    def image_networks(self) -> tuple[str, ...]:
        """`allowed_image_networks` one by one."""
        return _listed(self.allowed_image_networks)

    @property
    def image_ports(self) -> tuple[int, ...]:
        """`allowed_image_ports` one by one."""
        return tuple(map(int, _listed(self.allowed_image_ports)))


class ApiKeys:
    """The API keys of a server. Keeps digests, so that no dump, log line or traceback can show a key."""

    __slots__ = ("_digests",)

    def __init__(self, keys: set[str]) -> None:
        self._digests = tuple(_digest(key) for key in keys)

    @classmethod
    def from_file(cls, path: str | Path) -> ApiKeys:
        """Keys from a file: one a line; empty lines and what follows # are skipped.

        A comment behind a key is set off by a space, for # may be part of a key. Errors name lines, never their text.
        raises   ConfigError if it cannot be read, has a line that is no key, or has no key at all
        """
        keys, wrong = set[str](), list[int]()
        for number, line in enumerate(read_text(Path(path), _MAX_KEY_FILE_BYTES).split("\n"), start=1):
            key = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()
            if _KEY.fullmatch(key):
                keys.add(key)
            elif key:
                wrong.append(number)
        if wrong:
            raise ConfigError(
                f"{path}: no API key on line {', '.join(map(str, wrong[:8]))}{' and others' if wrong[8:] else ''}; expected "
                "8 to 512 printable ASCII characters without spaces (shorter keys can be guessed, others do not pass "
                "through HTTP headers). Correct the file."
            )
        if not keys:
            raise ConfigError(
                f"{path}: got no API key; expected at least one line with a key (without any, nobody could use the server). "
                "Add one, or leave api_keys_file out to let everybody in."
            )
        return cls(keys)

    def matches(self, presented: str) -> bool:
        """Whether this is one of the keys. The time it takes tells nothing about them but their number."""
        digest, found = _digest(presented), False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found

    def __len__(self) -> int:
        return len(self._digests)

    def __repr__(self) -> str:
        return f"ApiKeys({len(self)})"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def serve_configs(
    options: Mapping[str, Any] | str | Path, *, source: str = "serve options"
) -> tuple[EngineConfig, ServerConfig]:
    """Engine and server options out of one flat mapping, or of a YAML file with one; absent ones have `serve`'s defaults.

    source   what errors call a mapping
    raises   ConfigError listing every unknown key and bad value of both
    """
    if isinstance(options, (str, Path)):
        return serve_configs(read_yaml(options), source=str(options))
    check_options(options, (EngineConfig, ServerConfig), source=source)
    values = {**SERVE_DEFAULTS, **options}
    return pick(EngineConfig, values), pick(ServerConfig, values)
