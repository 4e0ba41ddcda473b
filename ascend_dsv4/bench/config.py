# SPDX-License-Identifier: Apache-2.0
"""What is sent to which server, how fast. Defaults, help texts and flags all derive from here."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from ascend_dsv4.errors import ConfigError

DEFAULT_CONCURRENCY: Final = 1
DEFAULT_NUM_PROMPTS: Final = 100
_MAX_TOKENS: Final = 1 << 24
_MAX_PROMPTS: Final = 1 << 24
_MAX_CONCURRENCY: Final = 1 << 16
PLOT_SUFFIXES: Final = (".svg", ".png")


@dataclass(frozen=True, slots=True)
class Lengths:
    """A number of tokens, drawn evenly from low … high, both included."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """From "128" or "32:512". Raises ConfigError for anything else."""
        match = re.fullmatch(r"(\d{1,9})(?::(\d{1,9}))?", text, re.ASCII)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= low <= high <= _MAX_TOKENS:
            raise ConfigError(
                f"{text!r} is no length; expected a number of tokens such as 128, or a range such as 32:512 from which each "
                f"request draws, between 1 and {_MAX_TOKENS}. Correct the option."
            )
        return cls(low, high)

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}:{self.high}"


def parse_json_object(text: str) -> dict[str, Any]:
    """A JSON object. Raises ConfigError for anything else."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f'{text!r} is no JSON ({error}); expected an object such as {{"top_p": 0.9}}.') from error
    if not isinstance(value, dict):
        raise ConfigError(f'{text!r} is no JSON object; expected fields with values such as {{"top_p": 0.9}}.')
    return value


def _option(default: Any, group: str, text: str, *, metavar: str | None = None, parse: Callable[[str], Any] = str) -> Any:
    return field(default=default, metadata={"group": group, "help": text, "metavar": metavar, "parse": parse})


def _count(default: int | None, group: str, low: int, high: int, text: str) -> Any:
    metadata = {"group": group, "help": text, "metavar": "N", "parse": int, "limits": (low, high)}
    return field(default=default, metadata=metadata)


def _number(default: float | None, group: str, low: float, high: float, text: str, *, metavar: str) -> Any:
    metadata = {"group": group, "help": text, "metavar": metavar, "parse": float, "limits": (low, high)}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class LoadConfig:
    """Options of one measurement. Each field's metadata has its `help` text. Raises ConfigError for a bad value."""

    url: str = _option("http://127.0.0.1:8000", "server", "address of the server, with or without /v1", metavar="URL")
    model: str | None = _option(
        None, "server", "model name in the requests; default: the first that the server lists", metavar="NAME"
    )
    endpoint: Literal["chat", "completions"] = _option(
        "chat", "server", "POST /v1/chat/completions or /v1/completions, always streaming"
    )
    api_key_env: str | None = _option(
        None, "server", "environment variable that holds the API key; default: no key is sent", metavar="NAME"
    )
    timeout: float = _number(600.0, "server", 1e-3, 1e6, "seconds until an unfinished request counts as failed", metavar="S")

    concurrency: int | None = _count(
        None, "load", 1, _MAX_CONCURRENCY,
        f"closed loop: this many requests at a time, the next one starts when one ends; default without --request-rate: "
        f"{DEFAULT_CONCURRENCY}",
    )  # fmt: skip
    request_rate: float | None = _number(
        None, "load", 1e-6, 1e6,
        "open loop: requests per second, however fast the server answers; latencies count from the moment a request was due",
        metavar="R",
    )  # fmt: skip
    burstiness: float = _number(
        1.0, "load", 1e-3, 1e6,
        "open loop: shape of the gamma distribution between arrivals; 1 is a Poisson process, less comes in bursts, more "
        "evenly",
        metavar="X",
    )  # fmt: skip
    max_concurrency: int | None = _count(
        None, "load", 1, _MAX_CONCURRENCY, "open loop: requests under way at most; the others wait, which their latency shows"
    )
    warmup: int = _count(1, "load", 0, _MAX_PROMPTS, "requests before the measurement, which are not counted")

    num_prompts: int | None = _count(
        None, "requests", 1, _MAX_PROMPTS,
        f"requests to send; default: {DEFAULT_NUM_PROMPTS}, or the lines of --prompt-file, which repeat if more are asked for",
    )  # fmt: skip
    input_len: Lengths = _option(
        Lengths(128, 128), "requests",
        "tokens of a random prompt as the server counts them, or a range LOW:HIGH; two short requests find out how many "
        "words that takes",
        metavar="N", parse=Lengths.parse,
    )  # fmt: skip
    output_len: Lengths = _option(
        Lengths(128, 128),
        "requests",
        "tokens of an answer (max_tokens), or a range LOW:HIGH",
        metavar="N",
        parse=Lengths.parse,
    )
    prompt_file: str | None = _option(
        None, "requests",
        'prompts instead of random ones: a JSON object per line with "prompt" or "messages", and "max_tokens" if it differs '
        "from --output-len",
        metavar="FILE.jsonl",
    )  # fmt: skip
    seed: int = _count(
        0, "requests", 0, (1 << 63) - 1,
        "seed of prompts, lengths and arrivals; a server that caches prefixes may still know the prompts of an equal seed",
    )  # fmt: skip
    ignore_eos: bool = _option(True, "requests", "ask for answers of the full length; servers without this field refuse it")
    temperature: float = _number(0.0, "requests", 0, 100, "sharpness of the draw; 0 always takes the likeliest token",
                                  metavar="X")  # fmt: skip
    extra_body: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={
            "group": "requests",
            "help": "more fields of the request as a JSON object; a null takes a field out",
            "metavar": "JSON",
            "parse": parse_json_object,
        },
    )

    slo_ttft_ms: float | None = _number(
        None, "objectives", 0, 1e9, "goodput counts requests whose first token came within this time", metavar="MS"
    )
    slo_tpot_ms: float | None = _number(
        None, "objectives", 0, 1e9, "goodput counts requests whose tokens came this fast on average", metavar="MS"
    )

    def __post_init__(self) -> None:
        _check_url(self.url)
        _check_limits(self)
        _check_load(self)
        _check_extra_body(self.extra_body)

    @property
    def base_url(self) -> str:
        """The address up to and with /v1."""
        url = self.url.rstrip("/")
        return url if url.endswith("/v1") else f"{url}/v1"

    @property
    def in_flight(self) -> int | None:
        """Requests of the closed loop; None for an open loop."""
        return None if self.request_rate is not None else self.concurrency or DEFAULT_CONCURRENCY

    def api_key(self) -> str | None:
        """The key itself, which is in no report. Raises ConfigError if the variable is not set."""
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ConfigError(
                f"--api-key-env {self.api_key_env}: this environment variable is empty or not set; expected the API key in it, "
                "which the command line would show to everyone. Set the variable, or leave the option out."
            )
        if not key.isascii() or not key.isprintable():
            raise ConfigError(
                f"--api-key-env {self.api_key_env}: the key in it has characters that no HTTP header can carry; expected "
                "printable ASCII. Set the variable again."
            )
        return key

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**dataclasses.asdict(self), "input_len": str(self.input_len), "output_len": str(self.output_len)}


def flag(name: str) -> str:
    """num_prompts → --num-prompts."""
    return "--" + name.replace("_", "-")


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.isprintable()
    except ValueError:  # a port that is no number, brackets that do not match
        is_usable = False
    if not is_usable or " " in url or parts.query or parts.fragment:
        raise ConfigError(f"--url {url!r}: no address of a server; expected one such as http://127.0.0.1:8000. Correct it.")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            "--url: got an address with a user or password in it, which would be in every report; expected the address alone. "
            "Pass a key with --api-key-env."
        )


def _check_limits(config: LoadConfig) -> None:
    for option in dataclasses.fields(config):
        value = getattr(config, option.name)
        if "limits" not in option.metadata or value is None:
            continue
        low, high = option.metadata["limits"]
        if not (math.isfinite(value) and low <= value <= high):
            raise ConfigError(
                f"{flag(option.name)} {value}: expected a number from {low:g} to {high:g} ({option.metadata['help']}). "
                "Correct it."
            )


def _check_load(config: LoadConfig) -> None:
    if config.request_rate is not None and config.concurrency is not None:
        raise ConfigError(
            f"--concurrency {config.concurrency}: got it with --request-rate {config.request_rate:g}; expected one of them, "
            "because a closed loop has no rate of its own. Leave one out; --max-concurrency bounds an open loop."
        )
    if config.request_rate is None and config.max_concurrency is not None:
        raise ConfigError(
            f"--max-concurrency {config.max_concurrency}: got it without --request-rate; it bounds an open loop. Use "
            "--concurrency for a closed one."
        )
    if config.request_rate is None and config.burstiness != 1.0:
        raise ConfigError(
            f"--burstiness {config.burstiness:g}: got it without --request-rate; a closed loop has no arrivals to spread. "
            "Add --request-rate, or leave it out."
        )


def _check_extra_body(extra: Mapping[str, Any]) -> None:
    if "stream" in extra:
        raise ConfigError(
            f'--extra-body: got "stream": {json.dumps(extra["stream"])}; requests always stream, because only a stream shows '
            "when tokens come. Leave it out."
        )
    for name in ("n", "best_of"):
        if extra.get(name) not in (None, 1):
            raise ConfigError(
                f'--extra-body: got "{name}": {json.dumps(extra[name])}; expected one answer per request, because the times '
                "between tokens of several mean nothing. Leave it out and send more requests."
            )


def check_output_file(option: str, file: str) -> None:
    """Refuse a file that cannot be written before the measurement, not after. Raises ConfigError."""
    path = Path(file)
    target = path if path.exists() else path.parent
    if path.is_dir() or not target.exists() or not os.access(target, os.W_OK):
        raise ConfigError(f"{option} {file}: cannot be written; expected a file in a folder that exists. Name another file.")


def check_plot_file(file: str) -> None:
    """As check_output_file, for --plot, whose suffix chooses the format."""
    if Path(file).suffix.lower() not in PLOT_SUFFIXES:
        raise ConfigError(f"--plot {file}: expected a name that ends with {' or '.join(PLOT_SUFFIXES)}. Rename the file.")
    check_output_file("--plot", file)
