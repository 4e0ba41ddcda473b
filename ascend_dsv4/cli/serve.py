# SPDX-License-Identifier: Apache-2.0
"""`ascend-dsv4 serve`: a model behind the OpenAI and Anthropic protocols."""

from __future__ import annotations

import argparse
import contextlib
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ascend_dsv4.cli.generate import open_model
from ascend_dsv4.cli.options import (
    CaptureOptions,
    add_capture_options,
    add_server_options,
    capture_options,
    engine_config,
    model_path,
    server_config,
)
from ascend_dsv4.config import EngineConfig
from ascend_dsv4.config.server_config import ServerConfig
from ascend_dsv4.errors import CapsuleError, ConfigError, UnsupportedError

if TYPE_CHECKING:
    from ascend_dsv4.llm import LLM

Announce = Callable[[str, str], None]


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "serve",
        allow_abbrev=False,
        help="serve a model over HTTP",
        description="Serve a model over HTTP: Chat Completions, Completions, Responses and Messages, with a status page at /. "
        "SIGTERM or Ctrl-C lets running requests finish first.",
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="checkpoint folder as published")
    add_server_options(parser)
    add_capture_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    return serve(model_path(args.model), engine_config(args), server_config(args), capture=capture_options(args))


def serve(
    model: Path,
    engine: EngineConfig,
    server: ServerConfig,
    announce: Announce | None = None,
    capture: CaptureOptions | None = None,
) -> int:
    """Load a model and serve it; returns the exit code. `announce` gets the URL and the model's name once it answers.

    `capture` records operator calls meanwhile; one that records nothing is an error at the end.
    """
    announce = announce or _announce
    try:
        from ascend_dsv4.server.process import HttpServer
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("ascend_dsv4"):
            raise  # no missing extra, but a broken installation
        raise UnsupportedError(
            f"serve: {error.name} is not installed, and HTTP needs it. Run pip install 'ascend-dsv4[serve]'."
        ) from error
    from ascend_dsv4.server.logs import configure_logging
    from ascend_dsv4.server.service import Service

    if not model.is_dir():
        raise ConfigError(f"--model {model}: no folder; expected one with a checkpoint, because only weights can answer.")
    if capture is not None:
        capture.check(model, engine)
    server.api_keys()  # a bad file is an error before the weights are read
    listener = _listen(server)
    with contextlib.closing(listener):
        configure_logging(server)
        llm = open_model(model, engine)
        encoder = None if llm.config.vision is None else llm.vision_encoder
        if encoder is not None:
            encoder()  # now rather than at somebody's first image
        name = server.served_model_name or model.resolve().name
        service = Service(llm.engine, llm.tokenizer, name, server, encoder)

        def answer() -> None:
            HttpServer(service).run_on(listener, lambda: announce(_url(listener), service.model_name))

        return _captured(llm, capture, answer)


def _captured(llm: LLM, capture: CaptureOptions | None, answer: Callable[[], None]) -> int:
    """Answer requests, and record operator calls meanwhile if that is wanted. Returns the exit code."""
    if capture is None:
        answer()
        return 0
    logger = logging.getLogger("ascend_dsv4.capture")
    try:
        with capture.record(llm) as recording:
            logger.info("recording operator calls into %s, which will hold what users write", capture.folder)
            answer()
    except CapsuleError as error:
        logger.error("%s", error)
        return 2
    logger.info("%s", recording.summary)
    return 0


def _announce(url: str, model_name: str) -> None:
    from ascend_dsv4.cli.terminal import note

    note(f"serving {model_name} on {url}; Ctrl-C stops")


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _listen(server: ServerConfig) -> socket.socket:
    """A listening socket, before anything slow is done. Raises ConfigError if the address cannot be had."""
    try:
        family = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)[0][0]
        both = server.host == "::" and socket.has_dualstack_ipv6()  # all addresses of the machine, old and new
        return socket.create_server((server.host, server.port), family=family, backlog=2048, dualstack_ipv6=both)
    except OSError as error:
        raise ConfigError(
            f"--host {server.host} --port {server.port}: {error.strerror}; expected a free port of this machine. Choose "
            "another with --port, or end what uses it."
        ) from error
