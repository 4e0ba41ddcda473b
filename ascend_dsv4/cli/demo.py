# SPDX-License-Identifier: Apache-2.0
"""`ascend-dsv4 demo`: the whole way from files to served text with an embedded tiny model. Needs nothing."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any, Final

from ascend_dsv4.cli import chat
from ascend_dsv4.cli.generate import complete, open_model
from ascend_dsv4.cli.options import (
    add_sampling_options,
    add_server_options,
    engine_config,
    sampling_params,
    server_config,
)
from ascend_dsv4.cli.serve import serve
from ascend_dsv4.errors import RequestError

DEFAULT_MAX_TOKENS: Final = 32
FAMILIES: Final = ("v4", "v41", "v32")
MODEL_NAME: Final = "demo"


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "demo",
        allow_abbrev=False,
        help="try everything with a tiny model; needs no files",
        description="Write a checkpoint of 10 to 15 MB with random weights in the released formats, with every layer type of "
        "its family, load it as any other, and serve it; with --prompt complete a text instead, with --chat talk. The "
        "weights are random, so the text means nothing.",
    )
    parser.add_argument(
        "--model", choices=FAMILIES, default="v4",
        help="family of the model: v4, v41 (n-gram tables, images, a block drafter) or v32 (default: v4)",
    )  # fmt: skip
    parser.add_argument("--prompt", metavar="TEXT", help="complete this text and end")
    parser.add_argument("--chat", action="store_true", help="talk to it in the terminal")
    parser.add_argument("--json", action="store_true", help="with --prompt: print one JSON document when all is done")
    parser.add_argument(
        "--keep-dir", metavar="DIR", type=Path,
        help="new folder for the checkpoint (default: in $XDG_CACHE_HOME, where the next demo finds it again)",
    )  # fmt: skip
    chat.add_chat_options(parser, thinking=False)
    add_sampling_options(parser, max_tokens=DEFAULT_MAX_TOKENS)
    # Decoding the weights once takes 60 MB and makes each step several times faster; the numbers stay the same.
    add_server_options(parser, served_model_name=MODEL_NAME, log_format="text", default_thinking="off", weights="fp32")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write, load, answer."""
    from ascend_dsv4.cli.terminal import note
    from ascend_dsv4.demo import demo_model

    _check_combination(args)
    engine, server, params = engine_config(args), server_config(args), sampling_params(args)
    folder = demo_model(args.keep_dir, args.model)
    size = sum(file.stat().st_size for file in folder.iterdir())
    note(f"demo model: {folder} ({size / 1e6:.1f} MB). Its weights are random: the text means nothing.")
    if args.chat:
        return chat.start(folder, engine, params, args)
    if args.prompt is not None:
        return complete(open_model(folder, engine), [args.prompt], params, as_json=args.json)
    return serve(folder, engine, server, partial(_announce, has_chat=args.model != "v32"))


def _announce(url: str, model_name: str, *, has_chat: bool) -> None:
    from ascend_dsv4.cli.terminal import note

    path = "chat/completions" if has_chat else "completions"
    content = """"messages": [{"role": "user", "content": "Hello"}]""" if has_chat else '"prompt": "Hello"'
    note(
        f"serving on {url} (open it in a browser for the status page); Ctrl-C stops. Try:\n\n"
        f"curl {url}/v1/{path} -H 'Content-Type: application/json' \\\n"
        f"""  -d '{{"model": "{model_name}", {content}, "max_tokens": 32}}'\n""",
        style="default",
    )


def _check_combination(args: argparse.Namespace) -> None:
    if args.chat and (args.json or args.prompt is not None):
        raise RequestError("--chat: got it with --prompt or --json, but a conversation is neither. Leave one of them out.")
    if args.json and args.prompt is None:
        raise RequestError("--json: got it without --prompt, but only a completion is a document. Add --prompt.")
    chosen = {"--tools": args.tools, "--system": args.system, "--reasoning-effort": args.reasoning_effort}
    wrong = [name for name, value in (chosen | {"--thinking": args.thinking or None}).items() if value is not None]
    if wrong and not args.chat:
        raise RequestError(f"{', '.join(wrong)}: got without --chat, but only a conversation has it. Add --chat.")
